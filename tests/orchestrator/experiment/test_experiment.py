"""The experiment file: what is accepted, and the one sentence that refuses the rest."""

import pytest

from jobs import strict_yaml
from orchestrator.errors import UserError
from orchestrator.experiment import load


def complaint(source: str | None = None, **words: object) -> str:
    with pytest.raises(UserError) as caught:
        load.load(source, **words)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_the_demo_is_what_runs_without_a_file() -> None:
    demo = load.load()
    assert demo.name == "demo"
    assert {task.domain for task in demo.load_tasks()} == {"id", "ood"}


@pytest.mark.parametrize("name", load.bundled())
def test_every_bundled_experiment_is_valid(name: str) -> None:
    assert load.load(name).load_tasks()


def test_levels_are_read_sorted_and_exact() -> None:
    assert load.parse_levels("30, 0,2.5") == [0, 2.5, 30]


@pytest.mark.parametrize(
    ("levels", "expected"),
    [
        ("0,5,5", "given twice"),
        ("0,five", "'five' is not a number"),
        ("-1", "outside 0 <= level < 100"),
        ("100", "outside 0 <= level < 100"),
        ("nan", "outside 0 <= level < 100"),
        ("", "not a number"),
    ],
)
def test_a_bad_level_is_refused_in_one_sentence(levels: str, expected: str) -> None:
    assert expected in complaint(noise=levels)


def test_duplicate_levels_in_a_file_are_refused_too() -> None:
    assert "twice" in complaint(overrides=["noise.levels=[0, 5, 5]"])


@pytest.mark.parametrize(
    ("seeds", "expected"),
    [("0,0", "twice"), ("a", "'a' is not a whole number"), ("²", "'²' is not")],
)
def test_a_bad_seed_is_refused_in_one_sentence(seeds: str, expected: str) -> None:
    assert expected in complaint(seeds=seeds)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("tuning.epoch=3", "unknown field tuning.epoch (did you mean epochs?)"),
        ("pretrain.recipe.schedule.lr=-1", "lr = -1"),
        ("pretrain.recipe.schedule.learning=1", "unknown field"),
        ("tuning.epochs=many", "tuning.epochs = 'many'"),
        ("corpus.parts.train=0.9", "must sum to 1"),
        ("noise.kind=caption_swap", "use symmetric"),
        ("tasks=[digits, digits]", "named twice"),
        ("pretrain.seeds=[0, 0]", "pretrain: one of seeds is given twice"),
        ("tasks.²=digits", "must be an index"),
        ("storage=''", "storage = ''"),
        ("storage=' '", "storage = ' ': is blank; give a folder"),
        ("storage=s3:/bucket/a", "is no bucket; write s3://bucket/a, or ./s3:/bucket/a"),
        ("noise..seed=2", "must read path=value"),
        ("pretrain.seeds=[9223372036854775808]", "give one below 2^63"),
        ("pretrain.recipe.model_options={a: [9223372036854775808]}", "give one below 2^63"),
        ("nonsense", "must read path=value"),
        ("name.below=1", "has no fields"),
        ("tuning.epochs=[", "not valid YAML"),
        ("tuning.halving={first: 1, first: 2}", "given twice"),
        ("pretrain.recipe.schedule.lr=.inf", "lr = inf: must be a finite number"),
        ("pretrain.recipe.model_options.drop=.nan", "drop = nan: must be a finite number"),
        ("corpus.shard_mb=.inf", "must be a finite number"),
        ("tuning.methods.lp.space.lr={choice: [0.1, .nan]}", "lr.choice.1 = nan"),
        ("tuning.methods.lp.space.lr={loguniforn: [0.1, 1]}", "did you mean loguniform?"),
        ("tuning.methods.lp.space.lr={choice: []}", "lr.choice = []: must have at least 1 entry"),
        ("tuning.methods.lp.space.lr={}", "has one of loguniform, uniform"),
        ("tuning.methods.lp.space.lr=[0.1, 1]", "written as choice: [...]"),
        ("tuning.halving={frist: 2}", "unknown field tuning.halving.frist (did you mean first?)"),
        ("tuning.fractions=[101]", "fractions.0 = 101"),
        ("features.views.augment.scale=[-1, 1]", "scale needs two numbers above 0"),
        ("features.views.augment.scale=[2, 1]", "the smaller first"),
        ("tuning.methods.lp.rank=4", "rank belongs to adapt: lora"),
        ("tuning.methods.lp.encoder_lr=0.5", "encoder_lr belongs to adapt: lora or ft"),
        ("tuning.methods.mlp.space.scale=2", "scale multiplies mse, cov and svd, and none"),
    ],
)
def test_a_bad_override_names_the_field_and_the_remedy(override: str, expected: str) -> None:
    message = complaint(overrides=[override])
    assert expected in message
    assert "more problem" not in message


@pytest.mark.parametrize("template", ["photo", "a {} {x}", "{0}", "a {} {", "{} and {}", "{:>9}"])
@pytest.mark.parametrize(
    "field",
    ["tuning.methods.z={head: zero_shot, templates: [%s]}", "pretrain.recipe.templates=[%s]"],
)
def test_a_template_that_cannot_take_a_class_is_refused(field: str, template: str) -> None:
    message = complaint("digits-clip", overrides=[field % f"'{template}'"])
    assert "a template needs one {} for the class's name" in message


def test_doubled_braces_of_a_template_are_its_own() -> None:
    changed = load.load("digits-clip", overrides=["pretrain.recipe.templates=['a {{nice}} {}']"])
    assert changed.pretrain.recipe.templates[0].format("dog") == "a {nice} dog"


def test_overrides_reach_any_field() -> None:
    changed = load.load(
        overrides=["pretrain.recipe.schedule.epochs=3", "tuning.fractions.0=25", "storage=/x"]
    )
    assert changed.pretrain.recipe.schedule.epochs == 3
    assert changed.tuning.fractions == (25,)
    assert changed.storage == "/x"


def test_a_missing_file_is_refused_with_the_nearest_bundled_one() -> None:
    assert "did you mean the bundled 'demo'?" in complaint("dem.yaml")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name: a\nname: b\n", "given twice"),
        ("- a list\n", "must be a mapping"),
        ("name: [unclosed", "not valid YAML"),
        ("name: !!python/object/apply:os.system [ls]\n", "not valid YAML"),
        ("name: only\n", "tasks is missing"),
    ],
)
def test_a_broken_file_is_one_sentence(tmp_path, text: str, expected: str) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    message = complaint(str(path))
    assert expected in message
    assert "broken.yaml" in message


def test_an_anchor_is_merged_and_may_be_overridden() -> None:
    head, _ = load._read("demo")[1].split("\ntuning:")
    tuning = """
tuning:
  configurations: 1
  methods:
    lp: &lp {head: linear, space: &space {lr: 0.1, weight_decay: 0.1}}
    slow: {<<: *lp, space: {<<: *space, lr: 0.001}}
"""
    methods = load.load("merged.yaml", text=head + tuning).tuning.methods
    assert methods["slow"].head == "linear"
    assert methods["slow"].space.model_dump(exclude_unset=True) == {
        "lr": 0.001,
        "weight_decay": 0.1,
    }
    twice = head + tuning.replace("lr: 0.001", "lr: 0.001, lr: 0.01")
    assert "'lr' is given twice" in complaint("merged.yaml", text=twice)


def test_a_merge_within_a_merge_is_not_a_repeated_key() -> None:
    """`two` is read first; the mapping that it merges, itself a merge, is resolved then."""
    text = """
    base: &base {head: linear, lr: 1}
    one: {inner: &inner {<<: *base, head: paper}}
    two: {<<: *inner, lr: 2}
    """
    found = strict_yaml.parse(text)
    assert found["one"] == {"inner": {"head": "paper", "lr": 1}}
    assert found["two"] == {"head": "paper", "lr": 2}


def test_an_ood_task_without_its_id_task_is_refused() -> None:
    with pytest.raises(UserError, match="trained on digits, which is not listed"):
        load.load(overrides=["tasks=[digits-parity, digits-rotated]"]).load_tasks()


def test_an_unknown_task_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match="digits-parity"):
        load.load(overrides=["tasks=[digits-party]"]).load_tasks()


def test_yes_and_no_are_words_and_truth_values_are_no_numbers() -> None:
    """As in YAML 1.2: a class may be called `no`. A switch takes the words as well."""
    value = strict_yaml.parse("{a: [no, yes, on, off, Yes, NO], b: [true, False], no: y}")
    assert value == {
        "a": ["no", "yes", "on", "off", "Yes", "NO"],
        "b": [True, False],
        "no": "y",
    }
    assert load.load(overrides=["tracking.enabled=no"]).tracking.enabled is False
    for field, value in (
        ("corpus.seed", "true"),
        ("corpus.parts.validation", "true"),
        ("noise.levels", "[5, true]"),
        ("pretrain.seeds", "[true]"),
        ("tuning.methods.lp.space.lr", "true"),
        ("pretrain.recipe.schedule.lr", "true"),
    ):
        assert f"{field} is true, which is neither" in complaint(overrides=[f"{field}={value}"])


def test_a_warm_up_longer_than_the_training_is_refused() -> None:
    schedule = "pretrain.recipe.schedule"
    words = [f"{schedule}.warmup_epochs=6", f"{schedule}.epochs=5"]
    assert "warmup_epochs 6 is longer than the training of 5 epochs" in complaint(overrides=words)
    assert load.load(overrides=[f"{schedule}.warmup_epochs=5", f"{schedule}.epochs=5"])
