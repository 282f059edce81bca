"""Template tags: ``{% load dramatiq_status %}``."""
