"""The `t5-pipeline` command."""
