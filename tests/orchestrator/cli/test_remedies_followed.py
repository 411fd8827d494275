"""What a command's message tells its user to do works when it is done."""

import re
import socket
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from commands import Run
from followed import Case, Cases, also, delete, put, say
from jobs.embeddings.ledger import Ledger, Paid
from jobs.embeddings.texts import key_of
from jobs.encoders.api import ApiEncoder
from jobs.storage.folder import Folder
from orchestrator.cli import ui
from orchestrator.errors import UserError

CASES = Cases()
case = CASES.case
MEANT = r"[Dd]id you mean (?P<meant>[\w-]+)( or .*)?\?"
TEMPLATE = Path(ui.__file__).parents[2] / "jobs/extensions/template.txt"

# -- which command, which options ------------------------------------------------------------------


@case(MEANT, put(0), "what is done")
def a_mistyped_command(case: Case) -> None:
    case.say("staus --help")


@case(r"commands: .*\b(?P<meant>doctor)\b", put(0), "Check versions")
def a_command_that_is_like_none(case: Case) -> None:
    case.say("xyzzy --help")


@case(r"No such option:? .*[( '](?P<meant>--noise)\b", put(1), "noise=0")  # in click's own words
def a_mistyped_option(case: Case) -> None:
    case.say("plan --nois 0 -v")


@case(r"cannot be combined; give one of them", say("status --json"), '"state": "done"')
def two_ways_to_show_a_status(case: Case) -> None:
    case.store()
    case.say("status --json --watch")


@case(
    r"no sweep has run there\. Name .* with (?P<meant>--storage)", say("status {meant} s"), " done"
)
def a_status_of_another_folder(case: Case) -> None:
    case.store("s")
    case.say("status --storage t")


@case(r"one FILE is read at a time; leave the others out", say("status demo"), "demo in")
def two_experiments_of_one_status(case: Case) -> None:
    case.store()
    case.say("status demo digits-clip")


@case(r"finite number; give one such as (?P<meant>\d+)", put(2), "given 100 samples/s")
def a_speed_that_is_no_number(case: Case) -> None:
    case.say("plan --images-per-second nan")


OWN = "--set corpus.name=mine --set 'corpus.reader={kind: imagefolder, path: source}'"


@case(r"is not built yet; give (?P<meant>--rows)", also("{meant} 900"), " optimizer steps\n")
def a_cost_of_a_corpus_that_is_not_built(case: Case) -> None:
    case.say(f"plan {OWN}")


@case(r"measured yet; give (?P<meant>--images-per-second)", also("{meant} 9"), "given 9 samples/s")
def a_cost_without_a_speed_of_training(case: Case) -> None:
    case.say("plan")


@case(r"measured yet; give (?P<meant>--features-per-second)", also("{meant} 9"), "given 9 samples")
def a_cost_without_a_speed_of_encoding(case: Case) -> None:
    case.say("plan")


@case(r"measured yet; give (?P<meant>--cells-per-hour)", also("{meant} 9"), "given 9 cells/h")
def a_cost_without_a_speed_of_tuning(case: Case) -> None:
    case.say("plan")


# -- corpora, tasks, extensions, embeddings --------------------------------------------------------


@case(
    r"has no corpus step; run `nml-orch corpus build` first, or name an experiment FILE",
    also("demo"),
    "is not built; its source",
)
def a_store_without_a_corpus(case: Case) -> None:
    case.say("corpus show")


@case(MEANT, put(2), "digits: ")
def a_mistyped_task_to_show(case: Case) -> None:
    case.say("tasks show digis")


@case(MEANT, put(2), "ok    digits")
def a_mistyped_task_to_check(case: Case) -> None:
    case.say("tasks check digis")


@case(r"see `nml-orch (?P<meant>tasks list)`", say("{meant}"), "digits-parity")
def a_task_that_is_like_none(case: Case) -> None:
    case.say("tasks check xyzzy")


@case(r"exists; give another name", say("extension new other"), "wrote other.py")
def an_extension_that_exists(case: Case) -> None:
    case.write("mine.py")
    case.say("extension new mine")


@case(r"(?P<meant>\w+\.py) exists; give another name, or delete it", delete, "wrote mine.py")
def an_extension_that_is_in_the_way(case: Case) -> None:
    an_extension_that_exists(case)


@case(r"cannot be written .*; give another name, or", say("extension new other"), "wrote other.py")
def an_extension_with_a_very_long_name(case: Case) -> None:
    case.say(f"extension new {'x' * 300}")


@case(r"underscores; give one such as (?P<meant>\w+)", put(2), "wrote my_methods.py")
def an_extension_with_a_dash(case: Case) -> None:
    case.say("extension new my-own")


@case(r"no installed package brings an extension; name a file", also("mine.py"), "method   mine:")
def no_extension_to_list(case: Case) -> None:
    case.write("mine.py", TEMPLATE.read_text())
    case.say("extension list")


@case(
    r"store's ledgers \((?P<meant>[\w.-]+),",
    also("--ledger {meant}"),
    "1 vectors of 3 numbers: e.parquet",
)
def two_ledgers(case: Case) -> None:
    for model in ("a", "b"):
        encoder = ApiEncoder(name="ada", base_url="http://127.0.0.1:1/v1", model=model)
        ledger = Ledger.of(Folder.of(case.folder / "nml-store"), encoder)
        ledger.begin(encoder)
        ledger.add([key_of("text")], np.ones((1, 3), np.float32), Paid())
    case.say("embeddings export e.parquet")


@pytest.mark.parametrize("name", CASES)
def test_a_remedy_works_when_it_is_followed(name: str, tmp_path: Path, run: Run) -> None:
    CASES.check(name, tmp_path, run)


def test_a_port_that_is_said_to_be_free_can_be_taken() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        taken = server.getsockname()[1]
        with pytest.raises(UserError, match=f"{taken} is taken by") as caught:
            ui._free(taken)
    found = re.search(r"--port (?P<meant>\d+) is free", str(caught.value))
    assert found is not None
    assert ui._free(int(found["meant"])) == int(found["meant"]) != taken
