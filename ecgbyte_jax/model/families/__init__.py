"""Hugging Face's decoder families."""
