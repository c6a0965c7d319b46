"""From tokens and text to batches: prompt, token shards, Grain pipelines."""
