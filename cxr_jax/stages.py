"""The stages of a run: the whole system on one page.

Each stage reads files of the workdir, calls one room, and writes files of the workdir. What it may assume is what an earlier
stage, or a user, left there.

    prepare   release or phantom        cohort.parquet, cohort.html, cohort.csv, quarantine.csv (and TFRecords, outside)
    train     TFRecords                 checkpoints/, metrics.jsonl, tensorboard/
    predict   checkpoint, TFRecords     predictions.parquet; for predict.dataset, judged_cohort.parquet
    audit     predictions.parquet       audit.json
    report    all of these              report.html, figures/, and the cohorts' pages anew
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import ml_collections
import numpy as np
import pandas as pd

from cxr_jax import experiment, mesh, tables
from cxr_jax.tables import CEILING, KEY_COLUMNS, LABEL, SCORE, Predictions, Target

COHORT, JUDGED_COHORT, PREDICTIONS, AUDIT = "cohort.parquet", "judged_cohort.parquet", "predictions.parquet", "audit.json"


def prepare(config: ml_collections.ConfigDict, run: experiment.Run) -> None:
    """Builds or verifies the data set and writes down who is in the cohort, in which split, and what they are like."""
    from cxr_jax.data import cohorts, datasets, race_rules
    from cxr_jax.report import demographics

    race_rules.check(config.dataset)  # told now, not after hours of reading pictures
    check_judged(config, run)
    dataset = datasets.prepare(config.dataset)
    cohort = cohorts.select(dataset.keys, dataset.findings, dataset.races, config.dataset)
    # A target that the data cannot teach is told now, not after an hour of training, and before anything is written: a
    # workdir never holds the cohort of one command beside the pages of another.
    _, dropped = cohorts.targets(cohort, config.train.targets, config.dataset)
    cohort.write(run.path(COHORT))
    with tables.whole_file(run.path("quarantine.csv")) as path:
        dataset.quarantine.to_csv(path, index=False)
    about = dataset.summary()
    summary = {**about, "attrition": cohort.attrition, "race_table": cohort.race_table, "findings_dropped": list(dropped)}
    run.record.update(dataset=summary, headline=headline(config))
    page = draw_cohort(config, run, COHORT, "dataset")
    print(run.record["headline"])
    # What is printed ends up in logs, and logs are passed on: of data that are not open, nothing of single images.
    statements = list(about["integrity"].get("statements", ()))
    if about["open_data"]:
        print(*(f"  {statement}" for statement in statements), sep="\n", end="\n" * bool(statements))
    elif statements:
        print(f"  of the release, {len(statements)} things to know: {run.path('run.json')}, dataset.integrity.statements")
    for statement in (*cohorts.against_published(cohort, config.dataset), *race_rules.unmatched(dataset.keys, config.dataset)):
        print(f"  {statement}")
    print(demographics.attrition_text(demographics.read(page.with_suffix(".csv"))))
    print(f"  who they are: {page}")
    if summary["quarantined"]:
        listed = summary["images"] + summary["quarantined"]
        told = f"{summary['quarantined']:,} of {listed:,} images could not be read, and are left out"
        print(f"  {told}: {run.path('quarantine.csv')} lists them")
    if dropped:
        print(f"  left out, since training has no positive or no negative image of them: {', '.join(dropped)}")


def draw_cohort(config: ml_collections.ConfigDict, run: experiment.Run, name: str, record: str) -> pathlib.Path:
    """Draws who is in a cohort of the workdir, from what is written there, by config.audit; returns the page's path.

    name: of the cohort's file. record: what run.json calls the data set that it was drawn from.
    """
    from cxr_jax.data import cohorts
    from cxr_jax.report import demographics

    cohort = cohorts.Cohort.read(run.path(name))
    stem = pathlib.Path(name).stem
    return demographics.write(run.workdir, cohort.table, cohort.attrition, run.record[record], config.audit, cohort.races, stem)


def headline(config: ml_collections.ConfigDict) -> str:
    """What was trained on what, and whether it is less than the published recipe."""
    full = config.model.growth == 32 and tuple(config.model.blocks) == (6, 12, 24, 16) and config.model.stem == 64
    network = "DenseNet-121" if full else f"a small DenseNet (blocks {'/'.join(map(str, config.model.blocks))}, growth {config.model.growth})"
    data = config.dataset.name + (f" ({config.dataset.variant})" if config.dataset.variant else "")
    size = f"{config.dataset.image_size}×{config.dataset.image_size} pixels, {config.train.epochs} epochs, batch {config.train.batch_size}"
    recipe = full and config.dataset.image_size == 256 and config.train.epochs >= 10
    told = "" if recipe else ". A reduced run: the published recipe is DenseNet-121 at 256×256 pixels for 10 epochs"
    judged = f", judged on {config.predict.dataset}" if config.predict.dataset else ""
    return f"{config.name}: {network} on {data}, {size}{judged}{told}."


def train(config: ml_collections.ConfigDict, run: experiment.Run) -> None:
    """Trains from the last checkpoint, or from the start, to the last epoch."""
    from cxr_jax.audit import metrics
    from cxr_jax.data import cohorts, datasets, pipeline
    from cxr_jax.training import checkpoints, train as training

    check_judged(config, run)  # again: what the model is judged on may be named only now
    dataset = datasets.open(config.dataset)
    cohort = cohorts.Cohort.read(run.path(COHORT))
    targets, _ = cohorts.targets(cohort, config.train.targets, config.dataset)
    labels = cohorts.labels(cohort, targets, config.dataset)

    sources = pipeline.sources(dataset, cohort.table, config.dataset)

    def measure(index: np.ndarray, scores: dict[str, np.ndarray]) -> dict:
        """Loss as in training, and the macro AUC over the classes, of all heads, that validation can judge."""
        auc, loss = {}, 0.0
        for name, target in targets.items():
            loss += log_loss(labels[name][index], scores[name])
            for k, class_name in enumerate(target.classes):
                truth = one_vs_rest(labels[name][index], k)
                known = ~np.isnan(truth)
                auc[class_name] = metrics.auc(truth[known], scores[name][known, k])
        defined = [v for v in auc.values() if not np.isnan(v)]
        return {
            "loss": loss,
            "macro_auc": float(np.mean(defined)) if defined else float("nan"),
            "auc": auc,
            "n_images": len(index),
            "n_patients": int(cohort.table["patient_id"].iloc[index].nunique()),
        }

    described = checkpoints.ModelDescription(config.model.to_dict(), targets, config.dataset.image_size)
    checkpoints.leave_errors_to_us()
    with checkpoints.Checkpoints(run.path("checkpoints"), described, config.checkpoint.keep) as kept:
        training.fit(config, targets, labels, sources["train"], sources["validation"], measure, kept, run.workdir, mesh.data_mesh())


def one_vs_rest(labels: np.ndarray, k: int) -> np.ndarray:
    """1, 0, NaN where unknown: float64 [n], of class k, from class numbers [n] or from a column of findings [n, F]."""
    if labels.ndim == 2:
        return labels[:, k].astype(np.float64)
    return np.where(labels < 0, np.nan, (labels == k).astype(np.float64))


def log_loss(labels: np.ndarray, scores: np.ndarray) -> float:
    """Mean negative logarithm of the probability given to what is so, over known labels; nats, NaN where there is none.

    labels: class numbers [n] (-1 unknown) with scores [n, classes], or findings [n, F] (NaN unknown) with scores [n, F].
    """
    if labels.ndim == 1:
        rows = np.flatnonzero(labels >= 0)
        given = scores[rows, labels[rows]]
    else:
        known = ~np.isnan(labels)
        given = np.where(labels == 1, scores, 1 - scores)[known]
    return float(-np.log(np.maximum(given.astype(np.float64), 1e-12)).mean()) if given.size else float("nan")


def predict(config: ml_collections.ConfigDict, run: experiment.Run) -> None:
    """Scores the splits of config.predict.splits with a checkpoint; on another data set where config.predict.dataset names one."""
    from cxr_jax.data import cohorts, datasets, pipeline
    from cxr_jax.training import inference, metrics_log

    folder, which = run.path("checkpoints"), config.predict.checkpoint
    if which not in ("best", "last"):
        folder, which = pathlib.Path(which) / "checkpoints", "best"
    devices = mesh.data_mesh()
    batch_size = config.train.evaluate_batch_size
    mesh.check_batch(batch_size, devices, "train.evaluate_batch_size")
    forward, params, stats = inference.restore(folder, which, devices)

    judged = judged_dataset(config)
    run.record.pop("judged", None)
    if config.predict.dataset:
        dataset = datasets.prepare(judged)
        cohort = cohorts.select(dataset.keys, dataset.findings, dataset.races, judged)
        cohort.write(run.path(JUDGED_COHORT))
        about = dataset.summary()
        run.record["judged"] = {"asked": config.predict.dataset, **about, "attrition": cohort.attrition, "race_table": cohort.race_table}
    else:
        run.path(JUDGED_COHORT).unlink(missing_ok=True)
        dataset = datasets.open(judged)
        cohort = cohorts.Cohort.read(run.path(COHORT))

    labels = cohorts.labels(cohort, forward.targets, judged)

    parts = []
    sources = pipeline.sources(dataset, cohort.table, judged)
    for split in config.predict.splits:
        source = sources[split]
        with metrics_log.Progress(f"predict {split}", len(source)) as progress:
            index, scores, _ = inference.predict(forward, params, stats, source, batch_size, progress.advance)
        parts.append(
            prediction_table(cohort.table.iloc[index], forward.targets, {k: v[index] for k, v in labels.items()}, scores, config.audit.attributes)
        )
    table = pd.concat(parts, ignore_index=True)
    Predictions(table, forward.targets, bool(dataset.metadata["open_data"])).write(run.path(PREDICTIONS))


def judged_dataset(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """config.dataset, or what it would be for the data set that config.predict.dataset names.

    Raises UserError where that is neither built nor has a release in config.predict.raw_dir to build it from.
    """
    if not config.predict.dataset:
        return config.dataset
    from cxr_jax.data import datasets

    judged = ml_collections.ConfigDict(config.dataset)
    experiment.choose_dataset(judged, config.predict.dataset, "config.predict.dataset")
    judged.update(raw_dir=config.predict.raw_dir, mimic_iv_dir=config.predict.mimic_iv_dir)
    datasets.check_source(judged, "config.predict.raw_dir")
    return judged


def check_judged(config: ml_collections.ConfigDict, run: experiment.Run) -> None:
    """Raises UserError where `predict`, once it is its turn, would lack the release that it is to judge the model on."""
    if "predict" in config.stages and not run.done("predict"):
        judged_dataset(config)


def prediction_table(
    rows: pd.DataFrame, targets: dict[str, Target], labels: dict, scores: dict, attributes: Sequence[str] = ()
) -> pd.DataFrame:
    """Key columns and attributes, labels, scores, and ceilings where the data's truth is known, of some rows of a cohort.

    labels: by target, int32 [n] or float32 [n, findings], as `cohorts.labels` gives them. scores: float32 [n, classes].
    """
    columns = {name: rows[name].to_numpy() for name in dict.fromkeys((*KEY_COLUMNS, *attributes)) if name in rows}
    for name, target in targets.items():
        if target.kind == "multiclass":
            columns[LABEL + name] = pd.array([target.classes[k] if k >= 0 else None for k in labels[name]], dtype="str")
        else:
            columns.update({LABEL + c: labels[name][:, k].astype(np.float64) for k, c in enumerate(target.classes)})
        columns.update({SCORE + c: scores[name][:, k].astype(np.float64) for k, c in enumerate(target.classes)})
        if name == "race" and all(CEILING + c in rows for c in target.classes):
            columns.update({CEILING + c: rows[CEILING + c].to_numpy() for c in target.classes})
    return pd.DataFrame(columns)


def audit(config: ml_collections.ConfigDict, run: experiment.Run) -> None:
    """Every figure with its interval, overall and by group."""
    from cxr_jax.audit import subgroups

    predictions = Predictions.read(run.path(PREDICTIONS))
    tables.write_json(run.path(AUDIT), subgroups.audit(predictions, config.audit))


def report(config: ml_collections.ConfigDict, run: experiment.Run) -> None:
    """The pages for people, and the table of AUCs in the terminal. Who is in the cohort is drawn anew, by config.audit."""
    from cxr_jax.report import html

    for name, record in ((COHORT, "dataset"), (JUDGED_COHORT, "judged")):
        if run.path(name).exists() and record in run.record:
            draw_cohort(config, run, name, record)
    path = html.write(run.workdir, examples=examples(config, run))
    print(html.auc_table(run.workdir))
    print(f"report: {path}")


def examples(config: ml_collections.ConfigDict, run: experiment.Run, count: int = 8) -> list[tuple[np.ndarray, str]]:
    """Judged test images of `count` patients, (uint8 [256, 256], caption) each; [] unless the data are open to all."""
    record, path = ("judged", JUDGED_COHORT) if config.predict.dataset else ("dataset", COHORT)
    if not run.path(path).exists() or not run.record.get(record, {}).get("open_data"):
        return []
    from cxr_jax.data import cohorts, datasets, pipeline

    dataset = datasets.open(judged_dataset(config))
    cohort = cohorts.Cohort.read(run.path(path))
    target = next((t for t in config.train.targets if t in cohort.table), "sex")
    test = cohort.table[cohort.table["split"] == "test"].drop_duplicates("patient_id")
    # Some of each class, as far as there are, and in stored order, which readers of records rely on.
    turn = test.groupby(test[target].fillna("unknown")).cumcount()
    chosen = test.loc[turn.sort_values(kind="stable").index[:count]].sort_index()
    source = pipeline.Source(dataset, chosen, "test", host_cache_gib=1.0, block_images=count)
    images = next(source.ordered(len(chosen)))["image"][..., 0]
    return [(image, caption(row, cohort.findings, target)) for image, (_, row) in zip(images, chosen.iterrows())]


def caption(row: pd.Series, findings: tuple[str, ...], target: str) -> str:
    """What is recorded of an image: the target's class, sex and age, view, findings."""
    from cxr_jax.data.cohorts import FINDING

    said = [row[target], row["sex"], "" if np.isnan(row["age"]) else f"{row['age']:.0f} years", row["view"]]
    present = [name for name in findings if row[FINDING + name] == 1]
    said = [str(word) for word in dict.fromkeys(said) if word and not pd.isna(word)]
    return ", ".join([*said, " + ".join(present)] if present else said)


STAGES = {"prepare": prepare, "train": train, "predict": predict, "audit": audit, "report": report}
