import base64
import html.parser
import json
import re
import shutil
import types

import numpy as np
import pytest
from sklearn import metrics

from cxr_jax import tables
from cxr_jax.report import demographics
from cxr_jax.report import html as report
from cxr_jax.report import rows as audit_rows
from tests.report.attack import People, attack, shown_in_report, shown_in_table
from tests.report.conftest import FINDINGS, GROUPS, MIN_PATIENTS, make_workdir, narrowed, odd_cohort


class Page(html.parser.HTMLParser):
    """What a browser would find: elements with their attributes, tables as lists of rows, and the text."""

    def __init__(self, source: str):
        super().__init__()
        self.elements, self.tables, self.texts, self.skip = [], [], [], False
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.skip = tag == "style"
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        self.skip = False

    def handle_data(self, data):
        if self.skip:
            return
        self.texts.append(data)
        if self.tables and self.tables[-1] and self.tables[-1][-1] and self.lasttag in ("td", "th", "code", "br"):
            self.tables[-1][-1][-1] += data.strip()

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.texts))

    def images(self) -> list[dict]:
        return [attrs for tag, attrs in self.elements if tag == "img"]

    def table(self, *heads: str) -> list[list[str]]:
        """Rows of the first table whose head has these words, without the head."""
        return next(t[1:] for t in self.tables if t and set(heads) <= set(t[0]))


def page(workdir, examples=()) -> Page:
    return Page(report.write(workdir, examples).read_text(encoding="utf-8"))


def change(path, edit):
    value = json.loads(path.read_text())
    edit(value)
    path.write_text(json.dumps(value))


@pytest.fixture(scope="module")
def written(made, tmp_path_factory):
    """target -> (workdir, page), written once."""
    found = {}
    for target in ("race", "findings"):
        path = tmp_path_factory.mktemp("written") / target
        shutil.copytree(made[target], path)
        found[target] = (path, page(path, [(np.full((32, 32), 7, np.uint8), "a picture")]))
    return found


@pytest.mark.parametrize("target", ["race", "findings"])
def test_page_is_whole_and_asks_for_nothing(written, target):
    path, found = written[target]
    source = (path / "report.html").read_text()
    assert source.rstrip().endswith("</html>") and len(source) < 3_000_000
    assert not list(path.glob("**/*.partial"))
    for tag, attrs in found.elements:
        assert tag not in ("script", "link", "iframe", "object", "embed")
        for name in ("src", "href", "srcset", "data"):
            if name in attrs:
                assert attrs[name].startswith(("data:", "#")), (tag, attrs[name][:80])
    style = re.search("<style>(.*?)</style>", source, re.DOTALL)[1]
    assert "url(" not in style and "@import" not in style
    assert "@media print" in style and 'name="viewport"' in source
    for drawing in (path / "figures").glob("*.svg"):
        svg = drawing.read_text()
        assert "<script" not in svg and "<!DOCTYPE" not in svg
        assert all(ref.startswith(("#", "data:")) for ref in re.findall(r'href="([^"]*)"', svg))
        assert "<text" not in svg  # letters are drawn, so no font is asked for


def test_sections_come_in_order(written):
    source = (written["race"][0] / "report.html").read_text()
    sections = "whom cohort quarantine good roc forest confusion calibration training gaps missed calibrated mix card sheet run aucs examples use".split()
    wanted = ["<h1>D_race: DenseNet-121", "macro AUC for", *(f'id="{name}"' for name in sections)]
    at = [source.index(piece) for piece in wanted]
    assert at == sorted(at)


def test_figures_are_the_files_and_say_what_they_show(written):
    for path, found in written.values():
        drawn = [i for i in found.images() if i["src"].startswith("data:image/svg")]
        files = {f.read_bytes() for f in (path / "figures").glob("*.svg")}
        assert {base64.b64decode(i["src"].split(",")[1]) for i in drawn} == files and len(files) >= 4
        for image in found.images():
            assert len(image["alt"]) > 20 or image["alt"] == "Example image: a picture"


def test_same_files_give_same_bytes(audit_only):
    path = audit_only()
    first = report.write(path).read_bytes()
    assert report.write(path).read_bytes() == first


def test_aucs_are_those_of_scikit_learn(written):
    path, found = written["race"]
    judged = tables.Predictions.read(path / "predictions.parquet")
    rows = {row[0]: row for row in found.table("class", "ceiling")}
    told = []
    for name in GROUPS:
        value = metrics.roc_auc_score(judged.label("race", name), judged.table[f"score_{name}"])
        best = metrics.roc_auc_score(judged.label("race", name), judged.table[f"ceiling_{name}"])
        told.append(value)
        assert rows[name][1] == f"{value:.3f}" and rows[name][3].startswith(f"{best:.3f} (")
        assert rows[name][5] == f"{len(judged.table):,}"
    assert rows["all classes (macro)"][1] == f"{np.mean(told):.3f}"
    n = f"On {len(judged.table)} test images of {judged.table['patient_id'].nunique()} patients"
    said = f"{n}, the model's macro AUC for telling the 4 invented groups apart is {np.mean(told):.3f} (95 % interval"
    assert said in found.text


def test_small_cells_are_withheld_and_others_are_the_cohorts(written):
    path, found = written["race"]
    cohort, _ = tables.read_parquet(path / "cohort.parquet")
    cohort["band"] = np.array(["0-19", "20-39", "40-59", "60-79", "80+"])[(cohort["age"] // 20).astype(int).clip(0, 4)]
    small = checked = 0
    for attribute in ("race", "sex", "view", "age_band"):
        head = audit_rows.attribute_name(attribute, invented=True)
        column = "band" if attribute == "age_band" else attribute
        for line in found.table(head, "train", "validation", "test"):
            for told, split in zip(line[1:4], ("train", "validation", "test"), strict=True):
                whole = cohort.sort_values("age", kind="stable").drop_duplicates("patient_id")
                inside = [t[t[column].isin(line[0].split(" or ")) & (t["split"] == split)] for t in (cohort, whole)]
                cell, patients = inside[0], len(inside[1])
                small += 0 < patients < MIN_PATIENTS
                checked += told != "withheld"
                assert told == (f"{patients:,} / {len(cell):,}" if told != "withheld" else told)
                assert told == "withheld" or not 0 < patients < MIN_PATIENTS
    assert small and checked > 20  # or this test shows nothing


TARGETS = ("race", "findings", "sex")


@pytest.fixture(scope="module", params=range(3))
def odd(request, tmp_path_factory):
    """A cohort whose groups and findings are rare, some race, sex and age missing, judged by each target: (target -> workdir, who they
    are, the sums that the cohort's page shows)."""
    whole, folder = odd_cohort(300, request.param), tmp_path_factory.mktemp("odd")
    table, steps = narrowed(whole, ("view is AP", lambda t: t["view"] == "AP"))
    paths = {target: make_workdir(folder / target, target, table=table, steps=steps, cohort=folder / "race" / "cohort.csv") for target in TARGETS}
    left = (whole["view"] == "AP").to_numpy()
    everything = np.ones(len(whole), bool)
    people = People(table, whole, [("every image of the data set", everything), ("view is AP", left)], MIN_PATIENTS)
    return paths, people, shown_in_table(people, demographics.read(paths["race"] / "cohort.csv"))


@pytest.mark.parametrize("target", TARGETS)
def test_no_small_cell_follows_from_both_pages(odd, monkeypatch, target):
    """Two pages tell of the same people."""
    paths, people, shown = odd
    read = report.read_workdir(paths[target])
    assert read.every["attribute"].eq("race*sex").any() or target != "findings"
    found, small = attack(people, shown, shown_in_report(people, read.every))
    assert found == [] and small > 20
    before = audit_rows.of_groups(audit_rows.read(paths[target] / "audit.json"))
    assert (read.rows["n_images"] < before["n_images"]).any() or (read.rows["n_images"].isna() & before["n_images"].notna()).any()
    monkeypatch.setattr(report, "read_workdir", lambda _: read)  # the same files
    assert read.rounded and "n is rounded down" in report.auc_table(paths[target])


def test_counts_that_the_cohort_withholds_are_in_no_table(workdir):
    """F has 5 patients in training: those of F and M in the test split then follow from nothing that is shown."""
    path = workdir("race")
    table, meta = tables.read_parquet(path / "cohort.parquet")
    few = table.loc[(table["sex"] == "F") & (table["split"] == "train"), "patient_id"].unique()[5:]
    table = table[~table["patient_id"].isin(few) & (table["split"] != "validation")]
    run, config = tables.read_json(path / "run.json"), tables.read_json(path / "config.json")
    settings = types.SimpleNamespace(**config["audit"])
    demographics.write(path, table, narrowed(table)[1], run["dataset"], settings, meta["races"])
    read = report.read_workdir(path)
    by_sex = read.rows[read.rows["attribute"] == "sex"]
    assert by_sex["value"].notna().any() and by_sex[["n_images", "n_patients"]].isna().all(axis=None)
    of_view = read.rows[(read.rows["attribute"] == "view") & (read.rows["metric"] != "calibration")]
    assert of_view["n_images"].notna().all()
    lines = [line for line in report.auc_table(path).splitlines() if line.strip().startswith("sex:")]
    assert len(lines) == 2 and all(line.split()[-2:] == ["\N{EN DASH}"] * 2 for line in lines)


def test_confusion_tells_no_count_that_the_cohort_withholds(made):
    rows, cohort = audit_rows.read(made["race"] / "audit.json"), demographics.read(made["race"] / "cohort.csv")
    here = (cohort["section"] == "counts") & (cohort["group"] == "Dogwood") & (cohort["split"] == "test")
    assert here.sum() == 2 and not cohort.loc[here, "suppressed"].any()
    found, _ = report._withhold_counts(rows, cohort.assign(suppressed=cohort["suppressed"] | here), MIN_PATIENTS)
    counts = ["n_images", "n_patients", "n_positive"]
    own = audit_rows.select(found, metric="confusion", class_="Dogwood")
    assert len(own) and own[counts].isna().all(axis=None) and own["value"].notna().all()
    assert audit_rows.select(found, metric="confusion", class_="Alder")["n_images"].notna().all()
    auc = audit_rows.first(found, metric="auc", class_="Dogwood")
    assert np.isnan(auc["n_positive"]) and auc["n_images"] > 0  # the latter is everybody's


def test_undefined_and_withheld_figures_say_why(written):
    _, found = written["findings"]
    tables_with_notes = [t for t in found.tables if t and t[0][-1:] == ["note"]]
    lines = [line for t in tables_with_notes for line in t[1:] if {"undefined", "withheld"} & set(line)]
    assert lines and all(line[-1] for line in lines)
    few = [line for line in lines if line[-1] == "fewer than 11 patients"]
    assert few and all("withheld" in line and "undefined" not in line for line in few)


def test_other_measures_have_n_and_say_why_one_is_missing(audit_only, made, unpainted):
    path = audit_only("sex")
    few = {"value": None, "low": None, "high": None, "n_images": None, "n_patients": None, "suppressed": True}

    def withhold(rows):
        here = (r for r in rows if r["metric"] == "brier" and r["class"] == "F" and r["attribute"] == "all")
        next(here).update(few, reason="fewer than 11 patients")

    change(path / "audit.json", withhold)
    judged = tables.Predictions.read(path / "predictions.parquet").table
    lines = {line[0]: line for line in page(path).table("class", "average precision", "note")}
    assert lines["M"][-3:] == [f"{len(judged):,}", f"{judged['patient_id'].nunique():,}", ""]
    assert "withheld" in lines["F"] and lines["F"][-1] == "Brier score: fewer than 11 patients"


def test_a_page_on_other_data_than_those_of_training_is_about_them(workdir, made, unpainted):
    path = workdir("race")
    shutil.move(path / "cohort.csv", path / "judged_cohort.csv")
    of_training = demographics.read(path / "judged_cohort.csv")
    of_training[of_training["attribute"] != "sex"].to_csv(path / "cohort.csv", index=False)
    change(path / "config.json", lambda c: c["predict"].update(dataset="nih"))
    with pytest.raises(tables.UserError, match="predictions are of the data of training, the config asks for nih"):
        report.write(path)
    judged = {"asked": "nih", "name": "nih", "variant": "", "version": "2.0.0", "open_data": False, "invented_groups": False}
    judged |= {"quarantined": 7, "description": "X-rays of people."}
    change(path / "run.json", lambda run: run.update(judged=judged))
    found = page(path, [(np.zeros((4, 4), np.uint8), "not to be shown")])
    assert [line[0] for line in found.table("sex", "train", "test")] == ["F", "M"]
    assert "the model was judged on, nih 2.0.0; it was trained on the other, phantom planted 1.0.0." in found.text
    assert "race as recorded" in found.text and "invented" not in found.text and "not to be shown" not in found.text
    assert "7 files of the release" in found.text and "truncated" not in found.text
    for piece in ("data set phantom planted 1.0.0", "judged on nih 2.0.0", "drawn by a program", "X-rays of people."):
        assert piece in found.text
    change(path / "config.json", lambda c: c["predict"].update(dataset=""))
    with pytest.raises(tables.UserError, match="predictions are of nih, the config asks for the data of training"):
        report.write(path)
    change(path / "config.json", lambda c: c["predict"].update(dataset="nih"))
    (path / "judged_cohort.csv").unlink()
    with pytest.raises(tables.UserError, match="judged_cohort.csv: no such file"):
        report.write(path)


def test_what_was_run_is_told(written):
    path, found = written["race"]
    assert ["train.epochs", "10", "3"] in found.table("field", "default", "this run")
    for piece in (
        "python -m cxr_jax.main --config=configs/race.py",
        "0f3c9d2e7a1b",
        "phantom planted 1.0.0",
        "train 3 min 21 s",
        "checkpoint best",
    ):
        assert piece in found.text
    assert ["truncated", "2"] in found.table("reason", "files")


def test_invented_groups_are_never_called_race(written, audit_only, unpainted):
    assert "group (invented)" in written["race"][1].text and "groups here are invented" in written["race"][1].text
    assert "race as recorded" not in written["race"][1].text
    path = audit_only("sex")
    assert "  group (invented): Alder" in report.auc_table(path)
    change(path / "run.json", lambda run: run["dataset"].update(invented_groups=False))
    assert "race as recorded" in page(path).text and "  race as recorded: Alder" in report.auc_table(path)


def test_what_is_shown_is_escaped(audit_only):
    path = audit_only()
    evil = "<script>alert(1)</script>"
    change(path / "config_diff.json", lambda d: d.update({evil: {"base": evil, "run": [evil]}}))
    change(path / "config.json", lambda c: c.update(name=evil))
    change(path / "run.json", lambda r: r.update(headline=evil, command=evil, packages={evil: evil}))
    change(path / "audit.json", lambda rows: [r.update({"class": evil}) for r in rows if r["class"] == "F"])
    (path / "quarantine.csv").write_text(f"image_id,reason\na,{evil}\n")
    report.write(path, [(np.zeros((4, 4), np.uint8), evil)])
    source = (path / "report.html").read_text()
    assert "<script" not in source and source.count("&lt;script&gt;") >= 8


def test_predictions_from_outside_get_a_report(audit_only, unpainted):
    path = audit_only("sex")
    change(
        path / "run.json",
        lambda run: [run.pop(name) for name in ("dataset", "headline", "packages", "device", "git_commit")],
    )
    found = page(path, [(np.zeros((4, 4), np.uint8), "not to be shown")])
    assert "predictions from outside" in found.text and "no cohort.parquet" in found.text
    assert not (path / "figures" / "learning_curves.svg").exists() and (path / "figures" / "roc_sex.svg").exists()
    assert "not to be shown" not in found.text


def test_several_targets_stand_side_by_side(audit_only, made, unpainted):
    path = audit_only("sex")
    other = [row | {"target": "a/b"} for row in tables.read_json(made["race"] / "audit.json")]
    change(path / "audit.json", lambda rows: rows.extend(other))
    found = page(path)
    assert {f.name for f in (path / "figures").iterdir()} >= {"roc_sex.svg", "roc_a_b.svg", "confusion_a_b.svg"}
    assert "Overall: a/b" in found.text and "Overall: sex" in found.text


def test_two_classes_show_one_curve(audit_only, unpainted):
    path = audit_only("sex")
    found = page(path)
    assert "the curve for M is this one mirrored" in found.text
    assert "the model's AUC for telling the 2 classes of sex apart is" in found.text


def test_images_are_shown_of_open_data_alone(audit_only, unpainted):
    path = audit_only()
    examples = [(np.full((8, 8), i, np.uint8), f"picture {i}") for i in range(3)]
    shown = [i for i in page(path, examples).images() if i["src"].startswith("data:image/png")]
    assert [i["alt"] for i in shown] == [
        "Example image: picture 0",
        "Example image: picture 1",
        "Example image: picture 2",
    ]
    change(path / "run.json", lambda run: run["dataset"].update(open_data=False))
    found = page(path, examples)
    assert "picture" not in found.text and not [i for i in found.images() if "png" in i["src"][:20]]


@pytest.mark.parametrize("name", ["audit.json", "config.json", "config_diff.json", "run.json"])
def test_missing_input_is_named_and_nothing_is_written(audit_only, name):
    path = audit_only()
    (path / name).unlink()
    with pytest.raises(tables.UserError, match=re.escape(name)):
        report.write(path)
    assert not (path / "report.html").exists() and not (path / "figures").exists()


@pytest.mark.parametrize(
    "name, text, said",
    [
        ("audit.json", "[]", "no rows"),
        ("audit.json", '[{"metric": "auc"}]', "row 1 has no 'target'"),
        ("audit.json", '{"metric": "auc"}', "list of rows"),
        ("config.json", '{"name": "x"}', "no field 'audit.min_patients'"),
        ("run.json", '{"status": "done", "dataset": {}}', "no field 'dataset.invented_groups'"),
        ("quarantine.csv", "image_id\na\n", "no column 'reason'"),
        ("metrics.jsonl", '{"step": 1\n{"step": 2, "split": "train", "epoch": 0.1, "loss": 1}\n', "row 1"),
    ],
)
def test_broken_input_is_named(audit_only, name, text, said):
    path = audit_only()
    (path / name).write_text(text)
    with pytest.raises(tables.UserError, match=f"{re.escape(name)}.*{re.escape(said)}"):
        report.write(path)
    assert not (path / "report.html").exists() and not (path / "figures").exists()


def test_metrics_of_a_run_that_was_killed_and_resumed(tmp_path):
    line = {"split": "train", "epoch": 0.5, "loss": 1.0}
    lines = [{**line, "step": s, "loss": loss} for s, loss in ((1, 3.0), (2, 2.0), (3, 9.0), (2, 2.5))]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in lines) + '{"step": 4, "spl')
    assert [(r["step"], r["loss"]) for r in report._records(path)] == [(1, 3.0), (2, 2.5), (3, 9.0)]


def words(value, low, high, ceiling=None, difference=None) -> str:
    """The first screen for one macro AUC with such an interval."""
    row = dict.fromkeys(audit_rows.KEYS) | {
        "target": "race", "class": "macro", "attribute": "all", "group": "all", "split": "test", "level": 0.95,
        "n_images": 100, "n_patients": 50, "suppressed": False,
    }  # fmt: skip
    rows = [row | {"metric": "auc", "value": value, "low": low, "high": high}]
    rows += [row | {"metric": "auc", "class": c, "value": value, "low": low, "high": high} for c in "ABC"]
    if ceiling:
        rows.append(row | {"metric": "auc_ceiling", "value": ceiling, "low": ceiling, "high": ceiling})
        rows.append(
            row
            | {
                "metric": "auc_difference",
                "reference": "ceiling",
                "value": difference[0],
                "low": difference[1],
                "high": difference[2],
            }
        )
    said = report._in_words(audit_rows.frame(rows), "race", "test", lambda a: a, True)
    return " ".join([*said["sentences"], *said["points"]])


def test_words_claim_no_more_than_intervals_allow():
    assert "whole interval lies above 0.5" in words(0.7, 0.6, 0.8)
    covering = words(0.52, 0.45, 0.6)
    assert "covers 0.5" in covering and "no evidence" in covering and "above 0.5" not in covering
    assert "worse than guessing" in words(0.4, 0.3, 0.49)
    assert "nothing can be said" in words(0.7, None, None)
    assert "undefined: no reason given" in words(None, None, None)


def test_words_on_the_ceiling_follow_the_paired_difference():
    assert "ceiling" not in words(0.7, 0.6, 0.8)
    assert "stays below" in words(0.7, 0.6, 0.8, 0.9, (-0.2, -0.3, -0.1))
    near = words(0.7, 0.6, 0.8, 0.72, (-0.02, -0.05, 0.01))
    assert "does not tell the model from the ceiling" in near and "stays below" not in near
    above = words(0.9, 0.85, 0.95, 0.8, (0.1, 0.05, 0.15))
    assert "above the ceiling, which one run in 40 would be by chance; otherwise something gives" in above
    assert "the best that can be expected of any model" in above and "stays below" not in above


def test_words_give_the_reason_of_the_one_class_that_is_missing():
    row = dict.fromkeys(audit_rows.KEYS) | {"metric": "auc", "target": "sex", "attribute": "all", "group": "all"}
    row |= {"split": "test", "suppressed": False, "level": 0.95}
    rows = [
        row | {"class": "F", "value": 0.7},
        row | {"class": "M", "reason": "one class only: no positive; n_positive hidden lest a count show"},
        row | {"class": "macro", "reason": "undefined for M"},
    ]

    def said(rows):
        table = report._with_reasons(audit_rows.frame(rows))
        return report._in_words(table, "sex", "test", lambda a: a, False)["sentences"]

    assert said(rows) == ["The macro AUC for sex is undefined for M: one class only: no positive."]
    rows[0]["value"], rows[2]["reason"] = None, "undefined for F, M"
    assert said(rows) == ["The macro AUC for sex is undefined for F, M."]
    rows[2].update(suppressed=True, reason="fewer than 11 patients")
    assert said(rows) == ["The macro AUC for sex is withheld: fewer than 11 patients."]


def test_one_finding_is_called_by_its_name():
    row = dict.fromkeys(audit_rows.KEYS) | {"metric": "auc", "target": "findings", "attribute": "all", "group": "all"}
    row |= {"split": "test", "suppressed": False, "level": 0.95, "value": 0.7, "n_images": 100, "n_patients": 50}
    rows = audit_rows.frame([row | {"class": name} for name in ("Edema", "macro")])
    first = report._in_words(rows, "findings", "test", lambda a: a, False)["sentences"][0]
    assert first == "On 100 test images of 50 patients, the model's AUC for recognising Edema is 0.700 (no interval)."


def test_groups_are_compared_by_overlap_alone():
    def across(*intervals, tested=False):
        row = dict.fromkeys(audit_rows.KEYS) | {"metric": "auc", "target": "race", "class": "macro", "split": "test"}
        row |= {"attribute": "sex", "suppressed": False}
        rows = [row | {"group": g, "value": v, "low": a, "high": b} for g, v, a, b in intervals]
        return "".join(report._across_groups(audit_rows.frame(rows), "race", "test", lambda a: a, tested))

    near = across(("F", 0.8, 0.7, 0.9), ("M", 0.85, 0.8, 0.9), ("X", 0.82, 0.7, 0.9))
    assert "by sex from 0.800 (F) to 0.850 (M), whose intervals overlap." in near and "have not been tested" in near
    assert "tested under For whom it is worse" in across(("F", 0.8, 0.7, 0.9), ("M", 0.85, 0.8, 0.9), tested=True)
    assert "do not overlap" in across(("F", 0.6, 0.5, 0.7), ("M", 0.85, 0.8, 0.9))
    assert "from 0.600 (F) to 0.900 (X), not both" in across(
        ("F", 0.6, 0.5, 0.7), ("M", 0.8, 0.7, 0.9), ("X", 0.9, None, None)
    )
    assert across(("F", 0.6, 0.5, 0.7), ("M", None, None, None)) == ""


def test_a_run_that_is_not_done_says_so(audit_only, unpainted):
    path = audit_only()
    change(path / "run.json", lambda run: run["stages"].update(report={"status": "running"}))
    assert "This run is not done" not in page(path).text
    change(path / "run.json", lambda run: run["stages"].update(train={"status": "running"}))
    assert "This run is not done: train did not end." in page(path).text


@pytest.mark.parametrize("target", ["race", "findings", "sex"])
def test_terminal_table_holds_every_class_with_interval_ceiling_and_n(made, target):
    rows = tables.read_json(made[target] / "audit.json")
    text = report.auc_table(made[target])
    lines = text.splitlines()
    assert lines[0] == f"AUC of {target}, test images" and "95 % interval" in lines[1]
    classes = {"race": GROUPS, "findings": FINDINGS, "sex": ("F", "M")}[target]
    for name in classes:
        row = next(r for r in rows if (r["metric"], r["class"], r["group"]) == ("auc", name, "all"))
        line = next(line for line in lines if line.startswith(name + " "))
        pieces = ["withheld"]
        if row["value"] is not None:
            pieces = [f"{row['value']:.3f}", f"{row['low']:.3f} to {row['high']:.3f}"]
        for piece in (*pieces, str(row["n_images"]), str(row["n_patients"])):
            assert piece in line
        if target == "race":
            best = next(r for r in rows if (r["metric"], r["class"], r["group"]) == ("auc_ceiling", name, "all"))
            assert f"{best['value']:.3f}" in line
    assert ("ceiling" in text) == (target == "race")
    why = next(line for line in lines if line.endswith("] fewer than 11 patients"))
    assert any("withheld" in line and why.split()[0] in line for line in lines)
    assert max(len(line) for line in lines if not line.startswith("[")) <= 105
