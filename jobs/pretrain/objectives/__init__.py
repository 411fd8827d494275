"""What a model is trained to do: supervised classification or image-text contrast."""
