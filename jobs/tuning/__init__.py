"""Tuning: every method with its search of hyper-parameters, on every task."""
