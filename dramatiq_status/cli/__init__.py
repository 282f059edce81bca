"""The command line: ``dramatiq-status``, and ``python -m dramatiq_status``."""
