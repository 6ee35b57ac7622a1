"""Real data sets as a run meets them: prepared from a release, learnt from end to end, and at release scale."""

import json
import pathlib
import subprocess
import sys
import textwrap

import pandas as pd
import pytest

from configs import base
from cxr_jax import experiment, stages, tables
from cxr_jax.data import cohorts, datasets, race_rules
from cxr_jax.tables import UserError
from tests import releases
from tests.phantoms import ROOT, command

SMALL = {"picture": (40, 32), "faults": True}


def prepared(name, raw, workdir, **fields):
    config = experiment.apply_argument(base.get_config(), f"{name},tiny", base.SIZES)
    config.stages, config.train.targets = ("prepare",), ("sex",)
    config.dataset.update({"raw_dir": str(raw), "data_dir": str(workdir / "data"), "max_unreadable_share": 0.2, **fields})
    experiment.validate(config)
    run = experiment.Run(workdir, config, base.get_config(), "the command")
    stages.prepare(config, run)
    return run, cohorts.Cohort.read(run.path(stages.COHORT))


@pytest.fixture(scope="module")
def mimic(tmp_path_factory) -> tuple[releases.Truth, str]:
    """A release, and where its records are, which the first to need them builds."""
    return releases.mimic(tmp_path_factory.mktemp("mimic"), patients=60, **SMALL), str(tmp_path_factory.mktemp("records"))


@pytest.mark.parametrize("name", ["mimic", "chexpert", "padchest", "nih", "brax"])
def test_prepare_leaves_a_cohort_its_page_and_what_could_not_be_read(name, request, tmp_path, capsys):
    if name == "mimic":
        truth, data_dir = request.getfixturevalue("mimic")
    else:
        truth, data_dir = getattr(releases, name)(tmp_path / "raw", **SMALL), str(tmp_path / "data")
    run, cohort = prepared(name, truth.folder, tmp_path / "run", data_dir=data_dir)
    frontal = {"padchest": ("PA", "AP", "AP_horizontal")}.get(name, ("PA", "AP"))
    drawn = truth.images[truth.images["view"].isin(frontal) & (truth.images["fault"] == "")]
    if name not in ("mimic", "chexpert"):
        assert set(cohort.table["image_id"]) == set(drawn["image_id"])
    else:
        assert set(cohort.table["image_id"]) < set(drawn["image_id"])
        assert set(cohort.table["race"]) <= {"White", "Black", "Asian", "Hispanic/Latino"}
    set_aside = pd.read_csv(run.path("quarantine.csv"))
    assert set(set_aside["image_id"]) == set(truth.images.loc[truth.images["fault"] != "", "image_id"])
    assert run.path("cohort.html").stat().st_size > 10_000 and len(pd.read_csv(run.path("cohort.csv"))) > 50
    printed = capsys.readouterr().out
    assert "every image of the data set" in printed and "cohort.html" in printed
    # What is printed ends up in logs: of single images of data that are not open it says nothing.
    faults = int((truth.images["fault"] != "").sum())
    assert f"{faults} of {len(truth.images)} images could not be read, and are left out" in printed and str(run.path("quarantine.csv")) in printed
    assert ("images of the table that are missing: 1" in printed) == (name == "nih")
    assert name == "nih" or not any(image in printed for image in truth.images["image_id"])
    record = json.loads(json.dumps(run.record["dataset"]))  # plain
    assert record["integrity"]["quarantined"]["missing"] == 1
    assert record["open_data"] == (name == "nih")


# ---- a table of one's own ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def city(tmp_path_factory) -> pathlib.Path:
    """A hospital's folder: drawn pictures, and a table in words of its own; one patient in eleven is recorded with two races."""
    folder = tmp_path_factory.mktemp("city")
    drawn = releases.nih(folder, patients=60, picture=(32, 32), lists=False).images
    number = drawn["patient_id"].astype("category").cat.codes
    race = pd.Series(["WHITE", "BLACK OR AFRICAN", "CAPE VERDEAN"])[number % 3].to_numpy()
    race = [("WHITE" if n % 11 == 1 and i % 2 else word) for i, (n, word) in enumerate(zip(number, race))]
    drawn.assign(race=race)[["image_id", "patient_id", "sex", "age", "view", "race", "finding_Mass"]].to_csv(folder / "table.csv", index=False)
    return folder


CITY = {"table": "table.csv", "findings": ("Mass=finding_Mass",), "max_unreadable_share": 0.01}


def test_a_table_s_own_words_for_race_are_its_groups_until_a_rule_makes_others_of_them(city, tmp_path):
    told = pd.read_csv(city / "table.csv", dtype={"patient_id": str})
    several = told.groupby("patient_id")["race"].transform("nunique") > 1
    assert 0 < several.sum() < len(told) / 4
    run, cohort = prepared("table.city", city, tmp_path / "own", **CITY, data_dir=str(tmp_path / "data"))
    assert cohort.races == ("BLACK OR AFRICAN", "CAPE VERDEAN", "WHITE") and set(cohort.table["dataset"]) == {"table"}
    expected = told.assign(race=told["race"].mask(several)).set_index("image_id")["race"].loc[cohort.table["image_id"]]
    assert list(cohort.table["race"].fillna("")) == list(expected.fillna(""))
    assert run.record["dataset"]["variant"] == "city_squash" and run.record["dataset"]["integrity"]["complete"]
    (tmp_path / "words.csv").write_text(
        "dataset,field,value,group,hispanic,source\ntable,race,WHITE,White,no,me\ntable,race,BLACK OR AFRICAN,Black,no,me\ntable,race,CAPE VERDEAN,Black,no,me\n"
    )
    ruled = {**CITY, "data_dir": str(tmp_path / "data"), "race_rule": "four_race"}
    _, cohort = prepared("table.city", city, tmp_path / "ruled", **ruled, race_table=str(tmp_path / "words.csv"))
    black = told.groupby("patient_id")["race"].transform(lambda words: words.str.startswith(("BLACK", "CAPE")).all())
    both = several & ~black  # White and Black, which the rule drops; Black in two words is one group
    assert set(cohort.table["image_id"]) == set(told.loc[~both, "image_id"]) and cohort.races == ("White", "Black", "Asian", "Hispanic/Latino")
    assert dict(zip(cohort.table["image_id"], cohort.table["race"])) == {
        image: "Black" if is_black else "White" for image, is_black in zip(told.loc[~both, "image_id"], black[~both])
    }
    with pytest.raises(UserError, match="values that race_groups.csv does not know: race 'BLACK OR AFRICAN' .* name it in config.dataset.race_table"):
        prepared("table.city", city, tmp_path / "unknown", **{**ruled, "data_dir": str(tmp_path / "elsewhere")})


def test_hospitals_lie_side_by_side_and_another_map_is_another_release(city, tmp_path):
    for name in ("table.city", "table.town"):
        prepared(name, city, tmp_path / name, **CITY, data_dir=str(tmp_path / "data"))
    assert sorted(path.name for path in (tmp_path / "data" / "cxr_table").iterdir() if path.is_dir()) == ["city_squash", "town_squash"]
    for change in ({"findings": ("Nodule=finding_Mass",)}, {"columns": ("race=",)}, {"words": ("sex:F=M",)}, {"open_data": True}):
        with pytest.raises(UserError, match="was built from another table release .*, or by another config.dataset.table, columns") as caught:
            prepared("table.city", city, tmp_path / "changed", **{**CITY, **change}, data_dir=str(tmp_path / "data"))
        assert "\n" not in str(caught.value)


def test_what_was_built_as_open_data_is_not_shown_by_a_config_that_says_it_is_not(city, tmp_path):
    given = {**CITY, "data_dir": str(tmp_path / "data")}
    run, _ = prepared("table.city", city, tmp_path / "open", **given, open_data=True)
    assert run.record["dataset"]["open_data"]
    with pytest.raises(UserError, match="config.dataset.open_data: False, but .* was built as open data"):
        prepared("table.city", "", tmp_path / "closed", **given)


def test_a_table_may_be_judged_on(city, tmp_path):
    config = experiment.apply_argument(base.get_config(), "nih,tiny", base.SIZES)
    config.dataset.update({"data_dir": str(tmp_path / "data"), "table": "table.csv", "findings": ("Mass=finding_Mass",)})
    config.predict.dataset = "table.city"
    experiment.validate(config)
    with pytest.raises(UserError, match="config.predict.raw_dir is not set, .* folder of the table release"):
        stages.judged_dataset(config)
    config.predict.raw_dir = str(city)
    judged = stages.judged_dataset(config)
    assert (judged.name, judged.variant, judged.race_rule, judged.raw_dir) == ("table", "city", "recorded", str(city))
    dataset = datasets.prepare(judged)
    assert dataset.findings == ("Mass",) and dataset.races == ("BLACK OR AFRICAN", "CAPE VERDEAN", "WHITE")
    config.predict.raw_dir, config.dataset.table, config.dataset.findings = "", "", ()  # once built it says itself what it holds
    assert datasets.open(stages.judged_dataset(config)).keys.equals(dataset.keys)
    config.predict.raw_dir = str(city)  # and a table that is not named is told before anything is trained
    config.predict.dataset = "table.elsewhere"
    with pytest.raises(UserError, match="config.dataset.table is not set"):
        stages.judged_dataset(config)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mimic", "chexpert"])
def test_race_is_learnt_end_to_end(name, tmp_path):
    getattr(releases, name)(tmp_path / "raw", patients=400, seed=1)
    arguments = (f"--config.dataset.raw_dir={tmp_path / 'raw'}", f"--config.dataset.data_dir={tmp_path / 'data'}")
    done = command(f"--config=configs/race.py:{name},tiny", *arguments, workdir=tmp_path / "run")
    assert done.returncode == 0, done.stderr
    rows = tables.read_json(tmp_path / "run" / "audit.json")
    classes = {r["class"] for r in rows if r["metric"] == "auc" and r["attribute"] == "all"}
    assert classes == {"White", "Black", "Asian", "Hispanic/Latino", "macro"}
    page = (tmp_path / "run" / "report.html").read_text()
    assert "records of race agree" in page and "four_race" in page or "race is White, Black, Asian or Hispanic/Latino" in page


def test_a_rule_changed_rewrites_no_image(mimic, tmp_path):
    truth, data_dir = mimic
    _, four = prepared("mimic", truth.folder, tmp_path / "one", data_dir=data_dir)
    written = {p: p.stat().st_mtime_ns for p in pathlib.Path(data_dir).rglob("*tfrecord*")}
    _, everybody = prepared("mimic", truth.folder, tmp_path / "two", data_dir=data_dir, race_rule="all", views=())
    assert written and {p: p.stat().st_mtime_ns for p in pathlib.Path(data_dir).rglob("*tfrecord*")} == written
    assert len(everybody.table) > len(four.table) and everybody.table["race"].isna().any()
    # The same patients in the same splits, whatever the rule.
    both = four.table.merge(everybody.table, on="image_id", suffixes=("_four", "_all"))
    assert len(both) == len(four.table) and (both["split_four"] == both["split_all"]).all()


def test_the_default_rule_follows_the_data_set():
    config = base.get_config()
    for name, rule in (("mimic", "four_race"), ("nih", "recorded"), ("chexpert", "four_race"), ("table.city", "recorded"), ("brax", "recorded"), ("phantom", "recorded")):
        experiment.choose_dataset(config.dataset, name, "here")
        assert config.dataset.race_rule == rule and tuple(config.dataset.views) == ("AP", "PA")
    config.dataset.race_rule = "recorded"
    experiment.choose_dataset(config.dataset, "mimic", "here")
    config.dataset.race_rule = "three_race"
    experiment.choose_dataset(config.dataset, "chexpert", "here")  # a model of MIMIC-CXR judged on CheXpert
    assert config.dataset.race_rule == "three_race"


def test_a_rule_s_mistake_is_told_before_any_picture_is_read(tmp_path):
    releases.mimic(tmp_path / "raw", patients=60, picture=(40, 32))
    for fields, message in (({"race_rule": "for_race"}, "no rule 'for_race'"), ({"race_table": "nowhere.csv"}, "nowhere.csv")):
        with pytest.raises(UserError, match=message):
            prepared("mimic", tmp_path / "raw", tmp_path / "run", **fields)
    assert not (tmp_path / "run" / "data").exists()


def test_a_release_to_judge_on_that_is_not_named_is_told_before_any_picture_is_read(tmp_path):
    config = experiment.apply_argument(base.get_config(), "phantom,tiny", base.SIZES)
    config.dataset.data_dir, config.predict.dataset = str(tmp_path / "data"), "padchest"
    experiment.validate(config)
    run = experiment.Run(tmp_path / "run", config, base.get_config(), "the command")
    for stage in (stages.prepare, stages.train):
        with pytest.raises(UserError, match="config.predict.raw_dir is not set, .* folder of the padchest release"):
            stage(config, run)
    assert not (tmp_path / "data").exists()


def test_a_target_that_cannot_be_taught_leaves_the_workdir_as_it_was(mimic, tmp_path):
    truth, data_dir = mimic
    config = experiment.apply_argument(base.get_config(), "mimic,tiny", base.SIZES)
    config.train.targets = ("race", "rcae")
    config.dataset.update({"raw_dir": str(truth.folder), "data_dir": data_dir, "max_unreadable_share": 0.2})
    run = experiment.Run(tmp_path / "run", config, base.get_config(), "the command")
    before = sorted(p.name for p in run.workdir.iterdir())
    with pytest.raises(UserError, match="no target 'rcae'"):
        stages.prepare(config, run)
    assert sorted(p.name for p in run.workdir.iterdir()) == before


def test_a_data_set_with_too_many_gaps_is_not_taken_for_a_whole_one(mimic, tmp_path):
    truth, data_dir = mimic
    prepared("mimic", truth.folder, tmp_path / "one", data_dir=data_dir)
    with pytest.raises(UserError, match="was built without 4 of .* above the share of 0.001"):
        prepared("mimic", truth.folder, tmp_path / "two", data_dir=data_dir, max_unreadable_share=0.001)


def test_a_value_that_no_table_knows_ends_it_in_one_line(tmp_path):
    releases.mimic(tmp_path / "raw", patients=20, picture=(40, 32), gz=False)
    admissions = tmp_path / "raw" / "hosp" / "admissions.csv"
    admissions.write_text(admissions.read_text().replace(",WHITE - RUSSIAN,", ",MARTIAN,"))
    with pytest.raises(UserError, match="race 'MARTIAN' .* images.*race_table") as caught:
        prepared("mimic", tmp_path / "raw", tmp_path / "run")
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_the_cohort_of_a_whole_mimic_takes_under_20_seconds_and_2_gb(tmp_path):
    """Memory is asserted; the time is printed, since what a machine is busy with is not ours to judge."""
    releases.mimic_tables(tmp_path)
    script = f"""
        import json, pathlib, time
        from configs import base
        from cxr_jax.data import cohorts
        from tfds_builders import released
        from tfds_builders.cxr_mimic import cxr_mimic_dataset_builder as mimic
        started = time.time()
        keys = mimic.read_release(released.builder_config({str(tmp_path)!r})).records.reset_index(drop=True)
        text = keys.select_dtypes("str").columns
        keys[text] = keys[text].where(keys[text] != "", None)
        found = {{}}
        for rule, views in (("four_race", ("AP", "PA")), ("first_admission", ())):
            config = base.get_config().dataset
            config.update({{"name": "mimic", "race_rule": rule, "views": views}})
            cohort = cohorts.select(keys, mimic.FINDINGS, (), config)
            found[rule] = cohort.attrition[0]["by_race"] | {{"published": cohorts.against_published(cohort, config)}}
        # Not getrusage's figure, which a process inherits from the one that started it: here that of all tests before.
        status = dict(line.split(":", 1) for line in pathlib.Path("/proc/self/status").read_text().splitlines())
        gib = int(status["VmHWM"].split()[0]) / 2**20
        print(json.dumps({{"found": found, "gib": gib, "seconds": time.time() - started}}))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], cwd=ROOT, capture_output=True, text=True, check=True)
    told = json.loads(done.stdout.splitlines()[-1])
    print(f"{told['seconds']:.1f} s, {told['gib']:.2f} GiB")
    assert told["gib"] < 2
    first = told["found"]["first_admission"]
    assert first["White"]["images"] == 218_203 + 1_299 and first["Black"]["images"] == 55_837
    assert first["Asian"]["images"] == 10_930 and first["Hispanic/Latino"]["images"] == 18_869 + 473
    assert first[race_rules.NO_RECORD]["images"] == 46_663
    assert len(first["published"]) == 5 and not any("(differs)" in line for line in first["published"])
