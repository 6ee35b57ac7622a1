"""Features one by one, components, maps; and what somebody could work out from a map of data that are not open."""

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import sklearn.metrics

from cxr_jax.audit import comparisons, feature_space
from tests.report.attack import follows

LEAST = 11


def people(seed, patients=120, wide=6):
    """Images of patients of three classes, of whom features 0 and 1 tell something."""
    rng = np.random.default_rng(seed)
    who = np.repeat(np.arange(patients), rng.integers(1, 4, patients))
    race = rng.integers(0, 3, patients)[who]
    features = rng.normal(size=(patients, wide))[who] + 0.5 * rng.normal(size=(len(who), wide))
    features[:, 0] += 1.5 * (race == 0)
    features[:, 1] -= 1.5 * (race == 2)
    return features.astype(np.float32), race, np.char.mod("p%d", who)


# --- each feature ----------------------------------------------------------------------------------------------------


def test_each_feature_is_read_alone(tmp_path, monkeypatch):
    features, race, patient = people(0)
    race[:5] = -1
    stored = np.lib.format.open_memmap(tmp_path / "f.npy", "w+", np.float32, features.shape)
    stored[:] = features
    monkeypatch.setattr(feature_space, "BLOCK", 2 * features[:, 0].nbytes)  # two columns at a time
    table = feature_space.each_feature(np.load(tmp_path / "f.npy", mmap_mode="r"), race, list("abc"), patient, 0.9)
    assert list(table["feature"]) == [f for f in range(6) for _ in range(3)] and list(table["class"]) == list("abc") * 6
    keep = race >= 0
    for row in table.to_dict("records"):
        positive = race[keep] == "abc".index(row["class"])
        score = features[keep, row["feature"]]
        auc, covariance = comparisons.auc_covariance(positive, score[:, None], patient[keep])
        assert row["auc"] == pytest.approx(sklearn.metrics.roc_auc_score(positive, score), abs=1e-13)
        assert row["standard_error"] == pytest.approx(np.sqrt(covariance[0, 0]), rel=1e-10)
        assert row["low"] < row["auc"] < row["high"]
        assert row["n_images"] == keep.sum() and row["n_positive"] == positive.sum() and row["reason"] == ""
    np.testing.assert_allclose(table["q"], scipy.stats.false_discovery_control(table["p"], method="by"))
    low = table[table["q"] < 0.01]
    found = set(zip(low["feature"], low["class"], strict=True))
    assert {(0, "a"), (1, "c")} <= found and {f for f, _ in found} <= {0, 1}


def test_features_and_classes_that_tell_nothing_are_nan_and_no_part_of_the_family():
    features, race, patient = people(1)
    features[:, 2], features[7, 3], features[:, 4] = 3, np.nan, np.inf * np.sign(features[:, 4])
    table = feature_space.each_feature(features, race, ["a", "b", "c", "nobody"], patient, 0.95)
    reasons = table.groupby("feature")["reason"].unique()
    assert list(reasons[2]) == ["constant"] and list(reasons[3]) == ["NaN of 1 images"]
    nothing = table["reason"] != ""
    figures = table[["auc", "standard_error", "low", "high", "p", "q"]].isna()
    assert figures[nothing].all(axis=None) and not figures[~nothing].any(axis=None)
    assert (table[table["class"] == "nobody"]["reason"] != "").all()
    assert not nothing[(table["feature"] == 4) & (table["class"] == "a")].any()  # infinite values have ranks
    np.testing.assert_allclose(
        table[~nothing]["q"], scipy.stats.false_discovery_control(table[~nothing]["p"], method="by")
    )


def test_labels_that_do_not_fit_are_refused():
    features, race, patient = people(0)
    with pytest.raises(ValueError, match="do not fit"):
        feature_space.each_feature(features[1:], race, list("abc"), patient, 0.95)
    with pytest.raises(ValueError, match="2 classes"):
        feature_space.each_feature(features, race, list("ab"), patient, 0.95)
    with pytest.raises(ValueError, match="known label"):
        feature_space.each_feature(features, np.full(len(race), -1), list("abc"), patient, 0.95)


# --- components ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(300, 20), (700, 600)])  # all components are computed; random projections
def test_components_are_those_of_the_correlation_matrix(shape, monkeypatch):
    rng = np.random.default_rng(2)
    n, d = shape
    features = rng.normal(size=(n, 3)) * [4, 2, 1] @ rng.normal(size=(3, d)) + 0.1 * rng.normal(size=(n, d))
    features = features * rng.uniform(0.01, 100, d) + rng.normal(size=d)
    features[:, 5] = 0.1  # whose mean is not quite 0.1
    monkeypatch.setattr(feature_space, "BLOCK", 7 * features[:, 0].nbytes)
    found = feature_space.principal_components(features, 3, 0)
    varied = np.delete(np.arange(d), 5)
    values, vectors = np.linalg.eigh(np.corrcoef(features[:, varied].T))
    np.testing.assert_allclose(found.share, values[::-1][:3] / (d - 1), rtol=1e-6)
    overlap = np.abs(np.sum(found.loadings[varied] * vectors[:, ::-1][:, :3], axis=0))
    np.testing.assert_allclose(overlap, 1, atol=1e-6)
    assert (np.abs(found.loadings[5]) < 1e-20).all()
    largest = np.abs(found.loadings).argmax(axis=0)
    assert (found.loadings[largest, range(3)] > 0).all()
    standard = (features - features.mean(0)) / np.where(np.arange(d) == 5, 1, features.std(0))
    np.testing.assert_allclose(found.scores, standard @ found.loadings, atol=1e-8)
    # Features turned over are turned back.
    again = feature_space.principal_components(-features, 3, 0)
    np.testing.assert_allclose(np.abs(again.scores), np.abs(found.scores), rtol=1e-4, atol=1e-6)


def test_few_images_have_few_components():
    rng = np.random.default_rng(3)
    assert feature_space.principal_components(rng.normal(size=(4, 9)).astype(np.float32), 5, 0).scores.shape == (4, 3)
    assert feature_space.principal_components(rng.normal(size=(1, 9)), 5, 0).scores.shape == (1, 0)
    assert feature_space.principal_components(rng.normal(size=(0, 9)), 5, 0).scores.shape == (0, 0)
    assert feature_space.principal_components(np.full((8, 9), 0.1), 5, 0).loadings.shape == (9, 0)
    with pytest.raises(ValueError, match="NaN or infinite"):
        feature_space.principal_components(np.array([[1.0, np.nan], [2, 3]]), 1, 0)


def test_an_embedding_keeps_apart_what_is_apart_and_draws_whole_patients():
    rng = np.random.default_rng(4)
    patient = np.repeat(np.arange(60), 2)
    kind = np.repeat(np.arange(60) % 2, 2)
    scores = rng.normal(size=(120, 5)) + 12 * kind[:, None]
    found = feature_space.embedding(scores, patient, perplexity=10.0, most=81, seed=0)
    assert found.positions.shape == (80, 2) and np.isfinite(found.positions).all() and found.perplexity == 10
    assert (np.bincount(patient[found.rows], minlength=60) % 2 == 0).all()
    assert sklearn.metrics.silhouette_score(found.positions, kind[found.rows]) > 0.4
    again = feature_space.embedding(scores, patient, perplexity=10.0, most=81, seed=0)
    other = feature_space.embedding(scores, patient, perplexity=10.0, most=81, seed=1)
    np.testing.assert_array_equal(found.rows, again.rows)
    assert not np.array_equal(found.rows, other.rows)


def test_too_few_images_for_a_map():
    rng = np.random.default_rng(5)
    few = feature_space.embedding(rng.normal(size=(13, 3)), np.arange(13), perplexity=30.0, most=100, seed=0)
    assert few.positions.shape == (13, 2) and few.perplexity == 4
    none = feature_space.embedding(rng.normal(size=(6, 3)), np.arange(6), perplexity=30.0, most=100, seed=0)
    assert none.positions is None and "6 images are too few" in none.reason
    one = feature_space.embedding(rng.normal(size=(50, 1)), np.arange(50), perplexity=30.0, most=100, seed=0)
    assert one.positions is None and "two components" in one.reason


# --- tests along the components --------------------------------------------------------------------------------------


def test_component_tests_compare_patients():
    features, race, patient = people(6)
    _, first = np.unique(patient, return_index=True)
    features, race, patient = features[first], race[first], patient[first]
    sex = np.arange(len(patient)) % 2
    race[:4] = -1
    scores = features[:, :2].astype(np.float64)
    table = feature_space.component_tests(scores, {"race": race, "sex": sex}, patient, LEAST, {}, 0)
    assert len(table) == 3 * 2 + 1 * 2 and (table["family"] == 8).all() and (table["reason"] == "").all()
    for row in table.to_dict("records"):
        number = {"race": race, "sex": sex}[row["attribute"]]
        sides = [scores[number == row["group"], row["component"]], scores[(number >= 0) & (number != row["group"]), row["component"]]]
        expected = scipy.stats.ks_2samp(*sides)
        assert (row["n_patients"], row["n_against"], row["n_both"]) == (len(sides[0]), len(sides[1]), 0)
        np.testing.assert_allclose((row["statistic"], row["p"]), expected[:2], rtol=1e-9)
    np.testing.assert_allclose(table["p_holm"], comparisons.holm(table["p"].to_numpy()))
    assert list(table[table["attribute"] == "sex"]["against"]) == [1, 1]


def test_more_images_a_patient_are_no_difference():
    """Patients alike in everything but how many images they have; a test of patients' means would reject half of the time."""
    images = np.repeat([1, 6], 150)
    patient = np.repeat(np.arange(300), images)
    group = np.repeat(np.repeat([0, 1], 150), images)
    rng = np.random.default_rng(11)
    own, other = rng.normal(size=(300, 60)), rng.normal(size=(len(patient), 60))
    scores = np.sqrt(0.3) * own[patient] + np.sqrt(0.7) * other
    p = feature_space.component_tests(scores, {"race": group}, patient, LEAST, {}, 0)["p"]
    assert (p < 0.05).mean() < 0.15  # of 60: .05 expected, and .15 is three and a half standard errors above it


def test_copies_of_an_image_are_no_evidence():
    features, race, patient = people(7)
    _, first = np.unique(patient, return_index=True)
    scores, race, patient = features[first, :1].astype(np.float64), race[first], patient[first]
    once = feature_space.component_tests(scores, {"race": race}, patient, LEAST, {}, 0)
    more = [np.repeat(x, 3, axis=0) for x in (scores, race, patient)]
    twice = feature_space.component_tests(more[0], {"race": more[1]}, more[2], LEAST, {}, 0)
    np.testing.assert_allclose(once["p"], twice["p"], rtol=1e-9)


def test_small_and_hidden_groups_have_no_row_and_no_part_in_the_others():
    patient = np.arange(100)
    group = np.repeat([0, 1, 2, 3], [40, 30, 10, 20])
    scores = np.random.default_rng(8).normal(size=(100, 2))
    table = feature_space.component_tests(scores, {"race": group}, patient, LEAST, {"race": {3}}, 0)
    left_out = table[table["group"].isin([2, 3])]
    assert left_out[["statistic", "p", "p_holm", "n_patients", "n_against", "n_both"]].isna().all(axis=None)
    assert set(left_out["reason"]) == {"fewer than 11 patients", "the size of the group is withheld"}
    kept = table[table["reason"] == ""]
    assert list(kept["group"]) == [0, 0] and list(kept["against"]) == [1, 1] and (table["family"] == 2).all()
    assert (kept["n_patients"] == 40).all() and (kept["n_against"] == 30).all()
    alone = feature_space.component_tests(scores, {"race": np.zeros(100, int)}, patient, LEAST, {}, 0)
    assert (alone["reason"] == "fewer than 11 patients on a side").all() and (alone["family"] == 0).all()


@pytest.mark.parametrize("shared, tested", [(0, True), (5, False), (12, True)])
def test_patients_on_both_sides_are_left_out(shared, tested):
    patient = np.concatenate([np.arange(50), np.arange(50 - shared, 100 - shared)])
    view = np.repeat([0, 1], 50)
    scores = np.random.default_rng(9).normal(size=(100, 1))
    row = feature_space.component_tests(scores, {"view": view}, patient, LEAST, {}, 0).iloc[0]
    if tested:
        assert (row["n_patients"], row["n_against"], row["n_both"]) == (50 - shared, 50 - shared, shared)
        expected = scipy.stats.ks_2samp(scores[: 50 - shared, 0], scores[50 + shared :, 0])
        assert row["p"] == pytest.approx(expected.pvalue)
    else:
        assert np.isnan(row["p"]) and row["reason"] == "fewer than 11 patients on both sides"


def test_where_the_exact_p_is_beyond_one_by_rounding_nothing_is_found_and_nothing_warned():
    """So SciPy 1.17.1's is for two sides of 13 that alternate."""
    row = feature_space.component_tests(np.arange(26.0)[:, None], {"sex": np.arange(26) % 2}, np.arange(26), LEAST, {}, 0).iloc[0]
    assert row["statistic"] == pytest.approx(1 / 13) and row["p"] == pytest.approx(1)


# --- maps ------------------------------------------------------------------------------------------------------------


def mapped(seed, patients):
    """Positions, groups and patients of a map; the fourth race is of few patients, and some have no race."""
    rng = np.random.default_rng(seed)
    who = np.repeat(np.arange(patients), rng.integers(1, 4, patients))
    race = rng.choice([0, 1, 2, 3, -1], patients, p=[0.55, 0.25, 0.1, 0.02, 0.08])[who]
    positions = rng.normal(size=(patients, 2))[who] + 0.3 * rng.normal(size=(len(who), 2)) + 0.4 * (race == 1)[:, None]
    groups = {"race": race, "sex": rng.integers(0, 2, patients)[who], "view": rng.integers(0, 2, len(who))}
    return positions, groups, who


class Attacker:
    """Images are unknowns, and every shown number is a sum of some: a small cell must be no combination of those.

    sums: what is known, bool [k, n]: how many there are, in every group that is not hidden, and the cells shown. small:
    cells of few patients, of a group, of those in none that is shown, or of everyone in a place.
    """

    def __init__(self, found, positions, groups, patient, hidden):
        self.patient = patient
        bins = len(found.edges[0]) - 1
        where = [np.clip(np.searchsorted(e, x, side="right") - 1, 0, bins - 1) for e, x in zip(found.edges, positions.T)]
        grid = {place: (where[0] == place[0]) & (where[1] == place[1]) for place in np.ndindex(bins, bins)}
        self.sums, cells = [np.ones(len(patient), bool)], list(grid.values())
        for attribute, number in groups.items():
            unknown = number < 0
            for group, counts in enumerate(found.images[attribute]):
                mask = number == group
                if group in hidden.get(attribute, ()) or self.few(mask):
                    unknown |= mask
                else:
                    self.sums.append(mask)
                cells += [mask & images for images in grid.values()]
                for place in zip(*np.nonzero(np.isfinite(counts)), strict=True):
                    assert counts[place] == (mask & grid[place]).sum()
                    self.sums.append(mask & grid[place])
            cells += [unknown & images for images in grid.values()]
        self.small = [cell for cell in cells if self.few(cell)]
        self.large = [cell for cell in cells if not self.few(cell)]

    def few(self, images):
        return 0 < len(np.unique(self.patient[images])) < LEAST


@pytest.mark.parametrize("patients, bins, seed", [(150, 3, 0), (400, 4, 1), (400, 6, 2), (2000, 6, 3), (2000, 8, 4)])
def test_no_small_cell_of_a_map_follows_from_what_is_shown(patients, bins, seed):
    positions, groups, patient = mapped(seed, patients)
    hidden = {"race": {2}}
    found = feature_space.binned(positions, groups, patient, bins, LEAST, hidden)
    attacker = Attacker(found, positions, groups, patient, hidden)
    assert len(attacker.small) > 3 and np.isfinite(found.images["sex"]).any()
    assert not follows(attacker.sums, attacker.small).any()
    assert np.isnan(found.images["race"][2]).all()
    # Were only small cells withheld, some would follow.
    assert follows([*attacker.sums, *attacker.large], attacker.small).any()


@pytest.mark.parametrize("other", [True, False])
def test_a_single_small_cell_takes_others_along(other):
    """Without another attribute only the group's size tells it; with one, the sum over its place of the grid as well."""
    places, sizes = np.array([[0, 0], [0, 1], [1, 0], [1, 1]]), np.array([[40, 50, 60, 70], [45, 3, 65, 75]])
    group, place = (np.repeat(x.ravel(), sizes.ravel()) for x in np.indices(sizes.shape))
    groups = {"sex": group} | ({"view": np.arange(len(group)) % 2} if other else {})
    patient = np.arange(len(group))
    found = feature_space.binned(places[place], groups, patient, 2, LEAST, {})
    attacker = Attacker(found, places[place], groups, patient, {})
    assert np.isnan(found.images["sex"][1, 0, 1]) and np.isnan(found.images["sex"][1]).sum() == 2
    assert len(attacker.small) == 1 and not follows(attacker.sums, attacker.small).any()
    assert sum(np.isfinite(counts).sum() for counts in found.images.values()) == (12 if other else 6)


def test_a_map_without_small_cells_is_whole():
    rng = np.random.default_rng(10)
    group = rng.integers(0, 2, 4000)
    positions = rng.uniform(size=(4000, 2)) * [1, 1000]
    found = feature_space.binned(positions, {"sex": group}, np.arange(4000), 4, LEAST, {})
    np.testing.assert_array_equal(found.images["sex"].sum(axis=(1, 2)), np.bincount(group))
    inner = np.histogram2d(*positions[group == 1].T, [np.r_[-np.inf, e[1:-1], np.inf] for e in found.edges])[0]
    np.testing.assert_array_equal(found.images["sex"][1], inner)
    assert not np.isin(found.edges[0], positions[:, 0]).any() and found.edges.shape == (2, 5)
    np.testing.assert_allclose(np.diff(found.edges[1]), 245, rtol=0.05)


def test_maps_that_cannot_be_drawn():
    nobody = feature_space.binned(np.zeros((20, 2)), {"race": np.full(20, -1)}, np.arange(20), 3, LEAST, {})
    assert nobody.images["race"].shape == (0, 3, 3)
    level = feature_space.binned(np.zeros((20, 2)), {"sex": np.zeros(20, int)}, np.arange(20), 3, LEAST, {})
    assert np.nansum(level.images["sex"]) == 20 and (np.diff(level.edges) > 0).all()
    few = feature_space.binned(np.zeros((10, 2)), {"sex": np.zeros(10, int)}, np.arange(10), 3, LEAST, {})
    assert np.isnan(few.images["sex"]).all()
    with pytest.raises(ValueError, match="not finite"):
        feature_space.binned(np.full((3, 2), np.nan), {}, np.arange(3), 3, LEAST, {})
    with pytest.raises(ValueError, match="do not fit"):
        feature_space.binned(np.zeros((3, 2)), {"sex": np.zeros(4, int)}, np.arange(3), 3, LEAST, {})


def test_features_that_carry_a_class_are_told_before_those_that_are_farther_by_luck():
    auc = np.linspace(0.9, 0.6, 13)
    rows = pd.DataFrame({"feature": np.arange(13), "auc": auc, "low": auc - 0.1, "high": auc + 0.1, "q": np.where(np.arange(13) % 4, 0.01, 0.2)})
    found = feature_space._carriers(rows)
    assert found["carry"] == 9 and [one["feature"] for one in found["best"]] == [1, 2, 3, 5, 6, 7, 9, 10, 11, 0]
