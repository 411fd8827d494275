"""Corpora: from any source of images to keyed, checked, shuffled Parquet shards."""
