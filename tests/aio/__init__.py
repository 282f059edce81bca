"""Tests of statuses in an event loop."""
