"""What a sweep does once: a step, its address, and where two steps differ."""
