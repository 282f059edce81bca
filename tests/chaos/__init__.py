"""The project's chaos harness: real workers, real servers, faults from a seed, and a check of every status.

    python -m tests.chaos --seconds 60 --seed 7 --store redis --broker redis

``plan`` draws jobs and faults, ``app`` is what the workers run, ``servers`` and ``crew`` carry out faults, ``watcher``
records what readers see, ``facts`` holds what happened, ``checker`` compares both, ``runner`` brings them together.
"""
