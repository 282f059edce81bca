"""Tests of the web: a real server, a real store, a real browser."""
