"""Starts a worker of a private Ray that has a runtime environment, in place of Ray's script.

Ray's script imports Ray, and so does the worker that it becomes: a third of a second more for each
of the four processes of a run. Ray runs this one by its path, and it imports nothing of ours. It
reads environments of variables alone, which Ray Train and Ray Tune give their processes. Any other
goes to Ray's script. Ray leaves out a script of this name where there is no environment.
"""

from __future__ import annotations

import json
import os
import sys
from importlib.util import find_spec

CONTEXT = "--serialized-runtime-env-context="
LANGUAGE = "--language="


def command(words: list[str]) -> tuple[list[str], dict[str, str]]:
    """What to run for the arguments of Ray's script, and the variables to set before."""
    worker = next(at for at, word in enumerate(words) if word.endswith(".py"))
    contexts = [word[len(CONTEXT) :] for word in words if word.startswith(CONTEXT)]
    found = _variables(contexts[0]) if len(contexts) == 1 else None
    if found is None or f"{LANGUAGE}PYTHON" not in words:
        usual = _rays_folder()
        words[worker] = os.path.join(usual, "default_worker.py")
        return [sys.executable, os.path.join(usual, "setup_worker.py"), *words], {}
    return [sys.executable, *(w for w in words if not w.startswith((CONTEXT, LANGUAGE)))], found


def _rays_folder() -> str:
    ray = find_spec("ray")
    assert ray is not None
    assert ray.origin is not None
    return os.path.join(os.path.dirname(ray.origin), "_private", "workers")


def _variables(context: str) -> dict[str, str] | None:
    """Those of a serialized runtime environment; None if it holds more, or Ray must expand one."""
    given = {name: value for name, value in json.loads(context or "{}").items() if value}
    found: dict[str, str] = given.pop("env_vars", {})
    alone = given.pop("py_executable", sys.executable) == sys.executable and not given
    return found if alone and not any("$" in value for value in found.values()) else None


if __name__ == "__main__":
    line, variables = command(sys.argv[1:])
    os.environ.update(variables)
    os.execv(line[0], line)
