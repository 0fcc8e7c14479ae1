"""Settings of every stage, the single source of recipe keys, flags and `--help`."""
