"""The published claims: what each compares, how a verdict follows, and the papers' numbers."""
