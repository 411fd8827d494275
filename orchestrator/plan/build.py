"""From an experiment to its plan: every step with its address, fingerprint and inputs.

Reads the experiment and the small files that it names (tasks, noise tables). Reads nothing from the
store and imports nothing heavy. What cannot be planned is a UserError.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from pydantic import ValidationError

from jobs.contract import Spec, StageError
from jobs.corpus.form import Modality
from jobs.corpus.spec import Corpus
from jobs.encoders.api import ApiEncoder
from jobs.encoders.digests import digest
from jobs.encoders.spec import EncoderStep, GivenColumns, GivenEncoder, PretrainedEncoder
from jobs.extensions.spec import Extension
from jobs.features.spec import Features, FeaturesStep, GivenStep
from jobs.images.spec import Grid
from jobs.noise.spec import Noise, NoiseStep
from jobs.pretrain.spec import PretrainSettings, PretrainStep
from jobs.tasks.spec import Task
from jobs.validation import in_words
from orchestrator.errors import UserError
from orchestrator.experiment.given_features import given_tasks
from orchestrator.experiment.model import Experiment
from orchestrator.plan import extensions
from orchestrator.plan.cells import (
    Cell,
    cells_of,
    check_api,
    encoder_inputs,
    modality_of,
    zero_shot_encoder,
)
from orchestrator.plan.overlap import Comparisons, add_comparisons
from orchestrator.plan.plan import Plan
from orchestrator.step.address import (
    CellAddress,
    CorpusAddress,
    EncoderAddress,
    FeaturesAddress,
    NoiseAddress,
    PretrainedAddress,
    RunAddress,
    StepAddress,
)
from orchestrator.step.fingerprint import Texts
from orchestrator.step.step import KINDS, Step, differences


class _Builder:
    """Collects steps. Two different steps with one address are a user's mistake."""

    def __init__(self, experiment: Experiment) -> None:
        self.extensions = extensions.planned(experiment)
        self.steps: dict[str, Step] = {}
        self.comparisons = Comparisons()
        self._texts = Texts()
        self._cells: dict[tuple[object, ...], list[Cell]] = {}

    def cells(
        self,
        experiment: Experiment,
        task: Task,
        method: str,
        seeds: tuple[int, ...],
        drops: bool,
        encoder: Extension | None,
    ) -> list[Cell]:
        """The cells of a task and method with some tuning seeds, made once.

        `drops`: their tests leave out the images that are trained on. `encoder`: the extension of
        an encoder that they train.
        """
        key = task.name, method, seeds, drops, encoder.name if encoder else None
        found = self._cells.get(key)
        if found is None:
            try:
                file = experiment.tuning.methods[method].extension
                source = None if file is None else self.extensions[file]
                found = list(cells_of(experiment, task, method, seeds, drops, source, encoder))
            except ValidationError as error:
                raise UserError(f"tuning: {in_words(error.errors()[0])}") from error
            self._cells[key] = found
        return found

    def add(
        self,
        kind: str,
        address: StepAddress,
        spec: Spec,
        inputs: Mapping[str, str] | None = None,
        **labels: str | float | int,
    ) -> str:
        inputs = dict(inputs or {})
        after = self.comparisons.after(spec, labels)
        return self.put(kind, str(address), spec, inputs, self.read(inputs), labels, after)

    def read(self, inputs: Mapping[str, str]) -> dict[str, str]:
        """The fingerprints of the steps read, by role."""
        return {role: self.steps[name].fingerprint for role, name in inputs.items()}

    def put(
        self,
        kind: str,
        address: str,
        spec: Spec,
        inputs: Mapping[str, str],
        read: Mapping[str, str],
        labels: Mapping[str, str | float | int],
        after: tuple[str, ...] = (),
    ) -> str:
        """Like `add`, for mappings that many steps share. They must not be changed."""
        mark = self._texts.fingerprint(kind, spec, read)
        step = Step(address, kind, spec, inputs, read, mark, labels, after)
        known = self.steps.setdefault(address, step)
        if known.fingerprint != mark:
            changes = "; ".join(map(str, differences(known.fields, step.fields)))
            raise UserError(
                f"{address} is defined twice, differently ({changes}); "
                f"give one of the two another name"
            )
        return address


def build(experiment: Experiment, draws: tuple[int, ...] = (0,)) -> Plan:
    """Every step of an experiment. Raises UserError for what cannot be planned.

    `draws` are the seeds of the draws of noise where nothing is pre-trained on them.
    """
    with _collector_paused():
        return _build(experiment, draws)


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Pause garbage collection. The many small objects made here all stay: this saves a third."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _build(experiment: Experiment, draws: tuple[int, ...]) -> Plan:
    builder = _Builder(experiment)
    tasks = experiment.load_tasks()
    for corpus in (experiment.corpus, *_task_corpora(experiment, tasks)):
        if corpus is not None:
            builder.add("corpus", CorpusAddress(corpus.name), corpus)
    builder.comparisons = add_comparisons(builder.add, experiment, tasks)
    _add_trained(builder, experiment, tasks, draws)
    for encoder in experiment.encoders:
        _add_pretrained(builder, experiment, tasks, encoder)
    _check_nesting(builder.steps)
    plan = Plan(experiment, tasks, _in_order(builder.steps))
    if experiment.claims is not None:
        from orchestrator.plan import claims  # numpy and Arrow, paid where claims are registered

        claims.check(plan)
    return plan


def _task_corpora(experiment: Experiment, tasks: tuple[Task, ...]) -> Iterator[Corpus | None]:
    """The corpora of the tasks, but not of those whose features are given to all encoders."""
    readers: set[Modality | None] = {"image"} if experiment.pretrain else set()
    readers |= {each.modality for each in experiment.encoders if not isinstance(each, GivenEncoder)}
    given = given_tasks(experiment.encoders)
    for task in tasks:
        if task.name not in given or task.modality in readers:
            yield task.corpus


def _add_trained(
    builder: _Builder, experiment: Experiment, tasks: tuple[Task, ...], draws: tuple[int, ...]
) -> None:
    """Add the noise levels, the encoders pre-trained on them, and the steps that use those."""
    corpus, pretrain = experiment.corpus, experiment.pretrain
    if corpus is None or experiment.noise is None:
        return
    noise = extensions.with_source(_digested_noise(experiment.noise), builder.extensions)
    own = None if pretrain is None else extensions.of_recipe(pretrain.recipe, builder.extensions)
    source = str(CorpusAddress(corpus.name))
    for level in noise.levels:
        for seed in draws if pretrain is None else pretrain.seeds:
            overlay = _add_overlay(builder, corpus.name, noise.drawn(seed), level)
            if pretrain is None:
                continue
            run = RunAddress(corpus.name, noise.name, pretrain.recipe.name, level, seed)
            coordinates = {"noise": level, "seed": seed}
            encoder = builder.add(
                "pretrain",
                run,
                PretrainStep(seed=seed, source=own, **pretrain.of_base(PretrainSettings)),
                {"corpus": source, "noise": overlay},
                **coordinates,
            )
            _add_downstream(builder, experiment, tasks, run, encoder, coordinates, source=own)


def _add_overlay(builder: _Builder, corpus: str, noise: Noise, level: float) -> str:
    """Add one level of a draw of noise; return its address."""
    draw = getattr(noise, "draw", None)
    return builder.add(
        "noise",
        NoiseAddress(corpus, noise.name, level, draw),
        NoiseStep(corpus=corpus, noise=noise, level=level),
        {"corpus": str(CorpusAddress(corpus))},
        noise=level,
        **({} if draw is None else {"draw": draw}),
    )


def _add_pretrained(
    builder: _Builder,
    experiment: Experiment,
    tasks: tuple[Task, ...],
    pretrained: PretrainedEncoder,
) -> None:
    """Add an encoder that is not trained here, and the steps that use it."""
    try:
        pretrained = digest(extensions.with_encoder(pretrained, builder.extensions))
    except StageError as error:
        raise UserError(f"encoders: {pretrained.name}: {error}") from error
    address = PretrainedAddress(pretrained.name)
    coordinates: dict[str, str | float | int] = {"encoder": pretrained.name}
    if isinstance(pretrained, GivenEncoder):
        own = tuple(task for task in tasks if task.name in pretrained.files)
        _add_downstream(builder, experiment, own, address, pretrained, coordinates)
        return
    file = getattr(pretrained, "source", None)  # of an extension's encoder
    encoder = builder.add("encoder", address, EncoderStep(encoder=pretrained), None, **coordinates)
    reads = pretrained.modality
    api = pretrained if isinstance(pretrained, ApiEncoder) else None
    if api is not None:
        check_api(experiment, api)
    _add_downstream(builder, experiment, tasks, address, encoder, coordinates, reads, api, file)


def _digested_noise(noise: Noise) -> Noise:
    """The noise with the digest of the small file that it names."""
    if getattr(noise, "file", None) is None:
        return noise
    from jobs.noise.source import digested  # numpy and Arrow, paid where a noise names a file

    try:
        return digested(noise)
    except StageError as error:
        raise UserError(f"noise.file: {error}") from error


def _add_downstream(
    builder: _Builder,
    experiment: Experiment,
    tasks: tuple[Task, ...],
    of: EncoderAddress,
    encoder: str | GivenEncoder,
    coordinates: Mapping[str, str | float | int],
    modality: Modality = "image",
    api: ApiEncoder | None = None,
    source: Extension | None = None,
) -> None:
    """Add the features and cells of one encoder, which have its `coordinates` as labels.

    `modality`: what the encoder reads; it takes the tasks whose samples are that. `api`: how to ask
    it if it is behind one. `source`: the extension that has its function.
    """
    tuning = experiment.tuning
    replicate = of.seed if isinstance(of, RunAddress) else 0
    seeds = tuning.seeds or (replicate,)
    trained_on = {task.images for task in tasks if task.domain == "id"}
    for task in tasks:
        if isinstance(encoder, str) and task.modality != modality:
            continue  # its features are given, or other encoders read its samples
        compared = builder.comparisons.of(task.name, of, encoder)
        drops = compared is not None and experiment.overlap == "drop"
        if isinstance(encoder, GivenEncoder):
            features = _add_given(builder, experiment, task, of, encoder, coordinates)
        else:
            whole = task.images in trained_on
            features = _add_features(
                builder, experiment, task, of, encoder, coordinates, api, source, whole=whole
            )
        after = () if compared is None else (compared,)
        for name, method in tuning.methods.items():
            inputs = {"features": features}
            if method.trains_encoder:
                inputs = encoder_inputs(task, name, encoder)
            elif method.head == "zero_shot" and task.trained_on is None:
                inputs["encoder"] = zero_shot_encoder(experiment, name, encoder)
            if task.upsampling == "bilinear":  # it is compared with the masks themselves
                inputs["corpus"] = str(CorpusAddress(task.scope))
            if compared is not None and drops:
                inputs["overlap"] = compared
            read = builder.read(inputs)
            trained = source if method.trains_encoder else None
            for cell in builder.cells(experiment, task, name, seeds, drops, trained):
                if task.trained_on is not None:
                    head = CellAddress(of, task.trained_on, cell.trial)
                    inputs = {**inputs, "head": str(head)}
                    read = builder.read(inputs)
                address = str(CellAddress(of, task.name, cell.trial))
                labels = {**coordinates, **cell.labels}
                builder.put("tune", address, cell.spec, inputs, read, labels, after)


def _add_features(
    builder: _Builder,
    experiment: Experiment,
    task: Task,
    of: EncoderAddress,
    encoder: str,
    coordinates: Mapping[str, str | float | int],
    api: ApiEncoder | None,
    source: Extension | None,
    *,
    whole: bool,
) -> str:
    """Add the features of a task's samples; return their address.

    Not `whole`: no task of the plan trains on them, so their test part is enough. That is no other
    step: a plan that needs the other parts adds them.
    """
    settings = experiment.features
    only = None if whole or task.parts == ("test",) else ("test",)
    views = settings.views.of(modality_of(task))
    grid = (settings.grid or Grid()) if task.target_kind.dense else None
    return builder.add(
        "features",
        FeaturesAddress(of, task.images),
        FeaturesStep(
            images=task.images,
            parts=task.parts,
            only=only,
            shift=task.shift,
            api=api,
            source=source,
            **{**settings.of_base(Features), "views": views, "grid": grid},
        ),
        {"encoder": encoder, "corpus": str(CorpusAddress(task.scope))},
        **coordinates,
        images=task.images,
        domain=task.domain,
    )


def _add_given(
    builder: _Builder,
    experiment: Experiment,
    task: Task,
    of: EncoderAddress,
    encoder: GivenEncoder,
    coordinates: Mapping[str, str | float | int],
) -> str:
    """Add the features that a user gives for a task; return their address."""
    return builder.add(
        "features",
        FeaturesAddress(of, task.name),
        GivenStep(
            images=task.name,
            parts=("test",) if task.domain == "ood" else ("train", "validation", "test"),
            file=encoder.files[task.name],
            sha256=encoder.sha256[task.name],
            **encoder.of_base(GivenColumns),
            classes=encoder.classes.get(task.name, ()),
            target=task.target,
            dtype=experiment.features.dtype,
        ),
        None,
        **coordinates,
        images=task.name,
        domain=task.domain,
    )


def _check_nesting(steps: Mapping[str, Step]) -> None:
    """Refuse a step's folder inside another's: emptying one would delete the other."""
    cleared: set[str] = set()  # folders already seen not to be a step's
    for address in steps:
        folder = address.rpartition("/")[0]
        while folder and folder not in cleared:
            if folder in steps:
                raise UserError(f"{address} would be inside another step's folder; rename it")
            cleared.add(folder)
            folder = folder.rpartition("/")[0]


def _in_order(steps: Mapping[str, Step]) -> dict[str, Step]:
    """Steps sorted by kind, so that each comes after its inputs; insertion order within a kind."""
    return {s.address: s for kind in KINDS for s in steps.values() if s.kind == kind}
