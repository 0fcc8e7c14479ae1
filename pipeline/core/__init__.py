"""Foundations without torch or knowledge of stages: errors, schemas, files, checksums."""
