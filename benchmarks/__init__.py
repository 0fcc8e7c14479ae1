"""Measurements beside a peer on the same work in one run: `python -m benchmarks`. Nothing here is a test."""
