"""Frozen cells: methods that train a head on the features of an encoder that does not change."""
