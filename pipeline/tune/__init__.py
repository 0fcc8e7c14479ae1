"""From a file of examples to a tested prompt: what the command `tune` and `tune()` of the API do."""
