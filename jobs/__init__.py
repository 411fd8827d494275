"""The Ray workloads, one folder a stage, in the order data flows.

corpus -> noise overlay -> pre-training -> features -> tuning. Stages never call one another: they
meet through the files in each other's output folders, whose Arrow schemas stand beside the code
that writes them. In each stage `job.py` alone imports Ray; the science beside it is numpy or torch.
Nothing here imports `orchestrator`.
"""
