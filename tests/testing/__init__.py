"""Tests of what the package offers to tests: bound statuses, and the conformance suite."""
