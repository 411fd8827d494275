"""What forked workers spare: a small sweep with them and with workers that Ray starts.

Run it with the project installed: `python benchmarks/forks.py [ROUNDS]`. Each round makes the demo
sweep without noise twice, with and without the fork server, in turns. Ends with one line of JSON:
the medians of the ratios, forked to usual, of wall seconds, of processor seconds of all processes,
and of the peak of proportional memory (shared pages counted once); and the medians themselves.

The peak is read twice a second, which itself takes some time of a processor.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from statistics import median

import psutil

SWEEP = ["sweep", "--noise", "0", "--seeds", "0"]
WAIT = 0.5  # seconds between two looks at the processes


def measured(fork: str) -> dict[str, float]:
    """A sweep with NML_FORK set to this."""
    processors: dict[tuple[int, float], float] = {}
    peak = 0.0
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [sys.executable, "-m", "nml_orch", *SWEEP],
            cwd=folder,
            env={**os.environ, "NML_FORK": fork},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while process.poll() is None:
            held = 0.0
            with contextlib.suppress(psutil.Error):
                first = psutil.Process(process.pid)
                for each in [first, *first.children(recursive=True)]:
                    with contextlib.suppress(psutil.Error):
                        spent = each.cpu_times()
                        processors[each.pid, each.create_time()] = spent.user + spent.system
                        held += each.memory_full_info().pss / 1e6
            peak = max(peak, held)
            time.sleep(WAIT)
        if process.returncode:
            sys.exit(f"the sweep ended with {process.returncode}")
    return {
        "wall": time.perf_counter() - begun,
        "processor": sum(processors.values()),
        "peak_mb": peak,
    }


def main(rounds: int) -> None:
    pairs = []
    for turn in range(rounds):
        order = ("1", "0") if turn % 2 else ("0", "1")
        found = {fork: measured(fork) for fork in order}
        pairs.append((found["1"], found["0"]))
        print(pairs[-1], file=sys.stderr)
    names = pairs[0][0]
    result = {f"{name}_ratio": median(f[name] / u[name] for f, u in pairs) for name in names}
    result |= {f"{name}_forked": median(forked[name] for forked, _ in pairs) for name in names}
    result |= {f"{name}_usual": median(usual[name] for _, usual in pairs) for name in names}
    print(json.dumps({name: round(value, 3) for name, value in result.items()}))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
