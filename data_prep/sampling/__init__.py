"""Data order as a pure function of (seed, step): random numbers, permutations, packing, batches."""
