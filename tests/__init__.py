"""The tests of dramatiq-status: against real servers, which `servers.py` starts."""
