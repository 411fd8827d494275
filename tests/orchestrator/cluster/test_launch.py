"""Faults of cluster files are found before a cloud costs money."""

from pathlib import Path

import pytest

from orchestrator.cluster import launch
from orchestrator.errors import UserError

ROOT = Path(__file__).resolve().parents[3]
SHIPPED = ["cluster.yaml", "cluster/gcp.yaml", "cluster/local.yaml"]


def changed(tmp_path: Path, old: str, new: str) -> Path:
    text = (ROOT / "cluster.yaml").read_text()
    assert old in text
    file = tmp_path / "cluster.yaml"
    file.write_text(text.replace(old, new))
    return file


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_cluster_file_is_accepted_by_the_installed_ray(name: str) -> None:
    content = launch.validate(ROOT / name)
    assert content["provider"]["type"] in launch.PROVIDERS


@pytest.mark.parametrize("name", SHIPPED)
def test_nothing_listens_on_every_address(name: str) -> None:
    content = launch.load(ROOT / name)
    assert launch.public_listeners(content) == []
    assert any("--dashboard-host=127.0.0.1" in c for c in content["head_start_ray_commands"])


@pytest.mark.parametrize("name", SHIPPED)
def test_the_versions_of_a_file_agree_with_each_other(name: str) -> None:
    found = launch.pins(launch.load(ROOT / name)).found
    assert all(len(named) == 1 for named in found.values())
    assert {"ray", "torch"} <= set(found)


@pytest.mark.parametrize("name", ["cluster.yaml", "cluster/gcp.yaml"])
def test_cloud_files_have_no_keys(name: str) -> None:
    text = (ROOT / name).read_text().lower()
    assert "aws_access_key" not in text
    assert "secret" not in text
    assert "ssh_private_key" not in text


def test_a_public_port_is_found(tmp_path: Path) -> None:
    file = changed(tmp_path, "--dashboard-host=127.0.0.1", "--dashboard-host=0.0.0.0")
    assert len(launch.public_listeners(launch.load(file))) == 1


def test_another_version_of_ray_is_named_with_both(tmp_path: Path) -> None:
    file = changed(tmp_path, "2.60.0", "2.9.3")
    (first, *_) = [d for d in launch.pins(launch.load(file)).differences() if "ray" in d]
    assert "2.9.3" in first
    assert launch.installed("ray") in first


def test_an_image_and_a_pip_command_that_disagree_are_found(tmp_path: Path) -> None:
    file = changed(tmp_path, "data]==2.60.0", "data]==2.59.0")
    assert any("pins ray twice" in d for d in launch.pins(launch.load(file)).differences())


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("upscaling_speed: 2.0", "upscaling_sped: 2.0", "upscaling_sped"),
        ("idle_timeout_minutes: 10", "idle_timeout_minutes: soon", "idle_timeout_minutes"),
        ("head_node_type: head", "head_node_type: nobody", "head_node_type"),
        ("max_workers: 12 ", "max_workers: -1 ", "max_workers"),
        ("type: aws", "type: awss", "provider.type"),
    ],
)
def test_a_mistake_is_reported_with_its_field(
    tmp_path: Path, old: str, new: str, words: str
) -> None:
    file = changed(tmp_path, old, new)
    with pytest.raises(UserError, match=words) as raised:
        launch.validate(file)
    assert str(file) in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [", "\x00"])
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=r"x\.yaml"):
        launch.validate(file)
