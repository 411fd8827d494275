"""The control plane: what to run, where it stands, where results go."""

STORAGE = "nml-store"
"""Where results go when nothing else is said."""
