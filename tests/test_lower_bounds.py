"""Every lower bound in pyproject.toml has passed the tests of `.ci/lowest`.

`.ci/lowest` runs this file to know the bounds, and keeps them once the tests have passed with them.
"""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PASSED = ROOT / ".ci/lowest.txt"


def bounds() -> list[str]:
    """The requirements with a lower bound, the package's and those of its extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    every = [*project["dependencies"], *(line for extra in extras for line in extra)]
    return sorted({line for line in every if ">=" in line})


def test_every_lower_bound_has_passed_the_tests() -> None:
    passed = PASSED.read_text().splitlines()
    assert bounds() == passed, (
        "pyproject.toml has other lower bounds than .ci/lowest.txt; run `.ci/lowest`, which tests "
        "with the lowest versions and writes that file when they pass"
    )


if __name__ == "__main__":
    print(*bounds(), sep="\n")
