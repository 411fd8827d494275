"""Tuning: every method's hyper-parameters over every task, on frozen features."""
