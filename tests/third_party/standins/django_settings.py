"""The settings of django_dramatiq's tests, which its source distribution lacks."""

from __future__ import annotations

from pathlib import Path

_DATABASE = str(Path(__file__).with_name("db.sqlite3"))

SECRET_KEY = "x"
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.AutoField"
INSTALLED_APPS = ["django_dramatiq", "tests.testapp1", "tests.testapp2", "tests.testapp3"]
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": _DATABASE,
        "TEST": {"NAME": _DATABASE},
        # A worker's thread waits for the test's lock.
        "OPTIONS": {"timeout": 20},
    }
}
DRAMATIQ_BROKER = {
    "BROKER": "dramatiq.brokers.stub.StubBroker",
    "OPTIONS": {"fail_fast_default": False},
    "MIDDLEWARE": [
        *(f"dramatiq.middleware.{name}" for name in ("AgeLimit", "TimeLimit", "Callbacks", "Retries")),
        "django_dramatiq.middleware.AdminMiddleware",
        "django_dramatiq.middleware.DbConnectionsMiddleware",
    ],
}
