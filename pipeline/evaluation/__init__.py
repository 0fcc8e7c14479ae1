"""What a model answers (label scoring, greedy decoding) and how well (metrics)."""
