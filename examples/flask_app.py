"""A page that enqueues a job and shows its bar.  Run each command in this directory, in a terminal of its own:

    dramatiq flask_app
    flask --app flask_app run

The environment variable REDIS_URL has the URL of the Redis server that both use; by default redis://127.0.0.1:6379/0.
"""

import os
import time

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from flask import Flask, request

from dramatiq_status import StatusMiddleware, track
from dramatiq_status.backends import RedisBackend
from dramatiq_status.web.wsgi import StatusViews

REDIS_URL = os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0")

broker = RedisBroker(url=REDIS_URL)
broker.add_middleware(StatusMiddleware(backend=RedisBackend(url=REDIS_URL)))
dramatiq.set_broker(broker)
app = Flask(__name__)
# Every visitor may read every status. A real application compares a field with the session's user.
jobs = StatusViews(authorize=lambda request, status: "read")


@dramatiq.actor
def import_orders() -> None:
    for _ in track(range(100), step="reading"):
        time.sleep(0.01)


@app.get("/jobs/<path:path>")
def job(path: str) -> tuple[bytes, int, dict[str, str]]:
    return jobs.answer(path, request)


@app.get("/")
def page() -> str:
    bar = f'<dramatiq-status src="/jobs/{import_orders.send().message_id}" label="Orders of May"></dramatiq-status>'
    return f'<script type="module" src="/jobs/dramatiq-status.js"></script>{bar}'
