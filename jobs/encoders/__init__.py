"""Pretrained encoders, not trained here: imported once, then used like any other."""
