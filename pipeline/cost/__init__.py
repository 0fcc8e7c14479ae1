"""Cost of a run before it starts: parameters, FLOPs, memory, disk. No torch."""
