"""From tokens and text to batches: prompts, token shards, Grain pipelines."""
