"""Corpora: any source in; keyed, checked, shuffled Parquet shards out."""
