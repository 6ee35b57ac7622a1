"""What somebody who reads a cohort's table, and a report on the same people, could work out from both together.

Every number that is shown is a sum over single images, or single patients, none of which is known: a row of zeros and
ones. A small cell follows from what is shown if, and only if, its own row is a combination of those. Nothing here knows
how the code under test adds up tables and totals.
"""

import itertools

import numpy as np
import pandas as pd

from cxr_jax.report.demographics import AT_FIRST

BANDS = ["0-19", "20-39", "40-59", "60-79", "80+"]
STATES = {"positive": 1, "negative": 0, "uncertain": -1}


class People:
    """table: a cohort. whole: what it was drawn from. steps: bool [n] over the whole, what is left after each rule."""

    def __init__(self, table, whole, steps, least):
        self.whole, self.steps, self.least = whole, steps, least
        self.cohort = whole["image_id"].isin(table["image_id"]).to_numpy()
        self.patient, self.patients = pd.factorize(whole["patient_id"])
        ages = whole["age"].where(self.cohort).to_numpy(float)
        order = np.lexsort((np.arange(len(whole)), ages, ~self.cohort))
        self.first = order[np.unique(self.patient[order], return_index=True)[1]]
        age = pd.cut(whole["age"], [0, 20, 40, 60, 80, 200], right=False, labels=BANDS).astype(object)
        self.values = {a: whole[a].astype(object).fillna("missing").to_numpy(object) for a in ("race", "sex", "view", "split")}
        self.values["age_band"] = age.astype(object).where(age.notna(), "missing").to_numpy(object)
        self.at_first = np.zeros(len(whole), bool)
        self.at_first[self.first] = True
        self.findings = {c.removeprefix("finding_"): whole[c].to_numpy(float) for c in whole if c.startswith("finding_")}

    def cell(self, **having):
        """Images of the cohort: bool [n]. A value may name several groups, as `F or not recorded` does."""
        mask = self.cohort.copy()
        for name, value in having.items():
            if value == "all":
                continue
            if name in self.findings:
                states = {k: self.findings[name] == v for k, v in STATES.items()}
                states |= {"not mentioned": np.isnan(self.findings[name])}
                mask &= states[value]
            else:
                members = [m.replace("not recorded", "missing") for m in value.split(" or ")]
                mask &= np.isin(self.values[name].astype(str), members)
        return mask

    def steady(self, attribute):
        """Whether no patient is in two groups."""
        return pd.Series(self.values[attribute][self.cohort]).groupby(self.patient[self.cohort]).nunique().max() == 1

    def who(self, images):
        """Patients of some images: float [patients]."""
        return (np.bincount(self.patient[images], minlength=len(self.patients)) > 0).astype(float)

    def few(self, images):
        return 0 < self.who(images).sum() < self.least


def shown_in_table(people, rows):
    """(sums of images, sums of patients) that cohort.csv shows, each float [k, n]."""
    images, patients = [], []
    rows = rows[~rows["suppressed"]]

    def tell(mask, n_images=True, n_patients=True):
        images.append(mask) if n_images else None
        patients.append(people.who(mask)) if n_patients else None

    for row in rows.to_dict("records"):
        section, attribute, group, what = (row[k] for k in ("section", "attribute", "group", "what"))
        if section == "counts" and what.startswith(("images", "patients")) and np.isfinite(row["value"]):
            mask = people.cell(**{attribute: group, "split": row["split"]})
            mask &= people.at_first if what == AT_FIRST and group != "all" else True
            tell(mask, what == "images", what != "images")
        elif section == "attrition" and not row["note"].startswith("of which"):
            t = [rule for rule, _ in people.steps].index(row["note"])
            left, before = people.steps[t][1], people.steps[max(t - 1, 0)][1]
            here = flow_group(people, group)
            if what.startswith("images"):
                images.append((left if what.endswith("left") else before & ~left) & here)
            else:
                now, then = people.who(left & here), people.who(before & here)
                patients.append(now if what.endswith("left") else then - now)
        elif section == "attrition":
            mask = people.cell(split=row["note"].split()[-1])
            tell(mask, what.startswith("images"), what.startswith("patients"))
        elif section == "findings" and what == "patients positive":
            patients.append(people.who(people.cell(**{attribute: "positive"})))
        elif section == "findings":
            images.append(people.cell(**{attribute: what.removeprefix("images "), "split": row["split"]}))
        elif section == "prevalence":
            images.append(people.cell(**{what: "positive", attribute: group}))
            tell(people.cell(**{attribute: group}), n_patients=np.isfinite(row["n_patients"]))
        elif section == "missingness" and np.isfinite(row["value"]):
            variable = what.partition(": ")[0]
            missing = {variable: "not mentioned"} if variable in people.findings else {variable: "missing"}
            if variable in (*people.findings, *people.values):
                images.append(people.cell(**{attribute: group, **missing}))
        elif section == "differences" and np.isfinite(row["value"]):
            patients += compared(people, attribute, group, what)
    return images, patients


def compared(people, attribute, group, what):
    """What a difference tells: how many of a group's patients are of each kind."""
    here = people.who(people.cell(**{attribute: group}) & people.at_first)
    if what in people.findings:
        return [here * people.who(people.cell(**{what: "positive"})), here]
    covariate, _, kept = what.partition(" (")
    return [
        here * people.who(people.cell(**{covariate: value}) & people.at_first)
        for value in kept.rstrip(")").split(", ") if covariate in people.values and value != "other"
    ]  # fmt: skip


def flow_group(people, group):
    if group == "all":
        return np.ones(len(people.whole), bool)
    members = [m.replace("no record", "missing").replace("not recorded", "missing") for m in group.split(" or ")]
    return np.isin(people.values["race"].astype(str), members)


def shown_in_report(people, rows):
    """The same of the counts of a report: rows as the report has them, blanked where it does not show them."""
    images, patients = [], []
    for row in rows.to_dict("records"):
        if row["metric"] not in ("auc", "accuracy") or row["effect"] is not None or not np.isfinite(row["n_images"]):
            continue
        target, split = row["target"], row["split"]
        several = dict(zip(row["attribute"].split("*"), row["group"].split(" * "), strict=True))
        mask = people.cell(**several, split=split)
        if target in people.values:
            mask &= people.values[target] != "missing"
        elif target == "findings" and row["class"] in people.findings:
            mask &= np.isfinite(people.findings[row["class"]]) & (people.findings[row["class"]] >= 0)
        # Where a label is not known of all, and of patients who may be in several groups, n is rounded down, as is said.
        whole = people.cell(**several, split=split)
        if len(several) > 1:
            # Of an intersection nothing says how many there are in all, but the largest number of any target or class.
            if row["n_images"] == mask.sum():
                images.append(mask)
            if row["n_patients"] == people.who(mask).sum() and all(people.steady(a) for a in several):
                patients.append(people.who(mask))
            assert row["n_images"] in (mask.sum(), mask.sum() // people.least * people.least)
            continue
        if mask.sum() == whole.sum() or (row["attribute"] == "all" and target in people.values):
            assert row["n_images"] == mask.sum()
            images.append(mask)
            if row["attribute"] == "all" or people.steady(row["attribute"]):
                assert row["n_patients"] == people.who(mask).sum()
                patients.append(people.who(mask))
            else:
                assert row["n_patients"] % people.least == 0
        else:
            assert row["n_images"] % people.least == 0 and row["n_patients"] % people.least == 0
        # By group the report says of no class how many are positive.
        if row["attribute"] == "all" and np.isfinite(row["n_positive"]):
            name = row["class"]
            positive = {name: "positive"} if name in people.findings else {target: name}
            images.append(people.cell(**positive, split=split))
    return images, patients


def small_cells(people):
    """(name, images, patients) of every small cell that the numbers are about, of the groups as they are recorded."""
    found = []

    def add(mask, *name):
        if people.few(mask):
            found.append((name, mask, people.who(mask)))

    def add_patients(who, *name):
        if 0 < who.sum() < people.least:
            found.append((name, np.zeros(len(people.whole), bool), who))

    groups = {a: [*sorted(set(v[people.cohort].astype(str))), "all"] for a, v in people.values.items()}
    for attribute in ("race", "sex", "age_band", "view"):
        for group in groups[attribute]:
            for split in groups["split"]:
                add(people.cell(**{attribute: group, "split": split}), attribute, group, split)
    for race, sex in itertools.product(groups["race"][:-1], groups["sex"][:-1]):
        add(people.cell(race=race, sex=sex, split="test"), "race * sex", race, sex)
    for name in people.findings:
        for state in (*STATES, "not mentioned"):
            add(people.cell(**{name: state}), name, state)
        for split in groups["split"]:
            add(people.cell(**{name: "positive", "split": split}), name, split)
        for attribute in ("race", "sex", "age_band"):
            for group in groups[attribute]:
                positive = people.cell(**{name: "positive", attribute: group})
                add(positive, name, attribute, group)
                add(people.cell(**{attribute: group}) & ~positive, f"no {name}", attribute, group)
        for group in groups["race"]:
            add(people.cell(**{name: "not mentioned", "race": group}), name, "not mentioned", group)
    for variable, attribute in itertools.permutations(("race", "sex", "age_band", "view"), 2):
        for group, split in itertools.product(groups[attribute], ("test", "all")):
            if split == "test" or attribute == "race":
                cell = people.cell(**{variable: "missing", attribute: group, "split": split})
                add(cell, variable, "missing", attribute, group, split)
    for attribute, split in itertools.product(("race", "sex", "age_band", "view"), groups["split"]):
        everybody = people.who(people.cell(split=split))
        who = {group: people.who(people.cell(**{attribute: group, "split": split})) for group in groups[attribute][:-1]}
        for group, some in who.items():
            add_patients(everybody - some, "never", attribute, group, split)
        for (a, one), (b, other) in itertools.combinations(who.items(), 2):
            add_patients(one * other, "both", a, b, split)
    for name in people.findings:
        ever = people.who(people.cell(**{name: "positive"}))
        for attribute in ("race", "sex"):
            for group in groups[attribute]:
                add_patients(people.who(people.cell(**{attribute: group})) * (1 - ever), "never", name, group)
    for (_, before), (rule, left) in zip(people.steps, people.steps[1:], strict=False):
        for group in groups["race"]:
            here = flow_group(people, group)
            add(before & ~left & here, "removed", rule, group)
            add_patients(people.who(before & here) - people.who(left & here), "removed altogether", rule, group)
            add(left & here, "left", rule, group)
    return found


def follows(sums, wanted):
    """Which rows of `wanted` are combinations of those of `sums`: bool [k]."""
    if not len(sums):
        return np.zeros(len(wanted), bool)
    sums, wanted = (np.array(x, float) for x in (sums, wanted))
    # Images, or patients, that every sum treats alike count as one: that much smaller is the problem.
    kinds = np.unique(np.vstack([sums, wanted]), axis=1)
    sums, wanted = kinds[: len(sums)], kinds[len(sums) :]
    _, singular, basis = np.linalg.svd(np.unique(sums, axis=0), full_matrices=False)
    basis = basis[singular > 1e-8 * singular[0]]
    return np.linalg.norm(wanted - wanted @ basis.T @ basis, axis=1) < 1e-6


def attack(people, *shown):
    """Names of small cells that follow from all that is shown, [(unit, name)]; and how many small ones there are."""
    images, patients = ([row for part in shown for row in part[k]] for k in (0, 1))
    small = small_cells(people)
    out = []
    if small:
        for unit, sums, k in (("images", images, 1), ("patients", patients, 2)):
            # Among few patients sums of one and of another kind are often of the same people, which nobody can know
            # from the numbers.
            if unit == "patients" and len(people.patients) < 150:
                continue
            known = follows(sums, [cell[k] for cell in small])
            out += [(unit, cell[0]) for cell, yes in zip(small, known, strict=True) if yes and cell[k].any()]
    return out, len(small)


def shown_in_probes(people, rows):
    """The same of probes' counts: rows as `probes.read` gives them, of the test split and of labels that the cohort has."""
    images, patients = [], []
    for row in rows[np.isfinite(rows["n_images"])].to_dict("records"):
        if row["attribute"] != "all":
            # Of strata, whose rest is in no table, only about how many there are.
            assert row["n_images"] % people.least == 0 and np.isnan(row["n_positive"])
            assert np.isnan(row["n_patients"]) or row["n_patients"] % people.least == 0
            continue
        label = people.values[row["target"]]
        mask = people.cell(split="test") & (label != "missing")
        assert row["n_images"] == mask.sum() and row["n_patients"] == people.who(mask).sum()
        images.append(mask)
        patients.append(people.who(mask))
        if np.isfinite(row["n_positive"]):
            assert not row["shuffled"]
            images.append(people.cell(**{row["target"]: row["class"], "split": "test"}))
    return images, patients
