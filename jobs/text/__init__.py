"""Text, a kind of encoder input: its specification, tokenizing, batches, views, pooling."""
