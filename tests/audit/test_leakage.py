"""Leakage: rates that are known in advance or counted by scikit-learn, and what somebody could work out from the rows."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score, roc_curve
from sklearn.neighbors import NearestNeighbors

from configs import base
from cxr_jax.audit import leakage
from cxr_jax.audit.disclosure import hidden_groups
from cxr_jax.tables import Features, Predictions, Target, UserError, write_json
from tests.report.attack import follows


def settings(**changes):
    config = base.get_config().audit
    config.update({"replicates": 100, "attributes": (), **changes})
    return config


def features(vectors, patient, **columns):
    """Every image a study of its own, unless there is a column study_id."""
    table = pd.DataFrame({"image_id": [f"image{i}" for i in range(len(patient))], "patient_id": [f"patient{p}" for p in patient]})
    study = [f"study{i}" for i in range(len(patient))]
    return Features(table.assign(**{"study_id": study, **columns}), {"features": np.asarray(vectors, np.float32)}, {})


def select(found, **wanted):
    return [row for row in found["rows"] if all(row[key] == value for key, value in wanted.items())]


def one(found, **wanted):
    (row,) = select(found, **wanted)
    return row


# --- re-identification -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def people():
    """90 patients with 1 to 4 images, who differ by race and sex too; views are of images."""
    rng = np.random.default_rng(0)
    patient = rng.permutation(np.repeat(np.arange(90), rng.integers(1, 5, 90)))
    vectors = rng.normal(size=(90, 8))[patient] + 0.8 * rng.normal(size=(len(patient), 8)) + 5
    race = np.array(["A", "B", "C"])[np.arange(90) % 3][patient]
    view = rng.choice(["AP", "PA"], len(patient))
    return features(vectors, patient, race=race, view=view)


def written_out(made, mask, k, own_group=None):
    """(Rate, queries, patients) by scikit-learn. mask: bool, whose gallery image is in the group; own_group: whether only that is searched."""
    table, vectors = made.table, made.arrays["features"].astype(float)
    groups = [table.index[table["patient_id"] == who].tolist() for who in table["patient_id"].unique()]
    gallery = np.array([rows[0] for rows in groups])
    centre = vectors[gallery].mean(axis=0)
    searched = gallery[mask[gallery]] if own_group else gallery
    found = NearestNeighbors(n_neighbors=k, metric="cosine", algorithm="brute").fit(vectors[searched] - centre)
    rates, queries = [], 0
    for first, *later in groups:
        if later and mask[first]:
            near = searched[found.kneighbors(vectors[later] - centre, return_distance=False)]
            rates.append(np.mean((near == first).any(axis=1)))
            queries += len(later)
    return np.mean(rates), queries, len(rates)


def test_rates_are_those_of_scikit_learns_neighbours_whatever_is_compared_at_once(people, monkeypatch):
    at_once = leakage.reidentification(people, settings(attributes=("race", "view")), open_data=True)
    monkeypatch.setattr(leakage, "QUERIES", 7)
    found = leakage.reidentification(people, settings(attributes=("race", "view")), open_data=True)
    everyone = np.ones(len(people.table), bool)
    assert at_once == found and len(found["rows"]) == 3 * (1 + 2 * 3 + 2 * 2) and found["absent"] == [] and found["notes"] == []
    for row in found["rows"]:
        mask = everyone if row["attribute"] == "all" else (people.table[row["attribute"]] == row["group"]).to_numpy()
        k, own = int(row["metric"].removeprefix("rank_")), row["gallery"] == "own group"
        rate, images, patients = written_out(people, mask, k, own)
        assert row["value"] == pytest.approx(rate, abs=1e-12) and (row["n_images"], row["n_patients"]) == (images, patients)
        assert row["low"] < row["value"] < row["high"] or row["value"] == row["high"] == 1
        first = ~people.table["patient_id"].duplicated().to_numpy()
        assert row["gallery_patients"] == (mask & first if own else first).sum()
        assert row["chance"] == k / row["gallery_patients"] and row["reason"] is None and not row["suppressed"]


def test_those_who_are_level_are_in_an_order_drawn_by_lot():
    rng = np.random.default_rng(1)
    patient = np.tile(np.arange(40), 3)
    vectors = rng.integers(-1, 2, (120, 3))  # few directions, and many patients in each
    found = leakage.reidentification(features(vectors, patient), settings(), open_data=True)
    centred = vectors - vectors[:40].mean(axis=0)
    unit = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    cosine = np.round(unit[40:] @ unit[:40].T, 9)
    for k in leakage.RANKS:
        chances = []
        for own, row in zip(patient[40:], cosine, strict=True):
            before, level = (row > row[own]).sum(), (row == row[own]).sum()
            chances.append(np.mean([place < k for place in range(before, before + level)]))
        assert one(found, metric=f"rank_{k}")["value"] == pytest.approx(np.mean(chances), abs=1e-12)
    assert (np.sum(cosine == cosine[range(80), patient[40:]][:, None], axis=1) > 1).mean() > 0.5
    # Three patients in each direction, at lengths that leave their cosines apart by rounding alone.
    directions = rng.integers(1, 50, (20, 5))
    lengthened = np.concatenate([sign * length * directions for length in (1, 3, 7) for sign in (1, -1)])
    found = leakage.reidentification(features(np.tile(lengthened, (2, 1)), np.tile(np.arange(120), 2)), settings(), open_data=True)
    assert one(found, metric="rank_1")["value"] == pytest.approx(1 / 3, abs=1e-12) and one(found, metric="rank_5")["value"] == 1
    # Vectors that tell nothing have chance to the last digit.
    for constant in (0.0, 0.1):
        row = one(leakage.reidentification(features(np.full((120, 3), constant), patient), settings(), True), metric="rank_5")
        assert row["value"] == pytest.approx(row["chance"], abs=1e-12) and row["chance"] == 5 / 40


WIDE, PAIRS = 0.08, 100


def on_a_circle(seed, asking=2 * PAIRS, gallery_seed=None):
    """Patients at random on a circle, opposite ones in pairs so that the mean is 0; some are seen again, up to WIDE radians away."""
    rng = np.random.default_rng(seed)
    at = (rng if gallery_seed is None else np.random.default_rng(gallery_seed)).uniform(0, 2 * np.pi, PAIRS)
    at = np.concatenate([at, at + np.pi])
    who = rng.choice(2 * PAIRS, asking, replace=False)
    angle = np.concatenate([at, at[who] + rng.uniform(-WIDE, WIDE, asking)])
    return features(np.stack([np.cos(angle), np.sin(angle)], axis=1), np.concatenate([np.arange(2 * PAIRS), who]))


@pytest.mark.parametrize("k", [1, 5])
def test_rates_are_on_average_what_they_are_known_to_be(k):
    """Of each other pair one is nearer than d with chance 2 d / pi, whence binomial counts of those who are, d uniform."""
    d = (np.arange(10_000) + 0.5) / 10_000 * WIDE
    known = stats.binom.cdf(k - 1, PAIRS - 1, 2 * d / np.pi).mean()
    values = [one(leakage.reidentification(on_a_circle(seed), settings(replicates=1), True), metric=f"rank_{k}")["value"] for seed in range(40)]
    assert 0.1 < known < 0.9 and np.std(values) < 0.1
    assert np.mean(values) == pytest.approx(known, abs=3 * np.std(values) / np.sqrt(40))


def test_a_rate_lies_in_its_interval_about_as_often_as_it_should():
    """Of 30 patients who are seen again, all of whom somebody might be, in one gallery."""
    at = np.random.default_rng(0).uniform(0, 2 * np.pi, PAIRS)
    at = np.concatenate([at, at + np.pi])
    shift = np.linspace(-WIDE, WIDE, 100)
    apart = np.abs(np.angle(np.exp(1j * (at[:, None, None] + shift[:, None] - at))))
    nearer = (apart < np.abs(shift)[:, None] * (1 - 1e-9)).sum(axis=2)
    inside = {1: [], 5: []}
    for seed in range(1, 101):
        found = leakage.reidentification(on_a_circle(seed, 30, gallery_seed=0), settings(replicates=1), open_data=True)
        for k, hits in inside.items():
            row = one(found, metric=f"rank_{k}")
            assert row["method"].startswith("Wilson") and row["n_patients"] == 30
            hits.append(row["low"] <= (nearer < k).mean() <= row["high"])
    assert all(0.9 <= np.mean(hits) <= 1 for hits in inside.values()) and np.mean(list(inside.values())) < 1


def test_intervals_count_patients_and_not_queries():
    """Ten queries of a patient that are all alike tell no more than one."""
    once = on_a_circle(3)
    vectors = once.arrays["features"]
    gallery, queries = vectors[: 2 * PAIRS], vectors[2 * PAIRS :]
    who = once.table["patient_id"].str.removeprefix("patient").to_numpy()
    tenfold = features(np.concatenate([gallery, *[queries] * 10]), np.concatenate([who[: 2 * PAIRS], *[who[2 * PAIRS :]] * 10]))
    for kind in ("bca", "percentile"):
        rows = [one(leakage.reidentification(made, settings(interval=kind), True), metric="rank_1") for made in (once, tenfold)]
        assert rows[1]["n_images"] == 10 * rows[0]["n_images"] and rows[1]["n_patients"] == rows[0]["n_patients"]
        for key in ("value", "low", "high"):
            assert rows[1][key] == pytest.approx(rows[0][key], abs=1e-3)


def test_intervals_know_that_several_queries_tell_more_than_one():
    rng = np.random.default_rng(11)
    at = rng.normal(size=(60, 3))
    queries = np.tile(at, (40, 1)) + 0.5 * rng.normal(size=(2400, 3))
    row = one(leakage.reidentification(features(np.concatenate([at, queries]), np.tile(np.arange(60), 41)), settings(), True), metric="rank_1")
    by_patients, by_queries = ((lambda ci: ci.high - ci.low)(stats.binomtest(round(row["value"] * n), n).proportion_ci(method="wilson")) for n in (60, 2400))
    assert by_queries <= row["high"] - row["low"] < 0.6 * by_patients


def test_vectors_that_know_nobody_are_at_chance_and_those_that_know_everybody_at_one():
    rng = np.random.default_rng(4)
    patient = np.tile(np.arange(300), 3)
    nothing = leakage.reidentification(features(rng.normal(size=(900, 16)), patient), settings(), open_data=True)
    assert all(row["low"] <= row["chance"] <= row["high"] < 0.08 for row in nothing["rows"])
    everything = leakage.reidentification(features(rng.normal(size=(300, 16))[patient], patient), settings(), open_data=True)
    assert all(row["value"] == row["high"] == 1 and 0.95 < row["low"] < 1 for row in everything["rows"])


def test_telling_groups_apart_is_told_from_telling_patients_apart():
    """Vectors that know the sex and nothing else."""
    rng = np.random.default_rng(5)
    patient = np.tile(np.arange(200), 2)
    sex = np.array(["F", "M"])[patient % 2]
    vectors = 0.01 * rng.normal(size=(400, 64)) + np.where(sex == "F", 1, -1)[:, None]
    found = leakage.reidentification(features(vectors, patient, sex=sex), settings(attributes=("sex",)), open_data=True)
    both = select(found, attribute="sex", metric="rank_10")
    values = {kind: np.mean([row["value"] for row in both if row["gallery"] == kind]) for kind in ("all", "own group")}
    assert values["all"] == values["own group"] > 1.5 * both[0]["chance"]
    assert all(row["low"] <= row["chance"] <= row["high"] for row in both if row["gallery"] == "own group")


def test_only_other_studies_count_and_what_is_not_recorded_is_told():
    rng = np.random.default_rng(6)
    patient = np.repeat(np.arange(50), 3)  # two images of one study, which are all the same, and one of another
    vectors = rng.normal(size=(150, 16))
    vectors[1::3] = vectors[::3]
    study = [f"{i // 3}.{i % 3 // 2}" for i in range(150)]
    found = leakage.reidentification(features(vectors, patient, study_id=study), settings(), open_data=True)
    assert one(found, metric="rank_1")["n_images"] == 50 and one(found, metric="rank_1")["value"] < 0.2 and found["notes"] == []
    made = features(vectors, patient)
    for table in (made.table.drop(columns="study_id"), made.table.assign(study_id=None)):
        without = leakage.reidentification(Features(table, made.arrays, {}), settings(), open_data=True)
        assert one(without, metric="rank_1")["n_images"] == 100 and one(without, metric="rank_1")["value"] > 0.5
        assert len(without["notes"]) == 1 and "any image" in without["notes"][0]
    few = [None if i in (0, 3) else name for i, name in enumerate(study)]
    notes = [leakage.reidentification(features(vectors, patient, study_id=few), settings(), is_open)["notes"][0] for is_open in (True, False)]
    assert "of 2 images:" in notes[0] and "of some images:" in notes[1]
    # A study is one of its patient: numbers that begin anew with each are no studies in common.
    found = leakage.reidentification(features(vectors, patient, study_id=np.tile([0, 0, 1], 50)), settings(), open_data=True)
    assert one(found, metric="rank_1")["n_images"] == 50


def test_nobody_with_two_studies_has_no_rate(tmp_path):
    made = features(np.random.default_rng(7).normal(size=(60, 4)), np.arange(60), sex=["F", "M"] * 30)
    found = leakage.reidentification(made, settings(attributes=("sex", "race")), open_data=False)
    assert found["absent"] == ["race"] and len(found["rows"]) == 15
    for row in found["rows"]:
        assert np.isnan([row["value"], row["low"], row["high"]]).all() and row["reason"] == "no patient has two studies here"
        assert row["n_images"] == row["n_patients"] == 0 and row["gallery_patients"] == (30 if row["gallery"] == "own group" else 60)
    write_json(tmp_path / "found.json", found)
    assert json.loads((tmp_path / "found.json").read_text())["rows"][0]["value"] is None


def test_what_is_no_number_or_no_group_is_refused():
    made = features(np.zeros((4, 2)), [0, 0, 1, 1])
    made.arrays["features"][3, 1] = np.nan
    with pytest.raises(UserError, match="features: 1 NaN or infinite, the first in row 4, column 2"):
        leakage.reidentification(made, settings(), open_data=True)
    with pytest.raises(UserError, match="patient_id says which"):
        leakage.reidentification(made, settings(attributes=("patient_id",)), open_data=True)


# --- what may be shown -----------------------------------------------------------------------------------------------


def small_groups(seed):
    """Race: few of one. Sex: some not recorded. Site: of one few come again. Patients of two images, if any, and a table of them."""
    rng = np.random.default_rng(seed)
    race = np.repeat(["few", "some", "many"], [10, 110, 180])
    again = rng.random(300) < 0.7
    again[10:35] = np.arange(25) < 4
    site = np.where((np.arange(300) >= 10) & (np.arange(300) < 35), "seldom", np.where(rng.random(300) < 0.5, "here", "there"))
    sex = np.where(np.arange(300) % 50 == 0, None, np.where(rng.random(300) < 0.5, "F", "M"))
    patient = np.concatenate([np.arange(300), np.flatnonzero(again)])
    return features(rng.normal(size=(len(patient), 4)), patient, race=race[patient], sex=sex[patient], site=site[patient])


@pytest.mark.parametrize("seed", range(3))
def test_small_groups_of_data_that_are_not_open_are_withheld_and_do_not_follow(seed):
    made = small_groups(seed)
    asked = settings(attributes=("race", "sex", "site"))
    found = leakage.reidentification(made, asked, open_data=False)
    hidden = {(row["attribute"], row["group"]): row for row in found["rows"] if row["suppressed"]}
    assert {("race", "few"), ("sex", "missing"), ("site", "seldom")} <= set(hidden)
    # They would follow from the other groups, so that one of these goes as well.
    assert sorted(attribute for attribute, _ in hidden) == ["race", "race", "sex", "sex", "site", "site"]
    for row in hidden.values():
        assert np.isnan([row["value"], row["low"], row["high"], row["chance"]]).all() and "11 patients" in row["reason"]
        assert row["n_images"] is row["n_patients"] is row["gallery_patients"] is None
    assert one(found, metric="rank_1", attribute="all")["n_patients"] > 100
    # Whoever adds and subtracts all that is shown of patients finds no small group.
    table, first = made.table, ~made.table["patient_id"].duplicated().to_numpy()
    values = {a: table[a].astype(object).where(table[a].notna(), "missing").to_numpy() for a in asked.attributes}
    parts = [first, ~first]
    shown = [part.astype(float) for part in parts]
    for row in found["rows"]:
        if not row["suppressed"] and row["attribute"] != "all":
            shown += [((values[row["attribute"]] == row["group"]) & part).astype(float) for part in parts]
    small = [(values[a] == name) & part for a in asked.attributes for name in set(values[a]) for part in parts]
    small = [cell for cell in small if 0 < cell.sum() < asked.min_patients]
    assert len(small) >= 3 and not follows(shown, small).any()
    opened = leakage.reidentification(made, asked, open_data=True)
    assert not any(row["suppressed"] for row in opened["rows"])
    assert one(opened, metric="rank_1", group="few", gallery="own group")["gallery_patients"] == 10


def test_what_any_audit_of_these_images_hides_is_withheld():
    """An audit of which race is a target tells how many are missing, and must hide others than one of which it is none."""
    race = np.repeat(["few", "A", "B", None], [5, 40, 60, 20])
    made = features(np.random.default_rng(0).normal(size=(250, 4)), np.tile(np.arange(125), 2), race=np.tile(race, 2))
    asked = settings(attributes=("race",))
    patient = np.tile(np.arange(125), 2)
    audits = [hidden_groups(Predictions(made.table, of), asked, patient)["race"] for of in ({}, {"race": Target("multiclass", ("few", "A", "B"))})]
    assert audits == [{"few", "missing"}, {"few", "A"}]
    found = leakage.reidentification(made, asked, open_data=False)
    assert {row["group"] for row in found["rows"] if row["suppressed"]} == {"few", "A", "missing"}


def test_nobody_is_named(people, tmp_path):
    sides = [scored(seed, 30, name) for seed, name in enumerate(("member", "other"))]
    found = leakage.reidentification(people, settings(), open_data=False), leakage.membership(*sides, settings())
    write_json(tmp_path / "found.json", found)
    text = (tmp_path / "found.json").read_text()
    assert not any(name in text for name in (*people.table["patient_id"], *people.table["image_id"], *sides[0].table["patient_id"]))


def test_few_who_come_again_at_all_have_no_rate():
    made = features(np.random.default_rng(8).normal(size=(60, 4)), np.concatenate([np.arange(50), np.arange(10)]))
    found = leakage.reidentification(made, settings(), open_data=False)
    assert all(row["suppressed"] and row["n_patients"] is None for row in found["rows"])


# --- membership ------------------------------------------------------------------------------------------------------

TARGETS = {"findings": Target("multilabel", ("Mass", "Edema")), "race": Target("multiclass", ("A", "B", "C"))}


def scored(seed, patients, name, signal=0.5, open_data=False, race=None):
    """1 to 3 images a patient, with some labels unknown. signal: how well scores know the labels."""
    rng = np.random.default_rng(seed)
    who = np.repeat(np.arange(patients), rng.integers(1, 4, patients))
    n = len(who)
    race = (rng.integers(0, 3, patients) if race is None else race)[who]
    label = rng.integers(0, 2, (n, 2)).astype(float)
    finding = 1 / (1 + np.exp(-(signal * (2 * label - 1) + rng.normal(size=(n, 2)))))
    logits = np.exp(signal * np.eye(3)[race] + rng.normal(size=(n, 3)))
    label[rng.random((n, 2)) < 0.2] = np.nan
    recorded = np.array(["A", "B", "C"], object)[race]
    table = pd.DataFrame({"image_id": [f"{name}{i}" for i in range(n)], "patient_id": [f"{name}-{p}" for p in who]})
    table["race"], table["sex"] = recorded, np.array(["F", "M"])[who % 2]
    table["label_race"] = np.where(rng.random(n) < 0.1, None, recorded)
    for k, finding_name in enumerate(("Mass", "Edema")):
        table["label_" + finding_name], table["score_" + finding_name] = label[:, k], finding[:, k]
    for k, class_name in enumerate("ABC"):
        table["score_" + class_name] = logits[:, k] / logits.sum(axis=1)
    return Predictions(table, TARGETS, open_data).check()


def losses_of(predictions):
    """By target, the loss of each image, written out."""
    found = {"findings": [], "race": [], "all": []}
    for row in predictions.table.to_dict("records"):
        known = [name for name in ("Mass", "Edema") if not np.isnan(row["label_" + name])]
        findings = np.mean([-np.log(row["score_" + f] if row["label_" + f] == 1 else 1 - row["score_" + f]) for f in known]) if known else np.nan
        race = np.nan if pd.isna(row["label_race"]) else -np.log(row["score_" + row["label_race"]])
        found["findings"].append(findings)
        found["race"].append(race)
        both = [loss for loss in (findings, race) if not np.isnan(loss)]
        found["all"].append(np.mean(both) if both else np.nan)
    return {target: np.array(loss) for target, loss in found.items()}


def test_figures_of_membership_are_those_of_scikit_learn():
    members, others = scored(0, 260, "member", 2.0, True), scored(1, 240, "other", 0.5, True)
    found = leakage.membership(members, others, settings(attributes=("sex", "view")), note="made up")
    assert found["notes"] == ["made up"] and found["absent"] == ["view"] and len(found["rows"]) == 3 * 3 * 3
    table = pd.concat([members.table, others.table], ignore_index=True)
    of = [losses_of(side) for side in (members, others)]
    for target in ("findings", "race", "all"):
        table["loss"] = np.concatenate([loss[target] for loss in of])
        known = table.dropna(subset=["loss"])
        assert len(known) < len(table)
        everyone = known.groupby("patient_id")["loss"].mean()
        threshold = everyone[everyone.index.str.startswith("member")].mean()
        for group in ("all", "F", "M"):
            here = known if group == "all" else known[known["sex"] == group]
            loss = here.groupby("patient_id")["loss"].mean()
            member = loss.index.str.startswith("member")
            rows = {row["metric"]: row for row in select(found, target=target, group=group)}
            for row in rows.values():
                assert (row["n_images"], row["n_members"], row["n_others"]) == (len(here), member.sum(), (~member).sum())
                assert row["low"] < row["value"] < row["high"] and row["reason"] is None
            assert rows["auc"]["value"] == pytest.approx(roc_auc_score(member, -loss), abs=1e-12)
            below = (loss < threshold).to_numpy()
            assert rows["advantage"]["value"] == pytest.approx(below[member].mean() - below[~member].mean(), abs=1e-12)
            assert rows["advantage"]["threshold"] == pytest.approx(threshold)
            fpr, tpr, _ = roc_curve(member, -loss, drop_intermediate=False)
            assert rows["tpr_at_fpr_0.01"]["value"] == pytest.approx(np.interp(0.01, fpr, tpr), abs=1e-12)


def test_unknown_labels_are_skipped_and_sure_mistakes_cost_no_more_than_the_bound():
    members, others = scored(2, 40, "member"), scored(3, 40, "other")
    before = leakage.membership(members, others, settings(attributes=("sex",)))
    for side in (members, others):
        for name in ("Mass", "Edema"):
            side.table.loc[side.table["label_" + name].isna(), "score_" + name] = 0.999
    after = leakage.membership(members, others, settings(attributes=("sex",)))
    pd.testing.assert_frame_equal(pd.DataFrame(before["rows"]), pd.DataFrame(after["rows"]))
    members.table["score_Mass"] = 1 - members.table["label_Mass"].fillna(0.5)
    members.table["label_Edema"] = np.nan
    wrong = one(leakage.membership(members, others, settings()), target="findings", metric="advantage")
    assert wrong["threshold"] == pytest.approx(-np.log(leakage.EPSILON))
    members.table["label_Mass"] = np.nan
    none = select(leakage.membership(members, others, settings()), target="findings")
    assert all(np.isnan(row["value"]) and row["n_members"] == 0 and "no known label" in row["reason"] for row in none)


def test_a_model_that_memorises_is_told_from_one_that_does_not():
    asked = settings(level=0.999, replicates=2000)
    apart = leakage.membership(scored(4, 400, "member", 4.0), scored(5, 1200, "other", 0.5), asked)
    alike = leakage.membership(scored(6, 400, "member", 0.5), scored(7, 1200, "other", 0.5), asked)
    for row in apart["rows"]:
        assert row["low"] > row["chance"]
    assert one(apart, target="all", metric="auc")["value"] > 0.9
    for row in alike["rows"]:
        assert row["low"] <= row["chance"] <= row["high"]


@pytest.mark.parametrize("others", [100, 1000])
def test_the_interval_at_a_low_rate_covers_what_is_true(others):
    """A bootstrap of 100 others covers it 7 times in 10."""
    truth = stats.norm.sf(stats.norm.isf(leakage.LOW_FPR) - 1)
    member = np.arange(300 + others) < 300
    inside = []
    for seed in range(200):
        value, low, high = leakage._at_low_fpr(member, np.random.default_rng(seed).normal(size=len(member)) + member, 0.9)
        inside.append(low <= truth <= high)
        assert 0 <= low <= value <= high <= 1
    assert np.mean(inside) >= 0.9 and high - low < 0.4
    # The last one, written out: of so many or fewer others above, or so many or more, the chance is .025.
    score = np.random.default_rng(seed).normal(size=len(member)) + member
    few = max(j for j in range(others) if stats.binom.cdf(j - 1, others, 0.01) <= 0.025)
    many = min(j for j in range(others) if stats.binom.sf(j, others, 0.01) <= 0.025)
    ranked = np.append(np.inf, np.sort(score[~member])[::-1])
    for limit, count in ((low, (score[member] > ranked[few]).sum()), (high, (score[member] >= ranked[many + 1]).sum())):
        known = stats.binomtest(int(count), 300).proportion_ci(0.95, "wilson")
        assert limit == pytest.approx(known.low if limit == low else known.high, abs=1e-12)
    # One score for all: whoever says member at random has the rate itself.
    value, low, high = leakage._at_low_fpr(member, np.zeros(len(member)), 0.9)
    assert value == pytest.approx(0.01) and low == 0 and high == 1


def test_small_groups_of_members_or_others_are_withheld():
    race = np.repeat([0, 1, 2], [10, 60, 50])
    members, others = scored(8, 120, "member", race=race), scored(9, 120, "other", race=race[::-1] // 2 + 1)
    found = leakage.membership(members, others, settings(attributes=("race",)))
    for target in ("findings", "race", "all"):
        rows = {row["group"]: row for row in select(found, target=target, metric="auc")}
        assert not rows["all"]["suppressed"] and rows["all"]["n_members"] > 100
        assert rows["A"]["suppressed"] and rows["A"]["reason"] == "fewer than 11 patients"
        hidden = [name for name in "BC" if rows[name]["suppressed"]]
        assert len(hidden) == 1 and "subtraction" in rows[hidden[0]]["reason"]
        assert all(rows[name]["n_images"] is None and np.isnan(rows[name]["value"]) for name in ("A", *hidden))
    assert all(np.isnan(row["threshold"]) for row in found["rows"] if row["suppressed"])
    opened = [Predictions(side.table, side.targets, True) for side in (members, others)]
    row = one(leakage.membership(*opened, settings(attributes=("race",))), target="all", group="A", metric="auc")
    assert row["n_members"] == 10 and row["n_others"] == 0 and "on one side" in row["reason"]


def test_few_others_have_no_rate_at_a_low_one():
    for count, reason in ((99, "fewer than 100 patients that are no members"), (100, None)):
        made = scored(10, 100, "other", open_data=True)
        made.table["label_race"] = made.table["race"]
        kept = made.table[made.table["patient_id"].isin(sorted(made.table["patient_id"].unique())[:count])]
        found = leakage.membership(scored(11, 50, "member", open_data=True), Predictions(kept, TARGETS, True), settings())
        row = one(found, target="race", metric="tpr_at_fpr_0.01")
        assert row["n_others"] == count and row["reason"] == reason and np.isnan(row["value"]) == (count < 100)


def test_sides_that_do_not_go_together_are_refused():
    members, others = scored(12, 20, "member"), scored(13, 20, "other")
    with pytest.raises(UserError, match="2 patients found both as member and as other"):
        table = pd.concat([others.table, members.table[members.table["patient_id"].isin(["member-0", "member-1"])]], ignore_index=True)
        leakage.membership(members, Predictions(table, TARGETS), settings())
    with pytest.raises(UserError, match="judge both by one model"):
        leakage.membership(members, Predictions(others.table, {"race": TARGETS["race"]}), settings())
    with pytest.raises(UserError, match="one side has no image"):
        leakage.membership(members, Predictions(others.table[:0], TARGETS), settings())
    with pytest.raises(UserError, match="image_id says which"):
        leakage.membership(members, others, settings(attributes=("image_id",)))
