"""One module per way to solve a task: its files, its training if it has its own, and how it answers."""
