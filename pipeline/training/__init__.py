"""How weights change: optimizers, loss, schedules, the loop, and what lets the loop be killed at any moment."""
