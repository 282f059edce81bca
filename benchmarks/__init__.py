"""Measurements of the speed: ``python -m benchmarks``; see README.rst."""
