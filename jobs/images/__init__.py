"""Images, one kind of encoder input: headers, decoding, pixels, augmentation, views, shifts."""
