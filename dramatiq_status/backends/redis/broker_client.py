"""A client for Dramatiq's Redis broker."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, cast

import redis
from redis.commands.core import Script
from redis.exceptions import ConnectionError, NoScriptError, TimeoutError

from ...errors import NotSupported
from .._timed import quieten
from .broker_calls import BrokerCalls


class BrokerScript(Script):
    """A script of the broker.

    redis-py's own call also checks whether its client is a pipeline, and takes 2.2 microseconds instead of 0.6.
    """

    def __call__(self, keys: Any = None, args: Any = None, client: Any = None) -> Any:
        if client is None and keys:
            try:
                return self.registered_client.evalsha(self.sha, len(keys), *keys, *(args or ()))
            except NoScriptError:
                # redis-py's own call loads the script.
                pass
        # redis-py 5.0 takes no None.
        return super().__call__(keys or (), args or (), client)


class BrokerClient(redis.Redis):
    """A client of redis-py for Dramatiq's Redis broker: see :meth:`.RedisBackend.broker_client`.

    The broker's calls of its script use connections of this package.  They need half of the processor time of
    redis-py's connections, with the same time-outs, retries and errors.  Everything else goes through redis-py: all
    other commands, pipelines and subscriptions, and the broker's calls as well if

    - the connections or their pool are not of redis-py's usual classes, as with Sentinels,
    - the parameters contain ``decode_responses``, a ``credential_provider`` or a cache,
    - another package has replaced ``execute_command``, as packages for tracing do.
    """

    #: The broker's calls; None where all calls go through redis-py.
    broker_calls: BrokerCalls | None = None

    def evalsha(self, sha: str, numkeys: int, *keys_and_args: Any) -> Any:
        """Call a script."""
        calls = self.broker_calls
        if calls is None or not calls.takes(self, numkeys, keys_and_args):
            return super().evalsha(sha, numkeys, *keys_and_args)
        if not calls.repeats:
            return calls.call(sha, keys_and_args)
        try:
            return calls.call(sha, keys_and_args)
        except TimeoutError:
            pass
        except ConnectionError:
            # The server has probably closed all connections.  The first retry also sends the attached updates.
            calls.close()
            with suppress(ConnectionError, TimeoutError):
                return calls.call(sha, keys_and_args)
        # redis-py makes the other retries.
        return super().evalsha(sha, numkeys, *keys_and_args)

    def register_script(self, script: Any) -> BrokerScript:
        """Make a script that calls this client."""
        return BrokerScript(self, script)

    def close(self) -> None:
        """Close the connections."""
        if self.broker_calls is not None:
            self.broker_calls.close()
        super().close()


def make_broker_client(client: Any, *, is_cluster: bool) -> BrokerClient:
    """Make a client for Dramatiq's broker that connects as another client does.

    Raises:
      NotSupported: On a cluster, or for a client of another driver than redis-py.
    """
    if is_cluster:
        raise NotSupported("RedisBackend: Dramatiq's broker cannot store its queues on a cluster.")
    if not isinstance(client, redis.Redis):
        raise NotSupported("RedisBackend: Dramatiq's broker needs a client of redis-py.")
    made = BrokerClient(connection_pool=client.connection_pool)
    try:
        made.broker_calls = BrokerCalls(client.connection_pool)
    except ValueError:
        # All calls go through redis-py.
        pass
    return cast(BrokerClient, quieten(made))
