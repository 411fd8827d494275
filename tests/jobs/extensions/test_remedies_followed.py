"""What a message about an extension tells its user to do works when it is done.

Each case raises its message, by `nml-orch extension check` or where an experiment names the file;
the remedy is read from the message and followed; then every part of the file is sound.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from commands import Run, in_process
from followed import Table
from tests.jobs.extensions.test_extensions import install

NOISE = """\
import numpy as np

def wrong(keys, labels, classes, seed):
    thresholds = np.random.default_rng(seed).random(len(keys))
    return thresholds, (labels + 1) % len(classes)
"""
ENCODER = """\
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.stem = nn.Conv2d(channels, 4, 8, stride=8)

    def forward(self, images):
        return self.stem(images).mean((2, 3))

def small(image):
    return Net(image.channels)
"""


@dataclass
class Case:
    """An extension's file that is refused, with what following the message needs."""

    folder: Path
    text: str = NOISE
    name: str = "mine.py"  # as the command names it
    more: tuple[str, ...] = ()  # further files that it names
    command: str = "check"
    mended: str = ""  # the text without its fault

    def put(self, name: str, text: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def spoil(self, old: str, new: str, text: str = NOISE) -> None:
        """A file with a fault, which `mend` takes out."""
        assert text.count(old) == 1
        self.text, self.mended = text.replace(old, new), text

    def check(self, run: Run) -> tuple[int, str]:
        self.put("mine.py", self.text)
        return run(self.folder, "extension", self.command, self.name, *self.more)


Follow = Callable[[Case, re.Match[str]], object]
CASES = Table("ok ")  # what is then printed
case = CASES.case


def mend(case: Case, found: re.Match[str]) -> None:
    """Follow a remedy that says how to write the code: the sound file does it so."""
    case.text = case.mended


def write(old: str, new: str) -> Follow:
    """Follow a remedy by this change of the file."""

    def follow(case: Case, found: re.Match[str]) -> None:
        assert case.text.count(old) == 1
        case.text = case.text.replace(old, new)

    return follow


def call(name: str) -> Follow:
    return lambda case, found: setattr(case, "name", name)


# -- the file --------------------------------------------------------------------------------------


@case(r"mine\.py defines no wrong; correct its name$", write("\ndel wrong\n", ""))
def a_function_that_is_deleted(case: Case) -> None:
    case.text = f"{NOISE}\ndel wrong\n"


@case(
    r"mine\.py is nested too deeply; write it in parts$",
    lambda case, found: setattr(case, "text", f"{NOISE}\nX = sum(range(20_000))\n"),
)
def a_sum_of_very_many_terms(case: Case) -> None:
    case.text = f"{NOISE}\nX = {'+'.join(['1'] * 20_000)}\n"


@case(r"own\.py does not exist; correct the path", call("mine.py"))
def a_path_of_no_file(case: Case) -> None:
    case.name = "own.py"


@case(
    r"'my-noise' must be letters, digits and underscores; rename the file$",
    lambda case, found: (case.put("my_noise.py", NOISE), setattr(case, "name", "my_noise.py")),
)
def a_name_with_a_hyphen(case: Case) -> None:
    case.put("my-noise.py", NOISE)
    case.name = "my-noise.py"


@case(r"code is never run from one; copy it here$", call("mine.py"))
def a_file_in_a_bucket(case: Case) -> None:
    case.name = "s3://bucket/mine.py"


@case(r"and code is never run from one; give a file of your own$", call("mine.py"))
def a_file_in_a_store(case: Case) -> None:
    case.put("store/store.json", "{}")
    case.put("store/noise/extension/mine.py", NOISE)
    case.name = "store/noise/extension/mine.py"


@case(r"is no file, .*; give a path that ends in (?P<end>\.py)$", call("mine.py"))
def a_name_without_its_ending(case: Case) -> None:
    case.name = "mine"


@case(
    r"both called mine\.py; rename one of them$",
    lambda case, found: (case.put("yours.py", ENCODER), setattr(case, "more", ("yours.py",))),
    "ok     small: ",
)
def two_files_of_one_name(case: Case) -> None:
    case.put("other/mine.py", ENCODER)
    case.more = ("other/mine.py",)


@case(
    r"cannot be read as text in UTF-8 .*; correct the path or the file$",
    call("mine.py"),
)
def a_folder_with_a_file_s_ending(case: Case) -> None:
    (case.folder / "folder.py").mkdir()
    case.name = "folder.py"


@case(r"mine\.py, line (?P<line>3): .*; correct the file", mend)
def no_python(case: Case) -> None:
    case.spoil("def wrong(keys, labels, classes, seed):", "def wrong(keys, labels, classes, seed)")


@case(
    r"defines wrong in lines 3 and 18; rename one of them$",
    write("def wrong(image)", "def small(image)"),
    "ok     small: ",
)
def a_name_defined_twice(case: Case) -> None:
    case.text = NOISE + "\n" + ENCODER.replace("small", "wrong")


def begin_anew(case: Case, found: re.Match[str]) -> None:
    """Keep one part of what the command writes: to try all takes long."""
    code, output = in_process(case.folder, *found["command"].split(), "yours")
    assert code == 0, output
    noise = re.search(r"def next_class.*?\n\n\n", (case.folder / "yours.py").read_text(), re.S)
    assert noise is not None
    case.text = f"import numpy as np\n\n\n{noise[0]}"


@case(
    r"has no method, encoder, noise or claim; begin with what `nml-orch (?P<command>.+)` writes$",
    begin_anew,
)
def a_file_without_parts(case: Case) -> None:
    case.text = "value = 1\n"


@case(r"line 1: ModuleNotFoundError: No module named '(?P<name>\w+)'", mend)
def a_module_that_is_not_installed(case: Case) -> None:
    case.spoil("import numpy as np", "import numpyy as np")


# -- ranges of a method ----------------------------------------------------------------------------

METHOD = """\
import torch
from torch import nn

class Nearest(nn.Module):
    hyperparameters = {"temperature": (0.01, 100.0, 1.0)}

    def __init__(self, dim, outputs):
        super().__init__()
        self.register_buffer("means", torch.zeros(outputs, dim))

    def prepare(self, features, targets, hyper):
        for number in range(len(self.means)):
            self.means[number] = features[targets == number].mean(0) / hyper["temperature"]

    def forward(self, features):
        return -torch.cdist(features, self.means)
"""


def ranged(fault: str, reason: str, wanted: str = "(0.01, 100.0, 1.0)") -> None:
    """Register a case of a range that is no `(least, greatest)`."""
    form = r"maps each name to \(least, greatest\) or .*, in numbers or None"

    def make(case: Case) -> None:
        case.text, case.command = METHOD.replace("(0.01, 100.0, 1.0)", fault), "list"

    make.__name__ = f"a range {fault}"
    case(rf"line 5: .* {form}: {reason}$", write(fault, wanted), "mine:Nearest")(make)


ranged("1.0", "1.0 is no range", "(1.0, 1.0, 1.0)")
ranged("(100.0, 0.01)", r"\(100.0, 0.01\) ends before it begins", "(0.01, 100.0)")
ranged("('low', 2.0)", r"\('low', 2.0\) is no range of numbers", "(None, 2.0, 1.0)")
ranged("(0.01, 1.0, 3.0)", r"3.0 is outside \(0.01, 1.0\)", "(0.01, 3.0, 3.0)")
ranged("range(0, 1)", "it is written in other words", "(0.01, 1.0, 1.0)")


# -- noises ----------------------------------------------------------------------------------------


@case(r"gives other noise when it is called again; draw from its seed$", mend)
def a_noise_that_draws_anew(case: Case) -> None:
    case.spoil("default_rng(seed)", "default_rng()")


@case(
    r"depends on the order of the rows; draw from keys and (?P<name>seed)$",
    write("_CALLS.append(0) or len(_CALLS)", "seed"),
)
def a_noise_that_depends_on_the_order(case: Case) -> None:
    # The third call is the one with the rows in another order.
    text = NOISE.replace("default_rng(seed)", "default_rng((_CALLS.append(0) or len(_CALLS)) // 3)")
    case.text = text.replace("\n\ndef", "\n\n_CALLS = []\n\ndef")


@case(r"its labels are not 200 whole numbers; return one for each key$", mend)
def a_noise_of_half_labels(case: Case) -> None:
    case.spoil("(labels + 1) % len(classes)", "labels / 2")


# -- encoders --------------------------------------------------------------------------------------


@case(r"give (?P<name>width) a default, with which it can be tried", mend)
def an_option_without_a_default(case: Case) -> None:
    case.spoil("def small(image)", "def small(image, width)", ENCODER)
    case.mended = ENCODER.replace("def small(image)", "def small(image, width=4)")


@case(r"returns NoneType; return a torch\.nn\.Module$", mend)
def an_encoder_that_returns_nothing(case: Case) -> None:
    case.spoil("return Net(image.channels)", "Net(image.channels)", ENCODER)


@case(r"gives \(1, 4, 4, 4\) for 1 rows; give features \[N, D\], a tensor$", mend)
def features_that_are_a_map(case: Case) -> None:
    case.spoil(".mean((2, 3))", "", ENCODER)


@case(r"gives a row other features when it is encoded alone; let them depend on that row", mend)
def features_that_depend_on_other_rows(case: Case) -> None:
    case.spoil(".mean((2, 3))", ".mean((2, 3)) - images.mean()", ENCODER)


@case(r"built again from the same seed; draw from torch's generator alone$", mend)
def weights_from_another_generator(case: Case) -> None:
    case.spoil(
        "stride=8)",
        "stride=8)\n        import random\n"
        "        nn.init.constant_(self.stem.bias, random.SystemRandom().random())",
        ENCODER,
    )


@case(
    r"when its weights are loaded again; keep all state in parameters and buffers$",
    write("self.factor = torch.rand(())", "self.register_buffer('factor', torch.rand(()))"),
)
def a_weight_that_is_not_kept(case: Case) -> None:
    text = ENCODER.replace("stride=8)", "stride=8)\n        self.factor = torch.rand(())")
    case.text = text.replace(".mean((2, 3))", ".mean((2, 3)) * self.factor")


@case(r"other features of the same rows in eval mode; draw no random numbers there$", mend)
def features_that_are_drawn(case: Case) -> None:
    case.spoil(".mean((2, 3))", ".mean((2, 3)) + torch.rand(4)", ENCODER)


@case(r"gives features that are not finite; return finite numbers$", mend)
def features_that_are_not_finite(case: Case) -> None:
    case.spoil(".mean((2, 3))", ".mean((2, 3)) / 0", ENCODER)


@case(r"compute them without no_grad and (?P<name>detach), or make", mend)
def features_that_are_cut_off(case: Case) -> None:
    case.spoil(".mean((2, 3))", ".mean((2, 3)).detach()", ENCODER)


@case(
    r"parameter more takes no part in the features; take it out",
    write("        self.more = nn.Parameter(torch.zeros(2))\n", ""),
)
def a_parameter_without_use(case: Case) -> None:
    case.text = ENCODER.replace(
        "stride=8)\n", "stride=8)\n        self.more = nn.Parameter(torch.zeros(2))\n"
    )


@case(
    r"parameter more takes no part in the features; .* or make it a (?P<what>buffer)$",
    write("self.more = nn.Parameter(torch.zeros(2))", "self.register_buffer('m', torch.zeros(2))"),
)
def a_parameter_that_is_a_constant(case: Case) -> None:
    a_parameter_without_use(case)


CLAIM = """\
def mine(results):
    \'\'\'Mine beats the probe.

    Source: a hypothesis
    \'\'\'
    return results.methods("mine", "lp")
"""


def describe(case: Case, found: re.Match[str]) -> None:
    """Begin the docstring with what the message calls its first line."""
    assert "sentence" in found["line"]
    case.text = CLAIM


@case(
    r"has no docstring; its first line is (?P<line>the claim's sentence)$", describe, "Mine beats"
)
def a_claim_without_a_docstring(case: Case) -> None:
    case.text = "def mine(results):\n    return results.methods('mine', 'lp')\n"


@case(
    r"docstring has no line `(?P<line>Source: )\.\.\.`; say where the claim is from$",
    lambda case, found: setattr(
        case, "text", case.text.replace("probe.", f"probe.\n\n    {found['line']}a hypothesis")
    ),
    "Mine beats the probe",
)
def a_claim_without_its_source(case: Case) -> None:
    case.text = CLAIM.replace("\n\n    Source: a hypothesis", "")


@case(r"map gives 4 x 2 patches; give a square map$", write("[..., :2]", ""))
def a_map_that_is_not_square(case: Case) -> None:
    case.text = ENCODER.replace(
        "    def forward",
        "    def map(self, images):\n        return self.stem(images)[..., :2]\n\n    def forward",
    )


@pytest.mark.parametrize("name", CASES)
def test_a_remedy_works_when_it_is_followed(name: str, tmp_path: Path, run: Run) -> None:
    make, remedy, follow, wanted = CASES[name]
    refused = Case(tmp_path)
    make(refused)
    code, output = refused.check(run)
    assert code == 2, output
    message = output.strip().splitlines()[-1]
    found = re.search(remedy, message)
    assert found is not None, message
    follow(refused, found)
    code, output = refused.check(run)
    assert (code, wanted in output) == (0, True), output


def test_a_package_without_its_file_is_installed_again_or_the_file_is_named(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = install(tmp_path / "site", tmp_path / "site")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    code, message = run(tmp_path, "extension", "list", "mine")
    assert code == 2
    found = re.search(
        r"its package has no file (?P<file>\S+); install it again or in another version, or name a "
        r"file by its path$",
        message.strip(),
    )
    assert found is not None, message
    (tmp_path / "own.py").write_text(NOISE)
    code, output = run(tmp_path, "extension", "list", "own.py")
    assert (code, "own:wrong" in output) == (0, True), output
    assert tmp_path / "site" / found["file"] == file
    file.write_text(NOISE)
    code, output = run(tmp_path, "extension", "list", "mine")
    assert (code, "rivals_of_mine:wrong" in output) == (0, True), output
