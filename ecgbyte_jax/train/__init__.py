"""Training: steps, their loop, checkpoints, and the way back from a checkpoint to a model."""
