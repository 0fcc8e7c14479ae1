"""t5-pipeline: LM adaptation of T5 and prompt tuning, as stages and as a library."""

__version__ = "0.1.0"
