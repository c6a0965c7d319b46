"""Scores of the probabilities that a model gives to each possible answer."""
