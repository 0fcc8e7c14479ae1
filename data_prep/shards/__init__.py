"""Token shards: writing them in parallel, reading them from disk or object storage."""
