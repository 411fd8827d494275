"""Trains one configuration of `lora` or `ft`, an encoder and a head, epoch by epoch.

It trains like a member of the stacked engine, on inputs instead of features: the same views of
every sample (drawn by key; `Budget.views` chooses those of an epoch), the same batch order for the
same seed, AdamW with one schedule over all epochs, cross-entropy over the rows of every view,
and COV and SVD (the `released` form) on the encoder's features where their weight is not 0. The
head has the space's learning rate, the encoder `encoder_lr` times that rate. With `encoder_lr: 0`
it is the linear probe. A method of an extension has losses of its own (`own.py`).

Its whole state (weights, AdamW's moments, the results of every epoch) can be saved to a safetensors
file, so that an interrupted trial continues after its last finished epoch and gives the same
numbers. A configuration whose loss is no longer finite ends there, and the reason is recorded.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import pyarrow as pa
import safetensors
import safetensors.torch
import torch
from pydantic import TypeAdapter
from torch import Tensor

from jobs.contract import StageError
from jobs.encoders.interface import Inputs as Batch
from jobs.features.spec import Precision
from jobs.images.spec import Views
from jobs.tasks.target import Metric
from jobs.tuning import nmtune
from jobs.tuning.budget import Budget
from jobs.tuning.class_mapping import ClassMapping
from jobs.tuning.finetune.inputs import Inputs
from jobs.tuning.finetune.model import AdaptedEncoder
from jobs.tuning.finetune.own import OwnMethod
from jobs.tuning.heads import seeded
from jobs.tuning.metrics import Judged, from_columns
from jobs.tuning.schedule import BETAS, EPS, share
from jobs.tuning.trained import Configuration

_HISTORY = "history"  # in the metadata of a state file
_PIECE = 256  # rows at once in an evaluation


@dataclass(frozen=True)
class EpochNumbers:
    """The losses and scores of one configuration after an epoch."""

    train: dict[str, float]  # by name in `trained.TERMS`, means over the epoch
    validation_loss: float
    validation: dict[str, float]  # scores by name, see `metrics`
    failed: str | None = None  # why it ended here

    def by(self, metric: Metric) -> float:
        """The validation score by the task's own metric."""
        return float(stacked([self]).of(metric))


def stacked(epochs: Sequence[EpochNumbers]) -> Judged:
    """The validation scores of several configurations, in the form of one stack's scores."""
    columns = {name: [epoch.validation[name] for epoch in epochs] for name in epochs[0].validation}
    return from_columns({n: torch.tensor(c, dtype=torch.float64) for n, c in columns.items()})


@dataclass(frozen=True)
class ViewSettings:
    """View settings and precision, the same for all configurations of a cell."""

    views: Views
    scope: str  # the corpus's name; views are drawn by it and the key
    precision: Precision = "float32"


class FineTuning:
    """A configuration in training."""

    def __init__(
        self,
        adapted: AdaptedEncoder,
        training: Inputs,
        validation: Inputs,
        configuration: Configuration,
        budget: Budget,
        view_settings: ViewSettings,
        *,
        seed: int,
    ) -> None:
        if len(training.labels) < 2:
            raise ValueError(f"{len(training.labels)} training samples; a batch needs two")
        self.adapted = adapted
        self.history: list[EpochNumbers] = []
        self._training, self._validation = training, validation
        self._configuration, self._budget, self._view_settings = (
            configuration,
            budget,
            view_settings,
        )
        self._seed = seed
        self._device = adapted.encoder.device
        self._own: OwnMethod | None = None
        if adapted.own is not None:
            some = training.prepared.take(torch.tensor([0]))
            self._own = OwnMethod(adapted, configuration, self._features, some, seed)
        self._labels = training.labels.to(self._device)
        self._encoder_names = list(adapted.trained())
        groups = [list(adapted.trained().values()), list(adapted.head.values())]
        self._shares = (adapted.method.encoder_lr, 1.0)  # of the learning rate, by group
        self._optimizer = torch.optim.AdamW(
            [{"params": group} for group in groups],
            lr=configuration.lr,
            betas=BETAS,
            eps=EPS,
            weight_decay=configuration.weight_decay,
        )

    @property
    def failure(self) -> str | None:
        """Why the configuration failed; None if it did not."""
        return self.history[-1].failed if self.history else None

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in an epoch; a last batch of one sample is left out."""
        samples, size = len(self._labels), self._budget.batch_size
        return samples // size + (samples % size > 1)

    def run_epoch(self) -> EpochNumbers:
        """Train for one epoch, then validate."""
        sums: dict[str, float] = {}
        seen = 0
        failed = None
        model = self.adapted.encoder.model
        if self._own is not None:
            self._prepare(self._own)
            self._own.train(True)
        model.train(self.adapted.method.encoder_mode == "train")
        for step, samples in enumerate(self._batches()):
            terms = self._step(samples, len(self.history) * self.steps_per_epoch + step)
            for name, value in terms.items():
                sums[name] = sums.get(name, 0.0) + len(samples) * value
            seen += len(samples)
            if not torch.isfinite(torch.tensor(terms["loss"])):
                failed = self._reason("training loss", step)
                break
        model.eval()
        if self._own is not None:
            self._own.train(False)
            if failed is None and len(self.history) + 1 == self._budget.epochs:
                self._own.finish()
        loss, predicted = evaluate(self.adapted, self._validation, self._view_settings.precision)
        if failed is None and not torch.isfinite(torch.tensor(loss)):
            failed = self._reason("validation loss", self.steps_per_epoch)
        scores = self.adapted.shape.target.judge(self._validation.labels, predicted[None])
        self.history.append(
            EpochNumbers(
                {name: total / seen for name, total in sums.items()},
                loss,
                {name: float(values) for name, values in vars(scores).items()},
                failed,
            )
        )
        return self.history[-1]

    def _reason(self, what: str, step: int) -> str:
        epoch = len(self.history)
        steps = epoch * self.steps_per_epoch + step
        return f"{what} not finite in epoch {epoch + 1} after {steps} steps"

    def _batches(self) -> Iterator[Tensor]:
        generator = seeded(self._seed, "order", len(self.history) + 1)
        order = torch.randperm(len(self._labels), generator=generator)
        size = self._budget.batch_size
        for step in range(self.steps_per_epoch):
            yield order[step * size : (step + 1) * size]

    def _step(self, samples: Tensor, taken: int) -> dict[str, float]:
        """One optimizer step on a batch; its losses by name. A non-finite loss skips the step."""
        inputs = self._views(samples)
        views = len(inputs) // len(samples)
        targets = self._targets(samples, views)
        steps = self.steps_per_epoch * self._budget.epochs
        if self._own is None:
            loss, terms = self._losses(inputs, targets, taken)
        else:
            terms = self._own.losses(inputs, targets, views, taken, steps)
            loss = torch.stack(list(terms.values())).sum()
        if loss.isfinite():
            self._optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            if self._own is not None and taken == 0:
                self._own.check_gradients()
            rate = self._configuration.lr * share(self._budget.schedule, taken, steps)
            for group, part in zip(self._optimizer.param_groups, self._shares, strict=True):
                group["lr"] = rate * part
            self._optimizer.step()
        return {name: float(value.detach()) for name, value in {"loss": loss, **terms}.items()}

    def _losses(
        self, inputs: Batch, targets: Tensor, taken: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a built-in method, and its terms by name."""
        with self._dropout(taken):
            features = self._features(inputs)
        target = self.adapted.shape.target
        terms = {target.term: target.losses(self.adapted.logits(features), targets, "mean")}
        weights = {"cov": self._configuration.cov, "svd": self._configuration.svd}
        if any(weights.values()):
            found = nmtune.spread(
                features[None],
                nmtune.RELEASED,
                cov=weights["cov"] != 0,
                svd=weights["svd"] != 0,
            )
            terms |= {n: v[0] for n, v in zip(weights, found, strict=True) if weights[n]}
        return terms[target.term] + sum(w * terms[n] for n, w in weights.items() if w), terms

    def _features(self, inputs: Batch) -> Tensor:
        return self.adapted.features(inputs, self._view_settings.precision)

    def _targets(self, samples: Tensor, views: int) -> Tensor:
        """The encoded targets [V * M] of M training samples, view after view."""
        target = self.adapted.shape.target
        targets = self._labels[samples.to(self._device)].repeat(views)
        return target.encoded(targets, target.blank).to(target.dtype)

    @torch.no_grad()
    def _prepare(self, own: OwnMethod) -> None:
        """Before the first step: give the method the features of all rows, as it starts."""
        if self.history or not own.prepares:
            return
        every = torch.arange(len(self._labels))
        found = []
        for samples in torch.split(every, self._budget.batch_size):
            features = self._features(self._views(samples))
            found.append(features.reshape(-1, len(samples), features.shape[1]))
        rows = torch.cat(found, 1)  # [V, N, D]
        own.prepare(rows.flatten(0, 1), self._targets(every, len(rows)))

    @contextlib.contextmanager
    def _dropout(self, taken: int) -> Iterator[None]:
        """A context where dropout draws from the seed and the number of steps taken alone."""
        if self.adapted.method.encoder_mode == "eval":
            yield
            return
        with torch.random.fork_rng(devices=[self._device] if self._device.type == "cuda" else []):
            torch.manual_seed(seeded(self._seed, "dropout", taken).initial_seed())
            yield

    def _views(self, samples: Tensor) -> Batch:
        """The epoch's views of M training samples, view after view: [V * M] rows."""
        views = self._view_settings.views
        numbers: list[int] = []
        if views.count and self._budget.views != 0:
            epoch = len(self.history) + 1
            numbers = [view + 1 for view in self._budget.views_of(epoch, views.count)]
        keys = self._training.keys.take(pa.array(samples.numpy()))
        inputs = self._training.prepared.take(samples)
        scope = self._view_settings.scope
        return self.adapted.encoder.views(inputs, keys, views, numbers, scope)

    # -- state -------------------------------------------------------------------------------------

    def save(self) -> bytes:
        """The state needed to continue after the last finished epoch, as a safetensors file."""
        tensors = {f"encoder.{name}": value for name, value in self.adapted.state().items()}
        tensors |= {f"head.{name}": value for name, value in self.adapted.head_state().items()}
        for name, parameter in self._named():
            for kind, value in self._optimizer.state.get(parameter, {}).items():
                # A copy, because safetensors refuses tensors that share memory.
                tensors[f"adamw.{kind}.{name}"] = value.detach().cpu().clone()
        history = json.dumps([asdict(epoch) for epoch in self.history])
        return safetensors.torch.save(tensors, metadata={_HISTORY: history})

    def restore(self, data: bytes) -> None:
        """Load a state from `save`. Raises StageError when it is damaged or does not fit."""
        state = State.read(data)
        self.adapted.load(state.encoder, state.head)
        self.history = list(state.history)
        for name, parameter in self._named():
            own = {
                kind: state.adamw[f"{kind}.{name}"]
                for kind in ("step", "exp_avg", "exp_avg_sq")
                if f"{kind}.{name}" in state.adamw
            }
            if own:
                moments = {k: v.to(self._device) for k, v in own.items() if k != "step"}
                self._optimizer.state[parameter] = {"step": own["step"], **moments}

    def _named(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        yield from ((f"encoder.{name}", p) for name, p in self.adapted.trained().items())
        yield from ((f"head.{name}", p) for name, p in self.adapted.head.items())


_EPOCHS = TypeAdapter(tuple[EpochNumbers, ...])


class BrokenStateError(StageError):
    """A configuration's state file is damaged."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"the state of a configuration is damaged ({reason}); delete the cell's folder in "
            f".scratch and run the cell again"
        )


@dataclass(frozen=True)
class State:
    """The content of a configuration's state file."""

    encoder: dict[str, Tensor]  # as `AdaptedEncoder.state` gives it
    head: dict[str, Tensor]
    adamw: dict[str, Tensor]
    history: tuple[EpochNumbers, ...]

    @staticmethod
    def read(data: bytes) -> State:
        """Parse a state file, without pickle. Raises BrokenStateError when it is damaged."""
        history = history_of(data)
        try:
            tensors = safetensors.torch.load(data)
        except safetensors.SafetensorError as error:
            raise BrokenStateError(str(error)) from None

        def below(prefix: str) -> dict[str, Tensor]:
            return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}

        return State(below("encoder."), below("head."), below("adamw."), history)


def history_of(data: bytes) -> tuple[EpochNumbers, ...]:
    """The epochs in a state file, without its tensors. Raises BrokenStateError when damaged."""
    length = int.from_bytes(data[:8], "little")  # the format: header size, JSON header, tensors
    try:
        history = json.loads(data[8 : 8 + length])["__metadata__"][_HISTORY]
        # Not `jobs.records`: the loss of a configuration that failed is NaN.
        return _EPOCHS.validate_json(history, strict=True)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BrokenStateError(f"its header is broken: {type(error).__name__}") from None


@torch.no_grad()
def evaluate(
    adapted: AdaptedEncoder, part: Inputs, precision: Precision, mapping: ClassMapping | None = None
) -> tuple[float, Tensor]:
    """(mean cross-entropy in nats, predicted classes [N] on the CPU) of a part's plain inputs.

    `mapping`: the class mapping, where the head was trained on another task.
    """
    target, total, predicted = adapted.shape.target, 0.0, []
    pieces = part.prepared.pieces(_PIECE)
    for rows in pieces:
        logits = adapted.logits(adapted.features(part.prepared.take(rows), precision)).cpu()
        if mapping is None or mapping.is_identity(logits.shape[1]):
            losses = target.losses(logits, target.encoded(part.labels[rows], target.blank))
            chosen = target.decode(logits, target.blank)
        else:
            losses, chosen = mapping.choose(logits, part.labels[rows])
        total += float(losses.sum(dtype=torch.float64))
        predicted.append(chosen)
    order = torch.cat(pieces).argsort()
    return total / len(part.labels), torch.cat(predicted)[order]
