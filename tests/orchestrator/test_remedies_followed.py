"""What `doctor` and `plan` say of this machine to do works when it is done."""

from pathlib import Path

import pytest

from commands import Run
from orchestrator import preflight

DOCTOR = ("doctor", "--no-ray", "--set", "tracking.enabled=false")


def test_a_package_that_is_missing_is_installed(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = preflight.versions

    def lacking() -> dict[str, str]:
        return {name: version for name, version in real().items() if name != "timm"}

    with monkeypatch.context() as without:
        without.setattr(preflight, "versions", lacking)
        code, output = run(tmp_path, *DOCTOR)
        assert code
        assert "not installed: timm; run pip install -e . again" in output
    assert "not installed" not in run(tmp_path, *DOCTOR)[1]


@pytest.mark.parametrize("way", ["free some", "use --storage elsewhere"])
def test_a_full_disk_is_freed_or_left(
    way: str, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    full, real = [tmp_path / "full"], preflight.shutil.disk_usage
    full[0].mkdir()

    def usage(folder: Path) -> object:
        return real(folder)._replace(free=0 if any(map(folder.is_relative_to, full)) else 1 << 40)

    monkeypatch.setattr(preflight.shutil, "disk_usage", usage)
    code, output = run(full[0], *DOCTOR)
    assert code
    assert f"0.0 GB free at {full[0]}/nml-store; free some, or use --storage elsewhere" in output
    if way == "free some":
        full.clear()
        _, output = run(tmp_path / "full", *DOCTOR)
    else:
        _, output = run(full[0], *DOCTOR, "--storage", str(tmp_path / "other"))
    assert "GB free at" in output
    assert "free some" not in output
