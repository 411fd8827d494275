"""The control plane: what to run, where it stands, where results go."""
