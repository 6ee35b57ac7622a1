import re

import matplotlib
import numpy as np
import pandas as pd
import pytest

from cxr_jax.report import cohort, figures
from cxr_jax.report import rows as audit_rows


def auc_row(name, value, low, high, **more):
    row = dict.fromkeys(audit_rows.KEYS) | {
        "metric": "auc", "target": "race", "class": name, "attribute": "all", "group": "all", "split": "test",
        "level": 0.95, "value": value, "low": low, "high": high, "n_images": 90, "n_patients": 40, "n_positive": 12,
        "suppressed": False,
    }  # fmt: skip
    return row | more


def forest(rows):
    table = audit_rows.frame(rows)
    entries = [(r["class"], r) for _, r in audit_rows.select(table, metric="auc").iterrows()]
    return figures.forest(table, "race", [("", entries)], "classes", "What.", "n_positive")


def test_odd_names_are_drawn_as_they_are():
    drawing = forest([auc_row(name, 0.7, 0.6, 0.8) for name in ("$x$ & <b>", "a_b^c", "a" * 60, "%s {}")])
    assert "$x$ & <b>: 0.700 (0.600 to 0.800)" in drawing.alt
    assert drawing.svg.startswith("<svg") and "<script" not in drawing.svg


def test_forest_tells_undefined_and_withheld_apart_from_values():
    rows = [
        auc_row("A", 0.7, 0.6, 0.8),
        auc_row("B", None, None, None, reason="one class only"),
        auc_row("C", None, None, None, suppressed=True, reason="fewer than 11 patients", n_positive=None),
        auc_row("D", None, None, None, reason="fewer than 11 patients have it", n_positive=None),
        auc_row("A", 0.9, 0.85, 0.95, metric="auc_ceiling"),
    ]
    drawing = forest(rows)
    assert "A: 0.700 (0.600 to 0.800), ceiling 0.900" in drawing.alt
    assert "B: undefined" in drawing.alt and "C: withheld; D: withheld" in drawing.alt
    assert drawing.caption.startswith("What. Lines: 95\N{NO-BREAK SPACE}% intervals")


def test_nothing_to_draw_is_no_figure():
    table = audit_rows.frame([auc_row("A", 0.7, 0.6, 0.8)])
    assert figures.forest(table, "race", [("", [])], "classes", "", "n_patients") is None
    assert figures.roc(table, "race", "test") is None
    assert figures.calibration(table, "race", "test") is None
    assert figures.confusion(table, "race", "test") is None
    assert figures.learning_curves([], "best") is None


def test_style_does_not_leak():
    before = dict(matplotlib.rcParams)
    forest([auc_row("A", 0.7, 0.6, 0.8)])
    assert dict(matplotlib.rcParams) == before


VALIDATION = {"split": "validation", "loss": 1.0, "n_images": 20, "n_patients": 9}


def test_learning_curves_mark_the_best_epoch_and_survive_an_undefined_one():
    train = [{"step": s, "epoch": s / 10, "split": "train", "loss": 2 - s / 20} for s in range(1, 31)]
    aucs = ((1, None), (2, 0.83), (3, 0.81))
    held = [VALIDATION | {"step": 10 * e, "epoch": float(e), "macro_auc": a} for e, a in aucs]
    drawing = figures.learning_curves(train + held, "best")
    assert "best, 0.830, at epoch 2" in drawing.alt and "20 images of 9 patients" in drawing.caption
    assert "for choosing only; without interval" in drawing.caption
    hidden = figures.learning_curves(train + held, "best", n_hidden=True).caption
    assert "20 images" not in hidden and "(n withheld)" in hidden


@pytest.mark.parametrize(
    "checkpoint, said", [("best", "is that of the best"), ("last", "not that of the best"), ("D_race", "run D_race")]
)
def test_learning_curves_say_which_checkpoint_was_judged(checkpoint, said):
    records = [VALIDATION | {"step": 1, "epoch": 1.0, "macro_auc": 0.7}]
    assert f"{said}. Dotted" in figures.learning_curves(records, checkpoint).caption


def test_a_long_run_draws_no_more_than_a_short_one():
    def records(n):
        train = [{"step": s, "epoch": s / n, "split": "train", "loss": 1 + 1 / (1 + s)} for s in range(n)]
        return figures.learning_curves(train, "best").svg

    assert len(records(30_000)) < 1.2 * len(records(300))


def test_withheld_bars_are_marked_not_drawn():
    counts = np.array([[300, 200, 500], [20, 5, 25], [320, 205, 525]])
    table = cohort.Counts("sex", ["F", "missing"], ["train", "test"], counts, counts, counts == 5, counts == 5)
    drawing = figures.counts([table], lambda a: a)
    assert "not recorded 25" in drawing.alt and "Hatched" in drawing.caption
    table.hidden_patients[:] = False
    assert "Hatched" not in figures.counts([table], lambda a: a).caption


def test_ages_are_told_by_group_with_n():
    line = {"mean": 51.04, "low": 49.0, "high": 53.0, "SD": 10.0, "first quartile": 40.0, "median": 50.0}
    line |= {"third quartile": 61.0, "n": 1234}
    lines = [line | {"group": "F"}, line | {"group": "missing", "low": np.nan, "high": np.nan}]
    drawing = figures.ages(lines, "sex", "sex", 0.95)
    assert "F: mean 51.0, n = 1,234; not recorded: mean" in drawing.alt and drawing.name == "cohort_ages_sex"
    assert "95\N{NO-BREAK SPACE}% intervals" in drawing.caption
    assert figures.ages([], "sex", "sex", 0.95) is None


def test_groups_beyond_the_palette_are_left_to_the_tables():
    names = [f"group {i}" for i in range(12)]
    table = pd.DataFrame(
        [
            {
                "what": "Edema",
                "group": g,
                "value": 0.2,
                "low": 0.1,
                "high": 0.3,
                "n_images": 100 - i,
                "n_patients": 60 - i,
                "suppressed": False,
            }
            for i, g in enumerate(names)
        ]
    )
    drawing = figures.prevalence(table, "race", 11, 0.95)
    assert f"Shown are the {len(figures.COLOURS)} largest groups" in drawing.caption


def test_only_classes_that_exclude_each_other_mirror_each_other():
    point = auc_row("A", 0.5, 0.4, 0.6, metric="roc_tpr", threshold=0.5)
    rows = [auc_row("A", 0.7, 0.6, 0.8), auc_row("B", None, None, None, suppressed=True), point]
    assert "mirrored" not in figures.roc(audit_rows.frame(rows), "race", "test").caption
    rows.append(auc_row("A", 0.5, 0.4, 0.6, metric="confusion", reference="A"))
    assert "the curve for B is this one mirrored" in figures.roc(audit_rows.frame(rows), "race", "test").caption


@pytest.mark.parametrize("a, b", [(a, b) for i, a in enumerate(figures.COLOURS) for b in figures.COLOURS[i + 1 :]])
def test_colours_differ_in_more_than_hue(a, b):
    """No two are told apart by red against green alone: under the Machado et al. (2009) matrix for deuteranopia, each
    pair stays apart by more than a just noticeable step in linear RGB."""
    matrix = np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    )

    def seen(colour):
        rgb = np.array([int(h, 16) / 255 for h in re.findall("..", colour[1:])])
        return matrix @ np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)

    assert np.linalg.norm(seen(a) - seen(b)) > 0.08
