"""For workers of the `dramatiq` command, beside the module of an example: holds one of its actors back for a while."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import dramatiq
from dramatiq.middleware import Middleware

#: What in the environment names the actor, and what a file: while there is none, its messages wait.
ACTOR, FILE = "HOLD_ACTOR", "HOLD_UNTIL"


class Hold(Middleware):
    def before_process_message(self, broker: dramatiq.Broker, message: dramatiq.Message[Any]) -> None:
        if message.actor_name == os.environ[ACTOR]:
            while not Path(os.environ[FILE]).exists():
                time.sleep(0.01)


if FILE in os.environ:
    dramatiq.get_broker().add_middleware(Hold())
