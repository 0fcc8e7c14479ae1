"""Running stages: staleness, the runner, launching, and what a stage script sees."""
