"""From recordings to token shards: cleaning, quantising, training the tokenizer, writing; no jax."""
