"""A page that enqueues a job and shows its bar.  Run each command in this directory, in a terminal of its own:

    dramatiq fastapi_app
    uvicorn fastapi_app:app

The environment variable REDIS_URL has the URL of the Redis server that both use; by default redis://127.0.0.1:6379/0.
"""

import os
import time

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from fastapi import FastAPI
from fastapi.responses import HTMLResponse

from dramatiq_status import StatusMiddleware, track
from dramatiq_status.backends import RedisBackend
from dramatiq_status.web import allow_all, status_app

REDIS_URL = os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0")

broker = RedisBroker(url=REDIS_URL)
broker.add_middleware(StatusMiddleware(backend=RedisBackend(url=REDIS_URL)))
dramatiq.set_broker(broker)
app = FastAPI()
app.mount("/jobs", status_app(authorize=allow_all))


@dramatiq.actor
def import_orders() -> None:
    for _ in track(range(100), step="reading"):
        time.sleep(0.01)


@app.get("/", response_class=HTMLResponse)
def page() -> str:
    bar = f'<dramatiq-status src="/jobs/{import_orders.send().message_id}" label="Orders of May"></dramatiq-status>'
    return f'<script type="module" src="/jobs/dramatiq-status.js"></script>{bar}'
