"""Module for workers of the `dramatiq` command: it delays one actor of an example until a file exists."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import dramatiq
from dramatiq.middleware import Middleware

#: Environment variables with the name of the actor, and with the path of the file for which its messages wait.
ACTOR, FILE = "HOLD_ACTOR", "HOLD_UNTIL"


class Hold(Middleware):
    def before_process_message(self, broker: dramatiq.Broker, message: dramatiq.Message[Any]) -> None:
        if message.actor_name == os.environ[ACTOR]:
            while not Path(os.environ[FILE]).exists():
                time.sleep(0.01)


if FILE in os.environ:
    dramatiq.get_broker().add_middleware(Hold())
