"""Data sets that label their recordings, as questions about them."""
