"""The first stage of a two-stage baseline: an encoder is trained by itself."""
