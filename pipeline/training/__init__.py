"""Training: losses, optimizers, schedules, the Trainer, checkpoints and engines."""
