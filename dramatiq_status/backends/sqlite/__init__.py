"""The SQLite backend: statuses in one file."""

from .backend import SQLiteBackend

__all__ = ["SQLiteBackend"]
