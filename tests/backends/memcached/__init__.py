"""The memcached backend."""
