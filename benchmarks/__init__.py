"""Measurements beside a peer on the same work in one run: `python -m benchmarks [NAME …]`. Nothing here is a test."""
