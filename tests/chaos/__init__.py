"""The project's chaos harness: real workers, real servers, faults from a seed, and a check of every status.

    python -m tests.chaos --seconds 60 --seed 7 --store redis --broker redis

``plan`` draws jobs and faults, and ``runner`` carries out the plan. The workers run ``app``. ``servers`` and ``crew``
carry out faults. ``watcher`` records what readers see, and ``facts`` records what the processes do. ``history`` orders
these facts by message, and ``checker`` compares them with what the readers saw.
"""
