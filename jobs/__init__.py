"""The Ray workloads: one folder for each stage.

The data flows corpus -> noise overlay -> pre-training -> features -> tuning. Stages never call one
another. A stage reads the files in the output folders of earlier stages; the code that writes a
file defines its Arrow schema. In each stage only `job.py` imports Ray; the science beside it is
numpy or torch. Nothing here imports `orchestrator`.

A process that imports this package runs no AMX kernels of oneDNN, which torch uses on x86 CPUs:
their bf16 gradients are not the same twice. A setting of the user's own is left as it is.
"""

import os

INSTRUCTION_SETS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
"""oneDNN's variables for the newest instruction set that it may use, the older name last."""

# oneDNN 3.13's AMX kernel for the weight gradient of a convolution reads memory that nobody wrote:
# now and then its bf16 gradients are NaN. oneDNN reads the variable at its first kernel, so that it
# must be set before. The value is the newest set without AMX, and a maximum: a CPU with less uses
# what it has.
if not any(name in os.environ for name in INSTRUCTION_SETS):
    os.environ[INSTRUCTION_SETS[0]] = "AVX512_CORE_FP16"
