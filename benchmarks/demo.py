"""The time of the demo for a new user: the first sweep, the second, and the short commands.

Run it with the project installed: `python benchmarks/demo.py`. Ends with one line of JSON: wall
seconds of the demo sweep (five levels, packages installed), of the same sweep again, and the
medians of five runs of `--help` and `plan`.
"""

import json
import subprocess
import sys
import tempfile
import time
from statistics import median

NOISE = ["--noise", "0,5,10,20,30"]


def seconds(folder: str, *words: str) -> float:
    begun = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "nml_orch", *words],
        cwd=folder,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return time.perf_counter() - begun


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        result = {
            "help_s": median(seconds(folder, "--help") for _ in range(5)),
            "plan_s": median(seconds(folder, "plan", *NOISE) for _ in range(5)),
            "first_sweep_s": seconds(folder, "sweep", *NOISE),
            "again_s": seconds(folder, "sweep", *NOISE),
        }
    print(json.dumps({name: round(value, 2) for name, value in result.items()}))


if __name__ == "__main__":
    main()
