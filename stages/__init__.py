"""The pipeline as stage scripts, one page each. Nothing imports them but tests."""
