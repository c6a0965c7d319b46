"""Users' own recordings in the files that ECG machines and people write."""
