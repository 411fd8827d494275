"""Overlap: which images of a task's test part have a copy among the images that are trained on."""
