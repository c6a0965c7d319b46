"""The published benchmarks' own scoring rules, for the answers to their questions."""
