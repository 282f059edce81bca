"""A Django project whose page enqueues a job and shows its bar, with django_dramatiq.  Run the last two commands in
the directory above this one, each in a terminal of its own:

    export DJANGO_SETTINGS_MODULE=django_app.settings       # in both terminals
    python -m django rundramatiq
    python -m django runserver

The environment variable REDIS_URL has the URL of the Redis server that both use; by default redis://127.0.0.1:6379/0.
"""
