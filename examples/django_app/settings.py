"""The settings: statuses need the middleware, the application, and the dict DRAMATIQ_STATUS."""

import os

SECRET_KEY = os.environ.get("SECRET_KEY", "only for the example")
DEBUG = True
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "django_app.urls"
INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django_dramatiq",
    "dramatiq_status.web.django",
    "django_app",
]
MIDDLEWARE = [
    "django.middleware.gzip.GZipMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
]
# A visitor's session is in a cookie, so that the example needs no database.
SESSION_ENGINE = "django.contrib.sessions.backends.signed_cookies"
TEMPLATES = [{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}]

REDIS_URL = os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0")
os.environ.setdefault("DRAMATIQ_STATUS_URL", REDIS_URL)
DRAMATIQ_BROKER = {
    "BROKER": "dramatiq.brokers.redis.RedisBroker",
    "OPTIONS": {"url": REDIS_URL},
    "MIDDLEWARE": [
        "dramatiq.middleware.AgeLimit",
        "dramatiq.middleware.Retries",
        "dramatiq_status.StatusMiddleware",
    ],
}
# The tag of the bar signs a token for the visitor of the page. Users read their own jobs, and staff read all jobs.
DRAMATIQ_STATUS = {"AUTHORIZE": "dramatiq_status.web.django.owner_or_staff", "TOKENS": True}
