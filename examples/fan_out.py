"""A job sends its work as many messages, which increment its progress; another process follows all of them.

    dramatiq examples.fan_out --processes 2 --threads 4             # in a terminal of its own
    python examples/fan_out.py follow "$(python examples/fan_out.py send 200)"

All commands read these environment variables. Behind each semicolon is the default:

    REDIS_URL         URL of the broker's Redis; redis://127.0.0.1:6379/0
    STATUS_STORE      store of the statuses, redis or memcached; redis
    STATUS_URL        URL of the statuses' Redis; redis://127.0.0.1:6379/1
    MEMCACHED_SERVER  address of the statuses' memcached, host:port; 127.0.0.1:11211
"""

from __future__ import annotations

import argparse
import json
import os
import time

import dramatiq
from dramatiq.brokers.redis import RedisBroker

from dramatiq_status import StatusMiddleware, StatusRegistry, current_progress, current_status
from dramatiq_status.backend import StatusBackend


def status_backend() -> StatusBackend:
    """Make the backend of the store that the environment names."""
    store = os.environ.get("STATUS_STORE", "redis")
    if store == "redis":
        from dramatiq_status.backends import RedisBackend

        return RedisBackend(url=os.environ.get("STATUS_URL", "redis://127.0.0.1:6379/1"))
    if store == "memcached":
        from dramatiq_status.backends import MemcachedBackend

        return MemcachedBackend(servers=os.environ.get("MEMCACHED_SERVER", "127.0.0.1:11211"))
    raise SystemExit(f"STATUS_STORE must be redis or memcached, not {store!r}.")


broker = RedisBroker(url=os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0"))
broker.add_middleware(StatusMiddleware(backend=status_backend()))
dramatiq.set_broker(broker)


# The workers' part


class BrokenPicture(Exception):
    """A picture that cannot be read, so that a retry would not help."""


@dramatiq.actor(status_ttl=86_400_000)
def make_thumbnails(pictures: int, pause: int) -> None:
    """Send a message for each picture.

    This job is completed as soon as all messages are sent.  Its bar then moves on until the last child has ended.  So
    `status_ttl` has to be longer than the time that all children take.

    Parameters:
      pictures(int): Number of pictures.
      pause(int): Milliseconds that each picture takes.
    """
    status = current_status()
    children = [make_thumbnail.message(number, pause, status.message_id) for number in range(pictures)]
    # Write the total and the field before the first message is sent, so that no reader sees a bar without a total.
    current_progress().total = pictures
    status["children"] = [child.message_id for child in children]
    dramatiq.group(children).run()


@dramatiq.actor(status_ttl=86_400_000, throws=BrokenPicture)
def make_thumbnail(number: int, pause: int, parent_id: str) -> None:
    """Shrink a picture, and increment the progress of the job that has sent the message.

    Parameters:
      number(int): Number of the picture.  Every twentieth one cannot be read.
      pause(int): Milliseconds that the picture takes.
      parent_id(str): Message id of that job.
    """
    time.sleep(pause / 1000)
    if number % 20 == 19:
        raise BrokenPicture(f"picture {number}")
    # This is the last line, because a message that fails after its increment counts again when it is retried.
    StatusRegistry.progress(parent_id).increment()


# The part of other processes


def send(pictures: int, pause: int) -> None:
    """Enqueue the job, and print the id of its message."""
    print(make_thumbnails.send(pictures, pause).message_id)


def follow(parent_id: str) -> None:
    """Print a line for each change, and at the end the numbers of pictures and of messages as JSON."""
    parent = StatusRegistry.wait(parent_id, timeout=60_000)
    if parent.failed:
        raise SystemExit(f"The messages were not sent: {parent.exception}")
    # A completed parent has sent all messages.  Their own statuses show how they end.
    for batch in StatusRegistry.batch(parent["children"]).watch():
        bar = StatusRegistry.progress(parent_id).to_dict()
        print(f"{bar['progress']}/{bar['total']} made  {batch}", flush=True)
    print(json.dumps({"made": bar["progress"], "of": bar["total"], "status": batch.state, **batch.counts}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    sending = commands.add_parser("send", help="enqueue the job and print the message id")
    sending.add_argument("pictures", nargs="?", type=int, default=200)
    sending.add_argument("--pause", type=int, default=100, help="milliseconds that each picture takes; by default 100")
    following = commands.add_parser("follow", help="print the progress until all pictures are done")
    following.add_argument("parent_id")
    arguments = vars(parser.parse_args())
    {"send": send, "follow": follow}[arguments.pop("command")](**arguments)


if __name__ == "__main__":
    main()
