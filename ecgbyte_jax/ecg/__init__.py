"""From a WFDB record to ECG tokens and back: NumPy and SciPy only, no jax."""
