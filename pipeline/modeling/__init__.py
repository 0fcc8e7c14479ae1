"""The model: T5, the frozen T5 with its prompts, and how both are read and written."""
