"""How fast it is: ``python -m benchmarks``; see README.rst."""
