"""Workdirs as the stages leave them, small and synthetic: patients, images, scores and a known ceiling, drawn here and
judged by the real audit with few replicates.
"""

import contextlib
import csv
import json
import pathlib
import shutil
import types

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from cxr_jax import tables
from cxr_jax.audit import subgroups
from cxr_jax.report import demographics, figures

FINDINGS = (
    "No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema", "Consolidation",
    "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture", "Support Devices",
)  # fmt: skip
PREVALENCE = (0.3, 0.05, 0.2, 0.3, 0.06, 0.22, 0.1, 0.12, 0.25, 0.07, 0.3, 0.03, 0.06, 0.35)
GROUPS = ("Alder", "Birch", "Cedar", "Dogwood")
MIN_PATIENTS = 11


def draw_cohort(patients: int, seed: int = 0) -> pd.DataFrame:
    """A cohort as cohort.parquet has it, of 1 to 4 images a patient, with group posteriors as ceilings."""
    rng = np.random.default_rng(seed)
    images = rng.integers(1, 5, patients)
    who = np.repeat(np.arange(patients), images)
    group = rng.choice(4, patients, p=[0.45, 0.3, 0.15, 0.1])
    latent = np.array([-1.2, 0.0, 1.4, 3.0])[group][who] + rng.normal(size=who.size)
    density = np.stack([p * stats.norm.pdf(latent, m) for p, m in zip((0.45, 0.3, 0.15, 0.1), (-1.2, 0, 1.4, 3))], 1)
    posterior = density / density.sum(1, keepdims=True)
    split = np.array(tables.SPLITS)[np.searchsorted([0.6, 0.7], rng.random(patients), side="right")]
    age = np.clip(rng.normal(55, 18, patients), 1, 95)[who] + rng.integers(0, 2, who.size)
    table = pd.DataFrame(
        {
            "stored_split": "all",
            "record": np.arange(who.size),
            "image_id": [f"i{i:05d}" for i in range(who.size)],
            "patient_id": [f"p{p:05d}" for p in who],
            "study_id": [f"s{i:05d}" for i in range(who.size)],
            "split": split[who],
            "race": np.array(GROUPS)[group][who],
            "race_recorded": np.array(GROUPS)[group][who],
            "sex": np.array(["F", "M"])[rng.integers(0, 2, patients)][who],
            "age": age.astype(np.float32),
            "view": np.where(rng.random(who.size) < 0.4, "AP", "PA"),
            "dataset": "phantom",
        }
    )
    for name, share in zip(FINDINGS, PREVALENCE, strict=True):
        sick = rng.random(patients) < share
        table[f"finding_{name}"] = np.where(
            rng.random(who.size) < 0.85, sick[who], rng.random(who.size) < share
        ).astype(float)
    for k, name in enumerate(GROUPS):
        table[f"ceiling_{name}"] = posterior[:, k]
    return table


def four(left, before):
    gone = before[~before["image_id"].isin(left["image_id"])]
    who = gone["patient_id"].nunique()
    numbers = len(left), left["patient_id"].nunique(), len(gone), who
    return dict(zip(("images", "patients", "removed_images", "removed_patients"), numbers, strict=True))


def narrowed(table, *rules):
    """What is left of a table after rules (words, function: table -> bool mask), and the attrition."""
    race = table["race"].fillna("no record") if "race" in table else pd.Series("no record", table.index)
    steps, groups = [], sorted(set(race))

    def step(rule, left, before):
        by_race = {g: four(left[race[left.index] == g], before[race[before.index] == g]) for g in groups}
        steps.append({"rule": rule, **four(left, before), "by_race": by_race})

    step("every image of the data set", table, table)
    for words, keep in rules:
        left = table[keep(table)]
        step(words, left, table)
        table = left
    for split in ("train", "validation", "test"):
        part = table[table["split"] == split]
        step(f"of which in {split}", part, part)
    return table.reset_index(drop=True), steps


def odd_cohort(patients=900, seed=0):
    """A cohort with rare groups, rare findings, uncertain and unmentioned ones, and values missing here and there."""
    table = draw_cohort(patients, seed)
    rng = np.random.default_rng(seed + 1)
    who = table["patient_id"].str[1:].astype(int).to_numpy()
    race = np.array(["A", "B", "C", "D", "E", "F"], object)[
        rng.choice(6, patients, p=[0.55, 0.25, 0.1, 0.06, 0.03, 0.01])
    ]
    race[rng.random(patients) < 0.1] = None
    table["race"] = pd.Series(race[who], dtype="str")
    table.loc[rng.random(patients)[who] < 0.02, "sex"] = None
    table.loc[rng.random(patients)[who] < 0.02, "age"] = np.nan
    table.loc[rng.random(len(table)) < 0.01, "view"] = None
    table["portable"] = pd.Series(np.where(rng.random(len(table)) < 0.3, None, "yes"), dtype="str")
    for name in FINDINGS:
        column = table[f"finding_{name}"].to_numpy().copy()
        column[(column == 0) & (rng.random(len(table)) < rng.choice([0.5, 0.99, 1.0]))] = np.nan
        column[(column == 0) & (rng.random(len(table)) < 0.02)] = -1
        table[f"finding_{name}"] = column
    return table


def history(epochs: int, classes) -> str:
    lines = []
    steps = 40
    for epoch in range(1, epochs + 1):
        for i in range(0, steps, 5):
            at = epoch - 1 + i / steps
            loss = 1.35 * np.exp(-0.3 * at) + 0.03 * np.cos(7 * at)
            lines.append(
                {
                    "step": (epoch - 1) * steps + i,
                    "epoch": at,
                    "split": "train",
                    "loss": loss,
                    "learning_rate": 1e-4,
                    "images_per_second": 90.0,
                }
            )
        macro = 0.86 - 0.3 * np.exp(-0.9 * epoch)
        lines.append(
            {
                "step": epoch * steps,
                "epoch": float(epoch),
                "split": "validation",
                "loss": 1.3 * np.exp(-0.25 * epoch),
                "macro_auc": macro,
                "auc": dict.fromkeys(classes, macro),
                "n_images": 210,
                "n_patients": 88,
            }
        )
    return "".join(json.dumps(line) + "\n" for line in lines)


@contextlib.contextmanager
def undrawn_cohort():
    """No figures of the cohort, which take most of the time and hold no number that the table lacks."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("counts", "ages", "prevalence", "differences"):
            patch.setattr(demographics.figures, name, lambda *_: None)
        yield


def make_workdir(
    path: pathlib.Path, target: str = "race", patients: int = 700, replicates: int = 50, table=None, steps=None, cohort=None
) -> pathlib.Path:
    """Writes every file that the report reads. table, steps: a cohort and its attrition, else one is drawn; cohort: where its
    cohort.csv may be already."""
    path.mkdir(parents=True, exist_ok=True)
    table, steps = narrowed(draw_cohort(patients)) if table is None else (table, steps)
    rng = np.random.default_rng(2)
    keys = [c for c in tables.KEY_COLUMNS if c in table]
    judged = table[keys].copy()
    races = GROUPS if set(table["race"]) <= set(GROUPS) else tuple(sorted(table["race"].dropna().unique()))
    if target == "race" and races != GROUPS:
        classes, kind = races, "multiclass"
        raw = np.exp(rng.normal(size=(len(table), len(classes))) + (table["race"].to_numpy(object)[:, None] == np.array(classes)))
        scores = raw / raw.sum(1, keepdims=True)
        judged["label_race"] = table["race"]
    elif target == "race":
        classes, kind = GROUPS, "multiclass"
        posterior = table[[f"ceiling_{g}" for g in classes]].to_numpy()
        raw = np.exp(np.log(posterior + 1e-3) + rng.normal(size=posterior.shape) * 0.8)
        scores = raw / raw.sum(1, keepdims=True)
        judged["label_race"] = table["race"]
        judged[[f"ceiling_{g}" for g in classes]] = posterior
    elif target == "sex":
        classes, kind = ("F", "M"), "multiclass"
        first = 1 / (1 + np.exp(-(3 * ((table["sex"] == "F") - 0.5) + 1.5 * rng.normal(size=len(table)))))
        scores = np.stack([first, 1 - first], 1)
        judged["label_sex"] = table["sex"]
    else:
        classes, kind = FINDINGS, "multilabel"
        labels = table[[f"finding_{f}" for f in classes]].to_numpy()
        strength = np.linspace(0.1, 1.2, len(classes)) * (np.nan_to_num(labels) - 0.5) * 2
        scores = 1 / (1 + np.exp(-(strength - 1 + rng.normal(size=labels.shape))))
        judged[[f"label_{f}" for f in classes]] = np.where(labels < 0, np.nan, labels)
    judged[[f"score_{c}" for c in classes]] = scores
    judged = judged[judged["split"] == "test"].reset_index(drop=True)
    predictions = tables.Predictions(judged, {target: tables.Target(kind, tuple(classes))}, True)
    predictions.write(path / "predictions.parquet")
    tables.write_parquet(table, path / "cohort.parquet", {"races": list(races)})
    titles = {"race": "D_race", "sex": "D_sex", "findings": "D_disease"}
    config = {
        "name": titles[target],
        "seed": 0,
        "stages": ["prepare", "train", "predict", "audit", "report"],
        "dataset": {"name": "phantom", "variant": "planted", "image_size": 64},
        "train": {"targets": [target], "epochs": 3},
        "predict": {"dataset": "", "checkpoint": "best"},
        "audit": {
            "attributes": ["race", "sex", "age_band", "view"],
            "case_mix": ["view", "age_band", "sex", "race"],
            "age_bands": [0, 20, 40, 60, 80],
            "level": 0.95,
            "min_patients": MIN_PATIENTS,
            "splits": ["test"],
            "replicates": replicates,
            "seed": 0,
            "intersections": ["race*sex"],
            "reference": [],
            "truth": "recorded",
            "threshold": "youden",
            "threshold_by": "",
            "interval": "percentile",
        },
    }
    diff = {
        "name": {"base": "", "run": titles[target]},
        "dataset.image_size": {"base": 256, "run": 64},
        "train.epochs": {"base": 10, "run": 3},
        "train.learning_rate": {"base": 1e-4, "run": 1e-3},
        "train.schedule": {"base": "constant", "run": "cosine"},
        "train.warmup_epochs": {"base": 0.0, "run": 0.5},
    }
    run = {
        "status": "running",
        "name": titles[target],
        "headline": f"{titles[target]}: DenseNet-121 on the phantom (planted), reduced: 64×64 pixels, 3 epochs",
        "fingerprint": "5f0c2a19be7d4413",
        "stages": {
            "prepare": {"status": "done", "seconds": 31.2},
            "train": {"status": "done", "seconds": 201.7},
            "predict": {"status": "done", "seconds": 12.0},
            "audit": {"status": "done", "seconds": 9.4},
        },
        "dataset": {
            "name": "phantom",
            "variant": "planted",
            "version": "1.0.0",
            "images": len(table),
            "patients": patients,
            "quarantined": 3,
            "open_data": True,
            "invented_groups": True,
            "description": "Chest-like phantoms drawn by a program, with known truth.",
        },
        "packages": {"jax": "0.10.2", "flax": "0.12.8", "optax": "0.2.8"},
        "python": "3.11.9",
        "git_commit": "0f3c9d2e7a1b4c5d6e7f8091a2b3c4d5e6f70819",
        "git_dirty": False,
        "device": {"platform": "cpu", "kind": "cpu", "count": 1},
        "command": f"python -m cxr_jax.main --config=configs/{target}.py",
        "started": "2025-01-01T10:00:00",
        "ended": None,
        "wall_seconds": None,
    }
    settings = types.SimpleNamespace(**config["audit"])
    tables.write_json(path / "audit.json", subgroups.audit(predictions, settings))
    if cohort is not None and cohort.exists():
        shutil.copy(cohort, path)
    else:
        with undrawn_cohort():
            demographics.write(path, table, steps, run["dataset"], settings, races)
    tables.write_json(path / "config.json", config)
    tables.write_json(path / "config_diff.json", diff)
    tables.write_json(path / "run.json", run)
    tables.write_text(path / "metrics.jsonl", history(3, classes))
    with open(path / "quarantine.csv", "w", newline="", encoding="utf-8") as handle:
        csv.writer(handle).writerows(
            [
                ("image_id", "path", "reason"),
                ("a", "a.png", "truncated"),
                ("b", "b.png", "truncated"),
                ("c", "c.png", "empty"),
            ]
        )
    return path


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """target -> its workdir, with every file that the report reads. Not to be written in: see `workdir`."""
    return {target: make_workdir(tmp_path_factory.mktemp(target), target) for target in ("race", "findings", "sex")}


@pytest.fixture
def workdir(made, tmp_path):
    """A function: target -> a fresh copy of its workdir."""
    return lambda target="race": pathlib.Path(shutil.copytree(made[target], tmp_path / target))


@pytest.fixture
def audit_only(workdir):
    """A function: target -> a workdir into which a user's own predictions came, at the audit stage: nothing but what
    that leaves."""

    def made(target="sex"):
        path = workdir(target)
        for name in ("cohort.parquet", "cohort.csv", "cohort.html", "metrics.jsonl", "quarantine.csv"):
            (path / name).unlink()
        return path

    return made


@pytest.fixture
def undrawn():
    with undrawn_cohort():
        yield


@pytest.fixture
def unpainted(monkeypatch):
    """Figures are laid out and told of as ever, but no picture is painted, which takes most of a page's time."""

    class Canvas:
        def __init__(self, figure):
            pass

        def print_svg(self, text, metadata):
            text.write("<svg></svg>")

    monkeypatch.setattr(figures, "FigureCanvasSVG", Canvas)
