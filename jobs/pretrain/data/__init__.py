"""Training data: a corpus's part with one level of noise, in a seeded order."""
