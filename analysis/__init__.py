"""The results of an experiment: statistics, claims, figures, the report.

Takes arrays and Arrow tables, gives numbers, figures and files. Uses numpy, scipy, pyarrow,
matplotlib and Jinja2 alone: never reads a store, never starts Ray, never imports the stages or the
orchestrator.
"""
