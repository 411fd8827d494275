"""A file of weights fits a model, or is refused with a tensor's name; it never runs code."""

import pickle
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from jobs.contract import StageError
from jobs.encoders.weights import by_name, by_order, read


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 6))


def state(**renamed: str) -> dict[str, Tensor]:
    return {renamed.get(name, name): value for name, value in model().state_dict().items()}


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth", "wrapped.pt"])
def test_safetensors_and_state_dicts_are_read_in_order(tmp_path: Path, name: str) -> None:
    path, tensors = tmp_path / name, state()
    if name.endswith(".safetensors"):
        safetensors.torch.save_file(tensors, path)
        tensors = dict(sorted(tensors.items()))
    else:
        torch.save({"epoch": 3, "state_dict": tensors} if name == "wrapped.pt" else tensors, path)
    for file in (path, f"file://{path}"):  # by a URI, as from a bucket
        found = read(file)
        assert set(found) == set(tensors)
        assert all(torch.equal(found[key], tensors[key]) for key in tensors)
        if name == "w.pth":
            assert list(found) == list(tensors)


class Trap:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return eval, ("open('sprung', 'w').close()",)


@pytest.mark.parametrize("whole", [True, False])
def test_code_in_a_file_is_never_run(
    tmp_path: Path, whole: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "evil.pth"
    if whole:
        path.write_bytes(pickle.dumps(Trap()))
    else:
        torch.save({"state_dict": state(), "extra": Trap()}, path)
    with pytest.raises(StageError, match="neither safetensors nor a state dict of tensors alone"):
        read(path)
    assert not (tmp_path / "sprung").exists()


def test_a_file_without_weights_is_refused_in_one_sentence(tmp_path: Path) -> None:
    for name, data in (("a.safetensors", b"no"), ("a.pth", b"no"), ("b.pth", b"")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(StageError, match=r"a model's|the model's|save the"):
            read(tmp_path / name)
    torch.save({"lr": 0.1}, tmp_path / "c.pth")
    with pytest.raises(StageError, match="lr is no tensor"):
        read(tmp_path / "c.pth")


def test_names_are_matched_through_a_wrapper_and_the_classifier_left_out() -> None:
    given = {f"module.{name}": value for name, value in state().items()}
    given["module.fc.weight"] = torch.zeros(10, 6)
    wanted = nn.Sequential(*list(model().children())).state_dict()
    filled, left_out = by_name(given, {n: torch.zeros_like(v) for n, v in wanted.items()}, ["fc."])
    assert left_out == 1
    assert all(torch.equal(filled[name], value) for name, value in wanted.items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("0.weight"), r"lacks 1 of the model's 9 tensors \(the first: 0.weight\)"),
        (lambda s: s.update(head=torch.zeros(2)), r"1 tensors that the model does not .*head"),
        (lambda s: s.update({"0.bias": torch.zeros(7)}), r"0.bias: the file has shape \(7,\)"),
    ],
)
def test_a_tensor_that_does_not_fit_by_name_is_named(change: object, message: str) -> None:
    given = state()
    change(given)  # type: ignore[operator]
    with pytest.raises(StageError, match=message):
        by_name(given, model().state_dict(), ())


def test_order_matches_other_names_and_recognizes_the_classifier_at_the_end() -> None:
    given = {f"tensor{i}": value for i, value in enumerate(state().values())}
    given |= {"out": torch.zeros(10, 6), "out_bias": torch.zeros(10)}
    wanted = {name: torch.zeros_like(value) for name, value in state().items()}
    filled, left_out = by_order(given, wanted, dim=6)
    assert left_out == 2
    assert all(torch.equal(filled[name], value) for name, value in state().items())
    old = {n: v for n, v in given.items() if v.dtype != torch.int64}  # without BatchNorm's counter
    assert by_order(old, wanted, dim=6)[1] == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.update(more=torch.zeros(3, 3)), r"1 tensors after the model's last one.*more"),
        (lambda s: s.update(a=torch.zeros(9, 6), b=torch.zeros(8)), "no classifier"),
        (lambda s: s.update({"0.weight": torch.zeros(4, 3, 5, 5)}), r"shape \(4, 3, 5, 5\)"),
        (lambda s: s.pop("3.bias"), "has 7 tensors and the model 8"),
    ],
)
def test_a_tensor_that_does_not_fit_in_order_is_named(change: object, message: str) -> None:
    given = state()
    change(given)  # type: ignore[operator]
    with pytest.raises(StageError, match=message):
        by_order(given, model().state_dict(), dim=6)
