"""T5, soft prompts before a frozen T5, and their files."""
