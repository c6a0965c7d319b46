"""The causal language model: decoder, LoRA, weights, generation. Knows nothing of ECGs."""
