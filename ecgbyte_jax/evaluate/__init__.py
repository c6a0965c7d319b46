"""Answers to the questions of a split, and their scores."""
