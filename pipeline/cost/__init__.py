"""Cost of a run before it starts: parameters, FLOPs, memory, disk space. No torch."""
