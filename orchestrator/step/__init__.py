"""One step of an experiment: its address, its fingerprint, and how two steps differ."""
