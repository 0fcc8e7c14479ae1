"""Prediction with many prompts on one T5; exchange of prompts with other libraries."""
