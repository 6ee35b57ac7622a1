"""The stages of a run: the whole system on one page.

Each stage reads files of the workdir, calls one room, and writes files of the workdir. What it may assume is what an earlier
stage, or a user, left there.

    prepare   release or phantom        cohort.parquet, cohort.html, cohort.csv, quarantine.csv (and TFRecords, outside)
    train     TFRecords                 checkpoints/, metrics.jsonl, tensorboard/
    predict   checkpoint, TFRecords     predictions.parquet; for predict.dataset, judged_cohort.parquet; of predict.datasets, predictions_on/
    extract   checkpoint, TFRecords     features/
    mitigate  features/, checkpoint     mitigated/METHOD/, where probe and audit then find features and predictions
    probe     features/                 probes/
    mechanism checkpoint, probes/       mechanism/
    audit     predictions.parquet       audit.json; predictions.parquet itself of audit.predictions, a user's own
              probes/, features/        probe_audit.json
              mechanism/                mechanism_audit.json
              predictions_on/           travel_audit.json
              audit.leakage             leakage_audit.json
    report    all of these              report.html, figures/, and the cohorts' pages anew
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import pathlib
import shutil
import sys
import zipfile
from collections.abc import Callable, Sequence

import jax
import ml_collections
import numpy as np
import pandas as pd

from cxr_jax import experiment, mesh, processes, tables
from cxr_jax.tables import CEILING, FEATURES, KEY_COLUMNS, LABEL, ON, SCORE, SCORES, SPLITS, TRUE, UNERASED, Features, Predictions, Target, UserError

ROWS_AT_A_TIME = 8192  # of features that are written erased in several ways
COHORT, JUDGED_COHORT, PREDICTIONS, AUDIT = "cohort.parquet", "judged_cohort.parquet", "predictions.parquet", "audit.json"
READINGS, PROBE_AUDIT = "probes/readings.parquet", "probe_audit.json"
TRAVELLED, TRAVEL_AUDIT = "predictions_on", "travel_audit.json"
LEAKAGE_AUDIT = "leakage_audit.json"
MOST_VALUES = 200  # of a factor that is text
MEASURED = "measured_"  # measured_NAME: a number of `mechanism.acquisition`
AS_THEY_ARE, MECHANISM_AUDIT = "mechanism/as_they_are.parquet", "mechanism_audit.json"


def prepare(config: ml_collections.ConfigDict, run: experiment.Run) -> None:
    """Builds or verifies the data set and writes down who is in the cohort, in which split, and what they are like."""
    from cxr_jax.data import cohorts, datasets, perturbations, race_rules
    from cxr_jax.report import demographics

    race_rules.check(config.dataset)  # told now, not after hours of reading pictures
    perturbations.check_shown(config.train.shown)
    for name, strengths in config.mechanism.series.items():
        perturbations.check(name, strengths, "config.mechanism.series")
    for name, columns in config.mechanism.factors.items():
        for column in set(columns) & set(tables.IDENTIFIERS):
            raise UserError(f"config.mechanism.factors.{name}: {column} says which image or patient, and makes no groups")
    check_judged(config, run)
    dataset = datasets.prepare(config.dataset)
    cohort = cohorts.select(dataset.keys, dataset.findings, dataset.races, config.dataset)
    # A target that the data cannot teach is told now, not after an hour of training, and before anything is written: a
    # workdir never holds the cohort of one command beside the pages of another.
    _, dropped = cohorts.targets(cohort, config.train.targets, config.dataset)
    if "train" in config.stages:
        check_objective(config, cohort)
    check_attributes(config, cohort)
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
    o, g = config.train.objective, config.mitigate
    of = "" if o.name in experiment.WITHOUT_GROUPS else f" over {o.attribute}"
    trained = f", trained by {o.name}{of}" if o.name != "erm" else ""
    own = "train" in config.stages or config.extract.weights in experiment.OWN_WEIGHTS
    name, *strength = (config.train.shown if own else ()) or ("",)
    trained += f", shown {name} {' to '.join(f'{x:g}' for x in strength)} of images" if name else ""
    mitigated = f", judged after {g.method} of {g.attribute}" if g.method not in ("", "none") else ""
    needs = experiment.needs_attribute(config)
    needed = f" (needs {needs} of everyone who is judged)" if needs else ""
    return f"{config.name}: {network} on {data}, {size}{trained}{judged}{mitigated}{needed}{told}."


def tell_headline(config: ml_collections.ConfigDict, run: experiment.Run) -> None:
    """Has the record's headline say what is judged now: a workdir may be mitigated, and judged, otherwise than before."""
    if "headline" in run.record:
        run.record["headline"] = headline(config)
    if not config.mitigate.method:
        run.record.pop("mitigated", None)


def train(config: ml_collections.ConfigDict, run: experiment.Run) -> None:
    """Trains from the last checkpoint, or from the start, to the last epoch."""
    from cxr_jax.audit import validation
    from cxr_jax.data import cohorts, datasets, pipeline
    from cxr_jax.training import checkpoints, initial, objectives, train as training

    check_judged(config, run)  # again: what the model is judged on may be named only now
    dataset = datasets.open(config.dataset)
    cohort = cohorts.Cohort.read(run.path(COHORT))
    targets, _ = cohorts.targets(cohort, config.train.targets, config.dataset)
    labels, (group, groups) = cohorts.labels(cohort, targets, config.dataset), groups_of(config, cohort)
    patients, in_training = cohort.table["patient_id"].to_numpy(), (cohort.table["split"] == "train").to_numpy()

    def measure(index: np.ndarray, scores: dict[str, np.ndarray]) -> dict:
        mine, own = {name: values[index] for name, values in labels.items()}, None if group is None else group[index]
        return validation.measure(targets, mine, scores, patients[index], own, len(groups), config.train.select, config.train.auc_floor)

    def images(draw: np.ndarray | None = None):
        sources = pipeline.sources(dataset, cohort.table, config.dataset, devices, draw)
        run.record.pop("resident", None)
        if sources["train"].on_devices:
            run.record["resident"] = sources["train"].told(config.train.batch_size)
            print(run.record["resident"])
        return sources

    def fit(settings, objective, sources, workdir: pathlib.Path, network, described):
        """`training.fit`, its checkpoints and log in a folder."""
        with checkpoints.Checkpoints(workdir / "checkpoints", described, settings.checkpoint.keep) as kept:
            return training.fit(settings, objective, labels, sources["train"], sources["validation"], measure, kept, workdir, devices, network)

    devices, folder = mesh.data_mesh(), run.path("checkpoints")
    training.check_batches(config.train, devices)
    network, described, told = initial.begun_or_gone_on_with(config, targets, folder)
    if told:
        check_unseen(cohort, config.model.init_from, "config.model.init_from")
        print(told)
    checkpoints.leave_errors_to_us()
    sources = wrong = None
    if config.train.objective.name == "jtt":  # which trains twice on the same images
        sources = images()
        wrong = first_training(config, run, cohort, targets, labels, sources, fit)
    objective = objectives.of_config(config.train.objective, targets, labels, in_training, group, groups, wrong, compared_images(config))
    if objective.said:
        run.record["objective"] = objective.said
        print(f"  {objective.said}")
    fit(config, objective, sources or images(objective.draw), run.workdir, network, described)


def groups_of(config: ml_collections.ConfigDict, cohort) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """(number of each row's group, int32 [n], -1 unknown; their names), or (None, ()) where training asks for no groups.

    Raises UserError where config.train.objective.attribute is not recorded, has one class, lacks one in training, or is what is learnt.
    """
    o = config.train.objective
    if o.name in experiment.WITHOUT_GROUPS and config.train.select == "auc":
        return None, ()
    from cxr_jax.data import cohorts

    if o.attribute in config.train.targets:
        why = "what is learnt cannot be unlearnt" if o.name not in experiment.WITHOUT_GROUPS else f"train.select={config.train.select} is by groups, of which what is learnt makes none"
        raise UserError(f"config.train.objective.attribute={o.attribute}: it is one of train.targets; {why}")
    groups, _ = cohorts.targets(cohort, (o.attribute,), config.dataset, "config.train.objective.attribute")
    if groups[o.attribute].kind != "multiclass":
        raise UserError(f"config.train.objective.attribute={o.attribute}: not a class label")
    return cohorts.labels(cohort, groups, config.dataset)[o.attribute], groups[o.attribute].classes


def check_objective(config: ml_collections.ConfigDict, cohort) -> None:
    """Raises UserError where what training is asked for cannot be had from the cohort; told before anything is trained."""
    from cxr_jax.audit import validation
    from cxr_jax.data import cohorts
    from cxr_jax.training import objectives

    group, groups = groups_of(config, cohort)
    targets, _ = cohorts.targets(cohort, config.train.targets, config.dataset)
    labels, split = cohorts.labels(cohort, targets, config.dataset), cohort.table["split"].to_numpy()
    if config.train.objective.name not in experiment.WITHOUT_GROUPS:
        objectives.of_config(config.train.objective, targets, labels, split == "train", group, groups, None, compared_images(config))
    if config.train.select != "auc":
        mine = {name: values[split == "validation"] for name, values in labels.items()}
        validation.check_groups(targets, mine, group[split == "validation"], groups, config.train.select)


def check_attributes(config: ml_collections.ConfigDict, cohort) -> None:
    """Raises UserError where what features are to be rid of, or asked for, is not recorded; told before anything is trained."""
    from cxr_jax.probes import mitigation, protocol

    asked = [(name, "config.probe.targets") for name in config.probe.targets] if "probe" in config.stages and not config.probe.embeddings else []
    if "mitigate" in config.stages and config.mitigate.method not in ("", "none"):
        asked.append((config.mitigate.attribute, f"{mitigation.FIELD}.attribute"))
    rows = {split: Features(cohort.table[cohort.table["split"] == split], {}, {"classes": {"race": list(cohort.races)}}) for split in SPLITS}
    for name, field in asked:
        protocol.classes_of(with_age_bands(rows, config), name, field)


def compared_images(config: ml_collections.ConfigDict) -> int:
    """How many images an objective sees at once."""
    return config.train.batch_size // config.train.accumulate


def first_training(config, run: experiment.Run, cohort, targets, labels, sources, fit) -> dict[str, np.ndarray]:
    """Which labels a first, short training gets wrong, bool in the shape of the labels; of those of other splits none.

    It has a folder of its own, `first`, with its checkpoints, so that it can be gone on with like any other; once it is over it is read from there.
    """
    from cxr_jax.audit import validation
    from cxr_jax.data import datasets, pipeline
    from cxr_jax.training import checkpoints, inference, initial, objectives

    short = ml_collections.ConfigDict(config.to_dict())  # of its own: copies of a ConfigDict share their sections
    short.train.epochs = config.train.objective.first_epochs
    short.train.warmup_epochs = min(config.train.warmup_epochs, short.train.epochs / 2)
    folder, devices = run.path("first"), mesh.data_mesh()
    folder.mkdir(exist_ok=True)
    network, described, _ = initial.begun_or_gone_on_with(short, targets, folder / "checkpoints")
    fit(short, objectives.Objective(targets), sources, folder, network, described)
    forward, params, stats = inference.restore(folder / "checkpoints", "last", devices)
    source = sources["train"]
    if source.on_devices:  # where they lie in no order that evaluation could follow
        source = pipeline.sources(datasets.open(config.dataset), cohort.table, config.dataset)["train"]
    index, scores, _ = inference.predict(forward, params, stats, source, config.train.evaluate_batch_size)
    mine = {name: values[index] for name, values in labels.items()}
    found = {name: np.zeros(values.shape, bool) for name, values in labels.items()}
    for name, of in validation.wrong(targets, mine, scores).items():
        found[name][index] = of
    count, among = (sum(int(x.sum()) for x in tree.values()) for tree in (found, {k: (v >= 0) for k, v in mine.items()}))
    run.record["first_training"] = f"a first training of {short.train.epochs} epochs got {count:,} of {among:,} training labels wrong"
    print(f"  {run.record['first_training']}")
    return found


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

    judged, writes, abroad = judged_dataset(config), processes.first(), run.path(TRAVELLED)
    for gone in ("judged", "outside", "travelled"):
        run.record.pop(gone, None)
    if writes:
        run.path(JUDGED_COHORT).unlink(missing_ok=True)
        run.path(TRAVEL_AUDIT).unlink(missing_ok=True)
        shutil.rmtree(abroad, ignore_errors=True)
    if config.predict.dataset:
        dataset = datasets.prepare(judged)
        cohort = cohorts.select(dataset.keys, dataset.findings, dataset.races, judged)
        if writes:
            cohort.write(run.path(JUDGED_COHORT))
        about = dataset.summary()
        run.record["judged"] = {"asked": config.predict.dataset, **about, "attrition": cohort.attrition, "race_table": cohort.race_table}
    else:
        dataset = datasets.open(judged)
        cohort = cohorts.Cohort.read(run.path(COHORT))

    def scored(dataset, cohort, of: ml_collections.ConfigDict, splits: Sequence[str], where: str) -> Predictions:
        """What the network makes of some splits of a cohort, by the rules of a config's `dataset` section."""
        labels, parts, sources = cohorts.labels(cohort, forward.targets, of), [], pipeline.sources(dataset, cohort.table, of)
        for split in splits:
            with metrics_log.Progress(f"predict {split}{where}", len(sources[split])) as progress:
                index, scores, _ = inference.predict(forward, params, stats, sources[split], batch_size, progress.advance)
            mine = {k: v[index] for k, v in labels.items()}
            parts.append(prediction_table(cohort.table.iloc[index], forward.targets, mine, scores, config.audit.attributes))
        return Predictions(pd.concat(parts, ignore_index=True), forward.targets, bool(dataset.metadata["open_data"]))

    scores = scored(dataset, cohort, judged, config.predict.splits, "")
    if writes:
        scores.write(run.path(PREDICTIONS))
    for name in config.predict.datasets:
        other, there, chosen = place_of(config, name)
        splits = [split for split in ("validation", "test") if (chosen.table["split"] == split).any()]
        scores = scored(there, chosen, other, splits, f" of {name}")
        if writes:
            scores.write(abroad / f"{name}.parquet")
        run.record.setdefault("travelled", {})[name] = {**there.summary(), "attrition": chosen.attrition}


def judged_dataset(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """config.dataset, or what it would be for the data set that config.predict.dataset names.

    Raises UserError where that is neither built nor has a release in config.predict.raw_dir to build it from.
    """
    if not config.predict.dataset:
        return config.dataset
    given = {"raw_dir": config.predict.raw_dir, "mimic_iv_dir": config.predict.mimic_iv_dir}
    return other_dataset(config, config.predict.dataset, "config.predict.dataset", "config.predict.raw_dir", given)


def place_of(config: ml_collections.ConfigDict, name: str):
    """(config.dataset, data set, cohort) of one of config.predict.datasets. Raises UserError where it cannot be judged on."""
    from cxr_jax.data import cohorts, datasets

    other = other_dataset(config, name, "config.predict.datasets")
    there = datasets.prepare(other)
    chosen = cohorts.select(there.keys, there.findings, there.races, other)
    if not (chosen.table["split"] == "test").any():
        raise UserError(f"config.predict.datasets: {name} has no test image by config.dataset.split_rule and views")
    return other, there, chosen


def other_dataset(config: ml_collections.ConfigDict, name: str, field: str, release_field: str = "", given: dict = {}) -> ml_collections.ConfigDict:
    """What config.dataset would be for the data set called NAME[.VARIANT]. given: its release's folders, none by default. Fields: that named it, and them, for messages."""
    from cxr_jax.data import datasets

    other = ml_collections.ConfigDict(config.dataset)
    experiment.choose_dataset(other, name, field)
    other.update({"raw_dir": "", "mimic_iv_dir": ""} | given)
    if other.name == "table" and not other.raw_dir:
        other.open_data = True  # or not: what was built says so itself, of each hospital
    datasets.check_source(other, release_field or f"{field}={name}: config.dataset.raw_dir of a config of its own")
    return other


def check_beginning(config: ml_collections.ConfigDict, run: experiment.Run) -> None:
    """Raises UserError where training could not begin from config.model.init_from. By all processes together, as a checkpoint is read."""
    from cxr_jax.training import checkpoints, initial

    if config.model.init_from and not checkpoints.has_state(run.path("checkpoints")):
        initial.network(config, {})


def check_judged(config: ml_collections.ConfigDict, run: experiment.Run) -> None:
    """Raises UserError where `predict` or `extract`, once it is its turn, would lack a data set that it is to judge the model on."""
    if "predict" in config.stages and not run.done("predict"):
        judged_dataset(config)
        for name in config.predict.datasets:
            place_of(config, name)
    if "extract" in config.stages and not run.done("extract"):
        for name in config.extract.datasets:
            other_dataset(config, name, "config.extract.datasets")


def prediction_table(
    rows: pd.DataFrame, targets: dict[str, Target], labels: dict, scores: dict, attributes: Sequence[str] = ()
) -> pd.DataFrame:
    """Key columns, attributes and manufacturers, labels, scores, and truth and ceilings where they are known, of some rows of a cohort.

    labels: by target, int32 [n] or float32 [n, findings], as `cohorts.labels` gives them. scores: float32 [n, classes].
    """
    columns = {name: rows[name].to_numpy() for name in dict.fromkeys((*KEY_COLUMNS, *attributes, "manufacturer")) if name in rows}
    for name, target in targets.items():
        if target.kind == "multiclass":
            columns[LABEL + name] = pd.array([target.classes[k] if k >= 0 else None for k in labels[name]], dtype="str")
        else:
            columns.update({LABEL + c: labels[name][:, k].astype(np.float64) for k, c in enumerate(target.classes)})
            columns.update({TRUE + c: rows[TRUE + c].to_numpy(np.float64) for c in target.classes if TRUE + c in rows})
        columns.update({SCORE + c: scores[name][:, k].astype(np.float64) for k, c in enumerate(target.classes)})
        if name == "race" and all(CEILING + c in rows for c in target.classes):
            columns.update({CEILING + c: rows[CEILING + c].to_numpy() for c in target.classes})
    return pd.DataFrame(columns)


def extract(config: ml_collections.ConfigDict, run: experiment.Run) -> None:
    """Writes what the frozen network makes of every image of the cohort, and what the controls need of it; and of the test images of config.extract.datasets.

    A split that is whole is left as it is, and one that was interrupted is gone on with.
    """
    from cxr_jax.data import cohorts, datasets, pipeline
    from cxr_jax.training import inference, metrics_log

    dataset, cohort = datasets.open(config.dataset), cohorts.Cohort.read(run.path(COHORT))
    devices, batch_size = mesh.data_mesh(), config.train.evaluate_batch_size
    mesh.check_batch(batch_size, devices, "train.evaluate_batch_size")
    sources = pipeline.sources(dataset, cohort.table, config.dataset)
    told, networks = frozen(config, run, cohort, sources["train"], devices)
    gray = inference.histogram(devices)

    def see(images, traced=False):
        seen = {}
        for name, (forward, params, stats) in networks.items():
            out = (forward.plain if traced else forward.run)(params, stats, images)
            seen[name] = out.features
            of_findings = [out.scores[t] for t, target in forward.targets.items() if target.kind == "multilabel"]
            if name == FEATURES and of_findings:
                seen[SCORES] = log_odds(jax.numpy.concatenate(of_findings, axis=1))
            if name == FEATURES and config.extract.depths:
                seen |= dict(zip(("stem", *(f"block{i}" for i in range(1, len(out.blocks)))), out.blocks, strict=True))
        return {**seen, "histogram": gray(images)}

    shape = jax.ShapeDtypeStruct((batch_size, *dataset.image_shape), np.uint8)
    widths = {name: found.shape[1] for name, found in jax.eval_shape(lambda images: see(images, traced=True), shape).items()}
    # Of its own images it does not depend on what others there are.
    alone = ml_collections.ConfigDict(config.to_dict())
    alone.extract.datasets = ()
    made_by = {"made_by": experiment.fingerprint(alone, ("prepare", "train", "extract"), run.record["files"])}
    about = {"weights": told, "classes": {"race": list(cohort.races)}}
    table = labelled(cohort, config.dataset)
    parts = [(split, source, table, made_by) for split, source in sources.items()]
    run.record.pop("elsewhere", None)
    for name in config.extract.datasets:
        other = other_dataset(config, name, "config.extract.datasets")
        there = datasets.prepare(other)
        chosen = cohorts.select(there.keys, there.findings, there.races, other)
        if not (chosen.table["split"] == "test").any():
            raise UserError(f"config.extract.datasets: {name} has no test image by config.dataset.split_rule and views")
        run.record.setdefault("elsewhere", {})[name] = {**there.summary(), "attrition": chosen.attrition}
        of = {"made_by": [made_by["made_by"], experiment.fingerprint({"dataset": other.to_dict()}, ("prepare",), {})]}
        parts.append((ON + name, pipeline.sources(there, chosen.table, other)["test"], labelled(chosen, other), of))
    for split, source, table, of in parts:
        with contextlib.ExitStack() as stack:
            # All processes compute, the first one writes.
            files = None
            if processes.first():
                files = stack.enter_context(contextlib.closing(tables.FeatureFiles(run.path("features"), split, len(source), about | of)))
            if processes.agreed(files is not None and files.whole):
                continue
            start = processes.agreed(files.start(widths, batch_size) if files else 0)
            progress = stack.enter_context(metrics_log.Progress(f"extract {split}", len(source), min(len(source), start * batch_size)))
            for index, seen in inference.walk(see, source, batch_size, devices, start):
                if files:
                    files.append(seen)
                progress.advance(len(index))
            if files:
                files.finish(table.iloc[source.index].reset_index(drop=True))
        processes.agreed()  # nobody goes on before the files are in place


def log_odds(scores):
    """Of probabilities, which are kept as far from 0 and 1 as float32 is exact."""
    kept = jax.numpy.clip(scores, 1e-7, 1 - 1e-7)
    return jax.numpy.log(kept) - jax.numpy.log1p(-kept)


def labelled(cohort, dataset: ml_collections.ConfigDict) -> pd.DataFrame:
    """The table of a cohort as it goes with features: findings as `label_FINDING`, 1, 0 or NaN by the rules of a config's `dataset` section."""
    from cxr_jax.data import cohorts

    table = cohort.table.drop(columns=[c for c in cohort.table if c.startswith(cohorts.FINDING)])
    if not cohort.findings:
        return table
    truth = cohorts.labels(cohort, {"findings": Target("multilabel", cohort.findings)}, dataset)["findings"]
    return pd.concat([table, pd.DataFrame(truth.astype(np.float64), columns=[LABEL + c for c in cohort.findings])], axis=1)


def frozen(config: ml_collections.ConfigDict, run: experiment.Run, cohort, training, devices) -> tuple[str, dict[str, tuple]]:
    """(which weights, {array: (forward, parameters, running statistics)}): the network of config.extract.weights, and an
    untrained one of its shape where that is wanted. training: images by which the latter settles.
    """
    from cxr_jax.models import pretrained
    from cxr_jax.training import checkpoints, inference

    weights, given = config.extract.weights, pathlib.Path(config.extract.weights).expanduser()
    run.record.pop("trained_as", None)

    def untrained(model, targets, image_size, shown):
        batch_size = config.train.evaluate_batch_size
        return inference.untrained(model, targets, image_size, config.seed, training, batch_size, devices, shown)

    if weights == "untrained":
        return "an untrained network", {FEATURES: untrained(config.model, {}, config.dataset.image_size, tuple(config.train.shown))}
    if given.suffix in pretrained.SUFFIXES:
        check_unseen(cohort, given, "config.extract.weights")
        *network, model, image_size = inference.imported(given, config.extract.inputs, config.dataset.image_size, devices)
        told, targets, shown = f"{given.name}, {given.stat().st_size:,} bytes of {given.stat().st_mtime_ns}", {}, ()
    else:
        own = weights in ("best", "last")
        folder, which = (run.path("checkpoints"), weights) if own else (given / "checkpoints", "best")
        if not own:
            check_unseen(cohort, given, "config.extract.weights")
            run.record["trained_as"] = experiment.trained_as(given)
        told, network = checkpoints.identity(folder, which), inference.restore(folder, which, devices)
        described = checkpoints.ModelDescription.read(folder)
        model, targets, image_size, shown = ml_collections.ConfigDict(described.model), described.targets, described.image_size, described.shown
    networks = {FEATURES: tuple(network)}
    if config.extract.untrained:
        forward, *drawn = untrained(model, targets, image_size, shown)
        # Of the same shapes, so that one compiled pass serves both; with weights of torch they may differ.
        networks["untrained"] = (forward if given.suffix in pretrained.SUFFIXES else network[0], *drawn)
    return told, networks


def check_unseen(cohort, there: pathlib.Path | str, field: str) -> None:
    """Raises UserError where patients whom a model was trained on are to be its judges, or patients of what it began from, and so on.

    there: folder of the run that trained it, or its file of weights. field: that named it. Prints where it is not known who they are.
    """
    from cxr_jax.data import cohorts
    from cxr_jax.models import pretrained

    judged = cohort.table.loc[cohort.table["split"] == "test", ["dataset", "patient_id"]].drop_duplicates()
    folder, seen = pathlib.Path(there).expanduser(), set()
    while folder.resolve() not in seen:
        seen.add(folder.resolve())
        if not (folder / COHORT).exists():
            what = "a file of weights" if folder.suffix in pretrained.SUFFIXES else f"holds no {COHORT}"
            print(f"  {folder}: {what}, which does not tell whom it was trained on; patients of this test may be among them")
            return
        theirs = cohorts.Cohort.read(folder / COHORT).table
        trained = theirs.loc[theirs["split"] != "test", ["dataset", "patient_id"]].drop_duplicates()
        both = judged.merge(trained)
        if len(both):
            began = "" if len(seen) == 1 else f", by way of {folder}"
            raise UserError(
                f"{field}: {len(both):,} test patients of this cohort were in training or validation of that model{began};"
                " take the same config.dataset.split_rule, split_fractions and split_salt as it"
            )
        config = folder / "config.json"
        began_from = tables.read_json(config).get("model", {}).get("init_from", "") if config.exists() else ""
        if not began_from:
            return
        folder = pathlib.Path(began_from).expanduser()


def mitigate(config: ml_collections.ConfigDict, run: experiment.Run) -> None:
    """Mitigates by config.mitigate.method what a model was trained to be: features and what its heads make of them, the heads, or their calls.

    Writes features and, where the weights are a run's, predictions of config.predict.splits. Patients of training and validation are dealt into two
    halves, of which a method is fitted on one; probes, and thresholds where the method had a say in scores of validation, are of the other.
    """
    from cxr_jax.audit import disclosure
    from cxr_jax.data import cohorts
    from cxr_jax.probes import mitigation

    run.record.pop("mitigated", None)
    tell_headline(config, run)
    if not config.mitigate.method:
        return
    method, share = config.mitigate.method, config.mitigate.share
    least = 1 if run.record.get("dataset", {}).get("open_data") else config.audit.min_patients  # patients that a number must be of: what is said is printed
    splits, abroad = extracted(run.path("features")), elsewhere(run.path("features"), config)
    if config.mitigate.attribute == "age_band":  # else bands are the probes' to make, anew where they change
        splits, abroad = with_age_bands(splits, config), with_age_bands(abroad, config)
    dealt = {split: cohorts.uniform(splits[split].table, f"{config.dataset.split_salt} mitigate") for split in ("train", "validation")}
    own = {split: of < share for split, of in dealt.items()}
    # Whom a method is fitted on has no say in what probes find, unless all have.
    others = {split: ~mine if share < 1 else mine for split, mine in own.items()}
    if not own["train"].any() or not others["train"].any():
        for_method, for_probes = int(own["train"].sum()), int(others["train"].sum())
        raise UserError(f"config.mitigate.share={share}: {for_method} training images are for the method and {for_probes} for probes; take another share")
    found = mitigation.eraser(splits, own["train"], config.mitigate)
    erased = {split: found.erase(part.arrays[FEATURES], attribute_of(part, config.mitigate.attribute, found.classes)) for split, part in {**splits, **abroad}.items()}

    weights = config.extract.weights
    source = run.workdir if weights in ("best", "last") else pathlib.Path(weights).expanduser()
    predictions, scores, said = None, {}, found.said
    if (source / "checkpoints").is_dir():
        # Every process: a checkpoint is read by all of them together.
        heads = Heads.read(config, run, source / "checkpoints", weights if weights == "last" else "best", splits)
        tell = heads.of
        if method == "dfr":
            tell, said = refitted_heads(config, heads, splits["validation"], own["validation"])
        scores = {split: tell(features) for split, features in erased.items()}
        predictions = heads.predictions(config, {split: scores[split] for split in config.predict.splits}, others["validation"] if method == "dfr" else None)
        if method == "equalised_odds":
            from cxr_jax.audit import equalised_odds

            predictions, said = equalised_odds.post_processed(predictions, config.mitigate.attribute, config.seed, least)
    elif method in ("dfr", "equalised_odds"):
        raise UserError(f"config.mitigate.method={method}: {weights} has no heads that tell findings; name the weights of a run")
    if method in mitigation.NEED_ATTRIBUTE:
        judged = (splits["validation"], splits["test"])
        unknown = pd.concat([part.table.loc[attribute_of(part, config.mitigate.attribute, found.classes) < 0, "patient_id"] for part in judged])
        said += f"; {disclosure.some(unknown, least)} of validation and test, of whom it is not known, are erased as by leace" * bool(len(unknown))
    patients = splits["train"].table.loc[others["train"], "patient_id"].nunique()
    said += f"; probes are fitted on {others['train'].sum():,} images of {patients:,} patients, {'the same' if share == 1 else 'others'}"
    by_fewer, why = mitigation.by_fewer(splits, dealt["train"], config.mitigate)
    if why:
        said += f"; by {len(by_fewer)} of {config.mitigate.halvings} halvings of its patients, too, since then: {why}"
    run.record["mitigated"] = said
    print(f"  {said}")
    if predictions is None:
        print(f"  {weights} has no heads that tell findings: features alone, and no predictions")
    folder = experiment.mitigated_folder(run.workdir, config)
    if processes.first():
        shutil.rmtree(folder, ignore_errors=True)  # of an interrupted start, or of other features
        fitted_on = {FEATURES: found.patients, **{name: fewer.patients for name, fewer in by_fewer.items()}}
        for split, part in {**splits, **abroad}.items():
            rows = others["train"] if split == "train" else np.ones(len(part.table), bool)
            # What controls read stays as it is. Depths are of the network before these features, and not what is asked.
            kept = {name: array for name, array in part.arrays.items() if name in ("untrained", "histogram")} | {FEATURES: erased[split]}
            kept |= {} if method in mitigation.LEAVE_FEATURES else {UNERASED: part.arrays[FEATURES]}
            findings = [scores[split][name] for name, target in (heads.targets if scores else {}).items() if target.kind == "multilabel"]
            if findings and method != "equalised_odds":  # which releases calls
                kept[SCORES] = np.asarray(log_odds(np.concatenate(findings, axis=1)))
            about = {key: value for key, value in part.about.items() if key != "arrays"} | {"mitigated": said}
            about |= {"erased": {"attribute": config.mitigate.attribute, "patients": fitted_on}} if by_fewer else {}
            with contextlib.closing(tables.FeatureFiles(folder / "features", split, int(rows.sum()), about)) as files:
                files.start({name: array.shape[1] for name, array in kept.items()} | dict.fromkeys(by_fewer, erased[split].shape[1]), len(rows))
                codes = {name: attribute_of(part, config.mitigate.attribute, fewer.classes) for name, fewer in by_fewer.items()}
                for at in np.array_split(np.flatnonzero(rows), -(-len(rows) // ROWS_AT_A_TIME)):  # or all ways of all rows would be in memory
                    halved = {name: fewer.erase(part.arrays[FEATURES][at], codes[name][at]) for name, fewer in by_fewer.items()}
                    files.append({name: array[at] for name, array in kept.items()} | halved)
                files.finish(part.table[rows].reset_index(drop=True))
        if predictions is not None:
            predictions.write(folder / PREDICTIONS)
    processes.agreed()


def attribute_of(part: Features, attribute: str, classes: Sequence[str]) -> np.ndarray:
    """The number of each image's class, int [n]; -1 where unknown, as all are of data that do not record it."""
    if attribute not in part.table:
        return np.full(len(part.table), -1)
    return pd.Index(classes).get_indexer(part.table[attribute])


@dataclasses.dataclass(frozen=True)
class Heads:
    """The heads of a checkpoint, and the rows of config.predict.splits that they are to judge.

    kernels: by target, (float32 [features, classes], float32 [classes]). labels: of every row of the cohort.
    """

    targets: dict[str, Target]
    kernels: dict[str, tuple[np.ndarray, np.ndarray]]
    table: pd.DataFrame
    labels: dict[str, np.ndarray]
    open_data: bool

    @classmethod
    def read(cls, config, run: experiment.Run, checkpoints_: pathlib.Path, which: str, splits: dict[str, Features]) -> "Heads":
        """Raises UserError where the features were not made by that checkpoint, or not of the cohort's images."""
        from cxr_jax.data import cohorts
        from cxr_jax.training import checkpoints, inference

        now, then = checkpoints.identity(checkpoints_, which), splits["train"].about["weights"]
        if now != then:
            raise UserError(f"{run.path('features')}: made by the {then}, and the heads are of the {now}; run the extract stage again")
        forward, params, _ = inference.restore(checkpoints_, which, mesh.data_mesh())
        cohort = cohorts.Cohort.read(run.path(COHORT))
        for split in config.predict.splits:
            if list(cohort.table.loc[cohort.table["split"] == split, "image_id"]) != list(splits[split].table["image_id"]):
                raise UserError(f"{run.path('features')}: not of the images of {COHORT}; run the extract stage again")
        labels = cohorts.labels(cohort, forward.targets, config.dataset)
        return cls(dict(forward.targets), inference.head_kernels(params), cohort.table, labels, bool(run.record["dataset"]["open_data"]))

    def of(self, features: np.ndarray) -> dict[str, np.ndarray]:
        """Probabilities by target, float32 [n, classes], of features, float32 [n, features]."""
        from cxr_jax.training import objectives

        logits = {name: jax.numpy.asarray(features @ kernel + bias) for name, (kernel, bias) in self.kernels.items()}
        return {name: np.asarray(values) for name, values in objectives.probabilities(self.targets, logits).items()}

    def rows_of(self, split: str) -> np.ndarray:
        return np.flatnonzero((self.table["split"] == split).to_numpy())

    def predictions(self, config, scores: dict[str, dict[str, np.ndarray]], kept: np.ndarray | None) -> Predictions:
        """scores: by split and target. kept: bool, of validation, the rows that may choose thresholds; None: all."""
        parts = []
        for split, of in scores.items():
            keep = kept if split == "validation" and kept is not None else np.ones(len(self.rows_of(split)), bool)
            at = self.rows_of(split)[keep]
            labels, mine = ({name: values[rows] for name, values in tree.items()} for tree, rows in ((self.labels, at), (of, keep)))
            parts.append(prediction_table(self.table.iloc[at], self.targets, labels, mine, config.audit.attributes))
        return Predictions(pd.concat(parts, ignore_index=True), self.targets, self.open_data)


def refitted_heads(config, heads: Heads, validation: Features, own: np.ndarray) -> tuple[Callable[[np.ndarray], dict], str]:
    """(what heads fitted anew on some rows of validation make of features, as `Heads.of`; in a sentence what was done); `probes.last_layer`."""
    from cxr_jax.probes import last_layer
    from cxr_jax.training import objectives

    attribute, at = config.mitigate.attribute, heads.rows_of("validation")
    if len(at) != len(own) or not own.any() or own.all():
        raise UserError(f"config.mitigate.share={config.mitigate.share}: dfr is fitted on {own.sum()} of {len(own)} validation images, and thresholds are chosen on the others; take another share")
    labels = {name: values[at][own] for name, values in heads.labels.items()}
    classes = tuple(sorted(validation.table[attribute].dropna().unique()))
    group = attribute_of(validation, attribute, classes)[own].astype(np.int32)
    cells = objectives.cells_of(heads.targets, labels, group, len(classes), np.ones(len(group), bool), "group_label")
    read = last_layer.refitted(heads.targets, validation.arrays[FEATURES][own], labels, cells.weight, config.mitigate.penalty)
    lacking = {name: np.isnan(values).all(axis=0) for name, values in read(validation.arrays[FEATURES]).items()}

    def tell(features: np.ndarray) -> dict[str, np.ndarray]:
        old = heads.of(features)
        return {name: np.where(lacking[name], old[name], values) for name, values in read(features).items()}

    patients, kept = validation.table.loc[own, "patient_id"].nunique(), [c for name, of in lacking.items() for c, lacks in zip(heads.targets[name].classes, of) if lacks]
    said = (
        f"dfr: heads fitted anew on {own.sum():,} validation images of {patients:,} patients, among whom every {attribute} by label counts alike; features are as they"
        " were; no attribute is needed of an image that is judged"
        + f"; by the network's own head {', '.join(kept)}, which none of them has, or every one" * bool(kept)
    )
    return tell, said


def probe(config: ml_collections.ConfigDict, run: experiment.Run) -> None:
    """Fits, chooses and scores the probes on extracted features, or on a user's own vectors."""
    from cxr_jax.probes import protocol

    splits = vectors(config, run)
    # Every process of a launch does the same on its own devices: features are read, not shared out. The first one writes.
    with progress_lines("probe") as say:
        readings, arrays, abroad = protocol.run(splits, config.probe, mesh.data_mesh(jax.local_devices()), say, vectors_elsewhere(config, run))
    if processes.first():
        folder = run.path(READINGS).parent
        for stale in (*folder.glob("*.npz"), *folder.glob(f"{ON}*.parquet")):
            stale.unlink()
        for name, read in abroad.items():
            read.write(folder / f"{ON}{name}.parquet")
        for number, reading in enumerate(readings.readings):
            if reading.name in arrays:
                with tables.whole_file(folder / f"{number}.npz") as path, open(path, "wb") as file:
                    np.savez(file, reading=reading.name, **arrays[reading.name])
        readings.write(run.path(READINGS))
    processes.agreed()


def vectors(config: ml_collections.ConfigDict, run: experiment.Run) -> dict[str, Features]:
    """What is probed, by split. Raises UserError where the splits were made by different networks, or a mitigation is not done."""
    if config.probe.embeddings:
        return with_age_bands(own_vectors(config), config)
    check_mitigated(config, run)
    return with_age_bands(extracted(experiment.mitigated_folder(run.workdir, config) / "features"), config)


def with_age_bands(splits: dict[str, Features], config: ml_collections.ConfigDict) -> dict[str, Features]:
    """The same with a column age_band by config.audit.age_bands, where probes or a mitigation are asked for it and ages are recorded."""
    if "age_band" not in (*config.probe.targets, config.mitigate.attribute):
        return splits
    return {split: part if "age_band" in part.table else dataclasses.replace(part, table=banded(part.table, config)) for split, part in splits.items()}


def banded(table: pd.DataFrame, config: ml_collections.ConfigDict) -> pd.DataFrame:
    """A table with a column age_band, where it has one of ages."""
    from cxr_jax.audit import subgroups

    return table.assign(age_band=pd.array(subgroups.age_band(table["age"].to_numpy(), config.audit.age_bands), "str")) if "age" in table else table


def vectors_elsewhere(config: ml_collections.ConfigDict, run: experiment.Run) -> dict[str, Features]:
    """What is probed of other data sets, by their names."""
    if config.probe.embeddings:
        return {}
    found = with_age_bands(elsewhere(experiment.mitigated_folder(run.workdir, config) / "features", config), config)
    return {split.removeprefix(ON): part for split, part in found.items()}


def elsewhere(folder: pathlib.Path, config: ml_collections.ConfigDict) -> dict[str, Features]:
    """Features of the test images of config.extract.datasets, by split, on_NAME."""
    return {ON + name: Features.read(folder, ON + name) for name in config.extract.datasets}


def check_mitigated(config: ml_collections.ConfigDict, run: experiment.Run) -> None:
    """Raises UserError where what config.mitigate names was not done with this config and these features."""
    if config.mitigate.method and not run.done("mitigate"):
        raise UserError(f"config.mitigate.method={config.mitigate.method}: the stage mitigate is not done with these features and this config; add it to --config.stages")


def extracted(folder: pathlib.Path) -> dict[str, Features]:
    """Features of a run, by split. Raises UserError where they are missing, or the splits were made by different networks."""
    splits = {split: Features.read(folder, split) for split in SPLITS}
    first = splits[SPLITS[0]].about
    for split, part in splits.items():
        if part.about != first:
            raise UserError(f"{folder}: {split} was made by other weights than {SPLITS[0]}; run the extract stage again")
    return splits


def own_vectors(config: ml_collections.ConfigDict) -> dict[str, Features]:
    """A user's own vectors by split; where their table names none, patients are split as config.dataset has it."""
    from cxr_jax.data import cohorts
    from cxr_jax.probes import embeddings

    table, vectors = embeddings.read(config.probe.embeddings, config.probe.table, config.probe.columns)
    source = config.probe.table or config.probe.embeddings
    if "split" not in table:
        if config.dataset.split_rule != "patient_hash":
            raise UserError(f"{source}: no column 'split', which config.dataset.split_rule={config.dataset.split_rule!r} asks for")
        table = table.assign(split=cohorts.SPLIT_RULES["patient_hash"](table, config.dataset))
    missing = [split for split in SPLITS if not (table["split"] == split).any()]
    if missing:
        raise UserError(f"{source}: no image in split {missing[0]!r}; probes are fitted on train, chosen on validation, judged on test")
    rows = {split: np.flatnonzero((table["split"] == split).to_numpy()) for split in SPLITS}
    return {
        split: Features(table.iloc[at].reset_index(drop=True), {FEATURES: vectors[at]}, {"classes": {}}) for split, at in rows.items()
    }


def mechanism(config: ml_collections.ConfigDict, run: experiment.Run) -> None:
    """Scores test images without some of what they show (config.mechanism.series), by a network's heads and by the probes of its features; then measures how they were acquired,
    and maps where the network looks.

    A series that is whole is left as it is, so that an interrupted stage is gone on with.
    """
    from cxr_jax.data import cohorts, datasets, pipeline
    from cxr_jax.mechanism import curves
    from cxr_jax.training import metrics_log

    if config.mitigate.method not in ("", "none"):
        raise UserError(f"config.mitigate.method={config.mitigate.method}: the stage mechanism asks the network itself; run it with mitigate.method=''")
    dataset, cohort = datasets.open(config.dataset), cohorts.Cohort.read(run.path(COHORT))
    if "age_band" in config.probe.targets and "age_band" not in cohort.table:
        cohort = dataclasses.replace(cohort, table=banded(cohort.table, config))
    devices, batch_size = mesh.data_mesh(), config.train.evaluate_batch_size
    mesh.check_batch(batch_size, devices, "train.evaluate_batch_size")
    sources = pipeline.sources(dataset, cohort.table, config.dataset)
    alone = ml_collections.ConfigDict(config.to_dict())
    alone.extract.untrained = False
    told, networks = frozen(alone, run, cohort, sources["train"], devices)
    readers = readers_of(config, run, told, devices)
    labels, table = cohorts.labels(cohort, readers.targets, config.dataset), cohort.table[cohort.table["split"] == "test"]
    is_open = bool(dataset.metadata["open_data"])
    test, reference = sources["test"], histogram_to_match(config, sources)
    folder, writes = run.path(AS_THEY_ARE).parent, processes.first()
    asked = {name: tuple(strengths) for name, strengths in config.mechanism.series.items() if strengths}
    made_by = f"{experiment.fingerprint(config, before_and('probe'), run.record['files'])}, {told}, readers {readers.digest}, watched {list(readers.followed)}"
    with metrics_log.Progress("mechanism", len(test) * (1 + sum(map(len, asked.values())))) as progress:
        for name, strengths in {"": (0.0,), **asked}.items():
            path, made_so = folder / f"{name or 'as_they_are'}.npz", f"{made_by}, at {list(strengths)}"
            if processes.agreed(made_of(path) == made_so):
                progress.advance(len(test) * len(strengths))
                continue
            found = curves.judge(networks[FEATURES], readers, labels, test, name, strengths, batch_size, reference, config.seed, lambda n: progress.advance(n * len(strengths)))
            if writes:
                folder.mkdir(exist_ok=True)
                with tables.whole_file(path) as partial, open(partial, "wb") as file:
                    np.savez(file, made_by=made_so, **{f"of_{target}": values for target, values in found.items()})
    if writes:
        whole = tables.read_arrays(folder / "as_they_are.npz", "mechanism")
        scores = {target: whole[f"of_{target}"][0] for target in readers.targets}
        of_test = {name: values[(cohort.table["split"] == "test").to_numpy()] for name, values in labels.items()}
        predictions = prediction_table(table, readers.targets, of_test, scores, config.audit.attributes)
        tables.write_json(folder / "readers.json", {"heads": list(readers.heads), "watched": readers.watched, "followed": list(readers.followed), "weights": told})
        Predictions(predictions, readers.targets, is_open).write(run.path(AS_THEY_ARE))
        for stale in {path.stem for path in folder.glob("*.npz")} - {"as_they_are", "maps", *asked}:
            (folder / f"{stale}.npz").unlink()
    processes.agreed()
    write_factors(config, run, cohort, sources, readers, devices)
    write_maps(config, run, cohort, test, networks[FEATURES], readers, made_by, devices)


def write_factors(config: ml_collections.ConfigDict, run: experiment.Run, cohort, sources, readers, devices) -> None:
    """Writes mechanism/factors.parquet: of every test image the factors of config.mechanism.factors, and what each group of them tells by itself of each class label.

    The groups that there are, with their columns, travel in the file's own metadata. Columns of scores are called TARGET\nGROUP\nCLASS.
    """
    from cxr_jax.mechanism import acquisition
    from cxr_jax.probes import factors
    from cxr_jax.training import inference

    asked = {name: tuple(columns) for name, columns in config.mechanism.factors.items() if columns}
    whole, path = labelled(cohort, config.dataset), run.path(AS_THEY_ARE).parent / "factors.parquet"
    if any(c.startswith(MEASURED) for of in asked.values() for c in of):
        measure = jax.jit(acquisition.measured, in_shardings=mesh.batch_sharded(devices), out_shardings=mesh.batch_sharded(devices))
        values = np.full((len(whole), len(acquisition.MEASURED)), np.nan)
        for source in sources.values():
            for rows, found in inference.walk(measure, source, config.train.evaluate_batch_size, devices):
                values[rows] = found
        whole = pd.concat([whole, pd.DataFrame(values, columns=[MEASURED + name for name in acquisition.MEASURED], index=whole.index)], axis=1)
    groups = {}
    for name, columns in asked.items():
        columns = [c for one in columns for c in ([LABEL + f for f in cohort.findings] if one == "findings" else [one])]
        known = [c for c in dict.fromkeys(columns) if c in whole and whole[c].notna().any()]
        for c in (c for c in known if not pd.api.types.is_numeric_dtype(whole[c]) and whole[c].nunique() > MOST_VALUES):
            raise UserError(f"config.mechanism.factors.{name}: {c} has {whole[c].nunique():,} different values, more than {MOST_VALUES}; it makes no groups")
        if known:
            groups[name] = known
    table, parts = whole[whole["split"] == "test"].reset_index(drop=True), {split: whole[whole["split"] == split] for split in SPLITS}
    kept = table[["image_id", *dict.fromkeys(c for of in groups.values() for c in of)]].copy()
    for target, of in readers.targets.items():
        for name, columns in groups.items() if of.kind == "multiclass" and target in whole else ():
            columns = [c for c in columns if c not in (target, LABEL + target, "age" if target == "age_band" else "")]
            scores = factors.alone(parts, columns, target, of.classes, config.probe.penalties) if columns else None
            for k, c in enumerate(of.classes if scores is not None else ()):
                kept[f"{target}\n{name}\n{c}"] = scores[:, k]
    if processes.first():
        tables.write_parquet(kept, path, {"groups": groups, "missing": [name for name in asked if name not in groups]})
    processes.agreed()


def write_maps(config: ml_collections.ConfigDict, run: experiment.Run, cohort, test, network, readers, made_by: str, devices) -> None:
    """Writes mechanism/maps.npz, of config.mechanism.maps.patients test patients; a file that is there, made by the same, is left as it is."""
    from cxr_jax.mechanism import maps
    from cxr_jax.training import inference, metrics_log

    settings, path = config.mechanism.maps, run.path(AS_THEY_ARE).parent / "maps.npz"
    made_by += f", maps {settings.to_dict()}"
    if not settings.patients:
        path.unlink(missing_ok=True)
        return
    if processes.agreed(made_of(path) == made_by):
        return
    table = cohort.table[cohort.table["split"] == "test"].reset_index(drop=True)
    attribute = next((a for a in (settings.attribute, "sex") if a in table and table[a].notna().any()), None)
    if attribute is None:
        raise UserError(f"config.mechanism.maps.attribute={settings.attribute}: neither it nor sex is recorded; name another, or set mechanism.maps.patients=0")
    groups = [c for c in cohort.races if (table[attribute] == c).any()] if attribute == "race" else sorted(table[attribute].dropna().unique())
    rng = np.random.default_rng(config.seed)
    patients = rng.permutation(table["patient_id"].unique())[: settings.patients]  # each as likely, however many images are of one
    shuffled = table.iloc[rng.permutation(len(table))].drop_duplicates("patient_id")
    rows = np.sort(shuffled.index[shuffled["patient_id"].isin(patients)].to_numpy())
    (images,) = test.read([rows])
    anew, others = None, {}
    asked = maps.logits(readers, settings.findings)
    if settings.shuffled_labels and config.extract.weights not in ("best", "last"):
        print(f"  maps: without a network of shuffled labels, since {config.extract.weights} was not trained here")
    elif settings.shuffled_labels:
        _, *anew = trained_on_shuffled_labels(config, run, cohort, devices)
        linear = inference.head_kernels(anew[0])
        own = dataclasses.replace(readers, targets={k: t for k, t in readers.targets.items() if k in linear}, linear=linear)
        others = {one[:2]: one[2:] for one in maps.logits(own, settings.findings)}
    group = pd.Index(groups).get_indexer(table[attribute].iloc[rows])
    with metrics_log.Progress("maps", len(images)) as progress:
        found, mean = maps.look(network, asked, images, group, groups, settings, config.seed, anew, others, progress.advance)
    if processes.first():
        arrays = {"\n".join((*place, part)): value for place, of in found.items() for part, value in of._asdict().items() if value is not None}
        with tables.whole_file(path) as partial, open(partial, "wb") as file:
            np.savez(file, made_by=made_by, groups=np.array(groups), attribute=attribute, frame=mean, **arrays)
    processes.agreed()


def trained_on_shuffled_labels(config: ml_collections.ConfigDict, run: experiment.Run, cohort, devices):
    """(Forward, parameters, running statistics) of a network that was trained as this run's was, by the mean loss, on labels dealt anew among the images of a split; in a folder of
    its own, `shuffled`."""
    from cxr_jax.audit import validation
    from cxr_jax.data import cohorts, datasets, pipeline
    from cxr_jax.training import checkpoints, inference, initial, objectives, train as training

    plain = ml_collections.ConfigDict(config.to_dict())
    plain.train.objective.name, plain.train.select = "erm", "auc"
    targets, _ = cohorts.targets(cohort, config.train.targets, config.dataset)
    order, rng = np.arange(len(cohort.table)), np.random.default_rng(config.seed)
    for split in SPLITS:
        at = np.flatnonzero((cohort.table["split"] == split).to_numpy())
        order[at] = rng.permutation(at)
    labels = {name: values[order] for name, values in cohorts.labels(cohort, targets, config.dataset).items()}
    patients, folder = cohort.table["patient_id"].to_numpy(), run.path("shuffled")

    def measure(index, scores):
        return validation.measure(targets, {name: values[index] for name, values in labels.items()}, scores, patients[index], None, 0, "auc", 0.0)

    made_by, made = experiment.fingerprint(plain, before_and("train"), run.record["files"]), folder / "made_by.json"
    if processes.first() and not (made.exists() and tables.read_json(made) == made_by):
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was here before
        folder.mkdir(exist_ok=True)
        tables.write_json(made, made_by)
    processes.agreed()
    network, described, _ = initial.begun_or_gone_on_with(plain, targets, folder / "checkpoints")
    checkpoints.leave_errors_to_us()
    sources = pipeline.sources(datasets.open(config.dataset), cohort.table, config.dataset, devices)
    with checkpoints.Checkpoints(folder / "checkpoints", described, config.checkpoint.keep) as kept:
        training.fit(plain, objectives.Objective(targets), labels, sources["train"], sources["validation"], measure, kept, folder, devices, network)
    return inference.restore(folder / "checkpoints", "last", devices)


def histogram_to_match(config: ml_collections.ConfigDict, sources) -> np.ndarray:
    """Counts of gray levels in training images, [256], which only histogram_matched looks at: where that is not asked no image is read for them."""
    from cxr_jax.mechanism import curves

    return curves.gray_levels(sources["train"], config.seed) if config.mechanism.series.histogram_matched else np.ones(256)


def before_and(stage: str) -> tuple[str, ...]:
    """The stages up to this one."""
    order = tuple(experiment.STAGE_FIELDS)
    return order[: order.index(stage) + 1]


def made_of(path: pathlib.Path) -> str:
    """What made a file of arrays; '' where there is none, or half of one."""
    try:
        with open(path, "rb") as file, np.load(file) as arrays:  # which leaves a path that it cannot read open
            return str(arrays["made_by"])
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return ""


def readers_of(config: ml_collections.ConfigDict, run: experiment.Run, told: str, devices):
    """`curves.Readers` of the network of config.extract.weights: its heads, and the logistic regressions that the stage probe fitted to its features.

    told: which weights these are. Raises UserError where there are neither, or the probes are of another network's features.
    """
    from cxr_jax.mechanism import curves
    from cxr_jax.training import inference

    weights, targets, linear, watched = config.extract.weights, {}, {}, {}
    source = run.workdir if weights in ("best", "last") else pathlib.Path(weights).expanduser()
    if (source / "checkpoints").is_dir():
        forward, params, _ = inference.restore(source / "checkpoints", weights if weights == "last" else "best", devices)
        targets, linear = dict(forward.targets), inference.head_kernels(params)
    heads = tuple(targets)
    if run.done("probe") and not config.probe.embeddings:
        features = Features.read(run.path("features"), "test")
        then, spread = features.about["weights"], features.arrays[FEATURES].std(axis=0)
        if then != told:
            raise UserError(f"{run.path('features')}: made by the {then}, and the network asked is of {told}; run the extract stage again")
        read = tables.Readings.read(run.path(READINGS))
        of_arrays = {}
        for path in run.path(READINGS).parent.glob("*.npz"):
            arrays = tables.read_arrays(path, "probe")
            of_arrays[str(arrays["reading"])] = arrays
        for name, classes in read.targets.items():
            fitted = of_arrays.get(tables.Reading(name, "logistic_regression", FEATURES).name)
            if fitted is None or not np.isfinite(fitted["intercepts"]).all():
                continue
            heaviest = np.argsort(-np.abs(fitted["coefficients"] * spread).max(axis=0), kind="stable")[: config.mechanism.watched]
            watched[name] = tuple(int(k) for k in heaviest)
            if name not in targets:
                targets[name] = Target("multiclass", classes)
                linear[name] = fitted["coefficients"].T.astype(np.float32), fitted["intercepts"].astype(np.float32)
    twice = [c for c, n in collections.Counter(c for target in targets.values() for c in target.classes).items() if n > 1]
    if twice:
        raise UserError(f"config.probe.targets: {twice[0]!r} is a class of two of {', '.join(targets)}; ask for one of them at a time")
    if not targets:
        raise UserError(f"config.extract.weights={weights}: has no heads, and nothing was fitted to its features; add extract and probe to config.stages")
    return curves.Readers(targets, linear, heads, watched)


@contextlib.contextmanager
def progress_lines(stage: str):
    """Gives a function that says on stderr what a stage is doing: one line that changes on a terminal, else lines."""
    moving = sys.stderr.isatty()

    def say(text: str) -> None:
        if not processes.first():
            return
        print(f"\r\033[K{stage}: {text}" if moving else f"{stage}: {text}", end="" if moving else "\n", file=sys.stderr, flush=True)

    yield say
    if moving:
        print(file=sys.stderr)


def audit(config: ml_collections.ConfigDict, run: experiment.Run) -> None:
    """Every figure with its interval: of predictions overall and by group, of probes by reading; whichever there are."""
    from cxr_jax.audit import readings, subgroups

    if config.audit.predictions:
        take_in(config, run)
    check_mitigated(config, run)
    tell_headline(config, run)
    probed, path = run.done("probe"), experiment.mitigated_folder(run.workdir, config) / PREDICTIONS
    if path.exists() or not (probed or run.done("mechanism")):
        predictions = Predictions.read(path)
        tables.write_json(run.path(AUDIT), subgroups.audit(predictions, config.audit))
    else:
        run.path(AUDIT).unlink(missing_ok=True)  # of predictions that are not what is judged now
    if probed:
        read, test = tables.Readings.read(run.path(READINGS)), vectors(config, run)["test"]
        if list(read.table["image_id"]) != list(test.table["image_id"]):
            raise UserError(f"{run.path(READINGS)}: the features are no longer those of the images probed; run the probe stage again")
        is_open = not config.probe.embeddings and bool(run.record.get("dataset", {}).get("open_data"))
        found = readings.audit(read, test.arrays[FEATURES], config.audit, is_open)
        abroad = {name: tables.Readings.read(run.path(READINGS).parent / f"{ON}{name}.parquet") for name in config.extract.datasets if not config.probe.embeddings}
        found["elsewhere"] = {name: readings.elsewhere(read, config.audit) for name, read in abroad.items()}
        tables.write_json(run.path(PROBE_AUDIT), found)
    else:
        run.path(PROBE_AUDIT).unlink(missing_ok=True)  # of an earlier run of probes, with which it has nothing to do
    if config.audit.leakage:
        tables.write_json(run.path(LEAKAGE_AUDIT), audit_leakage(config, run))
    else:
        run.path(LEAKAGE_AUDIT).unlink(missing_ok=True)
    if config.predict.datasets and not config.audit.predictions and run.done("predict"):
        from cxr_jax.audit import travel

        abroad = {name: Predictions.read(run.path(TRAVELLED) / f"{name}.parquet") for name in config.predict.datasets}
        tables.write_json(run.path(TRAVEL_AUDIT), travel.travel(Predictions.read(run.path(PREDICTIONS)), abroad, config.audit))
    else:
        run.path(TRAVEL_AUDIT).unlink(missing_ok=True)
    if run.done("mechanism"):
        tables.write_json(run.path(MECHANISM_AUDIT), audit_mechanism(config, run))
    else:
        run.path(MECHANISM_AUDIT).unlink(missing_ok=True)


def audit_leakage(config: ml_collections.ConfigDict, run: experiment.Run) -> dict:
    """What leakage_audit.json holds: `reidentification` and `membership` of `audit.leakage`, `images` of `readings.by_images`; each null, with a reason, where there is nothing to judge."""
    from cxr_jax.audit import leakage, readings
    from cxr_jax.data import cohorts

    found = {"reidentification": None, "membership": None, "images": None, "reasons": {}}
    probed, path, there = run.done("probe"), experiment.mitigated_folder(run.workdir, config) / PREDICTIONS, config.audit.told_by_images
    is_open = not config.probe.embeddings and bool(run.record.get("dataset", {}).get("open_data"))
    if run.done("extract") or config.probe.embeddings:
        found["reidentification"] = leakage.reidentification(vectors(config, run)["test"], config.audit, is_open)
    else:
        found["reasons"]["reidentification"] = "no features" + ("" if config.audit.predictions else "; add extract to config.stages")
    predictions = Predictions.read(path) if path.exists() and not config.predict.dataset else None
    if predictions is not None and "split" in predictions.table and {"train", "test"} <= set(predictions.table["split"]):
        members, others = (dataclasses.replace(predictions, table=predictions.table[predictions.table["split"] == split].reset_index(drop=True)) for split in ("train", "test"))
        by_lot = config.dataset.split_rule == "patient_hash" and not config.audit.predictions
        note = "" if by_lot else "who is in training was not drawn by lot here, as far as is known: figures tell what else sets the splits apart, too"
        found["membership"] = leakage.membership(members, others, config.audit, note)
    else:
        outside = "name their column split" if config.audit.predictions else "add train to config.predict.splits"
        found["reasons"]["membership"] = f"no predictions of training and test images; {outside}"
    if there and probed:
        path = pathlib.Path(there).expanduser() / PREDICTIONS
        check_unseen(cohorts.Cohort.read(run.path(COHORT)), there, "config.audit.told_by_images")
        found["images"] = readings.by_images(tables.Readings.read(run.path(READINGS)), Predictions.read(path), config.audit)
    else:
        found["reasons"]["images"] = "no probes to compare with" if there else "no network that was trained to tell these labels from images; name its run with config.audit.told_by_images"
    return found


def audit_mechanism(config: ml_collections.ConfigDict, run: experiment.Run) -> dict:
    """What mechanism_audit.json holds: `rows` and `features` of `audit.perturbed`, `acquisition` with the groups of factors, `maps`, and what read the images."""
    from cxr_jax.audit import acquisition, maps, perturbed

    folder, series = run.path(AS_THEY_ARE).parent, {}
    predictions, readers = Predictions.read(run.path(AS_THEY_ARE)), tables.read_json(folder / "readers.json")
    for name, strengths in config.mechanism.series.items():
        if strengths:
            arrays = tables.read_arrays(folder / f"{name}.npz", "mechanism")
            scores = {target: arrays[f"of_{target}"] for target in predictions.targets}
            series[name] = perturbed.Series(strengths, scores, arrays.get("of_"))
    whole = tables.read_arrays(folder / "as_they_are.npz", "mechanism")["of_"][0]
    patients = predictions.table["patient_id"].to_numpy()
    moved = perturbed.features(patients, readers["followed"], whole, series, config.audit)
    found = {"readers": readers, "rows": perturbed.audit(predictions, series, readers["heads"], config.audit), "features": moved}
    factors, about = tables.read_parquet(folder / "factors.parquet")
    columns = dict.fromkeys(c for of in about["groups"].values() for c in of if c not in predictions.table)
    beside = dataclasses.replace(predictions, table=pd.concat([predictions.table, factors[list(columns)]], axis=1))
    alone: dict[str, dict[str, np.ndarray]] = {}
    for target, of in predictions.targets.items():
        for name in about["groups"]:
            mine = [f"{target}\n{name}\n{c}" for c in of.classes]
            if mine[0] in factors:
                alone.setdefault(target, {})[name] = factors[mine].to_numpy(np.float64)
    found["acquisition"] = {**about, "rows": acquisition.decompose(beside, about["groups"], alone, config.audit)}
    if (folder / "maps.npz").exists():
        found["maps"] = maps.audit(tables.read_arrays(folder / "maps.npz", "mechanism"), config.audit, predictions.open_data)
    return found


def take_in(config: ml_collections.ConfigDict, run: experiment.Run) -> None:
    """Puts a user's own predictions where `predict` would put ours, and says what was taken for what."""
    from cxr_jax.audit import intake

    predictions, outside = intake.read(config.audit.predictions, config.audit)
    print(f"{outside['images']:,} images of {config.audit.predictions}; what was taken for what:")
    width = max(map(len, outside["columns"]))
    print(*(f"  {ours.ljust(width)} <- {theirs}" for ours, theirs in outside["columns"].items()), sep="\n")
    print(*(f"  {sentence}" for sentence in outside["said"]), sep="\n", end="\n" * bool(outside["said"]))
    # The record first: stopped between the two, the file that is missing would pass for nobody's.
    run.write(outside=outside)
    predictions.write(run.path(PREDICTIONS))


def report(config: ml_collections.ConfigDict, run: experiment.Run) -> None:
    """The pages for people, and the table of AUCs in the terminal. Who is in the cohort is drawn anew, by config.audit."""
    from cxr_jax.report import html
    from cxr_jax.report import leakage as leakage_page
    from cxr_jax.report import mechanism as mechanism_page
    from cxr_jax.report import travel as travel_page

    for name, record in ((COHORT, "dataset"), (JUDGED_COHORT, "judged")):
        if run.path(name).exists() and record in run.record:
            draw_cohort(config, run, name, record)
    more = []
    for record, page, write in ((MECHANISM_AUDIT, mechanism_page, along_series), (TRAVEL_AUDIT, travel_page, None), (LEAKAGE_AUDIT, leakage_page, None)):
        if run.path(record).exists():
            more.append(page.write(run.workdir, *([write(config, run)] if write else [])))
        else:
            run.path(page.PAGE).unlink(missing_ok=True)  # of an earlier audit
    path = html.write(run.workdir, examples(config, run), exciting(config, run))
    print(html.auc_table(run.workdir))
    for one in more:
        print(f"more: {one}")
    print(f"report: {path}")


def examples(config: ml_collections.ConfigDict, run: experiment.Run, count: int = 8) -> list[tuple[np.ndarray, str]]:
    """Judged test images of `count` patients, (uint8 [256, 256], caption) each; [] unless the data are open to all."""
    record, path = ("judged", JUDGED_COHORT) if config.predict.dataset else ("dataset", COHORT)
    if not run.path(path).exists() or not run.record.get(record, {}).get("open_data"):
        return []
    from cxr_jax.data import cohorts

    cohort = cohorts.Cohort.read(run.path(path))
    target = next((t for t in config.train.targets if t in cohort.table), "sex")
    test = cohort.table[cohort.table["split"] == "test"].drop_duplicates("patient_id")
    # Some of each class, as far as there are.
    turn = test.groupby(test[target].fillna("unknown")).cumcount()
    chosen = test.loc[turn.sort_values(kind="stable").index[:count]].sort_index()
    return pictures(judged_dataset(config), cohort, chosen, target)


def exciting(
    config: ml_collections.ConfigDict, run: experiment.Run, features: int = 3, count: int = 5
) -> list[tuple[str, list[tuple[np.ndarray, str]]]]:
    """The features that tell a class best, of those that do, in words; and the test images of `count` patients for which each is greatest.

    [] unless probes have read features of ours, and the data are open to all.
    """
    ours = run.path(PROBE_AUDIT).exists() and not config.probe.embeddings
    if not ours or not run.record.get("dataset", {}).get("open_data"):
        return []
    from cxr_jax.data import cohorts

    cohort, read = cohorts.Cohort.read(run.path(COHORT)), vectors(config, run)["test"]
    best = [
        (one["auc"], one["feature"], name, target)
        for target, classes in tables.read_json(run.path(PROBE_AUDIT))["space"]["each"].items()
        for name, of in classes.items()
        for one in of["best"]
        if one["q"] is not None and one["q"] < 0.05  # of the rest the farthest from .5 is only the luckiest
    ]
    told: dict[int, list] = {}
    for auc, feature, name, target in sorted(best, key=lambda one: -abs(one[0] - 0.5)):
        if feature not in told and len(told) < features:
            greatest = read.table.iloc[np.argsort(-read.arrays[FEATURES][:, feature], kind="stable")]
            ids = greatest.drop_duplicates("patient_id")["image_id"].iloc[:count]
            chosen = cohort.table[cohort.table["image_id"].isin(ids)]
            told[feature] = [f"feature {feature}, whose AUC for {name} is {auc:.2f}", pictures(config.dataset, cohort, chosen, target)]
    return [tuple(one) for one in told.values()]


def along_series(config: ml_collections.ConfigDict, run: experiment.Run) -> dict[str, list[tuple[np.ndarray, str]]]:
    """The first judged test image along every series but attacks, which need a loss: (uint8 [256, 256], strength) by series; {} unless the data are open to all."""
    if not run.record.get("dataset", {}).get("open_data"):
        return {}
    from cxr_jax.data import cohorts, datasets, perturbations, pipeline

    cohort = cohorts.Cohort.read(run.path(COHORT))
    sources = pipeline.sources(datasets.open(config.dataset), cohort.table, config.dataset)
    (image,) = sources["test"].read([np.arange(1)])
    given = perturbations.Given(np.arange(1), jax.random.key(config.seed), histogram_to_match(config, sources))
    found = {}
    for name, strengths in config.mechanism.series.items():
        apply = perturbations.PERTURBATIONS[name].apply
        if apply and strengths:
            changed = [np.asarray(apply(image.astype(np.float32), strength, given))[0, ..., 0] for strength in strengths]
            # Without the mean, gray levels lie about 0: for the eye they are put about the middle.
            changed = [one + 128 * (name == "published_high_pass") for one in changed]
            words = [" to ".join(f"{x:g}" for x in strength) if isinstance(strength, tuple) else f"{strength:g}" for strength in strengths]
            found[name] = [(np.clip(np.round(one), 0, 255).astype(np.uint8), word) for one, word in zip(changed, words, strict=True)]
    return found


def pictures(dataset: ml_collections.ConfigDict, cohort, chosen: pd.DataFrame, target: str) -> list[tuple[np.ndarray, str]]:
    """(uint8 [256, 256], caption) of some rows of a cohort, in stored order, which readers of records rely on."""
    from cxr_jax.data import datasets, pipeline

    rows = chosen.assign(split="test")
    source = pipeline.Source(datasets.open(dataset), rows, "test", host_cache_gib=1.0, block_images=len(rows))
    images = next(source.ordered(len(rows)))["image"][..., 0]
    return [(image, caption(row, cohort.findings, target)) for image, (_, row) in zip(images, rows.iterrows())]


def caption(row: pd.Series, findings: tuple[str, ...], target: str) -> str:
    """What is recorded of an image: the target's class, sex and age, view, findings."""
    from cxr_jax.data.cohorts import FINDING

    said = [row[target] if target in row else "", row["sex"], "" if np.isnan(row["age"]) else f"{row['age']:.0f} years", row["view"]]
    present = [name for name in findings if row[FINDING + name] == 1]
    said = [str(word) for word in dict.fromkeys(said) if word and not pd.isna(word)]
    return ", ".join([*said, " + ".join(present)] if present else said)


def do(stage: str, config: ml_collections.ConfigDict, run: experiment.Run) -> None:
    """Runs one stage, with all the processes of a launch, or on the first alone where it computes nothing that they share."""
    if stage == "prepare":
        check_beginning(config, run)
    if stage not in ON_THE_FIRST or processes.first():
        STAGES[stage](config, run)
    run.record = processes.agreed(run.record)  # nobody goes on before its files are in place
    if stage == "prepare" and not processes.first():
        from cxr_jax.data import datasets

        datasets.prepare(config.dataset)  # a machine whose data_dir is its own makes what the first one made


STAGES = {
    "prepare": prepare,
    "train": train,
    "predict": predict,
    "extract": extract,
    "mitigate": mitigate,
    "probe": probe,
    "mechanism": mechanism,
    "audit": audit,
    "report": report,
}
ON_THE_FIRST = ("prepare", "audit", "report")
