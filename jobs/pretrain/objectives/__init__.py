"""Training objectives: supervised classification, or contrast of images and texts."""
