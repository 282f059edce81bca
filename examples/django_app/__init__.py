"""A Django project whose page enqueues a job and shows its bar, with django_dramatiq.  In the directory above this one,
each command in a terminal of its own:

    export DJANGO_SETTINGS_MODULE=django_app.settings       # in both
    python -m django rundramatiq
    python -m django runserver

REDIS_URL in the environment is the URL of the Redis that both use; by default redis://127.0.0.1:6379/0.
"""
