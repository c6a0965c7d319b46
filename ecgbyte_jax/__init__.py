"""ECG-Byte in JAX: 12-lead ECGs as byte-pair tokens for language models, trained end to end."""

__version__ = "0.1.0"
