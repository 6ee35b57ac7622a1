"""The phantom's model against itself written out longhand, and its pictures against what they claim to show."""

import dataclasses
import itertools
import math
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from scipy.stats import spearmanr
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from cxr_jax.tables import UserError
from tfds_builders.cxr_phantom import phantom
from tfds_builders.cxr_phantom.phantom import FINDINGS, GROUPS, PATHOLOGIES, PRIOR, Parameters

INDEX = {name: i for i, name in enumerate(FINDINGS)}


def population(variant="planted", patients=2000, **more):
    return phantom.sample_population(Parameters(variant, patients, **more))


def with_columns(people, **columns):
    return dataclasses.replace(people, columns={**people.columns, **columns})


def ceilings(people):
    return [roc_auc_score(people["group"] == k, people["posterior"][:, k]) for k in range(len(GROUPS))]


# The closed form -----------------------------------------------------------------------------------------------------


def joint_by_hand(parameters, k, findings, age, view, latent):
    """Prior times the likelihood of everything, in plain floats and with no factor left out."""
    density = PRIOR[k]
    mean = phantom.LATENT_MEANS[k] if parameters.variant in ("planted", "underdiagnosed", "shortcut") else 0.0
    density *= math.exp(-((latent - mean) ** 2) / 2) / math.sqrt(2 * math.pi)
    for name, intercept, slope, weights in phantom.CHAIN:
        log_odds = intercept + slope * (age - 60) / 10
        log_odds += sum(weight for other, weight in weights.items() if findings[INDEX[other]] == 1)
        log_odds += phantom.GROUP_LOG_ODDS.get(parameters.variant, {}).get(name, (0, 0, 0, 0))[k]
        share = 1 / (1 + math.exp(-log_odds))
        density *= share if findings[INDEX[name]] == 1 else 1 - share
    log_odds = phantom.VIEW_INTERCEPT + phantom.VIEW_AGE * (age - 60) / 10
    log_odds += sum(weight for other, weight in phantom.VIEW_WEIGHTS.items() if findings[INDEX[other]] == 1)
    log_odds += phantom.GROUP_VIEW_LOG_ODDS.get(parameters.variant, (0, 0, 0, 0))[k]
    share = 1 / (1 + math.exp(-log_odds))
    return density * (share if view == "AP" else 1 - share)


@pytest.mark.parametrize("variant", phantom.VARIANTS)
def test_posterior_is_bayes_rule_over_the_whole_joint(variant):
    people = population(variant, patients=60, seed=5)
    for i in range(len(people)):
        row = people["true_findings"][i], float(people["age"][i]), people["view"][i], float(people["latent"][i])
        joint = np.array([joint_by_hand(people.parameters, k, *row) for k in range(len(GROUPS))])
        np.testing.assert_allclose(people["posterior"][i], joint / joint.sum(), rtol=2e-6, atol=1e-9)


@pytest.mark.parametrize("variant", phantom.VARIANTS)
def test_posterior_is_calibrated_on_what_is_sampled(variant):
    people = population(variant, patients=40000, seed=1)
    # One image a patient, so that rows are independent; the last one, whose findings may have been carried over.
    last = np.flatnonzero(np.r_[people["patient_id"][1:] != people["patient_id"][:-1], True])
    truth = people["group"][last, None] == np.arange(len(GROUPS))
    expected = people["posterior"][last].astype(np.float64)
    for k in range(len(GROUPS)):
        bins = np.digitize(expected[:, k], np.linspace(0, 1, 11)[1:-1])
        for b in np.unique(bins):
            here = bins == b
            deviation = math.sqrt((expected[here, k] * (1 - expected[here, k])).sum())
            surplus = truth[here, k].sum() - expected[here, k].sum()
            assert abs(surplus) < 4 * deviation + 1e-9, (GROUPS[k], b, here.sum())


@pytest.mark.parametrize("variant", ["confounded", "shortcut"])
def test_findings_follow_the_chain(variant):
    """All 8,192 combinations at one age: their probabilities add up to 1, and their margins are what is sampled."""
    parameters = Parameters(variant, patients=60000)
    combinations = np.zeros((2 ** len(phantom.CHAIN), len(FINDINGS)))
    combinations[:, 1:] = list(itertools.product((0, 1), repeat=len(phantom.CHAIN)))
    people = phantom.sample_population(parameters)
    for k in range(len(GROUPS)):
        here = people["group"] == k
        ages, counts = np.unique(people["age"][here], return_counts=True)
        margins = np.zeros(len(FINDINGS))
        for age, count in zip(ages, counts):
            log_share = np.zeros(len(combinations))
            for name, *_ in phantom.CHAIN:
                log_odds = phantom.finding_log_odds(combinations, age, name) + parameters.finding_log_odds(name)[k]
                sign = np.where(combinations[:, INDEX[name]] == 1, 1, -1)
                log_share -= np.log1p(np.exp(-sign * log_odds))
            share = np.exp(log_share)
            assert abs(share.sum() - 1) < 1e-12
            margins += count / counts.sum() * (share[:, None] * combinations).sum(0)
            clear = ~combinations[:, [INDEX[name] for name in PATHOLOGIES]].any(1)
            margins[INDEX["No Finding"]] += count / counts.sum() * share[clear].sum()
        found = people["true_findings"][here].mean(0)
        # Images of a patient share findings: at worst four images count as one.
        deviation = np.sqrt(margins * (1 - margins) / (here.sum() / 4))
        assert (np.abs(found - margins) < 4 * deviation).all()


def test_ceilings_are_spread_as_planned():
    planted = ceilings(population("planted", patients=20000))
    np.testing.assert_allclose(planted, [0.933, 0.803, 0.877, 0.968], atol=0.01)
    people = population("null")
    assert (people["posterior"] == people["posterior"][0]).all()
    np.testing.assert_allclose(people["posterior"][0], PRIOR, rtol=1e-6)
    assert ceilings(people) == [0.5] * 4
    assert all(0.55 < auc < 0.85 for auc in ceilings(population("confounded", patients=20000)))
    assert all(0.53 < auc < 0.85 for auc in ceilings(population("acquisition", patients=20000)))
    shortcut = ceilings(population("shortcut", patients=20000))
    assert all(with_finding > without for with_finding, without in zip(shortcut, planted))


def test_a_texture_that_is_not_drawn_gives_nothing_away():
    assert ceilings(population("planted", signal=0)) == [0.5] * 4
    assert ceilings(population("confounded", effect=0)) == [0.5] * 4
    assert ceilings(population("acquisition", effect=0)) == [0.5] * 4


# The population ------------------------------------------------------------------------------------------------------


def differing(a, b):
    return {name for name in a.columns if not np.array_equal(a[name], b[name], equal_nan=a[name].dtype.kind == "f")}


def test_variants_differ_in_what_they_change_and_in_nothing_else():
    people = {variant: population(variant, patients=400) for variant in phantom.VARIANTS}
    null = people["null"]
    assert differing(people["planted"], null) == {"latent", "posterior"}
    assert differing(people["underdiagnosed"], people["planted"]) == {"findings", "relabelled"}
    assert differing(people["acquisition"], null) == {"view", "shapes", "posterior"}
    shapes = people["acquisition"]["shapes"] != null["shapes"]
    moved = {name for name, changed in zip(phantom.SHAPES, shapes.any(0)) if changed}
    assert moved == {"exposure", "contrast", "heart_share", "inspiration"}  # what the view does
    same_view = people["acquisition"]["view"] == null["view"]
    assert not shapes[same_view].any()
    # Findings bring their own places, shapes and views with them.
    by_findings = {"true_findings", "findings", "severity", "side", "place", "shapes", "view", "posterior"}
    assert differing(people["confounded"], null) == by_findings
    changed = people["shortcut"]["true_findings"] != people["planted"]["true_findings"]
    # Lung Lesion, and what follows from it.
    assert {FINDINGS[i] for i in np.flatnonzero(changed.any(0))} >= {"No Finding", "Lung Lesion"}
    rates = [people["shortcut"]["true_findings"][people["shortcut"]["group"] == k, 4].mean() for k in range(4)]
    assert rates == sorted(rates) and rates[3] > 8 * rates[0]


def test_underdiagnosis_hides_its_share_of_one_group_and_leaves_the_picture():
    people = population("underdiagnosed", patients=20000)
    sick = people["true_findings"][:, INDEX["No Finding"]] == 0
    dogwood = people["group"] == GROUPS.index("Dogwood")
    hidden = people["relabelled"] == 1
    assert not hidden[~(sick & dogwood)].any()
    n = (sick & dogwood).sum()
    assert abs(hidden.sum() - 0.4 * n) < 4 * math.sqrt(n * 0.24)
    recorded = people["findings"][hidden]
    assert (recorded[:, INDEX["No Finding"]] == 1).all()
    assert not recorded[:, [INDEX[name] for name in PATHOLOGIES]].any()
    devices = INDEX["Support Devices"]
    np.testing.assert_array_equal(recorded[:, devices], people["true_findings"][hidden, devices])
    np.testing.assert_array_equal(people["findings"][~hidden], people["true_findings"][~hidden])

    planted, rows = population("planted", patients=20000), np.flatnonzero(hidden)[:3]
    np.testing.assert_array_equal(phantom.draw_images(people, rows), phantom.draw_images(planted, rows))


def test_patients_are_clusters():
    people = population(patients=20000)
    patients, first, counts = np.unique(people["patient_id"], return_index=True, return_counts=True)
    assert set(counts) == {1, 2, 3, 4} and len(patients) == 20000
    for name in ("group", "sex", "age"):
        np.testing.assert_array_equal(people[name], np.repeat(people[name][first], counts))
    np.testing.assert_allclose(np.bincount(people["group"][first]) / 20000, PRIOR, atol=0.015)
    assert len(set(people["image_id"])) == len(people) and len(set(people["image_index"])) == len(people)

    within = people["latent"] - np.array(phantom.LATENT_MEANS)[people["group"]]
    assert abs(within.mean()) < 0.02 and abs(within.var() - 1) < 0.03
    pair = first[counts > 1]
    assert abs(np.corrcoef(within[pair], within[pair + 1])[0, 1] - phantom.LATENT_PATIENT_SHARE) < 0.02
    # One study, one set of findings.
    same = np.flatnonzero(people["study_id"][1:] == people["study_id"][:-1])
    assert len(same) > 1000
    np.testing.assert_array_equal(people["true_findings"][same], people["true_findings"][same + 1])


def test_default_population_has_enough_patients_of_every_group_for_a_test_split():
    people = population(patients=1000)
    counts = [len(set(people["patient_id"][people["group"] == k])) for k in range(len(GROUPS))]
    assert 0.3 * min(counts) >= 40
    assert 2000 <= len(people) <= 2400


# The pictures --------------------------------------------------------------------------------------------------------


def test_a_picture_is_the_same_alone_in_company_and_in_a_larger_population():
    people, more = population(patients=10), population(patients=30)
    together = phantom.draw_images(people, range(len(people)))
    assert together.shape == (len(people), 256, 256, 1) and together.dtype == np.uint8
    np.testing.assert_array_equal(phantom.draw_images(people, [7])[0], together[7])
    np.testing.assert_array_equal(phantom.draw_images(more, [3, 0]), together[[3, 0]])
    for name in people.columns:
        np.testing.assert_array_equal(people[name], more[name][: len(people)], err_msg=name)
    assert not np.array_equal(phantom.draw_images(population(patients=10, seed=1), [0])[0], together[0])
    assert phantom.draw_images(people, [], size=64).shape == (0, 64, 64, 1)
    assert phantom.draw_images(people, [1], size=64).shape == (1, 64, 64, 1)


def test_a_picture_is_the_same_in_every_process():
    # A set of strings is ordered by a hash that differs between processes; the random stream must not follow it.
    code = (
        "import zlib; from tfds_builders.cxr_phantom import phantom as p\n"
        "people = p.sample_population(p.Parameters(patients=30))\n"
        "import numpy as np; i = np.argsort(-people['true_findings'].sum(1))[:6]\n"
        "print(zlib.crc32(p.draw_images(people, i).tobytes()))"
    )
    digests = set()
    for salt in ("1", "2", "3"):
        environment = {**os.environ, "PYTHONHASHSEED": salt, "PYTHONPATH": os.pathsep.join(sys.path)}
        ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        digests.add(ran.stdout.strip())
    assert len(digests) == 1


def test_the_group_reaches_the_picture_through_the_latent_alone():
    people = population(patients=4)
    other = with_columns(people, group=(people["group"] + 1) % 4, findings=1 - people["findings"])
    np.testing.assert_array_equal(phantom.draw_images(other, [0, 1]), phantom.draw_images(people, [0, 1]))
    flipped = with_columns(people, latent=-people["latent"])
    assert not np.array_equal(phantom.draw_images(flipped, [0, 1]), phantom.draw_images(people, [0, 1]))
    without = population(patients=4, signal=0)
    flipped = with_columns(without, latent=-without["latent"])
    np.testing.assert_array_equal(phantom.draw_images(flipped, [0, 1]), phantom.draw_images(without, [0, 1]))


def test_the_texture_is_faint_and_nothing_is_clipped():
    with_it, without = population(patients=40), population(patients=40, signal=0)
    a = phantom.draw_images(with_it, range(len(with_it))).astype(int)
    b = phantom.draw_images(without, range(len(without))).astype(int)
    assert np.abs(a - b).max() <= math.ceil(phantom.TEXTURE_AMPLITUDE) <= 7  # of 255 gray levels
    assert np.std(a - b) < phantom.TEXTURE_AMPLITUDE / math.sqrt(2)  # that of one grating alone
    assert a.min() > 0 and a.max() < 255


def test_the_picture_is_laid_out_like_a_chest():
    people = population(patients=60)
    clear = np.flatnonzero(people["true_findings"][:, 0] * (1 - people["true_findings"][:, INDEX["Support Devices"]]))
    mean = phantom.draw_images(people, clear)[..., 0].mean(0)
    left_lung, right_lung = mean[90:130, 45:80].mean(), mean[90:130, 176:211].mean()
    middle, belly, corner = mean[90:130, 118:138].mean(), mean[235:, 60:196].mean(), mean[:10, :25].mean()
    assert max(left_lung, right_lung) + 40 < min(middle, belly)
    assert corner + 20 < min(left_lung, right_lung)
    # The heart lies to the right of the picture.
    assert mean[150:175, 160:175].mean() > mean[150:175, 81:96].mean() + 30


def test_view_and_sex_move_what_the_readme_says():
    people = population(patients=3000)
    shapes = dict(zip(phantom.SHAPES, people["shapes"].T))
    female, portable = people["sex"] == "F", people["view"] == "AP"
    assert shapes["thorax_half_width"][female].mean() < shapes["thorax_half_width"][~female].mean() - 0.03
    assert shapes["soft_tissue"][female].mean() > shapes["soft_tissue"][~female].mean() + 0.4
    assert shapes["exposure"][portable].mean() > shapes["exposure"][~portable].mean() + 0.15
    big = people["true_findings"][:, INDEX["Cardiomegaly"]] == 1
    assert shapes["heart_share"][big].mean() > shapes["heart_share"][~big].mean() + 0.1


OBVIOUS = ("Lung Opacity", "Edema", "Consolidation", "Pneumonia", "Pleural Effusion", "Atelectasis")
HARD = ("Lung Lesion", "Pneumothorax", "Pleural Other", "Fracture")


def change_made_by(finding):
    """float [256, 256]: mean absolute change, in gray levels, that adding one finding makes to pictures without any."""
    people = population(patients=60)
    rows = np.flatnonzero(people["true_findings"].sum(1) == people["true_findings"][:, 0])[:6]
    i = INDEX[finding]
    added = {name: people[name].copy() for name in ("true_findings", "severity", "side", "place")}
    added["true_findings"][rows, i] = 1
    added["severity"][rows, i] = 0.5
    added["side"][rows, i] = 1
    added["place"][rows, i] = 0.5
    before = phantom.draw_images(people, rows).astype(float)
    after = phantom.draw_images(with_columns(people, **added), rows).astype(float)
    return np.abs(after - before)[..., 0].mean(0)


def test_findings_are_local_and_some_are_hard():
    sums = {}
    for finding in (*OBVIOUS, *HARD, "Support Devices"):
        change = change_made_by(finding)
        sums[finding] = change.sum()
        assert change.max() > 4, finding  # gray levels: there at all
        assert (change < 0.5).mean() > 0.6, finding  # and not everywhere
    assert 2 * max(sums[finding] for finding in HARD) < min(sums[finding] for finding in OBVIOUS)


# The signal ----------------------------------------------------------------------------------------------------------


def at_64(pictures):
    small = (Image.fromarray(picture[..., 0]).resize((64, 64), Image.BILINEAR) for picture in pictures)
    return np.stack([np.asarray(picture, np.float64) for picture in small])


def orientation_balance(pictures):
    """Mean log ratio of local energy along the two diagonals, of 64-pixel pictures; a Gabor pair 3.5 pixels wide."""
    f = np.fft.fftfreq(64, 1 / 64)
    spectrum = np.fft.fft2(pictures - pictures.mean((1, 2), keepdims=True))
    logs = []
    for sign in (1, -1):
        centre = 13 / math.sqrt(2)
        away = (f[None, :] - centre) ** 2 + (f[:, None] - sign * centre) ** 2
        local = np.abs(np.fft.ifft2(spectrum * np.exp(-away / (2 * (64 / (2 * math.pi * 3.5)) ** 2)))) ** 2
        logs.append(np.log(local[:, 5:-5, 5:-5]).mean((1, 2)))
    return logs[0] - logs[1]


def test_the_latent_can_be_read_at_64_pixels():
    people = population(patients=60)
    pictures = at_64(phantom.draw_images(people, range(len(people))))
    assert spearmanr(orientation_balance(pictures), people["latent"]).statistic > 0.9


@pytest.mark.slow
def test_a_logistic_regression_on_the_texture_comes_close_to_the_ceiling_and_not_above():
    people = population(patients=600)
    feature = orientation_balance(at_64(phantom.draw_images(people, range(len(people)))))
    feature = (feature - feature.mean()) / feature.std()
    inputs = np.stack([feature, feature**3], axis=1)
    seen = people["image_index"] // 4 < 300
    fitted = LogisticRegression(C=100, max_iter=2000).fit(inputs[seen], people["group"][seen])
    scores = fitted.predict_proba(inputs[~seen])
    for k in range(len(GROUPS)):
        truth = people["group"][~seen] == k
        reached, ceiling = roc_auc_score(truth, scores[:, k]), roc_auc_score(truth, people["posterior"][~seen, k])
        assert ceiling - 0.06 < reached < ceiling + 0.01, GROUPS[k]


# Mistakes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"variant": "plantd"}, "no variant 'plantd'; the variants are planted"),
        ({"patients": 0}, "patients is 0"),
        ({"patients": 10.5}, "patients is 10.5; a whole number"),
        ({"seed": -1}, "seed is -1"),
        ({"signal": -0.1}, "signal is -0.1"),
        ({"signal": float("nan")}, "signal is nan"),
        ({"underdiagnosed_share": 1.1}, "underdiagnosed_share is 1.1"),
    ],
)
def test_parameters_out_of_range_are_named(wrong, message):
    with pytest.raises(UserError, match=message):
        Parameters(**wrong)


def test_odd_sizes_are_refused():
    with pytest.raises(ValueError, match="even"):
        phantom.draw_images(population(patients=1), [0], size=63)
