"""Documents of a corpus: local files, hub data sets, and decontamination."""
