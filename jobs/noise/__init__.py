"""Noise: which samples of a corpus are wrong at each level, as an overlay on its shards."""
