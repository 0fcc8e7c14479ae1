"""Benchmarks against a baseline doing the same work in the same run: `python -m benchmarks [NAME …]`. Not tests."""
