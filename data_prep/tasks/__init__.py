"""Tasks: their settings, files, rows, templates, and encoded examples."""
