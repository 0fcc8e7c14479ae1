"""Text to examples: corpora, the vocabulary, token shards, objectives, task formats. NumPy only; no torch."""
