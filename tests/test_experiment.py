import json

import pytest

from configs import audit, base, disease, race, sex
from cxr_jax import experiment, tables
from cxr_jax.tables import UserError


@pytest.mark.parametrize("config", [race, disease, sex])
@pytest.mark.parametrize(
    "argument", [None, "", "phantom", "phantom.null", "phantom,paper", "tiny", "tiny,phantom.shortcut", "mimic", "chexpert", "nih", "nih,tiny", "padchest,tiny", "brax", "table.city,tiny"]
)
def test_every_config_takes_every_argument(config, argument):
    c = config.get_config(argument)
    experiment.validate(c)
    assert experiment.fields(c).keys() == experiment.fields(base.get_config()).keys()


def test_what_an_argument_means():
    reduced, paper, mimic, null = (race.get_config(a) for a in (None, "phantom,paper", "mimic", "phantom.null"))
    assert reduced.dataset.image_size == 64 and reduced.model.blocks == (6, 12, 24, 16)
    for recipe in (paper, mimic):
        assert (recipe.dataset.image_size, recipe.train.epochs, recipe.train.batch_size) == (256, 10, 32)
        assert recipe.train.schedule == "constant"
    assert (null.dataset.name, null.dataset.variant, null.dataset.image_size) == ("phantom", "null", 64)
    assert race.get_config("tiny,phantom.null") == race.get_config("phantom.null,tiny")


@pytest.mark.parametrize(
    ("argument", "told"),
    [
        ("phantm", "unknown token 'phantm'.*known: phantom, mimic, chexpert, nih, padchest, brax, table, tiny, paper"),
        ("phantom.nul", "did you mean 'null'"),
        ("nih.null", "nih has no variants; only phantom and table have"),
        ("table", "table.NAME expected, NAME being what you call your hospital"),
        ("table.my-hospital", "of letters, digits and _"),
        ("nih,mimic", "two data sets"),
        ("tiny,paper", "two sizes"),
    ],
)
def test_a_bad_argument_is_told(argument, told):
    with pytest.raises(UserError, match=told):
        race.get_config(argument)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("stages", ("predict", "train")), ("stages", ("trian",)), ("dataset.image_size", 512), ("dataset.split_fractions", (0.5, 0.5, 0.5)),
        ("model.dtype", "float16"), ("train.targets", ()), ("train.batch_size", 1), ("train.schedule", "linear"),
        ("dataset.split_fractions", (0.5, 0.5)), ("dataset.split_fractions", (0.6, 0.1, 0.2)), ("dataset.split_fractions", (1.0, 0.0, 0.0)),
        ("dataset.split_fractions", (1.2, -0.1, -0.1)), ("dataset.block_images", 0),
        ("predict.dataset", "phantm"), ("predict.dataset", "phantom.nul"), ("predict.dataset", "nih.null"), ("predict.dataset", "table"), ("dataset.table", "table.csv"), ("dataset.columns", ("sex=a",)), ("dataset.open_data", True),
        ("train.targets", ("sex", "sex")), ("dataset.uncertain", "one"),
        ("train.augment.zoom", 1.0), ("train.augment.zoom", -0.1), ("train.augment.shift", -0.1), ("train.augment.rotate_degrees", -5.0),
        ("train.warmup_epochs", 99.0), ("audit.splits", ("train",)), ("audit.splits", ()), ("audit.level", 95.0), ("audit.replicates", 10),
        ("audit.age_bands", (20, 0)), ("audit.age_bands", ()), ("audit.min_patients", 0),
    ],
)  # fmt: skip
def test_a_bad_value_is_named(field, value):
    config = experiment.apply_diff(race.get_config(), {field: value})
    with pytest.raises(UserError, match=field.replace(".", r"\.")):
        experiment.validate(config)


NO_RULES = ["", "best", "youden:0.5", "sensitivity", "sensitivity:", "sensitivity:2", "sensitivity:1.1", "fixed:-1", "fixed:x", "fixed:nan", "fixed:0.5\n", "fixed: 0.5"]


@pytest.mark.parametrize("rule", NO_RULES)
def test_what_is_no_rule_for_thresholds_is_named_with_those_there_are(rule):
    told = f"{rule!r}: youden, f1, sensitivity:0.9, specificity:0.9 or fixed:0.5, the number from 0 to 1"
    with pytest.raises(ValueError) as caught:
        experiment.threshold_rule(rule)
    assert str(caught.value) == told
    with pytest.raises(UserError) as caught:
        experiment.validate(experiment.apply_diff(race.get_config(), {"audit.threshold": rule}))
    assert str(caught.value) == f"config.audit.threshold={told}"


def test_rules_for_thresholds():
    found = {"sensitivity:0.9": 0.9, "specificity:.95": 0.95, "fixed:0": 0.0, "fixed:0.": 0.0, "fixed:1": 1.0, "fixed:1.00": 1.0, "youden": None, "f1": None}
    for rule, number in found.items():
        experiment.validate(experiment.apply_diff(race.get_config(), {"audit.threshold": rule}))
        assert experiment.threshold_rule(rule) == (rule.partition(":")[0], pytest.approx(float("nan") if number is None else number, nan_ok=True))


@pytest.mark.parametrize(
    ("diff", "told"),
    [
        ({}, "name the file of your predictions with --config.audit.predictions=FILE"),
        ({"predictions": "f", "columns": ("race",)}, "'race' is not of the form NAME=COLUMN"),
        ({"predictions": "f", "columns": ("=race",)}, "'=race' is not of the form NAME=COLUMN"),
        ({"predictions": "f", "scores": ("White=",)}, "'White=' is not of the form CLASS=COLUMN"),
        ({"predictions": "f", "labels": ("Edema", "a=b")}, "'Edema' is not of the form FINDING=COLUMN"),
        ({"predictions": "f", "columns": ("patient=who",)}, "no 'patient'; did you mean 'patient_id'.*audit.attributes"),
        ({"predictions": "f", "columns": ("sex=a", "sex=b")}, "each name once"),
        ({"predictions": "", "columns": ("sex=a",)}, "columns of the file that audit.predictions names"),
        ({"predictions": "", "label": "race"}, "a column of the file that audit.predictions names"),
        ({"predictions": "f", "splits": ("training",)}, "splits=.*some of train, validation, test"),
    ],
)
def test_predictions_of_one_s_own_are_named_with_their_columns(diff, told):
    config = experiment.apply_diff(audit.get_config(), {f"audit.{name}": value for name, value in diff.items()})
    with pytest.raises(UserError, match=f"config.audit.*{told}"):
        experiment.validate(config)


def test_predictions_of_one_s_own_may_be_of_any_split_and_need_no_stage_of_ours():
    fine = {"audit.predictions": "f", "audit.splits": ("train",), "audit.columns": ("split=", "insurance=a"), "audit.attributes": ("insurance",)}
    experiment.validate(experiment.apply_diff(audit.get_config(), fine))
    with pytest.raises(UserError, match="need no stage but --config.stages"):
        experiment.validate(experiment.apply_diff(race.get_config(), {"audit.predictions": "f"}))
    with pytest.raises(UserError, match="takes no argument, not 'mimic'"):
        audit.get_config("mimic")


def test_an_unknown_field_names_the_nearest():
    with pytest.raises(UserError, match="no config field 'train.epoch'; did you mean 'train.epochs'"):
        experiment.check_overrides(["--workdir=x", "--config.train.epoch=3"], base.get_config())
    experiment.check_overrides(["--config=configs/race.py", "--config.train.epochs=3", "config.not.a.flag"], base.get_config())


def test_a_diff_lists_what_differs_and_survives_json():
    config = experiment.apply_diff(base.get_config(), {"train.epochs": 3, "model.blocks": (2, 2)})
    difference = json.loads(json.dumps(experiment.diff(config, base.get_config())))
    assert difference == {"model.blocks": {"base": [6, 12, 24, 16], "run": [2, 2]}, "train.epochs": {"base": 10, "run": 3}}
    assert not experiment.diff(config, json.loads(json.dumps(config.to_dict())))


def test_a_fingerprint_follows_what_results_depend_on():
    config = base.get_config()
    judged = experiment.apply_diff(base.get_config(), {"audit.replicates": 500})
    elsewhere = experiment.apply_diff(base.get_config(), {"dataset.data_dir": "/somewhere", "dataset.device_cache_share": 0.5, "stages": ("audit",)})
    assert experiment.fingerprint(judged) != experiment.fingerprint(config) == experiment.fingerprint(elsewhere)


def finished_run(workdir) -> None:
    run = experiment.Run(workdir, race.get_config(), base.get_config(), "the command")
    with run.recording({"platform": "cpu"}):
        for stage in run.config.stages:
            with run.stage(stage):
                pass


def test_a_finished_run_is_known_again_and_its_record_is_whole(tmp_path):
    finished_run(tmp_path)
    again = experiment.Run(tmp_path, race.get_config(), base.get_config(), "the command")
    assert again.complete
    record = tables.read_json(tmp_path / "run.json")
    assert record["status"] == "done" and record["packages"]["jax"] and record["fingerprint"] == experiment.fingerprint(race.get_config())
    assert tables.read_json(tmp_path / "config_diff.json")["name"] == {"base": "", "run": "D_race"}


def test_another_way_of_judging_runs_the_later_stages_again(tmp_path):
    finished_run(tmp_path)
    config = experiment.apply_diff(race.get_config(), {"audit.replicates": 500})
    run = experiment.Run(tmp_path, config, base.get_config(), "the command")
    assert [run.done(s) for s in config.stages] == [True, True, True, False, False]


def test_a_run_of_before_a_field_came_goes_on(tmp_path):
    finished_run(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    config = tables.read_json(tmp_path / "config.json")
    del config["train"]["accumulate"], config["audit"]["case_mix"]
    tables.write_json(tmp_path / "config.json", config)
    assert experiment.Run(tmp_path, race.get_config(), base.get_config(), "the command").complete
    another = experiment.apply_diff(race.get_config(), {"train.accumulate": 2})
    tables.write_json(tmp_path / "config.json", config)
    with pytest.raises(UserError, match="train.accumulate: 1 there, 2 here"):
        experiment.Run(tmp_path, another, base.get_config(), "the command")


def test_a_workdir_of_another_model_is_refused_and_left_alone(tmp_path):
    finished_run(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    before = {p.name: p.read_bytes() for p in tmp_path.glob('*.json')}
    config = experiment.apply_diff(race.get_config(), {"train.epochs": 7})
    with pytest.raises(UserError, match="another config .train.epochs: 3 there, 7 here.*--workdir"):
        experiment.Run(tmp_path, config, base.get_config(), "the command")
    assert {p.name: p.read_bytes() for p in tmp_path.glob('*.json')} == before


def test_a_race_table_that_was_edited_is_another_one(tmp_path):
    table = tmp_path / "own.csv"
    config = experiment.apply_diff(race.get_config("mimic"), {"dataset.race_table": str(table)})
    with pytest.raises(UserError, match="config.dataset.race_table: .*own.csv: not a readable file .No such file"):
        experiment.Run(tmp_path / "run", config, base.get_config(), "the command")
    assert not (tmp_path / "run" / "run.json").exists()

    def opened():
        return experiment.Run(tmp_path / "run", config, base.get_config(), "the command")

    table.write_text("one")
    before = experiment.fingerprint(config)
    with opened().recording({}) as run, run.stage("prepare"):
        pass
    assert opened().done("prepare") and experiment.fingerprint(config) == before
    table.write_text("another")
    assert experiment.fingerprint(config) != before
    assert not opened().done("prepare")  # nothing was trained yet
    with opened().recording({}) as run, run.stage("prepare"):
        (tmp_path / "run" / "checkpoints").mkdir()
    assert opened().done("prepare")
    table.write_text("a third")
    with pytest.raises(UserError, match="holds a run of another config .dataset.race_table: '.*own.csv .* there, '.*own.csv .* here"):
        opened()
    table.write_text("another")
    assert opened().done("prepare")
    config.dataset.race_table = ""
    with pytest.raises(UserError, match="dataset.race_table: '.*own.csv .* there, '' here"):
        opened()


def test_a_first_command_with_a_mistake_in_it_can_be_mended(tmp_path):
    run = experiment.Run(tmp_path, race.get_config(), base.get_config(), "the command")
    with pytest.raises(UserError), run.recording({}), run.stage("prepare"):
        raise UserError("no such target")
    mended = experiment.apply_diff(race.get_config(), {"train.targets": ("sex",)})
    assert not experiment.Run(tmp_path, mended, base.get_config(), "the command").done("prepare")


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt, "interrupted"), (FloatingPointError, "diverged"), (RuntimeError, "failed")])
def test_the_status_is_written_however_a_run_ends(tmp_path, error, status):
    run = experiment.Run(tmp_path, race.get_config(), base.get_config(), "the command")
    with pytest.raises(error), run.recording({}), run.stage("prepare"):
        raise error
    record = tables.read_json(tmp_path / "run.json")
    assert record["status"] == status and record["stages"]["prepare"]["status"] == "running"
    assert not experiment.Run(tmp_path, race.get_config(), base.get_config(), "").complete


def test_the_grammar_knows_the_data_sets_and_variants_that_there_are():
    """Written out in experiment.py, which must not import TensorFlow to read a command line."""
    from cxr_jax.data import datasets
    from tfds_builders.cxr_phantom import phantom

    assert set(experiment.DATASETS) == set(datasets.BUILDERS)
    assert experiment.PHANTOM_VARIANTS == tuple(phantom.VARIANTS)
