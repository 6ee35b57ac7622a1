"""For whom it is worse: that the page says what the audit found, in an order and in numbers from which nobody follows."""

import re

import numpy as np
import pandas as pd
import pytest

from cxr_jax import tables
from cxr_jax.report import gaps, html
from cxr_jax.report import rows as audit_rows


def row(metric="auc", name="Edema", group="a", value=0.0, low=None, high=None, p=None, holm=None, attribute="race", **more):
    low, high = (value - 0.1 if low is None else low), (value + 0.1 if high is None else high)
    return dict.fromkeys(audit_rows.KEYS) | {
        "metric": metric, "target": "findings", "class": name, "attribute": attribute, "group": group, "split": "test",
        "effect": "difference", "reference": "rest", "value": value, "low": low, "high": high, "level": 0.95, "method": "m",
        "n_images": 100, "n_patients": 60, "p": p, "p_bootstrap": p, "p_holm": holm, "p_by": holm, "family": 12, "suppressed": False,
    } | more  # fmt: skip


def figure(group, attribute="race", metric="auc", name="Edema", value=0.8, **more):
    return row(metric, name, group, value, attribute=attribute, effect=None, reference=None, **more)


def frame(*rows):
    return audit_rows.frame(list(rows))


THREE = [figure(g) for g in "abc"]


def name_of(attribute):
    return attribute


def test_what_is_worse_has_one_sign_whatever_the_metric():
    found = gaps.gaps(frame(*THREE, row("auc", value=-0.2, p=0.01), row("false_negative_rate", value=0.204, p=0.02), row("false_positive_rate", value=-0.1, p=0.03)), "test")
    assert found["worse"].tolist() == pytest.approx([0.2, 0.2, -0.1])
    assert (found["worse_low"] < found["worse_high"]).all() and found["worse_low"].iloc[0] == pytest.approx(0.1)
    assert gaps.title(found.iloc[1], 1) == "Edema missed" and gaps.title(found.iloc[2], 2) == "findings: Edema called where it is not"
    assert gaps.difference(found.iloc[1], "worse") == "20 points (10 to 30)" and gaps.difference(found.iloc[0], "worse") == "0.200 (0.100 to 0.300)"


def test_of_two_groups_the_worse_is_listed():
    two = [figure(g, "sex") for g in "FM"]
    rows = [row(group="F", value=0.05, p=0.3, attribute="sex"), row(group="M", value=-0.05, p=0.3, attribute="sex")]
    assert gaps.gaps(frame(*two, *rows), "test")["group"].tolist() == ["M"]
    alike = [row(group=g, value=0.0, p=1.0, attribute="sex") for g in "FM"]
    assert len(gaps.gaps(frame(*two, *alike), "test")) == 1
    assert gaps.gaps(frame(*[figure(g, "sex") for g in "FMX"], *rows), "test")["group"].tolist() == ["M", "F"]


def said(*rows):
    found = gaps.gaps(frame(*THREE, *rows), "test")
    return " ".join(gaps.sentences(found, name_of, 0.95, 2000) + gaps.underdiagnosis(found, name_of, [])).replace("\N{NO-BREAK SPACE}", " ")


def test_words_for_what_survives():
    text = said(
        row("false_negative_rate", group="a", value=0.2, p=1e-6, holm=1e-5), row("false_negative_rate", group="b", value=-0.2, p=1e-5, holm=1e-4),
        row("auc", group="c", value=-0.3, p=0.04, holm=0.4),
    )  # fmt: skip
    assert "12 differences between a group and all others were tested" in text and "Of these two survive Holm's correction at 5 %" in text
    assert "Edema missed: in race a 20 points (10 to 30) worse than in all others; corrected p < .0001." in text
    assert "In one of those that survive, the group fares better" in text and "race c" not in text


def test_words_where_nothing_survives_claim_no_equality():
    text = said(row("auc", group="a", value=-0.3, low=-0.5, high=-0.1, p=0.03, holm=0.3), row("auc", group="b", value=0.1, p=0.4, holm=1.0))
    assert "Of these none survive" in text and "That does not show that groups fare alike" in text and "as far as 0.20" in text
    assert "worse than in all others" not in text


def test_underdiagnosis_is_told_with_what_the_interval_allows():
    clear = row("false_positive_rate", "No Finding", "a", 0.2, p=0.0001, holm=0.001)
    unclear = row("false_positive_rate", "No Finding", "a", 0.05, p=0.3, holm=1.0)
    assert "highest, against all others, in race: a: 20 points (10 to 30) more, the interval leaves out 0; corrected p .0010" in said(clear)
    assert "the interval covers 0" in said(unclear)


def test_without_tests_nothing_is_claimed():
    assert "could be estimated" in said() and "have no tests" in said(row("auc", value=-0.3))


def test_the_forest_draws_the_clearest_and_marks_what_survives():
    rows = [row("auc", f"C{k}", "a", -k / 100, p=k / 1000, holm=0.01 if k == 1 else 1.0) for k in range(1, 40)]
    found = gaps.gaps(frame(*THREE, *rows), "test")
    drawn = gaps.forest(found, name_of, 0.95)
    assert f"Shown are the {gaps.MOST} with the lowest p of 39" in drawn.caption
    assert drawn.alt.count("survives correction") == 1 and "AUC for C1, race: a: 0.010" in drawn.alt and "C39" not in drawn.alt
    assert gaps.forest(found.iloc[:0], name_of, 0.95) is None


@pytest.mark.parametrize("target", ["findings", "race"])
def test_the_page_tells_it_all(made, target):
    path = made[target]
    html.write(path)
    page = (path / "report.html").read_text()
    for section in ("gaps", "missed", "calibrated"):
        assert f'<section id="{section}"' in page and f'href="#{section}"' in page
    assert (path / "figures" / "gaps.svg").exists()
    family = {r["family"] for r in tables.read_json(path / "audit.json") if r["family"]}
    assert len(family) == 1 and f"corrected over {family.pop():,} tests" in page
    missed = page[page.index('<section id="missed"') : page.index('<section id="calibrated"')]
    cells = re.findall(r"<td>([^<]*)</td>", missed)
    rates = [cell for cell in cells if "%" in cell]
    assert len(rates) > 8 and all(re.fullmatch(r"\d+ %( \(\d+ to \d+\))?", cell) for cell in rates), "whole per cent, or a count would follow"
    # Everybody's is what the audit says.
    (own,) = (
        r for r in tables.read_json(path / "audit.json")
        if r["metric"] == "false_negative_rate" and r["attribute"] == "all" and r["effect"] is None and r["class"] == ("Edema" if target == "findings" else "Cedar")
    )  # fmt: skip
    assert f"{100 * own['value']:.0f} % ({100 * own['low']:.0f} to {100 * own['high']:.0f})" in rates


def test_intersections_stand_raw_and_shrunk(made):
    read = html.read_workdir(made["findings"])
    found = gaps.intersection_tables(read.every, "test", read.name_of)
    assert found and all(table["title"].endswith("by group (invented) × sex") for table in found)
    lines = [line for table in found for line in table["lines"]]
    assert any("%" in line["raw"] for line in lines) and all("×" in line["group"] and (line["shrunk"] or line["note"]) for line in lines)
    cell = {"attribute": "race*sex", "group": "a * F", "metric": "false_negative_rate"}
    raw = figure(**cell, value=0.5, low=0.3, high=0.7)
    (table,) = gaps.intersection_tables(frame(raw, raw | {"effect": "shrunk", "value": 0.41, "low": 0.3, "high": 0.52}), "test", name_of)
    assert table["title"] == "Edema missed, by race × sex"
    assert table["lines"] == [{"group": "a × F", "patients": "60", "raw": "50 % (30 to 70)", "shrunk": "41 % (30 to 52)", "note": ""}]


def test_what_cannot_be_said_names_whom(made):
    read = html.read_workdir(made["findings"])
    rows = read.every.copy()
    gone = (rows["attribute"] == "sex") & (rows["group"] == "F")
    rows.loc[gone, "suppressed"] = True
    text = " ".join(gaps.unsaid(rows, "test", read.name_of, 11))
    assert "Of sex, nothing is shown of F: fewer than 11 patients" in text


def like(base, value, **more):
    """The same difference to others like the group."""
    return base | {"reference": "like", "value": value, "low": value - 0.1, "high": value + 0.1, "p": None, "p_holm": None, "p_by": None, "family": None} | more


def test_case_mix_stands_beside_what_was_found():
    real = row("false_negative_rate", group="a", value=0.2, p=1e-6, holm=1e-5)
    other = row("auc", group="b", value=-0.2, p=0.2, holm=1.0)
    rows = frame(*THREE, real, other, like(real, 0.15), like(real, 0.05, effect="mix", low=None, high=None), like(other, -0.055, reason="84 % of the images have others like them in labels, view, the rest in fewer of these"), like(other, -0.145, effect="mix", low=None, high=None))
    found = gaps.mix_table(rows, gaps.gaps(rows, "test"), "test", name_of)
    assert [(line["rest"], line["like"], line["mix"], line["real"]) for line in found] == [
        ("20 points (10 to 30)", "15 points (5 to 25)", "5 points", True),
        ("0.200 (0.100 to 0.300)", "0.055 (\N{MINUS SIGN}0.045 to 0.155)", "0.145", False),  # of an AUC less is worse
    ]
    assert [(line["many"], line["names"], line["note"]) for line in found] == [("", (), ""), ("84 %", ("view",), "")]


def mix_said(*pairs):
    """What is said of differences, and of the same to others like the group."""
    rows = frame(*THREE, *(row for one, other in pairs for row in (one, other, other | {"effect": "mix", "low": None, "high": None})))
    return " ".join(gaps.mix_sentences(gaps.mix_table(rows, gaps.gaps(rows, "test"), "test", name_of), name_of))


def test_words_for_what_case_mix_leaves():
    real = [row("false_negative_rate", name, "a", 0.2, p=1e-6, holm=1e-5) for name in ("Edema", "Fracture", "Other")]
    labels = {"reason": "most of the images have others like them in labels, view, sex, the rest in fewer of these"}
    stays, goes, withheld = ({"value": 0.15}, {"value": 0.05}, {"value": 0.15, "low": None, "high": None})
    beside = [like(one, **kind, **labels) for one, kind in zip(real, (stays, goes, withheld))]
    one = "The one difference to a group's disadvantage that survives correction"
    tail = "when others are weighted to be like the group in labels and, but for the attribute itself, in view, sex."
    assert mix_said((real[0], beside[0])) == f"{one} stays clear of 0 {tail}"
    assert mix_said((real[1], beside[1])) == f"{one} is no longer clear of 0 {tail}"
    assert mix_said((real[2], beside[2])) == f"{one} cannot be told {tail}"
    assert mix_said(*zip(real, beside)).startswith("Of the three differences to a group's disadvantage that survive correction one stays clear of 0, one is no longer clear of 0, of one it cannot be told when")
    # At 0 by what is shown it is not clear of it.
    assert "no longer clear" in mix_said((real[0], like(real[0], 0.1, low=0.004, high=0.2)))
    assert mix_said((real[0], like(real[0], 0.15))).endswith("in labels alone, since nothing else is recorded.")
    thin = like(real[0], 0.15, reason="31 % of the images have others like them in labels, view, the rest in fewer of these")
    assert "For one of them fewer than half of the images have others like them" in mix_said((real[0], thin))
    # Of what does not survive nothing is said, nor of a group that fares better.
    for one in (row("auc", group="b", value=-0.2, p=0.2, holm=1.0), row("false_negative_rate", group="a", value=-0.2, p=1e-6, holm=1e-5)):
        assert mix_said((one, like(one, one["value"]))) == ""
    assert gaps.mix_table(frame(*THREE, real[0]), gaps.gaps(frame(*THREE, real[0]), "test"), "test", name_of) == []


def test_one_point_is_one_point():
    assert gaps.difference(row("false_negative_rate", value=-0.01, low=-0.03, high=0.01)) == "\N{MINUS SIGN}1 point (\N{MINUS SIGN}3 to 1)"
    assert gaps.difference(row("false_negative_rate", value=0.11)) == "11 points (1 to 21)"


def test_what_is_missed_where_no_class_is_no_finding():
    found = gaps.gaps(frame(*THREE, row("false_negative_rate", group="b", value=0.1, low=-0.1, high=0.3, p=0.3, holm=1.0)), "test")
    (text,) = gaps.underdiagnosis(found, name_of, [])
    assert "what is missed: Edema missed, in race: b, against all others 10 points (\N{MINUS SIGN}10 to 30) more, the interval covers 0" in text
    assert gaps.underdiagnosis(found, name_of, ["findings"]) == []  # classes that exclude one another are no findings


def test_an_audit_without_gaps_has_none():
    assert gaps.context(frame(*THREE), "test", name_of, {"level": 0.95}) is None
    assert gaps.share(pd.Series({"value": 0.234, "low": np.nan, "high": np.nan})) == "23 %"
