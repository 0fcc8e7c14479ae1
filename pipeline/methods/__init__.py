"""One module per way to solve a task: its artifact, how it loads, how it answers."""
