"""Checkpoints: all that a run needs to resume at the next batch, bit for bit.

Takes model, optimizer, position, running sums and curves; writes them to a run's scratch folder as
`checkpoint-<updates>.safetensors` and then `checkpoint-<updates>.json`, with the sha256 of both.
Keeps the last two. Schedule, data order, augmentation and random draws are functions of the seed
and the position, so there is no other state. Never unpickles.

Saving copies the state to host memory and returns; a thread checks and writes the copy while
training continues. An error in the thread is raised by the next call, so a run ends with its last
complete checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from jobs import records
from jobs.contract import StageError
from jobs.storage.folder import Folder

KEEP = 2
LOWER_LR = (
    "lower `pretrain.recipe.schedule.lr`, lengthen `pretrain.recipe.schedule.warmup_epochs` or set "
    "`pretrain.recipe.schedule.clip_grad_norm`"
)
"""What to do about weights or losses that are not finite."""


@dataclass(frozen=True)
class Position:
    """How far a run is."""

    epoch: int = 0  # finished epochs
    step: int = 0  # finished batches of the current epoch
    updates: int = 0  # finished batches in all


@dataclass(frozen=True)
class Point:
    """One value of a curve."""

    metric: str
    step: int  # finished epochs
    value: float


@dataclass(frozen=True)
class Progress:
    """The state in a checkpoint other than tensors."""

    position: Position = Position()
    sums: tuple[tuple[float, ...], ...] = ()  # running sums of the current epoch
    curves: tuple[Point, ...] = ()
    telemetry: tuple[tuple[float, ...], ...] = ()  # rows of `telemetry.Telemetry`
    skipped: tuple[int, int] = (0, 0)  # skipped updates: in all, and the last ones in a row
    damaged: tuple[str, ...] = ()  # names of the images met that cannot be decoded


@dataclass(frozen=True)
class _Metadata:
    """A checkpoint's JSON file: all but the tensors, and their digest."""

    progress: Progress
    scalars: dict[str, dict[str, int | float]]
    groups: list[dict[str, float]]
    sha256: str
    own_sha256: str = ""  # of all the rest; empty in checkpoints of earlier versions


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint read from its files."""

    progress: Progress
    tensors: Mapping[str, Tensor]
    scalars: Mapping[str, Mapping[str, float]]  # parameter -> numbers of its optimizer state
    groups: Sequence[Mapping[str, float]]  # the optimizer's counters for each parameter group
    folder: str  # where it lies

    def extra(self, name: str) -> dict[str, Tensor]:
        """The tensors saved as this extra; empty without any."""
        return _with_prefix(self.tensors, f"{name}.")

    def restore(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Restore weights and optimizer state, in place.

        The optimizer keeps the settings it was built with. Raises StageError when the checkpoint
        is not of this model and optimizer.
        """
        weights = _with_prefix(self.tensors, "model.")
        state: dict[int, dict[str, Any]] = {int(i): dict(v) for i, v in self.scalars.items()}
        for name, tensor in _with_prefix(self.tensors, "optimizer.").items():
            number, _, key = name.partition(".")
            state.setdefault(int(number), {})[key] = tensor
        try:
            model.load_state_dict(weights)
            built = optimizer.state_dict()["param_groups"]
            groups = [{**a, **b} for a, b in zip(built, self.groups, strict=True)]
            optimizer.load_state_dict({"state": state, "param_groups": groups})
        except (RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise StageError(
                f"the checkpoint after {self.progress.position.updates} updates is not of this "
                f"model ({reason}); delete {self.folder} to train the run from the start"
            ) from error


class Checkpoints:
    """A run's checkpoints in its scratch folder."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._writer: threading.Thread | None = None
        self._error: Exception | None = None
        self.damaged = 0
        """Number of unreadable checkpoints that `latest` skipped."""
        self.seconds = 0.0
        """Time that writing the last checkpoint took."""

    def save(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        progress: Progress,
        extras: Mapping[str, Mapping[str, Tensor]] | None = None,
    ) -> None:
        """Copy the state, and write it in a thread; then delete all but the last two checkpoints.

        Waits for the previous one, and raises its error as `check` does. `extras`: other tensors
        to restore (the moving average, the loss scale).
        """
        self.join()
        tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
        for name, values in (extras or {}).items():
            tensors.update({f"{name}.{key}": value for key, value in values.items()})
        scalars: dict[str, dict[str, float]] = {}
        stored = optimizer.state_dict()
        for number, state in stored["state"].items():
            for key, value in state.items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer.{number}.{key}"] = value
                elif value is not None:
                    scalars.setdefault(str(number), {})[key] = value
        metadata = {
            "progress": asdict(progress),
            "scalars": scalars,
            # Some optimizers count their steps here. All else is set by the recipe or the schedule.
            "groups": [
                {"step": float(group["step"])} if "step" in group else {}
                for group in stored["param_groups"]
            ],
        }
        copies = {name: _host_copy(tensor) for name, tensor in tensors.items()}
        self._writer = threading.Thread(
            target=self._write_and_keep_error,
            args=(copies, metadata, progress.position),
            name="checkpoint",
        )
        self._writer.start()

    def check(self) -> None:
        """Raise the error of the last checkpoint, if any.

        It is a StageError for weights that are not finite or a failed write.
        """
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def join(self) -> None:
        """Wait until the last checkpoint is written. Raises its error, as `check` does."""
        self.wait()
        self.check()

    def wait(self) -> None:
        """Wait until nothing is being written. Raises nothing."""
        if self._writer is not None:
            self._writer.join()
            self._writer = None

    # -- in the writer's thread ------------------------------------------------------------------

    def _write_and_keep_error(
        self, tensors: Mapping[str, Tensor], metadata: dict[str, Any], position: Position
    ) -> None:
        begun = time.monotonic()
        try:
            try:
                self._write(tensors, metadata, position)
            except OSError as error:
                raise StageError(
                    f"the checkpoint after update {position.updates} cannot be written to "
                    f"{self._folder.uri} ({error.strerror or error}); {self._last_written()}; "
                    f"check space and permissions there; the same command then resumes"
                ) from error
        except Exception as error:  # raised by the next call, in the training thread
            self._error = error
        self.seconds = time.monotonic() - begun

    def _write(
        self, tensors: Mapping[str, Tensor], metadata: dict[str, Any], position: Position
    ) -> None:
        _refuse_non_finite(tensors, position, self._last_written())
        data = safetensors.torch.save(dict(tensors))
        name = f"checkpoint-{position.updates:09d}"
        self._folder.write_bytes(f"{name}.safetensors", data)
        content = json.loads(json.dumps({**metadata, "sha256": hashlib.sha256(data).hexdigest()}))
        self._folder.write_json(f"{name}.json", {**content, "own_sha256": _own_digest(content)})
        for old in self._complete_names()[:-KEEP]:
            self._folder.delete(f"{old}.json")
            self._folder.delete(f"{old}.safetensors")

    # -- reading ---------------------------------------------------------------------------------

    def latest(self) -> Checkpoint | None:
        """The newest complete checkpoint; None without any. Counts damaged ones."""
        self.wait()
        for name in reversed(self._complete_names()):
            metadata = self._metadata(f"{name}.json")
            try:
                data = self._folder.read_bytes(f"{name}.safetensors")
            except (FileNotFoundError, IsADirectoryError):
                data = b""
            if metadata and hashlib.sha256(data).hexdigest() == metadata.sha256:
                tensors = safetensors.torch.load(data)
                return Checkpoint(
                    metadata.progress,
                    tensors,
                    metadata.scalars,
                    metadata.groups,
                    self._folder.uri,
                )
            self.damaged += 1
        return None

    def _metadata(self, name: str) -> _Metadata | None:
        """A checkpoint's JSON file; None when it is broken or has changed."""
        found = records.find(self._folder, name, _Metadata)
        if found is None or not found.own_sha256:
            return found
        content = json.loads(self._folder.read_bytes(name))
        return found if content.pop("own_sha256") == _own_digest(content) else None

    def last_good(self) -> str:
        """A clause for error messages that names the newest checkpoint."""
        self.wait()
        return self._last_written()

    def _last_written(self) -> str:
        names = self._complete_names()
        if not names:
            return "no checkpoint was taken before it"
        return f"the last good checkpoint is {self._folder.uri}/{names[-1]}.safetensors"

    def _complete_names(self) -> Sequence[str]:
        """Names of the complete checkpoints, oldest first."""
        return [
            name.removesuffix(".json")
            for name, _ in self._folder.files()
            if name.startswith("checkpoint-") and name.endswith(".json")
        ]


def _own_digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _host_copy(tensor: Tensor) -> Tensor:
    """A copy of the tensor in host memory."""
    return tensor.detach().to("cpu", copy=True).contiguous()


def _refuse_non_finite(tensors: Mapping[str, Tensor], position: Position, good: str) -> None:
    for name, tensor in tensors.items():
        weights = name.startswith("model.") and tensor.is_floating_point()
        if weights and not bool(torch.isfinite(tensor).all()):
            raise StageError(
                f"{name.removeprefix('model.')} is not finite after update {position.updates}; "
                f"{good}; {LOWER_LR}"
            )


def _with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
