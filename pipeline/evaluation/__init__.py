"""Answers of a model (label scoring, greedy decoding) and their scores."""
