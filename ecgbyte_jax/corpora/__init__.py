"""Where examples come from: each reader yields `Example`s."""
