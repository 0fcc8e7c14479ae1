"""Objectives: from token documents to (inputs, targets), each a pure function of (seed, epoch, index)."""
