"""Checkpoints: everything a run needs to go on at the very next batch, bit for bit.

Takes model, optimiser, position, running sums and curves; keeps them in a run's scratch folder as
`checkpoint-<updates>.safetensors` and, written last, `checkpoint-<updates>.json`, which names the
tensors' sha256. The last two are kept. Schedule, data order, augmentation and every random draw
are functions of the seed and the position, so there is no other state to keep. Nothing is
unpickled.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from jobs.contract import StageError
from jobs.place import Place

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

    def __init__(self, place: Place) -> None:
        self._place = place
        self.damaged = 0
        """Checkpoints that `latest` found unreadable and passed over."""

    def save(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        progress: Progress,
        extras: Mapping[str, Mapping[str, Tensor]] | None = None,
    ) -> None:
        """Write one, then drop all but the last two. Raises StageError for non-finite weights.

        `extras`: other tensors a run must have again (the moving average, the loss scale).
        """
        tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
        _refuse_non_finite(tensors, progress.position, self.last_good())
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
        data = safetensors.torch.save(
            {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
        )
        name = f"checkpoint-{progress.position.updates:09d}"
        self._place.write_bytes(f"{name}.safetensors", data)
        described = {
            "progress": asdict(progress),
            "scalars": scalars,
            # Some optimisers count their steps here. All else is a setting or the schedule's.
            "groups": [
                {"step": float(group["step"])} if "step" in group else {}
                for group in stored["param_groups"]
            ],
            "sha256": hashlib.sha256(data).hexdigest(),
        }
        self._place.write_json(f"{name}.json", described)
        for old in self._names()[:-KEEP]:
            self._place.delete(f"{old}.json")
            self._place.delete(f"{old}.safetensors")

    def latest(self) -> Checkpoint | None:
        """The newest whole checkpoint; None without any. Damaged ones are counted."""
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


def _refuse_non_finite(tensors: Mapping[str, Tensor], position: Position, good: str) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise StageError(
                f"{name.removeprefix('model.')} is not finite after update {position.updates}; "
                f"{good}; lower schedule.lr, lengthen schedule.warmup_epochs or set "
                f"schedule.clip_grad_norm"
            )


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
