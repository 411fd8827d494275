"""Checkpoints: everything a run needs to go on at the very next batch, bit for bit.

Takes model, optimiser, position, running sums and curves; keeps them in a run's scratch folder as
`checkpoint-<updates>.safetensors` and, written last, `checkpoint-<updates>.json`, which names the
tensors' sha256. The last two are kept. Schedule, data order, augmentation and every random draw
are functions of the seed and the position, so there is no other state to keep. Nothing is
unpickled.

Saving copies the state to host memory and returns; a thread checks and writes the copy while
training goes on. What goes wrong there is raised by the next call, so that a run ends with the last
checkpoint that was written whole.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from jobs.contract import StageError
from jobs.storage.folder import Folder

KEEP = 2


@dataclass(frozen=True)
class Position:
    """How far a run is."""

    epoch: int = 0  # whole epochs behind it
    step: int = 0  # batches of the current epoch behind it
    updates: int = 0  # batches behind it in all


@dataclass(frozen=True)
class Point:
    """One value of a curve."""

    metric: str
    step: int  # epochs done
    value: float


@dataclass(frozen=True)
class Progress:
    """What a checkpoint holds beside tensors."""

    position: Position = Position()
    sums: tuple[tuple[float, ...], ...] = ()  # running sums of the current epoch
    curves: tuple[Point, ...] = ()
    telemetry: tuple[tuple[float, ...], ...] = ()  # rows of `telemetry.Telemetry`
    skipped: tuple[int, int] = (0, 0)  # updates left out: in all, and the last ones in a row


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as read back."""

    progress: Progress
    tensors: Mapping[str, Tensor]
    scalars: Mapping[str, Mapping[str, float]]  # parameter -> what its optimiser state counts
    groups: Sequence[Mapping[str, float]]  # what the optimiser counts for each group of parameters

    def extra(self, name: str) -> dict[str, Tensor]:
        """What was saved as this extra; empty when nothing was."""
        return _below(self.tensors, f"{name}.")

    def restore(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Put weights and optimiser state back, in place.

        The optimiser's settings stay those it was built with. Raises StageError when the
        checkpoint is not of this model and optimiser.
        """
        weights = _below(self.tensors, "model.")
        state: dict[int, dict[str, Any]] = {int(i): dict(v) for i, v in self.scalars.items()}
        for name, tensor in _below(self.tensors, "optimizer.").items():
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
                f"model ({reason}); delete the run's scratch folder to train it from the start"
            ) from error


class Checkpoints:
    """A run's checkpoints in its scratch folder."""

    def __init__(self, folder: Folder) -> None:
        self._place = folder
        self._writer: threading.Thread | None = None
        self._error: Exception | None = None
        self.damaged = 0
        """Checkpoints that `latest` found unreadable and passed over."""
        self.seconds = 0.0
        """What writing the last one took."""

    def save(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        progress: Progress,
        extras: Mapping[str, Mapping[str, Tensor]] | None = None,
    ) -> None:
        """Copy the state and have it written, once the one before it is; then all but the last
        two are dropped. Raises what `check` raises of the one before it.

        `extras`: other tensors a run must have again (the moving average, the loss scale).
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
        described = {
            "progress": asdict(progress),
            "scalars": scalars,
            # Some optimisers count their steps here. All else is a setting or the schedule's.
            "groups": [
                {"step": float(group["step"])} if "step" in group else {}
                for group in stored["param_groups"]
            ],
        }
        copies = {name: _host_copy(tensor) for name, tensor in tensors.items()}
        self._writer = threading.Thread(
            target=self._write_apart, args=(copies, described, progress.position), name="checkpoint"
        )
        self._writer.start()

    def check(self) -> None:
        """Raise what went wrong with the last one: StageError for weights that are not finite and
        for a checkpoint that cannot be written.
        """
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def join(self) -> None:
        """Wait until the last one is written. Raises what `check` raises."""
        self.settle()
        self.check()

    def settle(self) -> None:
        """Wait until nothing is being written; raises nothing."""
        if self._writer is not None:
            self._writer.join()
            self._writer = None

    # -- in the writer's thread ------------------------------------------------------------------

    def _write_apart(
        self, tensors: Mapping[str, Tensor], described: dict[str, Any], position: Position
    ) -> None:
        begun = time.monotonic()
        try:
            try:
                self._write(tensors, described, position)
            except OSError as error:
                raise StageError(
                    f"the checkpoint after update {position.updates} cannot be written to "
                    f"{self._place.uri} ({error.strerror or error}); {self._last_written()}; see "
                    f"to space and rights there, and the same command goes on from it"
                ) from error
        except Exception as error:  # raised by the next call, in the thread that trains
            self._error = error
        self.seconds = time.monotonic() - begun

    def _write(
        self, tensors: Mapping[str, Tensor], described: dict[str, Any], position: Position
    ) -> None:
        _refuse_non_finite(tensors, position, self._last_written())
        data = safetensors.torch.save(dict(tensors))
        name = f"checkpoint-{position.updates:09d}"
        self._place.write_bytes(f"{name}.safetensors", data)
        digest = hashlib.sha256(data).hexdigest()
        self._place.write_json(f"{name}.json", {**described, "sha256": digest})
        for old in self._names()[:-KEEP]:
            self._place.delete(f"{old}.json")
            self._place.delete(f"{old}.safetensors")

    # -- reading ---------------------------------------------------------------------------------

    def latest(self) -> Checkpoint | None:
        """The newest whole checkpoint; None without any. Damaged ones are counted."""
        self.settle()
        for name in reversed(self._names()):
            described = self._place.read_json(f"{name}.json")
            try:
                data = self._place.read_bytes(f"{name}.safetensors")
            except FileNotFoundError:
                data = b""
            if hashlib.sha256(data).hexdigest() == described["sha256"]:
                stored = described["progress"]
                progress = Progress(
                    position=Position(**stored["position"]),
                    sums=tuple(tuple(row) for row in stored["sums"]),
                    curves=tuple(Point(**point) for point in stored["curves"]),
                    telemetry=tuple(tuple(row) for row in stored["telemetry"]),
                    skipped=(stored["skipped"][0], stored["skipped"][1]),
                )
                tensors = safetensors.torch.load(data)
                return Checkpoint(progress, tensors, described["scalars"], described["groups"])
            self.damaged += 1
        return None

    def last_good(self) -> str:
        """The newest checkpoint in words, for an error's sentence."""
        self.settle()
        return self._last_written()

    def _last_written(self) -> str:
        names = self._names()
        if not names:
            return "no checkpoint was taken before it"
        return f"the last good checkpoint is {self._place.uri}/{names[-1]}.safetensors"

    def _names(self) -> Sequence[str]:
        """Names of the checkpoints that were written to the end, oldest first."""
        return [
            name.removesuffix(".json")
            for name, _ in self._place.files()
            if name.startswith("checkpoint-") and name.endswith(".json")
        ]


def _host_copy(tensor: Tensor) -> Tensor:
    """The tensor's values now, in memory that nobody else changes."""
    return tensor.detach().to("cpu", copy=True).contiguous()


def _refuse_non_finite(tensors: Mapping[str, Tensor], position: Position, good: str) -> None:
    for name, tensor in tensors.items():
        weights = name.startswith("model.") and tensor.is_floating_point()
        if weights and not bool(torch.isfinite(tensor).all()):
            raise StageError(
                f"{name.removeprefix('model.')} is not finite after update {position.updates}; "
                f"{good}; lower schedule.lr, lengthen schedule.warmup_epochs or set "
                f"schedule.clip_grad_norm"
            )


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
