"""Each rival of `experiments/rivals.yaml` is its paper's equation, written out in plain numpy."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from jobs.extensions.files import find
from jobs.extensions.load import load
from jobs.extensions.spec import Part
from jobs.tuning.finetune.own import InputBatch, TrainedEncoder
from jobs.tuning.module_heads import Batch
from jobs.tuning.target import ClassTarget
from orchestrator import EXPERIMENTS
from orchestrator.experiment import load as experiments
from orchestrator.plan.extensions import planned

Floats = npt.NDArray[np.float64]
DIM, CLASSES, ROWS = 6, 3, 20
RNG = np.random.default_rng(0)
FEATURES = RNG.normal(size=(ROWS, DIM)) @ RNG.normal(size=(DIM, DIM)) + 1
TARGETS = np.arange(ROWS) % CLASSES


def made(name: str, **hyper: float) -> tuple[Any, Batch]:
    """The rival with random weights, and a batch with these hyper-parameters."""
    part = Part(find([str(EXPERIMENTS / "rivals.py")])["rivals"], name)
    torch.manual_seed(0)
    module = load(part)(DIM, CLASSES)
    rows, targets = torch.tensor(FEATURES, dtype=torch.float32), torch.tensor(TARGETS)
    values = {n: torch.tensor(v) for n, v in hyper.items()}
    if hasattr(module, "prepare"):
        with torch.no_grad():
            module.prepare(rows, targets, values)
    batch = Batch(
        features=rows,
        targets=targets,
        views=1,
        progress=0.0,
        hyper=values,
        target=ClassTarget(CLASSES),
    )
    return module, batch


def outputs(module: Any, features: Floats) -> tuple[Floats, Floats]:
    """(log p, z) of the two-layer head, with the module's weights."""
    weight = {n: v.detach().double().numpy() for n, v in module.named_parameters()}
    hidden = np.maximum(features @ weight["first.weight"].T + weight["first.bias"], 0)
    z = hidden @ weight["second.weight"].T + weight["second.bias"]
    logits = z @ weight["classifier.weight"].T + weight["classifier.bias"]
    return log_p(logits), z


def log_p(logits: Floats) -> Floats:
    found: Floats = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    return found


def shrunken(covariance: Floats, share: float) -> Floats:
    scale = np.trace(covariance) / len(covariance)
    found: Floats = (1 - share) * covariance + share * scale * np.eye(len(covariance))
    return found


def test_label_smoothing() -> None:
    module, batch = made("LabelSmoothing", smoothing=0.2)
    q = np.full((ROWS, CLASSES), 0.2 / CLASSES)
    q[np.arange(ROWS), TARGETS] += 0.8
    wanted = -(q * outputs(module, FEATURES)[0]).sum(1).mean()
    assert module.loss(batch)["ce"].item() == pytest.approx(wanted, rel=1e-5)


def test_mixup_mixes_features_and_labels_with_one_share() -> None:
    module, batch = made("FeatureMixup", alpha=0.4)
    torch.manual_seed(5)
    found = module.loss(batch)["ce"].item()
    torch.manual_seed(5)
    u, v = torch.rand(2, 64).double().numpy() ** (1 / 0.4)
    first = int(np.argmax(u + v <= 1))
    m = u[first] / (u[first] + v[first])
    j = torch.randperm(ROWS).numpy()
    p = outputs(module, m * FEATURES + (1 - m) * FEATURES[j])[0]
    rows = np.arange(ROWS)
    wanted = -(m * p[rows, TARGETS] + (1 - m) * p[rows, TARGETS[j]]).mean()
    assert found == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_the_shares_of_mixup_have_the_variance_of_beta(alpha: float) -> None:
    beta = load(Part(find([str(EXPERIMENTS / "rivals.py")])["rivals"], "beta"))
    torch.manual_seed(0)
    draws = np.array([beta(torch.tensor(alpha)).item() for _ in range(2000)])
    assert draws.mean() == pytest.approx(0.5, abs=0.03)
    assert draws.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.1)


def test_batch_spectral_shrinkage() -> None:
    module, batch = made("Bss", eta=0.3)
    p, z = outputs(module, FEATURES)
    found = module.loss(batch)
    assert found["ce"].item() == pytest.approx(-p[np.arange(ROWS), TARGETS].mean(), rel=1e-5)
    smallest = np.linalg.svd(z, compute_uv=False)[-1]
    assert found["bss"].item() == pytest.approx(0.3 * smallest**2, rel=1e-3)


def test_whitened_features_have_the_shrunken_covariance_s_inverse_root() -> None:
    module, batch = made("Whitened", shrinkage=0.1)
    centred = FEATURES - FEATURES.mean(0)
    values, vectors = np.linalg.eigh(shrunken(centred.T @ centred / ROWS, 0.1))
    wanted = centred @ (vectors / np.sqrt(values)) @ vectors.T
    logits, z = module(batch.features)
    np.testing.assert_allclose(z.detach().numpy(), wanted, rtol=1e-3, atol=1e-4)
    classifier = module.classifier
    p = log_p(wanted @ classifier.weight.detach().numpy().T + classifier.bias.detach().numpy())
    found = module.loss(batch)["ce"].item()
    assert found == pytest.approx(-p[np.arange(ROWS), TARGETS].mean(), rel=1e-4)
    assert logits.shape == (ROWS, CLASSES)


def test_linear_discriminant_analysis() -> None:
    module, batch = made("Lda", shrinkage=0.2)
    means = np.stack([FEATURES[c == TARGETS].mean(0) for c in range(CLASSES)])
    shares = np.bincount(TARGETS) / ROWS
    within = FEATURES - means[TARGETS]
    inverse = np.linalg.inv(shrunken(within.T @ within / ROWS, 0.2))
    wanted = FEATURES @ inverse @ means.T
    wanted += np.log(shares) - np.einsum("cd,de,ce->c", means, inverse, means) / 2
    np.testing.assert_allclose(module(batch.features).numpy(), wanted, rtol=1e-3, atol=1e-3)


# -- those that train the encoder: here two matrices -----------------------------------------------

START = {"w": RNG.normal(size=(DIM, DIM)), "v": RNG.normal(size=(DIM, DIM))}
END = {name: value + 0.1 * RNG.normal(size=value.shape) for name, value in START.items()}


def trained(name: str, **hyper: float) -> tuple[Any, TrainedEncoder, InputBatch]:
    """The rival after `prepare` on the features at the start, with an encoder at the end."""
    part = Part(find([str(EXPERIMENTS / "rivals.py")])["rivals"], name)
    torch.manual_seed(0)
    module = load(part)(DIM, CLASSES)
    values = {n: torch.tensor(v) for n, v in hyper.items()}
    weights = {n: nn.Parameter(torch.tensor(v, dtype=torch.float32)) for n, v in END.items()}
    start = {n: torch.tensor(v, dtype=torch.float32) for n, v in START.items()}
    encoder = TrainedEncoder(weights, start, lambda rows: rows @ weights["w"] @ weights["v"])
    rows, targets = torch.tensor(FEATURES, dtype=torch.float32), torch.tensor(TARGETS)
    if hasattr(module, "prepare"):
        with torch.no_grad():
            module.prepare(rows @ start["w"] @ start["v"], targets, values)
    batch = InputBatch(
        inputs=rows,
        targets=targets,
        views=1,
        progress=0.0,
        hyper=values,
        target=ClassTarget(CLASSES),
    )
    return module, encoder, batch


def head_of(module: Any) -> tuple[Floats, Floats]:
    layer = module.classifier
    return layer.weight.detach().double().numpy(), layer.bias.detach().double().numpy()


def cross_entropy(module: Any, encoders: dict[str, Floats]) -> float:
    """The mean over the rows of the linear head on the features of these weights."""
    weight, bias = head_of(module)
    p = log_p(FEATURES @ encoders["w"] @ encoders["v"] @ weight.T + bias)
    return float(-p[np.arange(ROWS), TARGETS].mean())


def test_lp_ft_begins_at_the_optimum_of_the_linear_probe() -> None:
    module, encoder, batch = trained("LpFt", l2=0.05)
    weight, bias = head_of(module)
    features = FEATURES @ START["w"] @ START["v"]
    wrong = np.exp(log_p(features @ weight.T + bias)) - np.eye(CLASSES)[TARGETS]
    slope = wrong.T @ features / ROWS + 0.05 * weight  # of CE + l2 / 2 |W|^2
    np.testing.assert_allclose(slope, 0, atol=1e-4)
    np.testing.assert_allclose(wrong.mean(0), 0, atol=1e-4)
    found = module.loss(encoder, batch)
    assert found.keys() == {"ce"}
    assert found["ce"].item() == pytest.approx(cross_entropy(module, END), rel=1e-4)


def test_wise_ft_is_the_mean_of_the_weights_at_the_start_and_at_the_end() -> None:
    module, encoder, batch = trained("WiseFt", l2=0.05, alpha=0.3)
    start = head_of(module)
    assert module.loss(encoder, batch)["ce"].item() == pytest.approx(
        cross_entropy(module, END), rel=1e-4
    )
    end = tuple(value + RNG.normal(size=value.shape) for value in start)
    with torch.no_grad():
        module.classifier.weight.copy_(torch.tensor(end[0]))
        module.classifier.bias.copy_(torch.tensor(end[1]))
        module.finish(encoder, batch.hyper)
    for found, first, last in zip(head_of(module), start, end, strict=True):
        np.testing.assert_allclose(found, 0.7 * first + 0.3 * last, rtol=1e-4, atol=1e-5)
    for name, value in encoder.weights.items():
        wanted = 0.7 * START[name] + 0.3 * END[name]
        np.testing.assert_allclose(value.detach().numpy(), wanted, rtol=1e-4, atol=1e-5)


def test_l2_sp_pulls_the_encoder_to_its_start_and_the_head_to_zero() -> None:
    module, encoder, batch = trained("L2Sp", alpha=0.2, beta=0.4)
    found = {name: value.item() for name, value in module.loss(encoder, batch).items()}
    moved = sum(((END[name] - START[name]) ** 2).sum() for name in START)
    head = sum((value**2).sum() for value in head_of(module))
    assert found == {
        "ce": pytest.approx(cross_entropy(module, END), rel=1e-4),
        "sp": pytest.approx(0.2 / 2 * moved, rel=1e-4),
        "head": pytest.approx(0.4 / 2 * head, rel=1e-4),
    }


def test_the_experiment_gives_each_rival_what_it_declares() -> None:
    experiment = experiments.load("rivals")
    assert planned(experiment).keys() == {"rivals"}
    heads = [method.head for method in experiment.tuning.methods.values()]
    assert sum(head.startswith("rivals:") for head in heads) == 9
