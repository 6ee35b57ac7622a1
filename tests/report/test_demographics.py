import csv
import io
import re
import types

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from cxr_jax.report import demographics
from cxr_jax.tables import UserError
from tests.report.conftest import FINDINGS, GROUPS, MIN_PATIENTS, draw_cohort

SUMMARY = {
    "name": "made", "variant": "up", "version": "1.0.0", "images": 0, "patients": 0, "quarantined": 0,
    "open_data": False, "invented_groups": False, "description": "Made up.",
}  # fmt: skip


def settings(**more):
    base = {
        "attributes": ("race", "sex", "age_band", "view"), "splits": ("test",), "age_bands": (0, 20, 40, 60, 80),
        "level": 0.95, "replicates": 50, "seed": 0, "min_patients": MIN_PATIENTS,
    }  # fmt: skip
    return types.SimpleNamespace(**base | more)


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


def written(folder, table, steps=None, races=(), dataset=None, **more):
    """(page, rows of cohort.csv) of a cohort."""
    steps = narrowed(table)[1] if steps is None else steps
    path = demographics.write(folder, table, steps, SUMMARY | (dataset or {}), settings(**more), races)
    rows = pd.read_csv(folder / "cohort.csv", keep_default_na=False, na_values={c: [""] for c in NUMBERS})
    return path.read_text(encoding="utf-8"), rows


NUMBERS = ("value", "low", "high", "n_images", "n_patients")


def pick(rows, **wanted):
    keep = np.ones(len(rows), bool)
    for column, value in wanted.items():
        keep &= (rows[column] == value).to_numpy()
    found = rows[keep]
    assert len(found) == 1, (wanted, len(found))
    return found.iloc[0]


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


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """(cohort, page, rows) of a cohort with many small cells."""
    folder = tmp_path_factory.mktemp("odd")
    table, steps = narrowed(odd_cohort(), ("view is AP", lambda t: t["view"] == "AP"))
    return table, *written(folder, table, steps, ("A", "B", "C", "D", "E", "F"))


# ---- numbers are those of other ways to compute them -----------------------------------------------------------------


def test_counts_are_those_of_pandas(odd):
    table, _, rows = odd
    for attribute in ("race", "sex", "view"):
        for (group, split), part in table.groupby([table[attribute].fillna("missing"), "split"]):
            row = pick(rows, section="counts", attribute=attribute, group=group, split=split, what="patients")
            if not row["suppressed"]:
                assert (row["value"], row["n_images"]) == (part["patient_id"].nunique(), len(part))
    total = pick(rows, section="counts", attribute="race", group="all", split="all", what="images")
    assert total["value"] == len(table) and total["n_patients"] == table["patient_id"].nunique()


def test_findings_and_what_is_missing_are_counted(odd):
    table, _, rows = odd
    seen = 0
    for name in FINDINGS:
        column = table[f"finding_{name}"]
        states = {"positive": column == 1, "negative": column == 0, "uncertain": column == -1}
        for what, mask in {**states, "not mentioned": column.isna()}.items():
            row = pick(rows, section="findings", attribute=name, what=f"images {what}")
            assert row["suppressed"] or row["value"] == mask.sum()
            seen += not row["suppressed"]
        row = pick(rows, section="missingness", attribute="all", group="all", what=name)
        assert row["suppressed"] or row["value"] == pytest.approx(column.isna().mean(), abs=1e-4)
    assert seen > len(FINDINGS)
    row = pick(rows, section="missingness", attribute="race", group="A", what="portable: images missing")
    assert row["value"] == (table["portable"].isna() & (table["race"] == "A")).sum()
    assert not rows["what"].str.contains("race_recorded").any()


def test_ages_are_of_patients_with_students_interval(tmp_path, undrawn):
    table = draw_cohort(300)
    rows = written(tmp_path, table)[1]
    for group, part in [*table.groupby("sex"), ("all", table)]:
        ages = part.groupby("patient_id")["age"].min().astype(float)
        wanted = stats.t.interval(0.95, len(ages) - 1, ages.mean(), stats.sem(ages))
        attribute = "all" if group == "all" else "sex"
        row = pick(rows, section="age", attribute=attribute, group=group, what="mean")
        assert row["n_patients"] == len(ages)
        np.testing.assert_allclose([row["value"], row["low"], row["high"]], [ages.mean(), *wanted], atol=0.051)
        for what, value in {"SD": ages.std(), "median": ages.median(), "third quartile": ages.quantile(0.75)}.items():
            row = pick(rows, section="age", attribute=attribute, group=group, what=what)
            assert row["value"] == pytest.approx(value, abs=0.051)


def test_standardised_difference_of_a_quantity_and_of_a_share():
    rng = np.random.default_rng(0)
    a, b = rng.normal(60, 15, 80), rng.normal(55, 10, 200)
    d, low, high = demographics.standardised(a, b, 0, 0.95)
    wanted = (a.mean() - b.mean()) / np.sqrt((a.var(ddof=1) + b.var(ddof=1)) / 2)
    half = 1.959964 * np.sqrt(280 / (80 * 200) + wanted**2 / (2 * 280))
    np.testing.assert_allclose([d, low, high], [wanted, wanted - half, wanted + half], rtol=1e-6)
    a, b = np.repeat([1, 0], [30, 70]), np.repeat([1, 0], [10, 190])
    d = demographics.standardised(a, b, 2, 0.95)[0]
    assert d == pytest.approx((0.3 - 0.05) / np.sqrt((0.3 * 0.7 + 0.05 * 0.95) / 2))


def test_standardised_difference_of_several_categories_by_hand():
    a, b = np.repeat([0, 1, 2], [50, 30, 20]), np.repeat([0, 1, 2], [120, 40, 40])
    p, q = np.array([0.5, 0.3]), np.array([0.6, 0.2])
    s = np.zeros((2, 2))
    for i in range(2):
        for j in range(2):
            s[i, j] = (p[i] * ((i == j) - p[j]) + q[i] * ((i == j) - q[j])) / 2
    wanted = np.sqrt((p - q) @ np.linalg.inv(s) @ (p - q))
    d, low, high = demographics.standardised(a, b, 3, 0.9)
    assert d == pytest.approx(wanted)
    # At the ends of the interval what was found is as unlikely as the level says; the low one may be 0.
    scale = 100 * 200 / 300
    assert stats.ncx2.cdf(d**2 * scale, 2, high**2 * scale) == pytest.approx(0.05, abs=1e-6)
    assert low == 0 or stats.ncx2.cdf(d**2 * scale, 2, low**2 * scale) == pytest.approx(0.95, abs=1e-6)
    # Which category comes last makes no difference.
    turned = demographics.standardised((a + 1) % 3, (b + 1) % 3, 3, 0.9)
    np.testing.assert_allclose(turned, [d, low, high], rtol=1e-8)


def test_a_category_that_nobody_has_counts_for_nothing():
    a, b = np.repeat([0, 2], [40, 60]), np.repeat([0, 2], [90, 110])
    three, two = demographics.standardised(a, b, 3, 0.95), demographics.standardised(a // 2, b // 2, 2, 0.95)
    np.testing.assert_allclose(three, two)


def test_the_interval_of_a_distance_covers_no_difference_as_often_as_it_says():
    rng = np.random.default_rng(0)
    shares, covered = [0.5, 0.3, 0.2], 0
    for _ in range(300):
        a, b = rng.choice(3, 150, p=shares), rng.choice(3, 250, p=shares)
        covered += demographics.standardised(a, b, 3, 0.9)[1] == 0
    assert 0.92 < covered / 300 < 0.98  # one-sided: 95 %


@pytest.mark.parametrize(
    "a, b, categories",
    [([], [1.0, 2.0], 0), ([1.0], [2.0, 3.0], 0), ([1, 1], [1, 1], 2), ([1.0, 1.0], [2.0, 2.0], 0),
     ([0, 0], [1, 1], 3), ([0, 0], [0, 0], 3)],
)  # fmt: skip
def test_a_difference_without_spread_is_undefined(a, b, categories):
    found = demographics.standardised(np.array(a), np.array(b), categories, 0.95)
    assert np.isnan(found).all()


def test_differences_are_of_one_value_a_patient(tmp_path, undrawn):
    table = draw_cohort(600)
    rows = written(tmp_path, table, races=GROUPS)[1]
    first = table.sort_values("age", kind="stable").drop_duplicates("patient_id").set_index("patient_id")
    ever = (table["finding_Edema"] == 1).groupby(table["patient_id"]).any()
    for group in GROUPS:
        here = first["race"] == group
        row = pick(rows, section="differences", attribute="race", group=group, what="age")
        a, b = (first.loc[mask, "age"].astype(float) for mask in (here, ~here))
        assert row["value"] == pytest.approx((a.mean() - b.mean()) / np.sqrt((a.var() + b.var()) / 2), abs=6e-4)
        assert row["n_patients"] == here.sum()
        row = pick(rows, section="differences", attribute="race", group=group, what="Edema")
        p, q = ever[here.index[here]].mean(), ever[here.index[~here]].mean()
        wanted = (p - q) / np.sqrt((p * (1 - p) + q * (1 - q)) / 2)
        assert row["suppressed"] or row["value"] == pytest.approx(wanted, abs=6e-4)
    shown = rows[(rows["section"] == "differences") & ~rows["suppressed"]]
    assert (shown["low"] <= shown["value"]).all() and (shown["value"] <= shown["high"]).all()


def test_rare_categories_count_as_one():
    category, names = demographics._pooled(np.repeat([0, 1, 2, 3, -1], [500, 490, 5, 5, 7]), list("abcd"))
    assert names == ["a", "b", "other"]
    np.testing.assert_array_equal(np.bincount(category + 1), [7, 500, 490, 10])


@pytest.fixture
def undrawn(monkeypatch):
    """No figures, which take most of the time and hold no number that the table lacks."""
    for name in ("counts", "ages", "prevalence", "differences"):
        monkeypatch.setattr(demographics.figures, name, lambda *_: None)


# ---- what an attacker finds ------------------------------------------------------------------------------------------


class Attacker:
    """Knows sums of unknown numbers, and asks whether another sum follows from them."""

    def __init__(self):
        self.names, self.known = {}, []

    def learn(self, parts):
        self.known.append({self.names.setdefault(name, len(self.names)): sign for name, sign in parts.items()})

    def _matrix(self, sums):
        matrix = np.zeros((len(sums), len(self.names)))
        for row, parts in zip(matrix, sums, strict=True):
            for name, sign in parts.items():
                row[name] = sign
        return matrix

    def open_(self):
        """A function: {name: sign} -> whether that sum follows."""
        matrix = self._matrix(self.known)
        _, singular, right = np.linalg.svd(matrix)
        null_space = right[int((singular > 1e-9).sum()) :]

        def follows(parts):
            if any(name not in self.names for name in parts):
                return False
            asked = self._matrix([{self.names[name]: sign for name, sign in parts.items()}])[0]
            return bool(np.abs(null_space @ asked).max(initial=0) < 1e-9)

        return follows


def few(n):
    return 0 < n < MIN_PATIENTS


def attack_flow(rows, table, steps):
    """Small removals and sizes, by race, that follow from the page: [(what, group, rule)]."""
    flow = rows[rows["section"] == "attrition"]
    steps = [s for s in steps if not s["rule"].startswith("of which")]
    groups = sorted(set(flow["group"]))
    real = lambda step, g: step if g == "all" else step["by_race"]["no record" if g == "missing" else g]  # noqa: E731
    out = []
    for unit in ("images", "patients"):
        attacker = Attacker()
        removed = "images removed" if unit == "images" else "patients removed altogether"
        for t, step in enumerate(steps):
            left = {g: (g, t) for g in groups}
            if len(groups) > 1:
                attacker.learn({left[g]: -1 if g == "all" else 1 for g in groups})
            for g in groups:
                here = flow[(flow["group"] == g) & (flow["note"] == step["rule"])].set_index("what")["suppressed"]
                if not here[f"{unit} left"]:
                    attacker.learn({left[g]: 1})
                if t and not here[removed]:
                    attacker.learn({(g, t - 1): 1, left[g]: -1})
        counts = rows[(rows["section"] == "counts") & (rows["attribute"] == "race") & (rows["what"] == unit)]
        splits = sorted(set(counts["split"]) - {"all"})
        name = lambda g, s: (g, len(steps) - 1) if s == "all" else (g, s)  # noqa: E731
        every = sorted(set(counts["group"]))
        for g in every:
            attacker.learn({name(g, s): -1 if s == "all" else 1 for s in (*splits, "all")})
        for s in (*splits, "all"):
            attacker.learn({name(g, s): -1 if g == "all" else 1 for g in every})
        for row in counts.to_dict("records"):
            if not row["suppressed"]:
                attacker.learn({name(row["group"], row["split"]): 1})
        follows = attacker.open_()
        for g in groups:
            for t in range(1, len(steps)):
                now, before = real(steps[t], g), real(steps[t - 1], g)
                gone = now["removed_patients"] if unit == "images" else before["patients"] - now["patients"]
                if few(gone) and follows({(g, t - 1): 1, (g, t): -1}):
                    out.append((unit, g, steps[t]["rule"]))
            for t in (0, len(steps) - 1):
                if few(real(steps[t], g)["patients"]) and follows({(g, t): 1}):
                    out.append((unit, g, t))
        for g in every:
            for s in splits:
                mask = (table["split"] == s) & ((g == "all") | (table["race"].fillna("missing") == g))
                if few(table.loc[mask, "patient_id"].nunique()) and follows({(g, s): 1}):
                    out.append((unit, g, s))
    # Who loses some images only.
    touched = flow[flow["what"] == "patients who lose an image"]
    for t in range(1, len(steps)):
        attacker = Attacker()
        here = touched[touched["note"] == steps[t]["rule"]].set_index("group")["suppressed"]
        wholly = flow[(flow["what"] == "patients removed altogether") & (flow["note"] == steps[t]["rule"])]
        attacker.learn({g: -1 if g == "all" else 1 for g in groups} if len(groups) > 1 else {"all": 1})
        attacker.known = attacker.known if len(groups) > 1 else []
        for g in groups:
            if not here[g] and not wholly.set_index("group")["suppressed"][g]:
                attacker.learn({g: 1})
        if not attacker.known:
            continue
        follows = attacker.open_()
        for g in groups:
            now, before = real(steps[t], g), real(steps[t - 1], g)
            if few(now["removed_patients"] - before["patients"] + now["patients"]) and follows({g: 1}):
                out.append(("partly", g, steps[t]["rule"]))
    return out


RULES = (
    ("view is AP", lambda t: (t["view"] == "AP") | (t["image_id"].str[-1] < "3")),
    ("age is known", lambda t: t["age"].notna()),
    ("sex is known", lambda t: t["sex"].notna()),
    ("one of a kind", lambda t: t["image_id"].str[-2:] != "07"),
)


@pytest.mark.parametrize("seed", range(12))
def test_no_small_removal_follows_from_the_flow(tmp_path, undrawn, seed):
    rng = np.random.default_rng(seed)
    chosen = [RULES[i] for i in rng.permutation(4)[: rng.integers(1, 5)]]
    table, steps = narrowed(odd_cohort(int(rng.choice([60, 200, 700])), seed), *chosen)
    rows = written(tmp_path, table, steps, ("A", "B", "C", "D", "E", "F"))[1]
    assert attack_flow(rows, table, steps) == []


def test_the_attacker_would_find_a_removal_that_is_shown_by_differences(odd):
    table, _, rows = odd
    steps = narrowed(odd_cohort(), ("view is AP", lambda t: t["view"] == "AP"))[1]
    told = rows.assign(suppressed=rows["suppressed"] & (rows["what"] == "images removed"))
    assert attack_flow(told, table, steps)


@pytest.mark.parametrize("seed", range(6))
def test_no_small_share_follows_from_the_tables_together(tmp_path, undrawn, seed):
    table = odd_cohort([120, 300, 900][seed % 3], seed)
    rows = written(tmp_path, table)[1]
    size = rows[(rows["section"] == "counts") & (rows["split"] == "all") & (rows["what"] == "images")]
    size = size.set_index(["attribute", "group"])["suppressed"]
    names = ["0-19", "20-39", "40-59", "60-79", "80+"]
    bands = pd.cut(table["age"], [0, 20, 40, 60, 80, 200], right=False, labels=names)
    columns = {"race": table["race"], "sex": table["sex"], "age_band": bands.astype(object)}
    columns = {a: c.fillna("missing").to_numpy(object) for a, c in columns.items()}
    lost, checked = [], 0
    for name in FINDINGS:
        value = table[f"finding_{name}"]
        state = np.select([value == 1, value == 0, value == -1], [0, 1, 2], 3)
        images, ever = Attacker(), Attacker()
        overall = [pick(rows, section="findings", attribute=name, what=f"images {s}") for s in demographics.STATES]
        images.learn({("all", k): 1 for k in range(4)})
        for k, row in enumerate(overall):
            if not row["suppressed"]:
                images.learn({("all", k): 1})
        if not pick(rows, section="findings", attribute=name, what="patients positive")["suppressed"]:
            ever.learn({"all": 1})
        small_images, small_ever = {}, {}
        for k in range(4):
            small_images[("all", k),] = table.loc[state == k, "patient_id"].nunique()
        for attribute, groups in columns.items():
            names = sorted(set(groups))
            for k in (0, 3):
                images.learn({(attribute, g, k): 1 for g in names} | {("all", k): -1})
            ever_of = {g: {(attribute, g): 1} for g in names}
            if attribute != "age_band":  # where a patient may be in two
                ever.learn({(attribute, g): 1 for g in names} | {"all": -1})
            for g in names:
                here = groups == g
                known = ~size[attribute, g]
                if known:  # everything else in the group, and all of it
                    images.learn({(attribute, g, k): 1 for k in (0, 3, "rest")})
                shown = rows[(rows["section"] == "prevalence") & (rows["attribute"] == attribute)]
                shown = shown[(shown["group"] == g) & (shown["what"] == name)]
                if len(shown) and not shown["suppressed"].any():
                    images.learn({(attribute, g, 0): 1})
                if attribute == "race":
                    row = pick(rows, section="missingness", attribute="race", group=g, what=f"{name}: images missing")
                    if not row["suppressed"]:
                        images.learn({(attribute, g, 3): 1})
                    small_images[(attribute, g, "rest"),] = table.loc[here & (state % 3 > 0), "patient_id"].nunique()
                    small_images[(attribute, g, 3),] = table.loc[here & (state == 3), "patient_id"].nunique()
                small_images[(attribute, g, 0),] = table.loc[here & (state == 0), "patient_id"].nunique()
                small_ever[(attribute, g),] = table.loc[here & (state == 0), "patient_id"].nunique()
                apart = rows[(rows["section"] == "differences") & (rows["attribute"] == attribute)]
                apart = apart[(apart["what"] == name) & ((apart["group"] == g) | (attribute == "sex"))]
                if len(apart) and not apart["suppressed"].any() and g != "missing":
                    ever.learn(ever_of[g])
        for attacker, small in ((images, small_images), (ever, small_ever)):
            follows = attacker.open_()
            for parts, patients in small.items():
                checked += few(patients)
                if few(patients) and follows({part: 1 for part in parts}):
                    lost.append((name, parts, patients))
    assert lost == [] and checked > 20


def test_no_group_s_ages_follow_from_the_others(odd):
    table, _, rows = odd
    for attribute in ("race", "sex"):
        means = rows[(rows["section"] == "age") & (rows["attribute"] == attribute) & (rows["what"] == "mean")]
        known = table.dropna(subset="age").groupby(table[attribute].fillna("missing"))["patient_id"].nunique()
        hidden = means.loc[means["suppressed"], "group"]
        assert all(g in set(hidden) for g in known.index if few(known[g]))
        assert len(hidden) != 1


def test_what_is_suppressed_has_no_number_and_nothing_shown_is_small(odd):
    _, page, rows = odd
    gone = rows["suppressed"]
    assert gone.any() and rows.loc[gone, list(NUMBERS)].isna().all(axis=None)
    shown = rows.loc[~gone, "n_patients"].dropna()
    assert not ((shown > 0) & (shown < MIN_PATIENTS)).any()
    finite = rows["section"].isin(["prevalence", "differences"]) & ~gone & rows["value"].notna()
    assert ((rows["low"].notna() & rows["n_patients"].notna()) | (rows["note"] != ""))[finite].all()
    assert "withheld" in page


# ---- odd cohorts -----------------------------------------------------------------------------------------------------


def of_one_patient():
    return draw_cohort(40).groupby("patient_id").head(1).iloc[:1]


CASES = {
    "no race": lambda: draw_cohort(200).assign(race=pd.Series(dtype="str")),
    "no ages": lambda: draw_cohort(200).assign(age=np.nan),
    "no column of age": lambda: draw_cohort(200).drop(columns="age"),
    "keys alone": lambda: draw_cohort(60)[["image_id", "patient_id", "split"]],
    "one patient": of_one_patient,
    "one class": lambda: draw_cohort(200).assign(sex="F", race="A", view="AP"),
    "no sex": lambda: draw_cohort(200).assign(sex=pd.Series(dtype="str")),
    "nothing mentioned": lambda: draw_cohort(80).assign(**{f"finding_{f}": np.nan for f in FINDINGS}),
    "nobody ill": lambda: draw_cohort(80).assign(**{f"finding_{f}": 0.0 for f in FINDINGS}),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("least", [MIN_PATIENTS, 1])
def test_odd_cohorts_get_a_page(tmp_path, case, least):
    page, rows = written(tmp_path, CASES[case]().reset_index(drop=True), min_patients=least)
    assert page.rstrip().endswith("</html>") and len(rows)
    assert "nan" not in re.sub(r"base64,[\w+/=]*", "", page).lower().replace("finance", "")
    if case in ("no race", "keys alone"):
        assert "No race is recorded" in page
    if case in ("no ages", "no column of age", "keys alone"):
        assert "No age is recorded" in page
    if case == "one patient":
        assert rows.loc[rows["section"] == "age", "suppressed"].all() == (least > 1)


def test_a_group_that_the_rules_empty_stays_in_the_flow(tmp_path, undrawn):
    table, steps = narrowed(draw_cohort(600), ("not Dogwood", lambda t: t["race"] != "Dogwood"))
    rows = written(tmp_path, table, steps, GROUPS)[1]
    left = rows[(rows["section"] == "attrition") & (rows["group"] == "Dogwood") & (rows["what"] == "images left")]
    assert left["value"].tolist()[-1] == 0 and left["value"].tolist()[0] == steps[0]["by_race"]["Dogwood"]["images"]
    gone = pick(rows, section="attrition", group="all", what="patients who lose an image", note="not Dogwood")
    assert gone["value"] == steps[1]["removed_patients"]


def test_several_reasons_for_no_race_are_one_group_where_some_are_left(tmp_path, undrawn):
    table = odd_cohort(400)
    steps = narrowed(table)[1]
    for step in steps:
        whole = step["by_race"].pop("no record")
        half = {k: v // 2 for k, v in whole.items()}
        step["by_race"] |= {"conflicting": half, "unknown": {k: whole[k] - half[k] for k in whole}}
    rows = written(tmp_path, table, steps)[1]
    names = set(rows.loc[rows["section"] == "attrition", "group"])
    assert "missing" in names and not names & {"conflicting", "unknown"}


def test_attrition_that_does_not_add_up_is_refused_and_nothing_is_written(tmp_path):
    table, steps = narrowed(draw_cohort(100), ("view is AP", lambda t: t["view"] == "AP"))
    steps[1]["removed_images"] += 1
    with pytest.raises(ValueError, match="attrition"):
        written(tmp_path / "none", table, steps)
    assert not (tmp_path / "none").exists()


def test_the_page_is_whole_asks_for_nothing_and_repeats(tmp_path):
    table = draw_cohort(200)
    page, _ = written(tmp_path, table, races=GROUPS)
    assert not re.search(r"<(script|link|iframe|object|embed)\b|url\(|@import", page)
    assert all(r.startswith(("data:", "#")) for r in re.findall(r'(?:src|href)="([^"]*)"', page))
    sections = re.findall(r'<section id="(\w+)"', page)
    assert sections == ["left", "counts", "findings", "ages", "prevalence", "missing", "differences", "read"]
    assert not list(tmp_path.glob("*.partial"))
    before = (tmp_path / "cohort.csv").read_bytes(), page
    again = written(tmp_path, table, races=GROUPS)[0]
    assert ((tmp_path / "cohort.csv").read_bytes(), again) == before


def test_invented_groups_are_called_so(tmp_path):
    page, _ = written(tmp_path, draw_cohort(200), races=GROUPS, dataset={"invented_groups": True})
    said = re.sub(r"base64,[\w+/=]*", "", page)
    assert "groups here are invented" in said and "by group (invented)" in said
    assert "race as recorded" not in said and "the race is recorded" not in said


def test_names_are_escaped(tmp_path, undrawn):
    table = draw_cohort(200)
    table["view"] = "<b>&"
    assert "<b>&" not in written(tmp_path, table)[0]


def test_an_attribute_of_many_values_is_left_out_and_says_so(tmp_path, undrawn):
    table = draw_cohort(400)
    table["manufacturer"] = pd.Series([f"maker {i % 40}" for i in range(len(table))], dtype="str")
    page, rows = written(tmp_path, table, attributes=("race", "manufacturer"))
    row = pick(rows, section="counts", attribute="manufacturer")
    assert row["value"] == 40 and "left out" in row["note"] and row["note"] in page
    assert pick(rows, section="missingness", attribute="all", what="manufacturer")["value"] == 0


def test_the_release_is_held_against_what_is_published(tmp_path, undrawn):
    counts = [("images", 1000, 990), ("patients", 400, 400), ("sex F", None, 190), ("sex M", None, 207)]
    counts = [{"count": c, "expected": e, "found": f} for c, e, f in [*counts, ("sex unknown", None, 3)]]
    integrity = {"counts": counts, "complete": False, "statements": ["x_1.png is broken"],
                 "quarantined": {"truncated": 4, "empty": 50}, "stored": {"all": 936}}  # fmt: skip
    table = draw_cohort(100)
    page, rows = written(tmp_path, table, dataset={"integrity": integrity})
    release = rows[rows["section"] == "release"].set_index("what")
    assert release.loc["images", "value"] == 990 and "\N{MINUS SIGN}10" in page
    # 400 - 190 - 207 is 3, and 54 - 50 is 4.
    assert list(release.index[release["suppressed"]]) == [
        "sex F", "sex unknown", "images in quarantine: truncated", "images in quarantine: empty",
    ]  # fmt: skip
    assert "&lt;11" in page and "x_1.png" not in page
    page, rows = written(tmp_path, table, dataset={"integrity": integrity, "open_data": True})
    assert not rows.loc[rows["section"] == "release", "suppressed"].any() and "x_1.png" in page


def test_a_removal_of_a_few_hides_where_it_started(tmp_path, undrawn):
    table = draw_cohort(300)
    lost = table["patient_id"].isin(["p00001", "p00002"])
    left, steps = narrowed(table, ("a rule", lambda t: ~lost[t.index]))
    counts = [{"count": "images", "expected": None, "found": len(table)}]
    page, rows = written(tmp_path, left, steps, GROUPS, {"integrity": {"counts": counts}})
    assert attack_flow(rows, left, steps) == []
    assert f"{len(table):,}" not in re.sub(r"base64,[\w+/=]*", "", page)
    text = (tmp_path / "cohort.csv").read_text()
    assert not any(str(len(table)) in row for row in csv.reader(io.StringIO(text)))


def test_what_says_which_patient_makes_no_groups(tmp_path):
    with pytest.raises(UserError, match="config.audit.attributes: patient_id says which image or patient"):
        written(tmp_path, draw_cohort(60), attributes=("race", "patient_id"))
