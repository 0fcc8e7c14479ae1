"""Checkpoints: saving, pruning and finding them; files; engine-neutral tensor shards."""
