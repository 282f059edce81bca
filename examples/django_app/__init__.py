"""A Django project whose page enqueues a job and shows its bar, with django_dramatiq and Redis.

From `examples`: `DJANGO_SETTINGS_MODULE=django_app.settings django-admin runserver`, and the same with `rundramatiq`.
"""
