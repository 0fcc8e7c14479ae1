"""SentencePiece vocabularies and the tokenizer files published with a model."""
