"""Serving many prompts on one T5, and exchanging prompts with other libraries."""
