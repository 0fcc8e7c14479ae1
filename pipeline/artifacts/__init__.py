"""Artifacts that stages exchange: their kinds, digests, manifests and run directory."""
