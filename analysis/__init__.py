"""What an experiment's numbers say: spectra, statistics, figures, the report.

Takes arrays and Arrow tables, gives numbers, figures and files. Pure numpy, pyarrow and matplotlib:
never reads a store, never starts Ray, never imports the stages or the orchestrator.
"""
