"""The Ray workloads: one folder for each stage.

The data flows corpus -> noise overlay -> pre-training -> features -> tuning. Stages never call one
another. A stage reads the files in the output folders of earlier stages; the code that writes a
file defines its Arrow schema. In each stage only `job.py` imports Ray; the science beside it is
numpy or torch. Nothing here imports `orchestrator`.
"""
