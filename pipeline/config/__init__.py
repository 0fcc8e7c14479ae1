"""Settings of every stage: recipe keys, flags and `--help` come from here."""
