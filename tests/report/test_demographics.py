import re
import types

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from cxr_jax.report import demographics
from cxr_jax.tables import UserError
from tests.report.attack import People, attack, shown_in_table
from tests.report.conftest import FINDINGS, GROUPS, MIN_PATIENTS, draw_cohort, narrowed, odd_cohort

SUMMARY = {
    "name": "made", "variant": "up", "version": "1.0.0", "images": 0, "patients": 0, "quarantined": 0,
    "open_data": False, "invented_groups": False, "description": "Made up.",
}  # fmt: skip


def settings(**more):
    base = {
        "attributes": ("race", "sex", "age_band", "view"), "splits": ("test",), "age_bands": (0, 20, 40, 60, 80),
        "level": 0.95, "replicates": 50, "seed": 0, "min_patients": MIN_PATIENTS,
    }  # fmt: skip
    return types.SimpleNamespace(**base | more)


def written(folder, table, steps=None, races=(), dataset=None, **more):
    """(page, rows of cohort.csv) of a cohort."""
    steps = narrowed(table)[1] if steps is None else steps
    path = demographics.write(folder, table, steps, SUMMARY | (dataset or {}), settings(**more), races)
    return path.read_text(encoding="utf-8"), demographics.read(folder / "cohort.csv")


def pick(rows, **wanted):
    keep = np.ones(len(rows), bool)
    for column, value in wanted.items():
        keep &= (rows[column] == value).to_numpy()
    found = rows[keep]
    assert len(found) == 1, (wanted, len(found))
    return found.iloc[0]


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """(cohort, page, rows) of a cohort with many small cells."""
    folder = tmp_path_factory.mktemp("odd")
    table, steps = narrowed(odd_cohort(), ("view is AP", lambda t: t["view"] == "AP"))
    return table, *written(folder, table, steps, ("A", "B", "C", "D", "E", "F"))


# ---- numbers are those of other ways to compute them -----------------------------------------------------------------


def test_counts_are_those_of_pandas(odd):
    table, _, rows = odd
    for attribute in ("race", "sex", "view"):
        groups = rows.loc[(rows["section"] == "counts") & (rows["attribute"] == attribute), "group"].unique()
        told = {m.replace("not recorded", "missing"): g for g in groups for m in g.split(" or ")}
        for (group, split), part in table.groupby([table[attribute].fillna("missing").map(told), "split"]):
            here = dict(section="counts", attribute=attribute, group=group, split=split)
            images = pick(rows, what="images", **here)
            assert images["suppressed"] or (images["value"], images["n_images"]) == (len(part), len(part))
            if attribute != "view":
                patients = pick(rows, what="patients", **here)
                assert patients["suppressed"] or patients["value"] == part["patient_id"].nunique()
    for unit, n in (("images", len(table)), ("patients", table["patient_id"].nunique())):
        assert pick(rows, section="counts", attribute="race", group="all", split="all", what=unit)["value"] == n


def test_findings_and_what_is_missing_are_counted(odd):
    table, _, rows = odd
    seen = 0
    for name in FINDINGS:
        column = table[f"finding_{name}"]
        states = {"positive": column == 1, "negative": column == 0, "uncertain": column == -1}
        for what, mask in {**states, "not mentioned": column.isna()}.items():
            row = pick(rows, section="findings", attribute=name, split="all", what=f"images {what}")
            assert row["suppressed"] or row["value"] == mask.sum()
            seen += not row["suppressed"]
        row = pick(rows, section="missingness", attribute="all", group="all", what=name)
        assert row["suppressed"] or row["value"] == pytest.approx(column.isna().mean(), abs=1e-4)
    assert seen > len(FINDINGS)
    row = pick(rows, section="missingness", attribute="race", group="A", what="portable: images missing")
    assert row["value"] == (table["portable"].isna() & (table["race"] == "A")).sum()
    assert not rows["what"].str.contains("race_recorded").any()


def test_ages_are_of_patients_with_students_interval(tmp_path, undrawn):
    table = draw_cohort(300)
    rows = written(tmp_path, table)[1]
    for group, part in [*table.groupby("sex"), ("all", table)]:
        ages = part.groupby("patient_id")["age"].min().astype(float)
        wanted = stats.t.interval(0.95, len(ages) - 1, ages.mean(), stats.sem(ages))
        attribute = "all" if group == "all" else "sex"
        row = pick(rows, section="age", attribute=attribute, group=group, what="mean")
        assert row["n_patients"] == len(ages)
        np.testing.assert_allclose([row["value"], row["low"], row["high"]], [ages.mean(), *wanted], atol=0.051)
        for what, value in {"SD": ages.std(), "median": ages.median(), "third quartile": ages.quantile(0.75)}.items():
            row = pick(rows, section="age", attribute=attribute, group=group, what=what)
            assert row["value"] == pytest.approx(value, abs=0.051)


def test_differences_are_of_one_value_a_patient(tmp_path, undrawn):
    table = draw_cohort(600)
    rows = written(tmp_path, table, races=GROUPS)[1]
    first = table.sort_values("age", kind="stable").drop_duplicates("patient_id").set_index("patient_id")
    ever = (table["finding_Edema"] == 1).groupby(table["patient_id"]).any()
    for group in GROUPS:
        here = first["race"] == group
        row = pick(rows, section="differences", attribute="race", group=group, what="age")
        a, b = (first.loc[mask, "age"].astype(float) for mask in (here, ~here))
        assert row["value"] == pytest.approx((a.mean() - b.mean()) / np.sqrt((a.var() + b.var()) / 2), abs=6e-4)
        assert row["n_patients"] == here.sum()
        row = pick(rows, section="differences", attribute="race", group=group, what="Edema")
        p, q = ever[here.index[here]].mean(), ever[here.index[~here]].mean()
        wanted = (p - q) / np.sqrt((p * (1 - p) + q * (1 - q)) / 2)
        assert row["suppressed"] or row["value"] == pytest.approx(wanted, abs=6e-4)
    shown = rows[(rows["section"] == "differences") & ~rows["suppressed"]]
    assert (shown["low"] <= shown["value"]).all() and (shown["value"] <= shown["high"]).all()


# ---- what an attacker finds ------------------------------------------------------------------------------------------


RULES = (
    ("view is AP", lambda t: (t["view"] == "AP") | (t["image_id"].str[-1] < "3")),
    ("age is known", lambda t: t["age"].notna()),
    ("sex is known", lambda t: t["sex"].notna()),
    ("one of a kind", lambda t: t["image_id"].str[-2:] != "07"),
)


def drawn(seed):
    """(People, table, steps): an odd cohort after some rules."""
    rng = np.random.default_rng(seed)
    chosen = [RULES[i] for i in rng.permutation(4)[: rng.integers(1, 4)]]
    whole = odd_cohort(int(rng.choice([60, 200, 700])), seed)
    table, steps = narrowed(whole, *chosen)
    left, masks = np.ones(len(whole), bool), [("every image of the data set", np.ones(len(whole), bool))]
    for words, keep in chosen:
        left = left & keep(whole).to_numpy(bool)
        masks.append((words, left))
    return People(table, whole, masks, MIN_PATIENTS), table, steps


@pytest.mark.parametrize("seed", range(9))
def test_no_small_cell_follows_from_all_that_is_shown(tmp_path, undrawn, seed):
    people, table, steps = drawn(seed)
    rows = written(tmp_path, table, steps, ("A", "B", "C", "D", "E", "F"))[1]
    found, small = attack(people, shown_in_table(people, rows))
    assert found == [] and small > 20


@pytest.mark.parametrize("section, cells", [("counts", 3), ("prevalence", 3), ("attrition", 1), ("findings", 1)])
def test_the_attacker_finds_what_is_hidden_carelessly(tmp_path, undrawn, section, cells):
    """Were small cells alone withheld, and none for their sake, others would give them away."""
    people, table, steps = drawn(2)
    careless = written(tmp_path, table, steps, min_patients=1)[1]
    small = careless["value"].between(1, MIN_PATIENTS - 1) | (careless["n_patients"] < MIN_PATIENTS)
    own = (small & (careless["section"] == section)).to_numpy()
    hidden = written(tmp_path, table, steps)[1]
    told = pd.concat([hidden[hidden["section"] != section], careless[(careless["section"] == section) & ~own]])
    assert len(attack(people, shown_in_table(people, told))[0]) >= cells


def test_no_group_s_ages_follow_from_the_others(odd):
    table, _, rows = odd
    for attribute in ("race", "sex"):
        means = rows[(rows["section"] == "age") & (rows["attribute"] == attribute) & (rows["what"] == "mean")]
        shown = means.loc[~means["suppressed"], "n_patients"]
        assert len(shown) and (shown >= MIN_PATIENTS).all()
    assert means["suppressed"].sum() != 1


def test_few_without_a_record_hide_nobody_else(tmp_path, undrawn):
    table = draw_cohort(600)
    few = table["patient_id"].isin(sorted(set(table["patient_id"]))[:3])
    table.loc[few, ["sex", "age"]] = None, np.nan
    rows = written(tmp_path, table)[1]
    by_sex = rows[(rows["section"] == "counts") & (rows["attribute"] == "sex") & (rows["split"] == "all")]
    assert not by_sex["suppressed"].any() and set(by_sex["group"]) in ({"F", "M or not recorded", "all"}, {"M", "F or not recorded", "all"})
    apart = rows[(rows["section"] == "differences") & (rows["attribute"] == "sex")]
    assert not apart["suppressed"].all()
    mean = pick(rows, section="age", attribute="all", what="mean")
    known = table.groupby("patient_id")["age"].min().notna().sum()
    assert mean["n_patients"] == known // MIN_PATIENTS * MIN_PATIENTS and "not recorded of all" in mean["note"]
    assert not rows["value"].isin([3]).any()


def test_what_is_suppressed_has_no_number_and_nothing_shown_is_small(odd):
    _, page, rows = odd
    gone = rows["suppressed"]
    assert gone.any() and rows.loc[gone, list(demographics.NUMBERS)].isna().all(axis=None)
    shown = rows.loc[~gone, "n_patients"].dropna()
    assert not ((shown > 0) & (shown < MIN_PATIENTS)).any()
    finite = rows["section"].isin(["prevalence", "differences"]) & ~gone & rows["value"].notna()
    known = rows["n_patients"].notna() | (rows["n_images"].notna() & (rows["attribute"] == "age_band"))
    assert (known & (rows["low"].notna() | (rows["note"] != "")))[finite].all()
    assert "withheld" in page


# ---- odd cohorts -----------------------------------------------------------------------------------------------------


def of_one_patient():
    return draw_cohort(40).groupby("patient_id").head(1).iloc[:1]


CASES = {
    "no race": lambda: draw_cohort(200).assign(race=pd.Series(dtype="str")),
    "no ages": lambda: draw_cohort(200).assign(age=np.nan),
    "no column of age": lambda: draw_cohort(200).drop(columns="age"),
    "keys alone": lambda: draw_cohort(60)[["image_id", "patient_id", "split"]],
    "one patient": of_one_patient,
    "one class": lambda: draw_cohort(200).assign(sex="F", race="A", view="AP"),
    "no sex": lambda: draw_cohort(200).assign(sex=pd.Series(dtype="str")),
    "nothing mentioned": lambda: draw_cohort(80).assign(**{f"finding_{f}": np.nan for f in FINDINGS}),
    "nobody ill": lambda: draw_cohort(80).assign(**{f"finding_{f}": 0.0 for f in FINDINGS}),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("least", [MIN_PATIENTS, 1])
def test_odd_cohorts_get_a_page(tmp_path, case, least):
    page, rows = written(tmp_path, CASES[case]().reset_index(drop=True), min_patients=least)
    assert page.rstrip().endswith("</html>") and len(rows)
    assert "nan" not in re.sub(r"base64,[\w+/=]*", "", page).lower()
    if case in ("no race", "keys alone"):
        assert "No race is recorded" in page
    if case in ("no ages", "no column of age", "keys alone"):
        assert "No age is recorded" in page
    if case == "one patient":
        assert rows.loc[rows["section"] == "age", "suppressed"].all() == (least > 1)


def test_a_group_that_the_rules_empty_stays_in_the_flow(tmp_path, undrawn):
    table, steps = narrowed(draw_cohort(600), ("not Dogwood", lambda t: t["race"] != "Dogwood"))
    rows = written(tmp_path, table, steps, GROUPS)[1]
    left = rows[(rows["section"] == "attrition") & (rows["group"] == "Dogwood") & (rows["what"] == "images left")]
    assert left["value"].tolist()[-1] == 0 and left["value"].tolist()[0] == steps[0]["by_race"]["Dogwood"]["images"]
    gone = pick(rows, section="attrition", group="all", what="patients removed", note="not Dogwood")
    assert gone["value"] == steps[0]["patients"] - steps[1]["patients"]


def test_several_reasons_for_no_race_are_told_apart(tmp_path, undrawn):
    table = odd_cohort(400)
    steps = narrowed(table)[1]
    for step in steps:
        whole = step["by_race"].pop("no record")
        half = {k: v // 2 for k, v in whole.items()}
        step["by_race"] |= {"conflicting": half, "unknown": {k: whole[k] - half[k] for k in whole}}
    rows = written(tmp_path, table, steps)[1]
    assert {"conflicting", "unknown"} <= set(rows.loc[rows["section"] == "attrition", "group"])


def test_attrition_that_does_not_add_up_is_refused_and_nothing_is_written(tmp_path):
    table, steps = narrowed(draw_cohort(100), ("view is AP", lambda t: t["view"] == "AP"))
    steps[1]["removed_images"] += 1
    with pytest.raises(ValueError, match="attrition"):
        written(tmp_path / "none", table, steps)
    assert not (tmp_path / "none").exists()


def test_the_page_is_whole_asks_for_nothing_and_repeats(tmp_path):
    table = draw_cohort(200)
    page, _ = written(tmp_path, table, races=GROUPS)
    assert not re.search(r"<(script|link|iframe|object|embed)\b|url\(|@import", page)
    assert all(r.startswith(("data:", "#")) for r in re.findall(r'(?:src|href)="([^"]*)"', page))
    sections = re.findall(r'<section id="(\w+)"', page)
    assert sections == ["left", "counts", "findings", "ages", "prevalence", "missing", "differences", "read"]
    assert not list(tmp_path.glob("*.partial"))
    before = (tmp_path / "cohort.csv").read_bytes(), page
    again = written(tmp_path, table, races=GROUPS)[0]
    assert ((tmp_path / "cohort.csv").read_bytes(), again) == before


def test_invented_groups_are_called_so(tmp_path):
    page, _ = written(tmp_path, draw_cohort(200), races=GROUPS, dataset={"invented_groups": True})
    said = re.sub(r"base64,[\w+/=]*", "", page)
    assert "groups here are invented" in said and "by group (invented)" in said
    assert "race as recorded" not in said and "the race is recorded" not in said


def test_names_are_escaped(tmp_path, undrawn):
    table = draw_cohort(200)
    table["view"] = "<b>&"
    assert "<b>&" not in written(tmp_path, table)[0]


def test_an_attribute_of_many_values_is_left_out_and_says_so(tmp_path, undrawn):
    table = draw_cohort(400)
    table["manufacturer"] = pd.Series([f"maker {i % 40}" for i in range(len(table))], dtype="str")
    page, rows = written(tmp_path, table, attributes=("race", "manufacturer"))
    row = pick(rows, section="counts", attribute="manufacturer")
    assert row["value"] == 40 and "left out" in row["note"] and row["note"] in page
    assert pick(rows, section="missingness", attribute="all", what="manufacturer")["value"] == 0


def test_the_release_is_held_against_what_is_published(tmp_path, undrawn):
    counts = [("images", 1000, 990), ("patients", 400, 400), ("sex F", None, 190), ("sex unknown", None, 3)]
    counts = [{"count": c, "expected": e, "found": f} for c, e, f in counts]
    integrity = {"counts": counts, "complete": False, "statements": ["x_1.png is broken"],
                 "quarantined": {"truncated": 4, "empty": 50}, "stored": {"all": 936}}  # fmt: skip
    page, rows = written(tmp_path, draw_cohort(100), dataset={"integrity": integrity})
    release = rows[rows["section"] == "release"].set_index("what")
    assert list(release.index) == ["images", "patients"] and release["value"].isna().all()
    assert list(release["note"]) == ["published: 1000; found: differs", "published: 400; found: as published"]
    said = re.sub(r"base64,[\w+/=]*", "", page)
    assert "x_1.png" not in said and "990" not in said and "sex unknown" not in said and "run.json" in said
    page, rows = written(tmp_path, draw_cohort(100), dataset={"integrity": integrity, "open_data": True})
    release = rows[rows["section"] == "release"].set_index("what")
    assert list(release["value"]) == [990, 400]  # what nobody has published is not held against anything
    assert "\N{MINUS SIGN}10" in page and "x_1.png" in page


def test_what_says_which_patient_makes_no_groups(tmp_path):
    with pytest.raises(UserError, match="config.audit.attributes: patient_id says which image or patient"):
        written(tmp_path, draw_cohort(60), attributes=("race", "patient_id"))
