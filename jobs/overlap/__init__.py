"""Overlap: which samples of a task's test part have a copy among those that are trained on."""
