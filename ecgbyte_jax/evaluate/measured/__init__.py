"""Scores of answers that are measured."""
