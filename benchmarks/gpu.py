"""Everything about a GPU, measured and tested by one script, within nine minutes on an H200.

    python benchmarks/gpu.py [SECTION ...] [--out FOLDER] [--minutes 9]
    python benchmarks/gpu.py --dry

Needs a CUDA device and the project (installed, or its folder on PYTHONPATH), not Ray. `--dry` tries
the script: every section at a tiny size, on a CPU where there is no GPU. A section runs in a
process of its own and is stopped at its time. One that fails, lacks a package or has no time left
is named with its reason, and the rest goes on. Figures are added to FOLDER/figures.jsonl as they
come, and what the sections print to FOLDER/log.txt. Ends with one line of JSON: all figures, and
`seconds`, `failed` and `left_out` by section. Ends with 1 if a section failed.

What the figures mean stands at each section in `gpu_sections.py`.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from gpu_sections import SECTIONS, Section, run_section

NEEDED = ("torch", "pydantic", "pyarrow", "numpy", "PIL")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument("--out", type=Path, default=Path("gpu-figures"), help="folder")
    parser.add_argument("--minutes", type=float, default=9, help="of the whole")
    parser.add_argument("--dry", action="store_true", help="at a tiny size, also without a GPU")
    parser.add_argument("--within", action="store_true", help=argparse.SUPPRESS)  # a section
    given = parser.parse_args()
    unknown = [name for name in given.sections if name not in SECTIONS]
    if unknown:
        parser.error(f"there is no section {unknown[0]}; choose from {', '.join(SECTIONS)}")
    lacking = missing(NEEDED)
    if lacking:
        return refuse(f"{', '.join(lacking)} must be installed for any section")
    if given.within:
        run_section(given.sections[0], given.dry, given.out / "figures.jsonl")
        return 0
    import torch

    if not torch.cuda.is_available() and not given.dry:
        return refuse("this machine has no CUDA device; --dry tries the script without one")
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "figures.jsonl").write_text("")
    (given.out / "log.txt").write_text("")
    end = time.monotonic() + 60 * given.minutes
    seconds: dict[str, float] = {}
    failed: dict[str, str] = {}
    left_out: dict[str, str] = {}
    for name in given.sections or SECTIONS:
        section, begun = SECTIONS[name], time.monotonic()
        lacking = missing(section.packages)
        if lacking:
            left_out[name] = f"not installed: {', '.join(lacking)}"
        elif end - begun < 5:
            left_out[name] = "no time was left"
        else:
            reason = measure(section, name, given.out, given.dry, end - begun)
            seconds[name] = round(time.monotonic() - begun, 1)
            failed |= {} if reason is None else {name: reason}
        said = failed.get(name) or left_out.get(name) or "done"
        print(f"{name}: {said} ({seconds.get(name, 0)} s)", flush=True)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    result: dict[str, Any] = {"device": device, "torch": torch.__version__, "dry": given.dry}
    for line in (given.out / "figures.jsonl").read_text().splitlines():
        result |= json.loads(line)
    result |= {"seconds": seconds, "failed": failed, "left_out": left_out}
    print(json.dumps(result))
    return 1 if failed else 0


def refuse(reason: str) -> int:
    print(f"gpu.py: {reason}", file=sys.stderr)
    return 2


def missing(packages: tuple[str, ...]) -> list[str]:
    return [name for name in packages if importlib.util.find_spec(name) is None]


def measure(section: Section, name: str, out: Path, dry: bool, left: float) -> str | None:
    """Run a section in a process of its own; the reason if it failed."""
    limit = left if dry else min(section.seconds, left)
    words = [sys.executable, __file__, name, "--within", "--out", str(out)]
    with (out / "log.txt").open("a+") as log:
        log.write(f"-- {name}\n")
        log.flush()
        process = subprocess.Popen(
            words + ["--dry"] * dry, stdout=log, stderr=log, start_new_session=True
        )
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # with the processes that decode for it
            process.wait()
            return f"stopped after {limit:.0f} s"
        log.seek(0)
        lines = log.read().split(f"-- {name}\n")[-1].split("\n")
    said = [line for line in lines if line.strip()]
    return None if code == 0 else f"{said[-1][:300] if said else 'no message'} (exit code {code})"


if __name__ == "__main__":
    sys.exit(main())
