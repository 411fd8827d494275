"""Pre-training: one encoder for each noise level and seed, by one loop with two objectives."""
