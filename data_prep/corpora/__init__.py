"""Documents of a corpus: local files, hub data sets, and what is kept out of them."""
