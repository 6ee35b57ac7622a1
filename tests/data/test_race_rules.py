"""The reviewed table, and each rule on records whose outcome is known by hand."""

import pathlib

import numpy as np
import pandas as pd
import pytest

from configs import base
from cxr_jax.data import cohorts, race_rules
from cxr_jax.data.race_rules import NO_RECORD, NOT_KNOWN, SEVERAL
from cxr_jax.tables import UserError
from tests import releases


def config(name="mimic", rule="four_race", **fields):
    dataset = base.get_config().dataset
    dataset.update({"name": name, "race_rule": rule, "views": (), **fields})
    return dataset


def keys(race, ethnicity=None, **columns):
    """A key table of one image a patient, with what is recorded of each."""
    n = len(race)
    text = lambda values: pd.Series([value or None for value in values], dtype="str")  # noqa: E731
    table = {
        "image_id": text([f"i{i}" for i in range(n)]),
        "patient_id": text([f"p{i}" for i in range(n)]),
        "released_split": text([""] * n),
        "race": text(race),
        "view": text(["PA"] * n),
        **columns,
    }
    if ethnicity is not None:
        table["ethnicity"] = text(ethnicity)
    return pd.DataFrame(table)


def standing(table, rule, name="mimic"):
    return list(race_rules.apply(table, (), config(name, rule)).standing)


def kept(table, rule, name="mimic"):
    ruled = race_rules.apply(table, (), config(name, rule))
    left = np.all([mask for _, mask in ruled.steps], axis=0) if ruled.steps else np.ones(len(table), bool)
    return [race if keep else None for race, keep in zip(ruled.race, left, strict=True)]


# ---- the table -----------------------------------------------------------------------------------


def test_every_value_that_a_release_is_known_to_write_has_its_group():
    table = race_rules.read_table()
    known = {(row.dataset, row.field): set() for row in table.itertuples()}
    for row in table.itertuples():
        known[row.dataset, row.field].add(row.value)
    assert {*releases.V1_RACES, *releases.V2_RACES} == known["mimic", "race"]
    assert {*releases.CHEXPERT_RACES} - {""} <= known["chexpert", "race"]
    assert {*releases.CHEXPERT_ETHNICITIES} - {""} == known["chexpert", "ethnicity"]
    assert (table["source"] != "").all()


def test_mimic_s_coarse_totals_are_those_published():
    table = race_rules.read_table()
    group = table[table["dataset"] == "mimic"].set_index("value")["group"]
    totals = pd.Series({v: n for v, n in releases.V22_FIRST_ADMISSION.items() if v}).groupby(group).sum()
    assert totals["White"] == 218_203 + 1_299  # Portuguese
    assert (totals["Black"], totals["Asian"]) == (55_837, 10_930)
    assert totals["Hispanic/Latino"] == 18_869 + 473  # South American
    assert totals.sum() == 377_110 - 46_663


@pytest.mark.parametrize(
    "line, message",
    [
        ("mimic,race,BLUE,Blue,unknown,me", r"line 2, column 'group': 'Blue' found, 'White' or"),
        ("MIMIC,race,BLUE,White,unknown,me", "line 2, column 'dataset': 'MIMIC' found, 'mimic' or 'chexpert'"),
        ("mimic,rase,BLUE,White,unknown,me", "line 2, column 'field': 'rase' found, 'race' or 'ethnicity'"),
        ("mimic,race,BLUE,White,perhaps,me", "line 2, column 'hispanic': 'perhaps' found"),
        ("mimic,race,BLUE,White", "line 2: 4 cells found, 6 expected"),
        ("mimic,race,A,White,no,me\nmimic,race,A,Black,no,me", "line 3: value 'A' is there twice"),
    ],
)
def test_a_table_of_one_s_own_that_is_wrong(tmp_path, line, message):
    path = tmp_path / "own.csv"
    path.write_text(",".join(race_rules.COLUMNS) + "\n" + line + "\n")
    with pytest.raises(UserError, match=message):
        race_rules.apply(keys(["WHITE"]), (), config(race_table=str(path)))
    path.write_text("value,group\n")
    with pytest.raises(UserError, match="line 1: the columns dataset,field,value"):
        race_rules.apply(keys(["WHITE"]), (), config(race_table=str(path)))
    with pytest.raises(UserError, match="nowhere.csv: not a readable table"):
        race_rules.apply(keys(["WHITE"]), (), config(race_table=str(tmp_path / "nowhere.csv")))


def test_lines_of_a_table_are_counted_as_an_editor_does(tmp_path):
    path = tmp_path / "own.csv"
    rows = [",".join(race_rules.COLUMNS), "mimic,race,A,White,no,me", "", "mimic,race,B,Blue,no,me"]
    path.write_text("\n".join(rows) + "\n", encoding="utf-8-sig")  # as spreadsheets save it
    with pytest.raises(UserError, match="own.csv: line 4, column 'group': 'Blue' found"):
        race_rules.read_table(path)
    path.write_text("\n".join(rows[:3]) + "\n", encoding="utf-8-sig")
    assert list(race_rules.read_table(path).index) == [2]


def test_rows_of_a_table_of_one_s_own_that_match_nothing_are_told(tmp_path):
    path = tmp_path / "own.csv"

    def told(*rows, name="mimic", **columns):
        path.write_text("\n".join([",".join(race_rules.COLUMNS), *rows]) + "\n")
        return race_rules.unmatched(keys(["WHITE|ASIAN", ""], **columns), config(name, race_table=str(path)))

    idle, used, other = "mimic,race,WHTE,White,no,me", "mimic,race,ASIAN,Other,no,me", "chexpert,race,White,White,no,me"
    assert told(used) == told(used, other) == []
    assert told(used, idle) == [f"1 row of {path} matches nothing that mimic records: line 3"]
    assert told(idle, used, "mimic,ethnicity,WHITE,,no,me") == [f"2 rows of {path} match nothing that mimic records: lines 2, 4"]
    assert told(other) == [f"no row of {path} is of mimic"]
    assert told("chexpert,ethnicity,No,,no,me", name="chexpert", ethnicity=["No", ""]) == []
    assert race_rules.unmatched(keys(["WHITE"]), config()) == []


def test_values_that_the_table_lacks_are_listed_with_their_counts(tmp_path):
    table = keys(["WHITE", "MARTIAN", "ASIAN|MARTIAN", "VENUSIAN"])
    with pytest.raises(UserError) as caught:
        race_rules.apply(table, (), config())
    assert "race 'MARTIAN' (2 images), race 'VENUSIAN' (1 images)" in str(caught.value)
    # A table of one's own adds them, and may judge otherwise of what ours has.
    own = tmp_path / "own.csv"
    rows = ["mimic,race,MARTIAN,Other,unknown,me", "mimic,race,VENUSIAN,Asian,no,me", "mimic,race,WHITE,Other,unknown,me"]
    own.write_text("\n".join([",".join(race_rules.COLUMNS), *rows]) + "\n")
    ruled = race_rules.apply(table, (), config(rule="all", race_table=str(own)))
    assert list(ruled.standing) == ["Other", "Other", SEVERAL, "Asian"]


def test_the_tables_in_force_are_known_by_their_fingerprint(tmp_path):
    def found(table=keys(["WHITE", "OTHER"]), **fields):
        return race_rules.apply(table, (), config(rule="all", **fields)).table

    def own(*rows):
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.csv"
        path.write_text("\n".join([",".join(race_rules.COLUMNS), *rows]) + "\n")
        return str(path)

    shipped = found()
    assert len(shipped) == 16 and found(keys(["ASIAN"])) == shipped and found(name="chexpert", table=keys(["White"])) != shipped
    # What is said again, with another source, or of another data set, changes nothing; a group or an origin does.
    assert found(race_table=own("mimic,race,WHITE,White,unknown,me", "chexpert,race,White,Other,no,me")) == shipped
    others = ("mimic,race,WHITE,Other,unknown,me", "mimic,race,WHITE,White,no,me", "mimic,race,BLUE,White,unknown,me")
    assert len({shipped, *(found(race_table=own(row)) for row in others)}) == 4
    assert race_rules.apply(keys([""]), (), config("nih", "recorded")).table == ""


# ---- rules ---------------------------------------------------------------------------------------

# What is recorded of a patient, and what each rule makes of it; None: dropped.
MIMIC = [
    ("WHITE", "White", "White", "White", "White"),
    # The same group in other words is no contradiction: coarsen first, then ask.
    ("WHITE - RUSSIAN|WHITE", "White", "White", "White", "White"),
    ("BLACK/CAPE VERDEAN|BLACK/AFRICAN AMERICAN", "Black", "Black", "Black", "Black"),
    ("ASIAN - CHINESE", "Asian", "Asian", "Asian", "Asian"),
    ("PORTUGUESE", "White", "White", "White", "White"),
    ("WHITE|ASIAN", None, None, "White", None),
    ("ASIAN|WHITE", None, None, "Asian", None),
    # An unknown record says nothing to us; the published rule takes it for a value of its own.
    ("WHITE|UNKNOWN", "White", None, "White", "White"),
    ("UNKNOWN|WHITE", "White", None, None, "White"),
    ("WHITE|OTHER", None, None, "White", None),
    ("WHITE|HISPANIC/LATINO - CUBAN", "Hispanic/Latino", None, "White", "Hispanic/Latino"),
    ("SOUTH AMERICAN", "Hispanic/Latino", None, "Hispanic/Latino", "Hispanic/Latino"),
    ("OTHER", None, None, "Other", "Other"),
    ("UNKNOWN|UNABLE TO OBTAIN", None, None, None, None),
    ("MULTIPLE RACE/ETHNICITY", None, None, "Multiple", "Multiple"),
    ("", None, None, None, None),
]


@pytest.mark.parametrize("column, rule", list(enumerate(["four_race", "three_race", "first_admission", "all"], 1)))
def test_rules_on_mimic(column, rule):
    table = keys([row[0] for row in MIMIC])
    assert [None if pd.isna(race) else race for race in kept(table, rule)] == [row[column] for row in MIMIC]


def test_who_has_no_group_is_said_why():
    table = keys(["WHITE|ASIAN", "UNKNOWN|UNABLE TO OBTAIN", "", "WHITE"])
    assert standing(table, "all") == [SEVERAL, NOT_KNOWN, NO_RECORD, "White"]
    assert standing(table, "three_race") == [SEVERAL, NOT_KNOWN, NO_RECORD, "White"]
    assert standing(table, "first_admission") == ["White", NOT_KNOWN, NO_RECORD, "White"]


# race, ethnicity; four_race, three_race, all
CHEXPERT = [
    ("White", "Non-Hispanic/Non-Latino", "White", "White", "White"),
    ("White, non-Hispanic", "Not Hispanic", "White", "White", "White"),
    ("White", "Hispanic/Latino", "Hispanic/Latino", None, "Hispanic/Latino"),
    ("White, Hispanic", "Unknown", "Hispanic/Latino", None, "Hispanic/Latino"),
    ("White, Hispanic", "Non-Hispanic/Non-Latino", "Hispanic/Latino", "White", "Hispanic/Latino"),
    ("White", "Unknown", "White", None, "White"),
    ("White", "", "White", None, "White"),
    ("Other", "Hispanic", "Hispanic/Latino", None, "Hispanic/Latino"),
    ("Asian", "Not Hispanic", "Asian", "Asian", "Asian"),
    ("Black or African American", "Non-Hispanic/Non-Latino", "Black", "Black", "Black"),
    ("Native Hawaiian or Other Pacific Islander", "Not Hispanic", None, None, "Native Hawaiian/Pacific Islander"),
    ("Race and Ethnicity Unknown", "Unknown", None, None, None),
    ("Patient Refused", "Hispanic/Latino", "Hispanic/Latino", None, "Hispanic/Latino"),
    ("", "", None, None, None),
]


@pytest.mark.parametrize("column, rule", list(enumerate(["four_race", "three_race", "all"], 2)))
def test_rules_on_chexpert(column, rule):
    table = keys([row[0] for row in CHEXPERT], [row[1] for row in CHEXPERT])
    found = [None if pd.isna(race) else race for race in kept(table, rule, "chexpert")]
    assert found == [row[column] for row in CHEXPERT]


def test_three_race_asks_for_labels_where_the_release_says_who_has_them():
    table = keys(["WHITE", "ASIAN", "WHITE"], labelled=np.array([1, 0, 1]))
    assert kept(table, "three_race") == ["White", None, "White"]
    assert kept(table, "four_race") == ["White", "Asian", "White"]


def test_rules_and_data_sets_that_do_not_suit_each_other():
    with pytest.raises(UserError, match="recorded, but data set mimic records race in the hospital's own words; use one of"):
        race_rules.apply(keys(["WHITE"]), (), config(rule="recorded"))
    with pytest.raises(UserError, match="three_race, but data set nih records no race; use recorded"):
        race_rules.apply(keys([""]), (), config("nih", "three_race"))
    for rule in ("recorded", "all"):
        assert race_rules.apply(keys([""]), (), config("nih", rule)).classes == ()


def test_classes_are_those_of_the_rule_or_those_there_are():
    table = keys(["WHITE", "ASIAN", "OTHER"])
    assert race_rules.apply(table, (), config()).classes == ("White", "Black", "Asian", "Hispanic/Latino")
    assert race_rules.apply(table, (), config(rule="all")).classes == ("White", "Asian", "Other")


# ---- the cohort of a rule ------------------------------------------------------------------------


def test_the_fingerprint_of_the_tables_travels_with_the_cohort(tmp_path):
    cohort = cohorts.select(keys(["WHITE", "ASIAN"] * 50), (), (), config())
    cohort.write(tmp_path / "cohort.parquet")
    again = cohorts.Cohort.read(tmp_path / "cohort.parquet")
    assert again.race_table == cohort.race_table == race_rules.apply(keys(["WHITE"]), (), config()).table != ""


def test_attrition_tells_who_left_and_why():
    races = ["WHITE", "ASIAN", "WHITE|ASIAN", "UNKNOWN", "", "OTHER", "BLACK/AFRICAN", "HISPANIC OR LATINO"] * 50
    cohort = cohorts.select(keys(races), (), (), config())
    first, recorded, agree, four, *splits = cohort.attrition
    assert [row["images"] for row in cohort.attrition[:4]] == [400, 300, 250, 200]
    assert [row["removed_images"] for row in cohort.attrition[:4]] == [0, 100, 50, 50]
    groups = ["White", "Black", "Asian", "Hispanic/Latino", "Other", NO_RECORD, NOT_KNOWN, SEVERAL]
    assert all(list(row["by_race"]) == groups for row in cohort.attrition)
    assert recorded["by_race"][NO_RECORD]["removed_patients"] == 50 and recorded["by_race"][NO_RECORD]["images"] == 0
    assert agree["by_race"][SEVERAL]["removed_images"] == 50 and four["by_race"]["Other"]["removed_images"] == 50
    assert set(cohort.table["race"]) == {"White", "Black", "Asian", "Hispanic/Latino"}
    assert sum(row["images"] for row in splits) == 200
    everyone = cohorts.select(keys(races), (), (), config(rule="all"))
    assert len(everyone.table) == 400 and everyone.table["race"].isna().sum() == 150


def test_the_table_lies_beside_the_code_that_reads_it():
    assert race_rules.TABLE.parent == pathlib.Path(race_rules.__file__).parent
