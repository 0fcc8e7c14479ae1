"""The HTTP server: OpenAI-style completions, classification, prompts, metrics and the page."""
