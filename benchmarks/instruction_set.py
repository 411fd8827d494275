"""The cost of equal bf16 numbers on a CPU with AMX: training steps without AMX over those with it.

Run it with the project installed: `python benchmarks/instruction_set.py` (some minutes). Ends with
one line of JSON: for each model, processor time of a bf16 training step under
ONEDNN_MAX_CPU_ISA=AVX512_CORE_FP16, which `jobs` sets, over that under ALL. Both sides run in
separate processes, alternate, and use one thread. Figures are medians. On a CPU without AMX it
prints a message and measures nothing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median

ROUNDS = 3
MODELS = {
    "demo": ("resnet18", {"channels": [16, 32, 64, 96], "in_chans": 1, "num_classes": 10}, 16, 64),
    "resnet50": ("resnet50", {}, 224, 4),
    "vit_base_patch16_224": ("vit_base_patch16_224", {}, 224, 4),
}
"""Name -> timm's model, its options, image size, batch."""

STEPS = """
import json, sys, time
from statistics import median
import timm, torch
name, options, size, batch = json.loads(sys.argv[1])
torch.set_num_threads(1)
torch.manual_seed(0)
model = timm.create_model(name, **options)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
images = torch.rand(batch, options.get("in_chans", 3), size, size)
labels = torch.randint(options.get("num_classes", 1000), (batch,))
times = []
for _ in range(8):
    begun = time.process_time()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = torch.nn.functional.cross_entropy(model(images), labels)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    times.append(time.process_time() - begun)
print(median(times[3:]))
"""


def seconds(model: str, instruction_set: str) -> float:
    """Processor time of a step, in a process where oneDNN may use this instruction set."""
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": instruction_set}
    command = [sys.executable, "-c", STEPS, json.dumps(MODELS[model])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


def ratio(model: str) -> float:
    """Capped over uncapped; the sides alternate."""
    rounds = [seconds(model, "AVX512_CORE_FP16") / seconds(model, "ALL") for _ in range(ROUNDS)]
    return round(median(rounds), 2)


def main() -> None:
    """Measure, and print the JSON."""
    if "amx_bf16" not in Path("/proc/cpuinfo").read_text(encoding="utf-8"):
        print("this CPU has no AMX: nothing to measure")
        return
    print(json.dumps({model: ratio(model) for model in MODELS}))


if __name__ == "__main__":
    main()
