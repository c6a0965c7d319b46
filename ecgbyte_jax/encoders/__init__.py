"""Encoders of whole ECGs, as two-stage systems train them first: from arrays of signals to features, with their objectives."""
