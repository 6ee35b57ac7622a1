"""The report of probes: says what the intervals allow and no more, holds nothing about one image, and stands alone."""

import dataclasses
import functools
import json
import re

import numpy as np
import pandas as pd
import pytest
from scipy.special import softmax

from configs import base
from cxr_jax import tables
from cxr_jax.audit import readings
from cxr_jax.report import demographics, probes
from cxr_jax.report import html as report
from cxr_jax.tables import AS_MANY, FEATURES, Reading, Readings
from tests.audit.test_readings import IMAGES, drawn, settings
from tests.report.attack import People, attack, shown_in_probes, shown_in_report, shown_in_table
from tests.report.conftest import MIN_PATIENTS, make_workdir, narrowed, odd_cohort
from tests.report.test_html import Page


@functools.cache
def audited(few: bool, open_data: bool) -> dict:
    vectors = np.random.default_rng(1).normal(size=(IMAGES, 12)).astype(np.float32)
    return readings.audit(drawn(few=few), vectors, settings(), open_data)


def workdir_of(folder, few=False, open_data=False, **changes):
    """A workdir of a user's own embeddings: probes, and nothing of our models."""
    config = base.get_config()
    config.name = "Probes"
    tables.write_json(folder / "config.json", config.to_dict())
    tables.write_json(folder / "config_diff.json", {})
    record = {"stages": {}, "dataset": {"name": "mine", "open_data": open_data, "invented_groups": False}}
    tables.write_json(folder / "run.json", record)
    tables.write_json(folder / "probe_audit.json", {**audited(few, open_data), **changes})
    return folder


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return workdir_of(tmp_path_factory.mktemp("probed"))


@pytest.fixture(scope="module")
def page(workdir):
    path = report.write(workdir)
    return Page(path.read_text())


def test_the_page_answers_first_and_asks_for_nothing_from_elsewhere(page, workdir):
    first = next(attrs for tag, attrs in page.elements if tag == "img")
    assert first["alt"].startswith("AUC by probe.") and first["src"].startswith("data:image/svg+xml")
    assert not [attrs for _, attrs in page.elements for key in ("src", "href") if str(attrs.get(key, "")).startswith("http")]
    for name in ("probes_race", "probe_strata_race"):
        assert (workdir / "figures" / f"{name}.svg").exists(), name
    before = (workdir / "report.html").read_bytes()
    assert report.write(workdir).read_bytes() == before


def test_words_claim_what_the_intervals_allow(page):
    assert "Macro AUC of the first minus that of the second" in page.text
    assert "Judged on 240 test images of 120 patients. Macro AUC for telling race as recorded from the features" in page.text
    assert "Above 0.5, what guessing reaches: logistic regression" in page.text
    assert "For logistic regression that is more than from an untrained network's features" in page.text
    assert re.search(r"Within view AP alone \(\d+ or more test images\) 1 of 1 probes find it; the highest is logistic regression", page.text)
    assert re.search(r"Within view PA alone \(\d+ or more test images\) nothing can be said of all classes together: none fitted", page.text)
    assert re.search(r"Among as many images drawn at random \(\d+ or more\) the same probe reaches 0\.\d{3} \(0\.\d{3} to", page.text)
    assert "Within view LL alone (0 test images) nothing can be said of all classes together: no test image here" in page.text


def test_an_erasure_is_told_beside_what_was_there_and_what_fewer_patients_would_have_left(tmp_path):
    made, random = drawn(), np.random.default_rng(2)
    of = {signal: np.eye(3)[pd.Categorical(made.table["race"]).codes] * signal + random.normal(size=(IMAGES, 3)) for signal in (0.1, 0.6, 2.0)}
    scores = dict(zip((FEATURES, "halved1", "unerased"), (softmax(x).astype(np.float32) for x in of.values())))
    plan = [Reading("race", "logistic_regression", name, about={"fit_images": 700, "fit_patients": 350}) for name in scores]
    erased = {"attribute": "race", "patients": {FEATURES: 1200, "halved1": 600}}
    read = dataclasses.replace(made, readings=plan, scores=dict(zip((r.name for r in plan), scores.values())), found={**made.found, "erased": erased})
    found = readings.audit(read, random.normal(size=(IMAGES, 12)).astype(np.float32), settings(), False)
    page = Page(report.write(workdir_of(tmp_path, **found)).read_text())
    value = {row["input"]: row["value"] for row in found["rows"] if row["class"] == "macro" and row["probe"] and row["attribute"] == "all"}
    assert 0.4 < value[FEATURES] < 0.6 < value["halved1"] < value["unerased"] - 0.1
    assert f"For logistic regression that is less than from the features before erasure ({value['unerased']:.3f} (" in page.text
    drawn_as = next(attrs["alt"] for tag, attrs in page.elements if tag == "img" and "erasure was fitted on" in attrs["alt"])
    told = ", ".join(f"{place} {value[name]:.2f}" for place, name in (("before", "unerased"), ("600", "halved1"), ("1,200", FEATURES)))
    assert f": {told}." in drawn_as and (tmp_path / "figures" / "probe_fewer_race.svg").exists()
    assert "logistic regression on features erased by 600 patients" in page.text
    erased["attribute"] = "sex"  # which these probes were not asked for
    (tmp_path / "other").mkdir()
    report.write(workdir_of(tmp_path / "other", **found))
    assert (tmp_path / "other" / "figures" / "probes_race.svg").exists() and not (tmp_path / "other" / "figures" / "probe_fewer_race.svg").exists()


@pytest.mark.parametrize(
    ("low", "high", "p", "verdict"),
    [
        (0.51, 0.6, 0.01, "Above 0.5, what guessing reaches"),
        (0.51, 0.6, 0.06, "Above 0.5 by its interval, but not after correction for 16 tests"),
        (0.51, 0.6, None, "Above 0.5 by its interval, without a test"),
        (0.49, 0.6, 0.01, "Not told from 0.5, what guessing reaches"),
        (0.5, 0.6, 0.01, "Not told from 0.5, what guessing reaches"),
        (0.3, 0.49, 0.01, "Below 0.5, by chance or by an error"),
        (np.nan, np.nan, 0.01, "Without an interval, nothing can be said"),
    ],
)
def test_verdicts(low, high, p, verdict):
    assert probes._verdict(pd.Series({"low": low, "high": high, "value": 0.5}), {"p_adjusted": p, "family": 16}) == verdict


def test_a_difference_that_does_not_survive_correction_is_not_claimed(tmp_path):
    compared = [c | {"p_adjusted": 0.2} for c in audited(False, False)["comparisons"]]
    text = Page(report.write(workdir_of(tmp_path, comparisons=compared)).read_text()).text
    assert "that is more than" not in text and "it is not shown to differ from" in text


def test_a_map_of_cells_that_are_all_withheld_is_not_drawn(page):
    assert "Not drawn: first two principal components: every cell would show too few patients" in page.text


def test_nothing_about_one_image_or_patient(page, workdir):
    told = (workdir / "report.html").read_text() + "".join(p.read_text() for p in (workdir / "figures").glob("*.svg"))
    made = drawn().table
    for name in [*made["image_id"].head(20), *made["patient_id"].head(20)]:
        assert not re.search(rf"\b{name}\b", told), name
    shown = json.loads((workdir / "probe_audit.json").read_text())
    assert "points" not in json.dumps(shown["space"]["maps"])


def probed_cohort(table, targets, seed) -> Readings:
    """Noise for scores, of a cohort's test images: readings of the features, of shuffled labels and within strata."""
    random = np.random.default_rng(seed)
    judged = table[table["split"] == "test"].reset_index(drop=True)
    keys = judged[["image_id", "patient_id", "split", "race", "sex", "view"]].copy()
    keys["stratum_sex"] = judged["sex"]
    keys["stratum_No Finding"] = np.where(judged["finding_No Finding"] == 1, "present", "absent")
    keys[f"stratum_{AS_MANY}No Finding"] = keys["stratum_No Finding"].to_numpy()[random.permutation(len(keys))]
    plan = []
    for target in targets:
        keys[f"label_{target}"], keys[f"shuffled_{target}"] = judged[target], random.permutation(judged[target])
        strata = [(a, g) for a, g in (("sex", "F"), ("sex", "M"), ("No Finding", "present"), (AS_MANY + "No Finding", "present")) if a != target]
        plan += [Reading(target, "knn", FEATURES), Reading(target, "knn", FEATURES, shuffled=True)]
        plan += [Reading(target, "knn", FEATURES, attribute=a, group=g) for a, g in strata]
    plan = [dataclasses.replace(reading, about={"fit_images": 700, "fit_patients": 350}) for reading in plan]
    classes = {target: tuple(sorted(set(judged[target].dropna()))) for target in targets}
    scores = {r.name: random.dirichlet(np.ones(len(classes[r.target])), len(keys)).astype(np.float32) for r in plan}
    return Readings(keys, classes, plan, scores, {"agreement": [], "absent": [], "strata_by_truth": []})


@pytest.mark.parametrize("seed", range(3))
def test_no_small_cell_follows_from_the_pages_of_cohort_model_and_probes(tmp_path, seed):
    """Groups and findings are rare, ages and views are missing; everybody has a race and a sex, or the pages would tell no count."""
    whole = odd_cohort(400, seed).fillna({"race": "A", "sex": "F"})
    table, steps = narrowed(whole, ("view is AP", lambda t: t["view"] == "AP"))
    path = make_workdir(tmp_path, "race", table=table, steps=steps)
    record = tables.read_json(path / "run.json")
    record["dataset"]["open_data"] = False
    tables.write_json(path / "run.json", record)
    made = probed_cohort(table, ("race", "sex"), seed)
    vectors = np.random.default_rng(seed).normal(size=(len(made.table), 4)).astype(np.float32)
    tables.write_json(path / "probe_audit.json", readings.audit(made, vectors, settings(replicates=50), open_data=False))
    steps = [("every image of the data set", np.ones(len(whole), bool)), ("view is AP", (whole["view"] == "AP").to_numpy())]
    people = People(table, whole, steps, MIN_PATIENTS)
    read = report.read_workdir(path)
    cohort, probed = shown_in_table(people, demographics.read(path / "cohort.csv")), shown_in_probes(people, read.probed.rows)
    assert len(probed[0]) > 2
    found, small = attack(people, cohort, shown_in_report(people, read.rows), probed)
    assert found == [] and small > 20


def test_as_many_images_are_told_no_better_than_the_stratum():
    """Where the cohort's table withholds how many have No Finding, or which view: nor do the controls of these strata tell."""
    cohort = pd.DataFrame(
        [
            ("counts", "view", "AP", "test", "images", True), ("counts", "view", "all", "test", "images", False),
            ("findings", "No Finding", "", "test", "images positive", True),
        ],
        columns=["section", "attribute", "group", "split", "what", "suppressed"],
    ).assign(n_images=300.0)  # fmt: skip
    strata = [("view", "AP"), (AS_MANY + "view", "AP"), ("No Finding", "present"), (AS_MANY + "No Finding", "present"), ("site", "1")]
    rows = pd.DataFrame(strata, columns=["attribute", "group"]).assign(
        split="test", target="race", metric="auc", n_images=292.0, n_patients=280.0, n_positive=np.nan, **{"class": "macro"}
    )
    found, _ = report._withhold_counts(rows, cohort, MIN_PATIENTS)
    assert found["n_images"].isna().tolist() == [True, True, True, True, False]


def test_how_many_a_probe_was_fitted_on_is_told_roughly_of_strata(tmp_path):
    told = audited(False, False)["readings"]
    few = [r | {"about": r["about"] | {"fit_images": 8 if r["attribute"] else 994, "fit_patients": 8}} for r in told]
    page = Page(report.write(workdir_of(tmp_path, readings=few)).read_text())
    lines = page.table("training images")
    assert {line[1] for line in lines} == {"994", "fewer than 11"}


def test_differences_by_class_say_of_which_class_they_are(tmp_path):
    """Even where there is but one: that of two further ones is withheld."""
    page = Page(report.write(workdir_of(tmp_path, few=True)).read_text())
    head = next(t[0] for t in page.tables if t and "difference" in t[0])
    column = head.index("class")
    assert {line[column] for line in page.table("difference")} <= {"A", "B"} and "Macro AUC of the first" not in page.text


def test_a_small_class_is_withheld_in_words_and_tables(tmp_path):
    made = drawn(few=True)
    text = Page(report.write(workdir_of(tmp_path, few=True)).read_text()).text
    assert "What the features know of race as recorded cannot be said for all classes together: withheld for C" in text
    assert str(int((made.table["label_race"] == "C").sum())) not in re.findall(r"(?<![\d.])\d+(?![\d.])", text.split("Every reading")[1].split("Do clusters")[0].split("Which features")[0])


def test_open_data_show_points(tmp_path):
    path = report.write(workdir_of(tmp_path, open_data=True))
    text = Page(path.read_text()).text
    assert "Each point is one of 240 test images of 120 patients" in text and "or more" not in text
    for name in ("features_components", "features_neighbours"):
        assert (tmp_path / "figures" / f"{name}.svg").exists(), name


def test_clusters_tell_nothing_of_a_label_whose_groups_are_withheld(tmp_path):
    """Purity is the share of the commonest class, and so tells how many are of the other."""
    row = {"clusters": 2, "value": 0.97, "null_mean": 0.97, "null_low": 0.97, "null_high": 0.97, "p": 1.0, "n_images": 240, "n_patients": 120}
    rows = [{"label": label, "measure": m, **row} for label in ("race", "sex") for m in ("adjusted_rand", "normalised_mutual_information", "purity")]
    made = drawn(few=True)
    made = dataclasses.replace(made, found={**made.found, "agreement": rows})
    hidden = readings._agreement(made, {"race": {"C"}, "sex": set()})
    path = report.write(workdir_of(tmp_path, few=True, agreement=hidden))
    lines = Page(path.read_text()).table("clusters", "purity")
    assert [line[0] for line in lines] == ["sex"]


def test_own_vectors_are_not_told_by_what_the_workdir_held_before(tmp_path):
    folder = workdir_of(tmp_path, open_data=True)
    record = json.loads((folder / "run.json").read_text())
    record["dataset"]["invented_groups"] = True
    (folder / "run.json").write_text(json.dumps(record))
    config = json.loads((folder / "config.json").read_text())
    assert "invented" in Page(report.write(folder).read_text()).text
    config["probe"]["embeddings"] = "mine.csv"
    (folder / "config.json").write_text(json.dumps(config))
    text = Page(report.write(folder).read_text()).text
    assert "4 invented groups" not in text and "race as recorded" in text


def test_terminal(workdir):
    lines = report.auc_table(workdir).splitlines()
    assert lines[0] == "AUC of probes for race, test images, macro over classes"
    assert any(re.match(r"logistic regression on the features +0\.\d{3} +0\.\d{3} to 0\.\d{3} +240 +120$", line) for line in lines)


def test_a_broken_file_is_told(tmp_path):
    folder = workdir_of(tmp_path)
    found = json.loads((folder / "probe_audit.json").read_text())
    del found["space"]
    (folder / "probe_audit.json").write_text(json.dumps(found))
    with pytest.raises(tables.UserError, match="probe_audit.json: no field 'space'; run the audit stage again"):
        report.write(folder)
    (folder / "probe_audit.json").write_text("{")
    with pytest.raises(tables.UserError, match="not JSON"):
        report.write(folder)
