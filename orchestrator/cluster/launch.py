"""Checks a cluster file (`ray up FILE`) before you pay a cloud for it.

Takes the file's path. Gives the faults that the installed Ray's schema finds, and the versions that
the file pins. Never checks what only the cloud knows: quotas, images, a provider's fields under
`node_config`.
"""

from __future__ import annotations

import logging
import platform
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from jobs import strict_yaml
from jobs.storage.bounded import read_text
from orchestrator.errors import UserError

PROVIDERS = ("aws", "gcp", "local", "azure")

_IMAGE = re.compile(r":(?P<ray>\d+\.\d+\.\d+)-py(?P<python>\d{2,3})")
_PIN = re.compile(r"(?P<name>ray|torch)(?:\[[^\]]*\])?==(?P<version>[0-9][0-9.]*)")
_PUBLIC = re.compile(r"--(?:dashboard-host|host)[= ](?:0\.0\.0\.0|::)")


@dataclass(frozen=True)
class Pins:
    """The versions that a cluster file pins, by package; `python` as major.minor."""

    found: Mapping[str, frozenset[str]]

    def differences(self) -> Iterator[str]:
        """Pins that differ from the installed version, and pins that contradict each other."""
        for name, versions in sorted(self.found.items()):
            here = installed(name)
            if len(versions) > 1:
                yield f"it pins {name} twice, to {' and '.join(sorted(versions))}; keep one"
            elif here not in versions:
                (pinned,) = versions
                yield (
                    f"it pins {name} {pinned} but {here} is installed here; a driver and its "
                    f"cluster need the same: change the pin, or install {name} {pinned}"
                )


def installed(name: str) -> str:
    """The installed version of Python (major.minor) or of a package (without `+local`)."""
    if name == "python":
        return ".".join(platform.python_version_tuple()[:2])
    return metadata.version(name).partition("+")[0]


def load(path: Path) -> dict[str, Any]:
    """The file's content. Raises UserError if it is not a mapping in YAML."""
    try:
        content = strict_yaml.parse(read_text(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); give a cluster file") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {strict_yaml.in_words(error)}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: must be a mapping, such as `cluster_name: nml`")
    return content


def validate(path: Path) -> dict[str, Any]:
    """The file's content, if the installed Ray accepts it. Else raises UserError with the field."""
    content = load(path)
    kind = (content.get("provider") or {}).get("type")
    if kind not in PROVIDERS:
        raise UserError(
            f"{path}: provider.type = {kind!r}: must be one of {', '.join(PROVIDERS)}; correct it"
        )
    import jsonschema
    from ray.autoscaler._private.util import prepare_config, validate_config

    logging.getLogger("ray.autoscaler").setLevel(logging.ERROR)
    try:
        validate_config(prepare_config(content))
    except jsonschema.ValidationError as error:
        field = ".".join(map(str, error.absolute_path)) or "the file"
        raise UserError(f"{path}: {field}: {error.message}; correct the file") from None
    except (ValueError, KeyError, RuntimeError, AssertionError, TypeError) as error:
        raise UserError(
            f"{path}: Ray refuses it ({type(error).__name__}: {' '.join(str(error).split())}); "
            f"correct the file"
        ) from None
    return content


def pins(content: Mapping[str, Any]) -> Pins:
    """The versions of Ray, torch and Python in images and in `pip install` commands."""
    found: dict[str, set[str]] = {}
    for image in _images(content):
        match = _IMAGE.search(image)
        if match:
            python = match["python"]
            found.setdefault("ray", set()).add(match["ray"])
            found.setdefault("python", set()).add(f"{python[0]}.{python[1:]}")
    for command in _commands(content):
        for match in _PIN.finditer(command):
            found.setdefault(match["name"], set()).add(match["version"])
    return Pins({name: frozenset(versions) for name, versions in found.items()})


def public_listeners(content: Mapping[str, Any]) -> list[str]:
    """Commands that make a dashboard or a server listen on every address."""
    return [command for command in _commands(content) if _PUBLIC.search(command)]


def _images(content: Mapping[str, Any]) -> Iterator[str]:
    docker = content.get("docker") or {}
    types = (content.get("available_node_types") or {}).values()
    for section in (docker, *((kind.get("docker") or {}) for kind in types)):
        for name in ("image", "head_image", "worker_image"):
            if section.get(name):
                yield str(section[name])


def _commands(content: Mapping[str, Any]) -> Iterator[str]:
    for name, value in content.items():
        if name.endswith("_commands"):
            yield from map(str, value or ())
    for kind in (content.get("available_node_types") or {}).values():
        yield from map(str, kind.get("worker_setup_commands") or ())
