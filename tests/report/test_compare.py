"""The comparison of runs: what it says against what the audits say, what it must not say, and every run that it must refuse."""

import re
import shutil
import types

import numpy as np
import pandas as pd
import pytest

from configs import race
from cxr_jax import experiment, tables
from cxr_jax.audit import subgroups
from cxr_jax.audit.paired import Paired
from cxr_jax.report import compare, demographics, html
from cxr_jax.report import rows as audit_rows
from cxr_jax.tables import Predictions, Target, UserError

GROUPS, FINDINGS = ("Alder", "Birch", "Cedar"), ("Edema", "Fracture", "Nodule")
NUMBER = re.compile(r"\d\.\d{3}")


def images(patients=90, seed=0):
    rng = np.random.default_rng(seed)
    who = np.repeat(np.arange(patients), rng.integers(1, 4, patients))
    return pd.DataFrame({
        "image_id": [f"i{i:04d}" for i in range(len(who))],
        "patient_id": np.char.mod("p%d", who),
        "split": np.where(rng.random(patients) < 0.2, "validation", "test")[who],
        "race": np.array(GROUPS)[rng.choice(3, patients, p=[0.4, 0.35, 0.25])][who],
        "sex": np.array(["F", "M"])[rng.integers(0, 2, patients)][who],
        **{f"label_{name}": (rng.random(len(who)) < share).astype(float) for name, share in zip(FINDINGS, (0.4, 0.3, 0.3))},
    })  # fmt: skip


def scores_of(table, strength, target, seed):
    rng = np.random.default_rng(seed)
    if target == "findings":
        raw = strength * table[[f"label_{f}" for f in FINDINGS]].fillna(0).to_numpy() + rng.normal(size=(len(table), 3))
        return 1 / (1 + np.exp(-raw))
    raw = np.exp(strength * (table["race"].to_numpy()[:, None] == np.array(GROUPS)) + rng.normal(size=(len(table), 3)))
    return raw / raw.sum(axis=1, keepdims=True)


def make_run(folder, strength=1.0, targets=("race",), table=None, seed=1, status="done", judged=True, record=None, **diff):
    """A workdir as the audit stage leaves it: scores that follow the truth as strongly as `strength` says."""
    table = images() if table is None else table
    config = experiment.apply_diff(race.get_config("tiny"), {"audit.replicates": 100, "audit.attributes": ("sex",)})
    config = experiment.apply_diff(config, {k.replace("__", "."): v for k, v in diff.items()})
    known, made = {"race": Target("multiclass", GROUPS), "findings": Target("multilabel", FINDINGS)}, {}
    columns = table.drop(columns=[c for c in table if c.startswith("label_") and "findings" not in targets])
    for target in targets:
        columns = columns.assign(**{f"score_{c}": s for c, s in zip(known[target].classes, scores_of(table, strength, target, seed).T)})
        columns = columns.assign(label_race=table["race"]) if target == "race" else columns
        made[target] = known[target]
    predictions = Predictions(columns, made)
    folder.mkdir(parents=True)
    tables.write_json(folder / "config.json", config.to_dict())
    stages = {stage: {"status": "done", "seconds": 1.0} for stage in config.stages}
    about = {"open_data": True, "invented_groups": True, "name": "phantom", "variant": "planted"}
    tables.write_json(folder / "run.json", {"status": status, "stages": stages, "dataset": about, "headline": "D_race", **(record or {})})
    if judged:
        predictions.write(folder / "predictions.parquet")
        tables.write_json(folder / "audit.json", subgroups.audit(predictions, types.SimpleNamespace(**config.audit.to_dict())))
    return folder


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Two runs on the same images, of both targets. Not to be written in."""
    where = tmp_path_factory.mktemp("pair")
    both = ("race", "findings")
    return make_run(where / "strong", 1.5, both), make_run(where / "weak", 0.5, both, seed=2, train__epochs=3, checkpoint__keep=5)


@pytest.fixture
def copied(pair, tmp_path):
    """A fresh copy of both."""
    return [shutil.copytree(folder, tmp_path / folder.name) for folder in pair]


def change_rows(folder, change, **where):
    """Alters the rows of audit.json that have these values."""
    rows = tables.read_json(folder / "audit.json")
    where = {key.removesuffix("_"): value for key, value in where.items()}
    chosen = [row for row in rows if all(row[key] == value for key, value in where.items())]
    assert chosen
    for row in chosen:
        row.update(change)
    tables.write_json(folder / "audit.json", rows)


def line_of(table, run, block=None):
    (found,) = (line for name, lines in table.blocks if block in (None, name) for line in lines if line.run == run)
    return found


def told(found):
    """All that is printed and all that is on the page."""
    page = found.runs[0].folder.parent / "page.html"
    compare.write(found, page)
    return compare.text(found, classes=True), re.sub(r"<style>.*?</style>|data:image[^\"]*", "", page.read_text(), flags=re.DOTALL)


# ------------------------------------------------------------------------------------------------- what it says


def test_aucs_are_the_audits_and_differences_their_differences(pair):
    found = compare.read(pair)
    assert [run.name for run in found.runs] == ["strong", "weak"] and [t.called for t in found.targets] == ["group (invented)", "findings"]
    for target, name in zip(found.targets, ("race", "findings"), strict=True):
        audits = [audit_rows.read(folder / "audit.json") for folder in pair]
        assert target.macro.family == 1 and target.classes.family == 3
        for table, classes in ((target.macro, ["macro"]), (target.classes, GROUPS if name == "race" else FINDINGS)):
            assert [block for block, _ in table.blocks] == [audit_rows.class_name(c) for c in classes]
            for c, (_, lines) in zip(classes, table.blocks, strict=True):
                rows = [audit_rows.first(rows, metric="auc", target=name, class_=c, attribute="all") for rows in audits]
                for line, row in zip(lines, rows, strict=True):
                    assert (line.row["value"], line.row["low"], line.row["high"]) == (row["value"], row["low"], row["high"])
                    assert line.counts == (f"{row['n_images']:.0f}", f"{row['n_patients']:.0f}")
                difference = lines[1].difference
                assert lines[0].difference is None and difference.value == pytest.approx(rows[1]["value"] - rows[0]["value"], abs=1e-12)
                assert difference.low < difference.value < difference.high and difference.n_images == rows[0]["n_images"]
                assert lines[1].p_adjusted >= difference.p
    line = line_of(found.targets[0].macro, "weak")
    assert line.difference.high < 0 and line.p_adjusted < 0.05
    assert found.targets[0].said[0].startswith("The macro AUC of weak is lower than that of strong: \N{MINUS SIGN}0.")


def test_text_has_these_numbers_and_fits_a_terminal(pair):
    found = compare.read(pair)
    printed = compare.text(found)
    line = line_of(found.targets[0].macro, "weak")
    cells = [audit_rows.value(line.row), audit_rows.interval(line.row), audit_rows.number(line.difference.value)]
    row = next(text for text in printed.splitlines() if text.startswith("weak ") and cells[0] in text)
    assert all(cell in row for cell in cells) and row.split()[-2:] == list(line.counts)
    assert "Holm over the 1 comparison of this table" in printed
    assert max(len(text) for text in printed.splitlines()) <= 105
    assert "Birch" not in printed and "Birch" in compare.text(found, classes=True)
    assert "Holm over the 3 comparisons" in compare.text(found, classes=True)


def test_only_fields_that_differ_and_matter_are_told(pair):
    found = compare.read(pair)
    assert found.fields == [("train.epochs", ["10", "3"])]
    assert re.search(r"^train\.epochs +10 +3$", compare.text(found), re.MULTILINE)


def test_a_file_of_the_same_name_and_other_content_is_another_value(tmp_path):
    for name, digest in (("one", "aaa"), ("other", "bbb")):
        make_run(tmp_path / name, dataset__race_table="mine.csv", record={"files": {"dataset.race_table": digest}})
    found = compare.read([tmp_path / "one", tmp_path / "other"])
    assert found.fields == [("dataset.race_table", ["mine.csv (aaa)", "mine.csv (bbb)"])]


def test_many_fields_are_listed_where_columns_have_no_room(tmp_path):
    folders = [make_run(tmp_path / f"a_run_of_a_rather_long_name_{i}", train__epochs=i) for i in (1, 2, 2, 3, 4)[:2]]
    printed = compare.text(compare.read([*folders, make_run(tmp_path / "a_third_of_a_name_as_long_as_that", train__epochs=2)]))
    assert "train.epochs\n    1  (a_run_of_a_rather_long_name_1)\n    2  (a_run_of_a_rather_long_name_2, a_third" in printed


def test_the_page_holds_the_same_and_needs_nothing_else(pair, tmp_path):
    found = compare.read(pair)
    compare.write(found, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    for line in [line for target in found.targets for table in (target.macro, target.classes) for line in table.lines]:
        cells = [audit_rows.value(line.row), audit_rows.interval(line.row), *line.counts]
        if line.difference is not None:
            cells += [audit_rows.number(line.difference.value), audit_rows.number(line.difference.low)]
        assert all(f">{cell}" in page or f"{cell} to" in page for cell in cells)
    assert page.count("<figure>") == 2 and not re.search(r'(?:src|href)="(?!data:)', page) and "http" not in page and "<script" not in page
    compare.write(compare.read(pair), tmp_path / "again.html")
    assert (tmp_path / "again.html").read_bytes() == (tmp_path / "page.html").read_bytes()


def test_intervals_of_differences_are_of_the_audit_s_kind_and_the_page_says_which(pair, copied):
    """That of the first run, as all else of how a difference is judged."""
    found = {}
    for kind, method in (("bca", "BCa, expanded, 100 replicates"), ("percentile", "percentile, 100 replicates"), ("analytic", "Student's, by patients' influence")):
        config = tables.read_json(copied[0] / "config.json")
        config["audit"]["interval"] = kind
        tables.write_json(copied[0] / "config.json", config)
        read = compare.read(copied)
        found[kind] = line_of(read.targets[0].macro, "weak").difference
        assert method in found[kind].method
    _, page = told(read)
    assert page.count("Student&#39;s, by patients&#39; influence") == 1 and " replicates)" not in page
    assert found["bca"] == line_of(compare.read(pair).targets[0].macro, "weak").difference
    assert len({one.low for one in found.values()}) == 3 and len({one.p for one in found.values()}) == 1


def test_rows_in_another_order_say_the_same(pair, copied):
    path = copied[1] / "predictions.parquet"
    predictions = Predictions.read(path)
    Predictions(predictions.table.sample(frac=1, random_state=0).reset_index(drop=True), predictions.targets).write(path)
    assert compare.read(copied).targets[0].said == compare.read(pair).targets[0].said


@pytest.mark.parametrize(
    ("found", "adjusted", "family", "said"),
    [
        (Paired(0.1, 0.05, 0.15, "", 0.01, "", 9, 9), 0.04, 4, "is higher than that of first: 0.100 (0.050 to 0.150), adjusted p .0400"),
        (Paired(-0.1, -0.15, -0.05, "", 0.01, "", 9, 9), 0.04, 4, "is lower than that of first: \N{MINUS SIGN}0.100"),
        (Paired(0.1, 0.05, 0.15, "", 0.02, "", 9, 9), 0.08, 4, "is higher than that of first by its interval, but not after correction for 4 comparisons"),
        (Paired(0.1, 0.05, 0.15, "", np.nan, "few", 9, 9), np.nan, 0, "by its interval, but not by a test, of which there is none"),
        (Paired(0.1, -0.01, 0.2, "", 0.01, "", 9, 9), 0.01, 1, "is not shown to differ from that of first"),
        (Paired(0.1, np.nan, np.nan, "", 0.01, "interval withheld", 9, 9), 0.01, 1, "nothing can be said of it: interval withheld"),
    ],
)
def test_words_claim_no_more_than_interval_and_test_allow(pair, found, adjusted, family, said):
    run = compare.read(pair).runs[0]
    row = audit_rows.first(run.read.rows, metric="auc", class_="macro", attribute="all")
    lines = [compare.Line("first", row, ("9", "9")), compare.Line("other", row, ("9", "9"), found, adjusted)]
    sentences = compare._said(compare.Table("", [("", lines)], family), [types.SimpleNamespace(name=n, read=run.read) for n in ("first", "other")])
    assert said in sentences[0] and "9 images of 9 patients" in sentences[0]


# ------------------------------------------------------------------------------------------------- what it must not say


def no_difference(folders, why, target=0):
    """There is none of the second run in any table of a target, and this is why."""
    found = compare.read(folders)
    for table in (found.targets[target].macro, found.targets[target].classes):
        for _, lines in table.blocks:
            assert lines[1].difference is None and why in lines[1].note
    assert why in re.sub(r"\s+", " ", compare.text(found, classes=True))
    return found


def test_where_a_class_is_rounded_for_few_patients_neither_it_nor_the_mean_has_a_difference(copied):
    change_rows(copied[1], {"n_positive": None, "reason": "n_positive hidden"}, metric="auc", target="findings", attribute="all", class_="Nodule")
    found = compare.read(copied)
    findings = found.targets[1]
    for table, block in ((findings.macro, None), (findings.classes, "Nodule")):
        assert line_of(table, "weak", block).difference is None and "lest a count of few patients show" in line_of(table, "weak", block).note
    assert all(line_of(findings.classes, "weak", name).difference is not None for name in ("Edema", "Fracture"))
    assert findings.classes.family == 2 and line_of(found.targets[0].macro, "weak").difference is not None


@pytest.mark.parametrize("which", [0, 1])
def test_what_an_audit_withholds_is_withheld(copied, which):
    gone = {"value": None, "low": None, "high": None, "n_positive": None, "reason": "fewer than 11 patients have it"}
    change_rows(copied[which], gone, metric="auc", target="race", attribute="all", class_="Cedar")
    change_rows(copied[which], {**gone, "reason": "withheld for Cedar"}, metric="auc", target="race", attribute="all", class_="macro")
    found = compare.read(copied)
    name = ("strong", "weak")[which]
    assert line_of(found.targets[0].macro, "weak").difference is None
    assert line_of(found.targets[0].classes, "weak", "Cedar").difference is None
    printed, _ = told(found)
    block = printed[printed.index("\nCedar") :].splitlines()
    row = next(line for line in block if line.strip().startswith(name))
    assert "withheld" in row and not NUMBER.search(row)
    assert not NUMBER.search(next(line for line in found.targets[0].said))


def test_a_rare_finding_has_no_difference_and_the_mean_is_over_the_others(tmp_path):
    """By the real audit: five patients have it."""
    table = images()
    table["label_Nodule"] = table["patient_id"].isin(np.unique(table.loc[table["split"] == "test", "patient_id"])[:5]).astype(float)
    folders = [make_run(tmp_path / f"r{i}", i, ("findings",), table, seed=i) for i in (1, 2)]
    found = compare.read(folders).targets[0]
    line = line_of(found.classes, "r2", "Nodule")
    assert line.difference is None and audit_rows.value(line.row) == "withheld" and "fewer than 11" in line.note
    parts = [line_of(found.classes, "r2", name).difference.value for name in ("Edema", "Fracture")]
    assert line_of(found.macro, "r2").difference.value == pytest.approx(np.mean(parts))
    assert "left out: Nodule" in line_of(found.macro, "r2").note


def test_a_finding_that_nobody_has_is_undefined(tmp_path):
    table = images().assign(label_Nodule=0.0)
    folders = [make_run(tmp_path / f"r{i}", i, ("findings",), table, seed=i) for i in (1, 2)]
    found = compare.read(folders)
    line = line_of(found.targets[0].classes, "r2", "Nodule")
    assert line.difference is None and audit_rows.value(line.row) == "undefined" and "no positive" in line.note
    assert all("no positive" in shown for shown in told(found))


def test_other_images_are_not_compared_and_how_many_are_shared_is_told(tmp_path):
    table = images()
    kept = table[~table["patient_id"].isin(np.unique(table.loc[table["split"] == "test", "patient_id"])[:30])]
    folders = [make_run(tmp_path / "all", 1, table=table), make_run(tmp_path / "some", 1, table=kept.reset_index(drop=True))]
    n, fewer = ((t["split"] == "test").sum() for t in (table, kept))
    no_difference(folders, f"judged on other images, some of which are shared: {fewer} are shared, of {n} and {fewer}")


def test_other_images_by_a_few_patients_are_not_counted(tmp_path):
    table = images()
    kept = table[~table["patient_id"].isin(np.unique(table.loc[table["split"] == "test", "patient_id"])[:4])]
    folders = [make_run(tmp_path / "all", 1, table=table), make_run(tmp_path / "some", 1, table=kept.reset_index(drop=True))]
    no_difference(folders, "a part has fewer than 11 patients")


def test_other_labels_are_not_compared(tmp_path):
    table = images()
    other = table.assign(race=table["race"].map({"Alder": "Birch", "Birch": "Alder", "Cedar": "Cedar"}))
    no_difference([make_run(tmp_path / "one", 1, table=table), make_run(tmp_path / "other", 1, table=other)], "their labels differ, in")


def test_images_of_other_data_are_the_same_by_their_ids_alone_and_it_says_so(tmp_path):
    folders = [make_run(tmp_path / "one"), make_run(tmp_path / "faint", dataset__phantom__signal=0.5, seed=3)]
    found = compare.read(folders)
    assert line_of(found.targets[0].macro, "faint").difference is not None
    assert all("dataset.phantom.signal" in shown and "the same by their ids" in re.sub(r"\s+", " ", shown) for shown in told(found))


def test_predictions_that_the_audit_is_not_of_are_not_compared(copied):
    path = copied[1] / "predictions.parquet"
    predictions = Predictions.read(path)
    Predictions(predictions.table.assign(score_Alder=predictions.table["score_Alder"] ** 2), predictions.targets).write(path)
    found = compare.read(copied)
    assert line_of(found.targets[0].macro, "weak").difference is not None  # the order, and so the AUC, is the same
    rng = np.random.default_rng(0)
    Predictions(predictions.table.assign(score_Alder=rng.random(len(predictions.table))), predictions.targets).write(path)
    no_difference(copied, "predictions.parquet and audit.json are not of each other; run the audit stage again")


def test_without_predictions_a_run_has_its_audit_and_no_difference(copied):
    (copied[1] / "predictions.parquet").unlink()
    found = no_difference(copied, "there is no predictions.parquet")
    assert np.isfinite(line_of(found.targets[0].macro, "weak").row["value"])
    (copied[0] / "predictions.parquet").unlink()
    no_difference(copied, "of the first run, there is no predictions.parquet")


def test_targets_that_not_all_have(pair, tmp_path):
    other = make_run(tmp_path / "race_only")
    found = compare.read([*pair, other])
    assert [t.called for t in found.targets] == ["group (invented)", "findings"]
    line = line_of(found.targets[1].macro, "race_only")
    assert line.row is None and line.note.startswith("no such target")
    found = compare.read([other, *pair])
    assert all(line.difference is None and "the first run has no target findings" in line.note for line in found.targets[1].macro.lines[1:])
    told(found)


def test_no_target_in_common(tmp_path):
    folders = [make_run(tmp_path / "one", targets=("race",)), make_run(tmp_path / "other", targets=("findings",))]
    for shown in told(compare.read(folders)):
        assert "No two of the runs have predictions of one target. What was predicted: one: race; other: findings." in re.sub(r"\s+", " ", shown)


def test_classes_of_their_own_are_not_compared(tmp_path):
    table = images()
    folders = [make_run(tmp_path / "three", table=table), make_run(tmp_path / "two", table=table)]
    predictions = Predictions.read(folders[1] / "predictions.parquet")
    kept = predictions.table[predictions.table["race"] != "Cedar"].reset_index(drop=True)
    fewer = Predictions(kept, {"race": Target("multiclass", GROUPS[:2])})
    fewer.write(folders[1] / "predictions.parquet")
    settings = types.SimpleNamespace(**tables.read_json(folders[1] / "config.json")["audit"])
    tables.write_json(folders[1] / "audit.json", subgroups.audit(fewer, settings))
    found = compare.read(folders)
    assert line_of(found.targets[0].macro, "two").note.endswith("no difference: its classes are others")
    assert "no such class" in line_of(found.targets[0].classes, "two", "Cedar").note
    told(found)


def test_counts_that_the_report_withholds_are_not_told(copied):
    """How many are in a group of race is withheld in the cohort's table; so is then how many are positive, and no difference is told."""
    for folder in copied:
        rows = [("counts", "race", "all", "test", "images", 150, 0), ("counts", "race", "Alder", "test", "images", "", 1)]
        rows += [("counts", "race", name, "test", "images", 40, 0) for name in GROUPS[1:]]
        keys = ("section", "attribute", "group", "split", "what", "value", "suppressed")
        made = pd.DataFrame(rows, columns=list(keys)).assign(n_images=lambda t: t["value"]).reindex(columns=list(demographics.COLUMNS), fill_value="")
        made.to_csv(folder / "cohort.csv", index=False)
    read = html.read_workdir(copied[1])
    assert np.isnan(audit_rows.first(read.rows, metric="auc", target="race", attribute="all", class_="Alder")["n_positive"])
    found = compare.read(copied).targets[0]
    for line in (line_of(found.macro, "weak"), line_of(found.classes, "weak", "Alder")):
        assert line.difference is None and "lest a count" in line.note
    assert line_of(found.classes, "weak", "Birch").difference is not None


# ------------------------------------------------------------------------------------------------- what it refuses


def half(folder):
    (folder / "run.json").write_text((folder / "run.json").read_text()[:40])


def of_status(status):
    return lambda folder: tables.write_json(folder / "run.json", {**tables.read_json(folder / "run.json"), "status": status})


def of_older_audit(folder):
    """Whose config has no word on intervals; of the first run, since a difference is judged by its settings."""
    path = folder.parent / "strong" / "config.json"
    config = tables.read_json(path)
    del config["audit"]["interval"]
    tables.write_json(path, config)


def stage_undone(folder):
    record = tables.read_json(folder / "run.json")
    del record["stages"]["audit"]
    tables.write_json(folder / "run.json", record)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (of_status("running"), "weak: this run's status is 'running'; only runs that are done are compared"),
        (of_status("failed"), "weak: this run's status is 'failed'"),
        (half, "run.json: not JSON"),
        (lambda f: (f / "run.json").write_text("[]"), "run.json: not the record of a run"),
        (lambda f: (f / "run.json").write_text('{"stages": {}}'), "run.json: not the record of a run that was begun"),
        (stage_undone, "weak: its stage audit is not done"),
        (of_older_audit, "strong/config.json: no field 'audit.interval'; run the audit stage again"),
        (lambda f: (f / "config.json").unlink(), "config.json: no such file"),
        (lambda f: (f / "audit.json").unlink(), "weak: nothing was judged in this run"),
        (lambda f: (f / "audit.json").write_text("[]"), "audit.json: no rows"),
        (lambda f: (f / "audit.json").write_text('[{"value": 1}]'), "audit.json: row 1 has no 'metric'"),
        (lambda f: (f / "predictions.parquet").write_bytes(b"PAR1"), "predictions.parquet: not a Parquet file"),
        (lambda f: (f / "run.json").unlink(), "weak: no run; neither it nor any folder in it has a run.json"),
        (shutil.rmtree, "weak: no such folder"),
    ],
)
def test_a_run_that_cannot_be_compared_is_named_in_one_line(copied, spoil, says):
    spoil(copied[1])
    with pytest.raises(UserError) as caught:
        compare.read(copied)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_fewer_than_two_runs_and_one_named_twice(pair, tmp_path):
    for folders in ([], pair[:1]):
        with pytest.raises(UserError, match="at least two runs"):
            compare.read(folders)
    (tmp_path / "link").symlink_to(pair[0])
    for twice in ([pair[0], pair[1], pair[0]], [pair[0], tmp_path / "link"], [pair[0], pair[0].parent]):
        with pytest.raises(UserError, match="named twice"):
            compare.read(twice)


def sweep(folder, names, runs):
    return [make_run(folder / name, i + 1, seed=i, record={"sweep": {"name": "s", "run": name, "runs": list(runs)}}) for i, name in enumerate(names)]


def test_a_sweep_s_folder_stands_for_its_runs_in_their_order(tmp_path):
    sweep(tmp_path / "s", ("zero", "a", "m"), ("zero", "m", "a"))
    assert [run.name for run in compare.read([tmp_path / "s"]).runs] == ["zero", "m", "a"]
    assert [run.name for run in compare.read(sorted((tmp_path / "s").glob("*"))).runs] == ["a", "m", "zero"]  # as a shell's * gives them
    (tmp_path / "s" / "notes").mkdir()
    assert len(compare.read([tmp_path / "s"]).runs) == 3
    shutil.rmtree(tmp_path / "s" / "m")
    with pytest.raises(UserError, match="s: m of this sweep has not been run"):
        compare.read([tmp_path / "s"])


def test_runs_of_one_name_are_told_apart(tmp_path):
    found = compare.read([make_run(tmp_path / "x" / "race"), make_run(tmp_path / "y" / "race", 2.0)])
    assert [run.name for run in found.runs] == ["x/race", "y/race"]


def test_only_probes_are_compared_without_differences(tmp_path):
    def probed(name, value):
        folder = make_run(tmp_path / name, judged=False, stages=("probe", "audit"), probe__controls=())
        row = dict.fromkeys(subgroups.KEYS) | {
            "metric": "auc", "target": "race", "attribute": "all", "group": "all", "split": "test", "level": 0.95, "n_images": 90, "n_patients": 40,
            "suppressed": False, "low": value - 0.1, "high": value + 0.1, "value": value, "probe": "knn", "input": "features", "shuffled": False,
        }  # fmt: skip
        reading = {"name": "race by knn from features", "target": "race", "probe": "knn", "input": "features", "shuffled": False, "attribute": "", "group": "", "about": {"fit_images": 200, "fit_patients": 90}}
        empty = {name: [] for name in ("comparisons", "against_guessing", "agreement", "absent", "strata_by_truth")}
        rows = [{**row, "class": c} for c in (*GROUPS, "macro")]
        tables.write_json(folder / "probe_audit.json", {"rows": rows, "readings": [reading], "space": {}, **empty})
        return folder

    folders = [probed("one", 0.6), probed("other", 0.7)]
    found = compare.read(folders)
    assert found.targets == [] and [line.row["value"] for line in found.probed[0].lines] == [0.6, 0.7]
    for shown in told(found):
        assert "0.600 to 0.800" in shown and compare.NO_TEST in shown and re.search(r"90(</td>.*>| +)40", shown)
