"""Backends by their URLs."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qsl, unquote

from ..backend import StatusBackend
from ..record import MAX_WHOLE_NUMBER, whole_number_in

#: Environment variable with the URL that is used if none is passed.
VARIABLE: Final = "DRAMATIQ_STATUS_URL"

_URL = re.compile(r"(?P<scheme>[a-z][a-z+]*)://(?P<authority>[^/?#]*)(?P<path>[^?#]*)(?:\?(?P<query>[^#]*))?")
_PARTS = re.compile(r"^(?:[^:/?#]*://)?([^/?#]*)(.*)", re.DOTALL)
_HOST = re.compile(r"(?P<host>\[[0-9A-Fa-f:.%]+\]|[^:\[\]\s]+)(?::(?P<port>\d{1,5}))?")


class _Address(NamedTuple):
    """The parts of a URL between its scheme and its query, decoded."""

    hosts: list[tuple[str, int]]
    username: str | None
    password: str | None
    path: str

    @property
    def login(self) -> dict[str, Any]:
        """The username and the password, as parameters of a backend."""
        given = {"username": self.username, "password": self.password}
        return {name: value for name, value in given.items() if value is not None}


def backend_from_url(url: str | None = None, **parameters: Any) -> StatusBackend:
    """Make a backend from a URL.

    >>> backend_from_url("redis://:secret@db.internal:6379/1?namespace=shop&timeout=250")
    <RedisBackend 'shop'>

    - ``redis://[[user]:password@]host[:port][/db]``; ``rediss://`` with TLS;
      ``unix://[[user]:password@]/path/to.sock[?db=0]``.
      ``valkey://`` and ``valkeys://`` are the same as the first two.
    - ``redis+sentinel://[[user]:password@]host[:port],host[:port]/service[/db]``.  The login is for the master.  The
      query parameters ``sentinel_username`` and ``sentinel_password`` are for the Sentinels.
    - ``redis+cluster://[[user]:password@]host[:port],host[:port]``.
    - ``rediss+sentinel://`` and ``rediss+cluster://`` with TLS.
    - ``memcached://[user:password@]host[:port],host[:port]``, or ``memcached:///path/to.sock``.
    - ``sqlite:///relative/path`` and ``sqlite:////absolute/path``.
    - ``memory://``, for one process.

    Names, passwords and paths may be percent-encoded.  A name or a password must be encoded if it contains one of
    ``%/?#@:,``, and a path if it contains one of ``%?#``.

    The query parameters of all URLs are ``namespace``, ``timeout`` and ``max_field_size``.  URLs of Redis also have
    ``max_listed`` and ``client_name``, and with TLS ``ssl_ca_certs``, ``ssl_certfile``, ``ssl_keyfile``,
    ``ssl_cert_reqs`` and ``ssl_check_hostname``.  URLs of memcached also have ``meta``.

    Parameters:
      url(str): The URL; by default the value of the environment variable ``DRAMATIQ_STATUS_URL``.
      **parameters: Parameters of the backend.  They take precedence over the parameters in the URL.

    Raises:
      TypeError: When `url` is not a str.
      ValueError: When there is no URL, or a part of it is wrong.
      ImportError: When the store's client is not installed.
    """
    where = "The URL"
    if url is None:
        url = os.environ.get(VARIABLE)
        where = f"The URL in {VARIABLE}"
        if not url:
            raise ValueError(
                f"There is no status store: pass a backend or its URL, or set the environment variable {VARIABLE}."
            )
    if not isinstance(url, str):
        raise TypeError(f"url must be a str, not {type(url).__name__}.")
    problem = ""
    try:
        name, found = _parse(url)
    except ValueError as e:
        problem = str(e)
    if problem:
        # The error is raised outside of the `except`.  Inside, its context would contain a password.
        raise ValueError(f"{where}, {mask(url)!r}, is wrong: {problem}")
    from .. import backends

    backend: StatusBackend = getattr(backends, name)(**{**found, **parameters})
    return backend


def check_login(url: str) -> None:
    """Refuse a URL with a ``@`` behind its host.  The text in front of this ``@`` is part of a password that was not
    encoded.  This text must not be used as a host, and no error may contain it.

    Raises:
      ValueError: When the URL has such a ``@``.
    """
    authority, rest = _PARTS.findall(url)[0]
    _, _, hosts = authority.rpartition("@")
    query = rest.partition("?")[2]
    if "@" in (rest if hosts else query):
        raise ValueError(
            "a name or a password with one of '%/?#@:,' in it has to be percent-encoded: '/' is %2F, '?' is %3F, "
            "'@' is %40."
        )


def mask(url: str) -> str:
    """Hide the login in a URL, and every other part that may belong to an unencoded password.

    >>> mask("redis://ann:secret@db.internal/1?timeout=250")
    'redis://***@db.internal/1?timeout=250'
    >>> mask("redis://ann:sec#ret@db.internal/1"), mask("ann:secret@db.internal")
    ('redis://***', '***')
    """
    match = _URL.fullmatch(url)
    if match is None or "@" in (match["path"] + (match["query"] or "")):
        return _only_scheme(url)
    _, at, hosts = match["authority"].rpartition("@")
    if hosts and not all(map(_HOST.fullmatch, hosts.split(","))):
        return _only_scheme(url)
    query = "" if match["query"] is None else "?" + "&".join(map(_mask_parameter, match["query"].split("&")))
    return f"{match['scheme']}://{at and '***@'}{hosts}{match['path']}{query}"


def _only_scheme(url: str) -> str:
    scheme, found, _ = url.partition("://")
    return f"{scheme}://***" if found and scheme in _SCHEMES else "***"


def _mask_parameter(text: str) -> str:
    name, equals, _ = text.partition("=")
    return text if equals and name in _HARMLESS else "***"


def _parse(url: str) -> tuple[str, dict[str, Any]]:
    """Return the name of the backend's class, and its parameters."""
    match = _URL.fullmatch(url)
    if match is None:
        raise ValueError("write it like 'redis://host:6379/0', 'memcached://host:11211' or 'sqlite:///status.db'.")
    scheme = match["scheme"]
    if scheme not in _SCHEMES:
        raise ValueError(f"{scheme!r} is none of {', '.join(_SCHEMES)}.")
    check_login(url)
    name, default_port, read, options = _SCHEMES[scheme]
    address = _read_address(match, default_port)
    parameters = read(address)
    query = match["query"] or ""
    for option, text in _read_query(query):
        if option not in options:
            if "sentinel_password" in parameters or "@" in query:
                # The text may be part of a password that contains a '&' or a '?'.
                raise ValueError(
                    f"a parameter is none of {', '.join(options)}; in passwords, '&' is %26 and '?' is %3F."
                )
            if option in _TLS and name == "RedisBackend":
                raise ValueError(f"the parameter {option!r} is for TLS, as with rediss:// and rediss+sentinel://.")
            raise ValueError(f"the parameter {option!r} is none of {', '.join(options)}.")
        parameters[option] = options[option](option, text)
    if scheme.startswith(("rediss", "valkeys")):
        parameters["ssl"] = True
    if parameters.get("ssl_cert_reqs") == "none" and parameters.get("ssl_check_hostname"):
        raise ValueError("ssl_check_hostname needs a certificate, which ssl_cert_reqs=none does not require.")
    if "sentinels" in parameters:
        _move_sentinel_parameters(parameters)
    return name, parameters


def _read_query(query: str) -> list[tuple[str, str]]:
    try:
        return parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
    except ValueError:
        raise ValueError("parameters are written like '?namespace=shop&timeout=250'.") from None


def _read_address(match: re.Match[str], default_port: int) -> _Address:
    login, at, authority = match["authority"].rpartition("@")
    username, colon, password = login.partition(":")
    hosts = []
    for text in authority.split(",") if authority else ():
        found = _HOST.fullmatch(text)
        if found is None:
            raise ValueError("hosts are written like 'host', 'host:6379' or '[::1]:6379', with commas between them.")
        port = int(found["port"]) if found["port"] else default_port
        if found["port"] and not 0 < port < 65_536:
            raise ValueError("the port must be from 1 to 65535.")
        hosts.append((unquote(found["host"].strip("[]")), port))
    return _Address(
        hosts, unquote(username) or None if at else None, unquote(password) if colon else None, unquote(match["path"])
    )


# The parts of a URL behind the hosts, one function for each kind of store.


def _read_redis(address: _Address) -> dict[str, Any]:
    ((host, port),) = _some(address, at_most=1) if address.hosts else (("127.0.0.1", 6379),)
    return {"host": host, "port": port, "db": _read_db(address.path.strip("/")), **address.login}


def _read_unix(address: _Address) -> dict[str, Any]:
    if address.hosts or not address.path.strip("/"):
        raise ValueError("the path of a socket follows three slashes, like 'unix:///run/redis.sock'.")
    return {"unix_socket_path": address.path, **address.login}


def _read_sentinel(address: _Address) -> dict[str, Any]:
    service_name, _, db = address.path.strip("/").partition("/")
    if not service_name:
        raise ValueError("the name of the master follows the hosts, like 'redis+sentinel://host:26379/mymaster'.")
    return {"sentinels": _some(address), "service_name": service_name, "db": _read_db(db), **address.login}


def _read_cluster(address: _Address) -> dict[str, Any]:
    if address.path.strip("/") not in ("", "0"):
        raise ValueError("a cluster has only database 0: only parameters may follow its hosts.")
    return {"cluster_nodes": _some(address), **address.login}


def _read_memcached(address: _Address) -> dict[str, Any]:
    if not address.hosts and address.path.strip("/"):
        return {"servers": f"unix:{address.path}", **address.login}
    if address.path.strip("/"):
        raise ValueError("only parameters may follow the hosts of memcached.")
    return {"servers": _some(address), **address.login}


def _read_sqlite(address: _Address) -> dict[str, Any]:
    if address.hosts or len(address.path) < 2:
        raise ValueError("a path follows three slashes: 'sqlite:///status.db', or 'sqlite:////var/lib/status.db'.")
    return {"path": address.path[1:]}


def _read_memory(address: _Address) -> dict[str, Any]:
    if address.hosts or address.path.strip("/"):
        raise ValueError("only parameters may follow 'memory://'.")
    return {}


def _some(address: _Address, at_most: int = 1000) -> list[tuple[str, int]]:
    if not address.hosts:
        raise ValueError("the URL has no host.")
    if len(address.hosts) > at_most:
        raise ValueError("there is more than one host in it: write redis+cluster:// or redis+sentinel://.")
    return address.hosts


def _read_db(text: str) -> int:
    if text and not text.isdecimal():
        # It may be a part of a password.
        raise ValueError("the path ends with the number of a database.")
    return whole_number_in(text or "0", MAX_WHOLE_NUMBER)


def _move_sentinel_parameters(parameters: dict[str, Any]) -> None:
    """Move the login for Sentinels into ``sentinel_kwargs``, and copy the TLS parameters there."""
    own = {
        name.removeprefix("sentinel_"): parameters.pop(name)
        for name in ("sentinel_username", "sentinel_password")
        if name in parameters
    }
    own.update({name: value for name, value in parameters.items() if name.startswith("ssl")})
    if own:
        parameters["sentinel_kwargs"] = own


# Query parameters.


def _text(name: str, text: str) -> str:
    return text


def _number(name: str, text: str) -> int:
    if not text.isdecimal():
        raise ValueError(f"the parameter {name!r} must be a number, not {text!r}.")
    return whole_number_in(text, MAX_WHOLE_NUMBER)


def _bool(name: str, text: str) -> bool:
    if text.lower() not in _BOOLS:
        raise ValueError(f"the parameter {name!r} must be 'true' or 'false', not {text!r}.")
    return _BOOLS[text.lower()]


def _cert_reqs(name: str, text: str) -> str:
    if text not in ("none", "optional", "required"):
        raise ValueError(f"the parameter {name!r} must be 'none', 'optional' or 'required', not {text!r}.")
    return text


_BOOLS: Final = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}

_Options = Mapping[str, Callable[[str, str], Any]]

_COMMON: Final[_Options] = {"namespace": _text, "timeout": _number, "max_field_size": _number}
_REDIS: Final[_Options] = {**_COMMON, "max_listed": _number, "client_name": _text}
_TLS: Final[_Options] = {
    "ssl_ca_certs": _text,
    "ssl_certfile": _text,
    "ssl_keyfile": _text,
    "ssl_cert_reqs": _cert_reqs,
    "ssl_check_hostname": _bool,
}
_SENTINEL: Final[_Options] = {"sentinel_username": _text, "sentinel_password": _text}
_MEMCACHED: Final[_Options] = {**_COMMON, "meta": _bool}

#: Query parameters whose values are never secret.
_HARMLESS: Final = frozenset({**_REDIS, **_TLS, **_MEMCACHED, "db": _number})

_Scheme = tuple[str, int, Callable[[_Address], dict[str, Any]], _Options]

#: By scheme: the backend's class, the default port, the function that reads the parts, and the query parameters.
_SCHEMES: Final[dict[str, _Scheme]] = {
    "redis": ("RedisBackend", 6379, _read_redis, _REDIS),
    "rediss": ("RedisBackend", 6379, _read_redis, {**_REDIS, **_TLS}),
    "unix": ("RedisBackend", 0, _read_unix, {**_REDIS, "db": _number}),
    "valkey": ("RedisBackend", 6379, _read_redis, _REDIS),
    "valkeys": ("RedisBackend", 6379, _read_redis, {**_REDIS, **_TLS}),
    "redis+sentinel": ("RedisBackend", 26379, _read_sentinel, {**_REDIS, **_SENTINEL}),
    "rediss+sentinel": ("RedisBackend", 26379, _read_sentinel, {**_REDIS, **_TLS, **_SENTINEL}),
    "redis+cluster": ("RedisBackend", 6379, _read_cluster, _REDIS),
    "rediss+cluster": ("RedisBackend", 6379, _read_cluster, {**_REDIS, **_TLS}),
    "memcached": ("MemcachedBackend", 11211, _read_memcached, _MEMCACHED),
    "sqlite": ("SQLiteBackend", 0, _read_sqlite, _COMMON),
    "memory": ("StubBackend", 0, _read_memory, _COMMON),
}
