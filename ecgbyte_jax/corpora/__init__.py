"""Readers of the corpora, which yield `Example`s."""
