"""Questions about any recordings, whose answers are measured in them."""
