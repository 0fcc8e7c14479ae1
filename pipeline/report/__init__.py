"""The report of a run: one HTML page with inline plots that works offline."""
