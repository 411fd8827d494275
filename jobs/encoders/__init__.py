"""Encoders that are named, not trained here: taken in once, then like any other."""
