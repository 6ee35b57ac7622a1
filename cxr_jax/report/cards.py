"""A model card and a data sheet, filled from what a run wrote down; what nobody wrote down is said to be unknown.

The headings are those of Mitchell et al., Model Cards for Model Reporting (FAT* 2019), and of Gebru et al., Datasheets for
Datasets (Communications of the ACM 64:86-92, 2021). Whoever shares the page adds what no program knows: who made the data and
why, who agreed to it, who answers for the model.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping, Sequence

import pandas as pd

from cxr_jax.audit import subgroups
from cxr_jax.report import page
from cxr_jax.report import rows as audit_rows

UNKNOWN = "Not recorded here; add it before this page is shared."
Card = list[tuple[str, list[str]]]  # (heading, sentences)

# What each rule of the config means to a reader, by field and value.
_UNCERTAIN = {
    "ignore": "A finding recorded as uncertain counts as unknown.",
    "zeros": "A finding recorded as uncertain counts as absent.",
    "ones": "A finding recorded as uncertain counts as present.",
}
_UNMENTIONED = {
    "zeros": "A finding that a report does not mention counts as absent.",
    "ignore": "A finding that a report does not mention counts as unknown.",
}
_SPLITS = {
    "patient_hash": "Patients were dealt into training, validation and test by a hash of their number; no patient is in two.",
    "official": "Training, validation and test are those of the release, less patients who would be in two.",
}


def _said(config: Mapping, dotted: str):
    """A field of config.json, None where a config of another version lacks it."""
    found = config
    for name in dotted.split("."):
        if not isinstance(found, Mapping) or name not in found:
            return None
        found = found[name]
    return found


def model_card(
    config: Mapping, run: Mapping, rows: pd.DataFrame, split: str, invented: bool, name_of: Callable[[str], str], thresholds: str, words: Sequence[str],
) -> Card:  # fmt: skip
    """rows: of groups of one attribute, counts withheld. words: the sentences on how good the model is."""
    ours = "outside" not in run
    targets = _said(config, "train.targets") or []
    if not ours:
        model = [f"Unknown: its predictions came from outside, in {run['outside']['file']}.", UNKNOWN]
        use, training = [UNKNOWN], [UNKNOWN]
    else:
        blocks, size = _said(config, "model.blocks"), _said(config, "dataset.image_size")
        model = [run["headline"].rstrip(".") + "."] if "headline" in run else []
        if blocks:
            depth = "DenseNet-121" if list(blocks) == [6, 12, 24, 16] else f"DenseNet with blocks of {', '.join(map(str, blocks))} layers"
            model.append(f"{depth}, growth {_said(config, 'model.growth')}, on one channel of {size}×{size} pixels; a head for each of: {', '.join(name_of(t) for t in targets)}.")
        rate, schedule = _said(config, "train.learning_rate"), _said(config, "train.schedule")
        if rate is not None and schedule is not None:
            given, frozen = _said(config, "model.init_from"), _said(config, "train.freeze")
            began = f"the weights of {pathlib.PurePath(given).name}" if given else "random weights"  # its name alone: a path may name people
            kept = f"; the stem and {frozen - 1} of {len(blocks or ())} dense blocks stayed as they were" if frozen else ""
            model.append(f"Trained from {began} by Adam at {rate:g} ({schedule}), {_said(config, 'train.epochs')} epochs, batches of {_said(config, 'train.batch_size')}, seed {_said(config, 'seed')}{kept}.")
        model.append(f"The checkpoint judged is {'the best by macro AUC on validation' if _said(config, 'predict.checkpoint') == 'best' else _said(config, 'predict.checkpoint')}.")
        of_groups = [t for t in targets if t != "findings"]
        use = [f"To measure how much of {', '.join(name_of(t) for t in of_groups)} images carry, and nothing else. It must not be used on anybody: what it puts out about a person is no fact about that person."] if of_groups else []
        use += ["To be audited, as an example of a model that finds diseases. It is no medical device, and no doctor should see its output."] if "findings" in targets else []
        training = [f"Images of {page.called(run['dataset'])}, split train; see the data sheet."] if "dataset" in run else [UNKNOWN]
    recorded = rows[rows["n_images"] != 0]
    attributes = [a for a in audit_rows.in_order(recorded["attribute"]) if a != subgroups.ALL]
    factors = [f"Groups by {', '.join(name_of(a) for a in attributes)}." if attributes else "Nothing that makes groups is recorded."]
    if crossed := _said(config, "audit.intersections"):
        factors.append(f"Where groups meet: {', '.join(' × '.join(name_of(a) for a in entry.split(subgroups.TIMES)) for entry in crossed)}, as far as they are recorded.")
    metrics = ["AUC and average precision of scores; of calls, false-negative and false-positive rates, PPV and NPV; calibration and Brier score. Chosen since patients are harmed by what is missed, by what is called for nothing, and by scores that mean another thing for them."]
    if thresholds:
        metrics.append(f"Images are called by a threshold {thresholds}.")
    metrics.append(f"Every interval is at {audit_rows.percent(_said(config, 'audit.level'))}, over patients, and holds for this one model: training it again is not in it.")
    judged = run["judged"] if "judged" in run else run.get("dataset")
    n = audit_rows.select(rows, metric="auc", attribute=subgroups.ALL, class_=subgroups.MACRO, split=split)
    evaluation = [f"{audit_rows.images_of(split).capitalize()}{f' of {page.called(judged)}' if judged else ''}"]
    if len(n):
        evaluation[0] += f": {audit_rows.count(n['n_images'].max())} of {audit_rows.count(n['n_patients'].max())} patients, as far as labels are known"
    evaluation[0] += "."
    if _said(config, "audit.truth") == "true":
        evaluation.append("Judged by what is true, which is known of these data, not by what is recorded.")
    ethics = [
        "Race, sex and the like stand here as they were recorded, for finding out whom a model serves worse, never as traits of bodies."
        if not invented
        else "The groups are invented, and their signal is arbitrary; nothing is said about any people.",
        "That a model does as well in every group does not make it right to use; that it reads a group from images is no diagnosis of anything.",
    ]
    caveats = [
        "Where a model is judged by what was recorded, it may look otherwise, in some groups more than in others."
        if _said(config, "audit.truth") == "true"
        else "Labels may be wrong more often for one group than for another, which no figure here sees.",
        "Another hospital, another machine and another time were not tested, unless the data sheet says so.",
    ]
    return [
        ("Model", model), ("Intended use", use or [UNKNOWN]), ("Factors", factors), ("Metrics", metrics), ("Training data", training),
        ("Evaluation data", evaluation), ("Quantitative analyses", [*words, "By group and where groups meet: the sections above."]),
        ("Ethical considerations", ethics), ("Caveats", caveats),
    ]  # fmt: skip


def data_sheet(config: Mapping, run: Mapping, dataset: Mapping | None, cohort: Mapping | None, quarantined: str, elsewhere: bool) -> Card:
    """Of the data that were judged. dataset: as run.json has it; None where the predictions came from outside. cohort: as the
    page's tables have it. quarantined: how many files could not be read, in words, or ''."""
    if dataset is None:
        outside = run.get("outside", {})
        images = f"{outside['images']:,} rows" if "images" in outside else "rows"
        composition = [f"The file {outside['file']}: {images}, one an image; what was taken for what is said above." if outside else "A table of vectors, one row an image."]
        if outside.get("without_patients"):
            composition.append("It does not say which images are of the same patient.")
        return [("Motivation", [UNKNOWN]), ("Composition", composition), ("Collection", [UNKNOWN]), ("Preprocessing and labels", [UNKNOWN]),
                ("Uses", [UNKNOWN]), ("Distribution", ["Nothing of the file is on this page but aggregates."]), ("Maintenance", [UNKNOWN])]  # fmt: skip
    invented = bool(dataset["invented_groups"])
    settings = config["dataset"] if "dataset" in config and not elsewhere else {}
    motivation = ["To test audits on data whose truth is known, and to let anybody run them without credentials." if invented else UNKNOWN]
    composition = [dataset["description"]] if dataset.get("description") else []
    if dataset["open_data"] and {"images", "patients"} <= dataset.keys():
        composition.append(f"One row an image: {dataset['images']:,} of {dataset['patients']:,} patients in {page.called(dataset)}.")
    else:  # totals beside tables in which some cells are withheld could give these away
        composition.append(f"One row an image, of {page.called(dataset)}" + ("; how many of whom is in the tables above." if cohort is not None else "."))
    if quarantined:
        composition.append(f"{quarantined} of the release could not be read and are in nothing here.")
    if cohort is not None:
        composition.append(f"Recorded of each, as far as it is: {', '.join(table['name'] for table in cohort['groups'])}; how many are not recorded stands in the tables above, and on {cohort['page']}.")
    collection = ["Drawn by a program; no patient, no hospital and no consent are in it." if invented else "As the release's own documentation has it: who was seen where, how race and sex were asked or assumed, and who agreed, are there and not in this workdir."]
    made = []
    if aspect := settings.get("aspect"):
        made.append(f"Pictures were brought to 256×256 gray levels ({'squashed' if aspect == 'squash' else 'padded'} where they are not square) and are read at {settings['image_size']}×{settings['image_size']}.")
    if views := settings.get("views"):
        made.append(f"Only images whose view is {' or '.join(views)} were kept.")
    made += [table[settings[field]] for field, table in (("uncertain", _UNCERTAIN), ("unmentioned", _UNMENTIONED), ("split_rule", _SPLITS)) if settings.get(field) in table]
    if settings.get("race_rule") and not invented:
        made.append(f"Races by the rule {settings['race_rule']}.")
    uses = ["For trying out methods. Nothing that is found in it holds for people." if invented else "For judging models by group. Not for finding out, guessing or checking anybody's race; nor for linking images to persons."]
    spread = "Anybody can draw the same again: the program and its seed are in this repository." if invented else "As the release's licence has it" + ("; the data are open." if dataset["open_data"] else "; access to the data is by agreement, and nothing about one patient is on this page.")
    maintenance = [f"Version {dataset['version']}." if dataset.get("version") else UNKNOWN]
    return [
        ("Motivation", motivation), ("Composition", composition), ("Collection", collection), ("Preprocessing and labels", made or [UNKNOWN]),
        ("Uses", uses), ("Distribution", [spread]), ("Maintenance", maintenance),
    ]  # fmt: skip
