"""Other projects' test suites, run with our middleware on every broker: ``scripts/third-party``."""
