"""Plans with texts: each encoder takes the tasks whose samples it reads."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.features.spec import FeaturesStep
from jobs.tuning.spec import TuneStep
from orchestrator.errors import UserError
from orchestrator.experiment.model import Experiment
from orchestrator.plan import build
from orchestrator.plan.plan import Plan
from tests.jobs.text.models import put_model

LP = {"lp": {"head": "linear", "space": {"lr": 0.01}}}
LORA = {"lora": {"head": "linear", "adapt": "lora", "space": {"lr": 0.01}}}


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return put_model(tmp_path_factory.mktemp("model"), "bert")


def planned(tasks: list[str], *encoders: dict[str, Any], **more: Any) -> Plan:
    fields = {"name": "x", "encoders": encoders, "tasks": tasks, "tuning": {"methods": LP}}
    return build.build(Experiment.model_validate(fields | more))


def text(model: Path, **more: Any) -> dict[str, Any]:
    return {"name": "words", "kind": "transformers", "model": str(model), **more}


IMAGES = {"name": "pixels", "kind": "timm", "model": "resnet18"}


def test_each_encoder_takes_the_tasks_whose_samples_it_reads(bert: Path) -> None:
    plan = planned(["digits", "remarks-films"], IMAGES, text(bert))
    assert {step.address for step in plan.of_kind("features")} == {
        "features/encoder/pixels/digits",
        "features/encoder/words/remarks-films",
    }
    assert {step.address for step in plan.of_kind("overlap")} == {
        "overlap/encoder/digits/limit=1",
        "overlap/encoder/remarks-films/limit=1",
    }


def test_a_task_that_nobody_can_read_is_refused(bert: Path) -> None:
    with pytest.raises(UserError, match="remarks-films has samples of modality text, and no enc"):
        planned(["digits", "remarks-films"], IMAGES)
    with pytest.raises(UserError, match="encoders: pixels reads samples of modality image, and no"):
        planned(["remarks-films"], IMAGES, text(bert))


def test_given_features_need_no_texts(bert: Path, tmp_path: Path) -> None:
    keys = [f"{part}{i}" for part in "ab" for i in range(30)]
    vectors = [[float(i), 1.0] for i in range(60)]
    table = pa.table({"key": keys, "vector": vectors, "label": ["negative", "positive"] * 30})
    pq.write_table(table, tmp_path / "f.parquet")
    given = {"name": "ada", "kind": "features", "files": {"glue-sst2": f"{tmp_path}/f.parquet"}}
    assert planned(["glue-sst2"], given).of_kind("corpus") == []
    (corpus,) = planned(["glue-sst2"], given, text(bert)).of_kind("corpus")
    assert corpus.address == "corpus/glue-sst2", "an encoder reads them"


def views(plan: Plan) -> dict[str, int]:
    found = {}
    for step in plan.of_kind("features"):
        assert isinstance(step.spec, FeaturesStep)
        found[step.spec.images] = step.spec.views.count
    return found


def test_texts_have_no_views_unless_a_mask_is_set(bert: Path) -> None:
    tasks = ["digits", "remarks-films"]
    assert views(planned(tasks, IMAGES, text(bert))) == {"digits": 2, "remarks-films": 0}
    masked = planned(tasks, IMAGES, text(bert), features={"views": {"count": 3, "mask": 0.1}})
    assert views(masked) == {"digits": 3, "remarks-films": 3}
    two = {"methods": {"lp": LP["lp"] | {"views": 1}}}
    with pytest.raises(UserError, match=r"set features\.views\.mask, or leave views out"):
        planned(["remarks-films"], text(bert), tuning=two)


def test_a_method_that_trains_the_encoder_reads_texts_too(bert: Path) -> None:
    plan = planned(["remarks-films"], text(bert), tuning={"methods": LORA})
    (cell,) = plan.of_kind("tune")
    assert isinstance(cell.spec, TuneStep)
    assert cell.spec.encoder is not None
    assert cell.spec.encoder.views.count == 0
    assert cell.inputs == {"encoder": "encoder/words", "corpus": "corpus/remarks-films"}


def test_a_models_folder_may_move_and_another_pooling_is_another_encoder(
    bert: Path, tmp_path: Path
) -> None:
    moved = put_model(tmp_path / "elsewhere", "bert")
    marks = [
        planned(["remarks-films"], encoder).steps["encoder/words"].fingerprint
        for encoder in (text(bert), text(moved), text(bert, pooling="mean"))
    ]
    assert marks[0] == marks[1] != marks[2]


def test_texts_are_not_pretrained_on(bert: Path) -> None:
    from orchestrator.experiment import load

    fields = ["corpus.modality=text", "corpus.reader={kind: remarks}"]
    with pytest.raises(UserError, match="pre-training reads images; give encoders that are train"):
        load.load(overrides=fields)
