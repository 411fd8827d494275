"""Noise: which labels or captions of a corpus are wrong at each level, as overlays on shards."""
