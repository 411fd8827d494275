"""Corpora: any source in, keyed Parquet shards out, and noise as an overlay on them."""
