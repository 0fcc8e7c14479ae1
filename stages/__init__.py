"""The stages as scripts, one page each. Only tests import them."""
