"""Training data: a corpus's part under one level of noise, in a seeded order."""
