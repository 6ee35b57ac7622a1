"""A user's own predictions: what is found by its name, what is said, and what is refused in one line."""

import gzip
import time

import numpy as np
import pandas as pd
import pytest

from configs import audit
from cxr_jax import experiment
from cxr_jax.audit import intake
from cxr_jax.tables import Predictions, Target, UserError

N = 60


def settings(**fields):
    return experiment.apply_diff(audit.get_config(), {f"audit.{name}": value for name, value in fields.items()}).audit


def races(n=N) -> pd.DataFrame:
    """Scores of three classes and one text label, as somebody else's script would write them."""
    random = np.random.default_rng(0)
    race = np.resize(["White", "Black", "Asian"], n)
    z = np.exp(random.normal(size=(n, 3)) + (race[:, None] == np.array(["White", "Black", "Asian"])))
    p = z / z.sum(1, keepdims=True)
    return pd.DataFrame(
        {
            "Path": [f"a/{i}.jpg" for i in range(n)], "race": race, "p_white": p[:, 0], "p_black": p[:, 1], "p_asian": p[:, 2],
            "gender": np.resize(["F", "M"], n), "AGE": random.integers(18, 90, n),
        }
    )  # fmt: skip


def findings(n=N) -> pd.DataFrame:
    random = np.random.default_rng(1)
    table = pd.DataFrame({"image_id": [f"i{i}" for i in range(n)], "Patient ID": [f"{i // 2:03}" for i in range(n)]})
    for name in ("Edema", "Pleural Effusion"):
        table[name] = np.resize([1, 0, 0], n)
        table[f"prob_{name.lower().replace(' ', '_')}"] = random.random(n)
    return table


def binary(n=N) -> pd.DataFrame:
    return findings(n).rename(columns={"Edema": "y_true", "prob_edema": "y_score"}).iloc[:, :4]


def saved(tmp_path, table):
    table.to_csv(tmp_path / "mine.csv", index=False)
    return tmp_path / "mine.csv"


def taken(tmp_path, table, **fields):
    return intake.read(saved(tmp_path, table), settings(**fields))


def test_a_text_label_and_its_scores(tmp_path):
    """No patient, no split: said. The label is an attribute too, and classes are called as it writes them."""
    table = races()
    predictions, about = taken(tmp_path, table)
    assert predictions.targets == {"race": Target("multiclass", ("White", "Black", "Asian"))} and not predictions.open_data
    np.testing.assert_allclose(predictions.scores("race"), table[["p_white", "p_black", "p_asian"]])
    for column in ("race", "label_race"):
        assert list(predictions.table[column]) == list(table["race"])
    assert list(predictions.table["patient_id"]) == list(predictions.table["image_id"]) == list(table["Path"])
    np.testing.assert_array_equal(predictions.table["age"], table["AGE"])
    assert about["columns"] == {
        "image_id": "Path", "race": "race", "sex": "gender", "age": "AGE", "label_race": "race",
        "score_White": "p_white", "score_Black": "p_black", "score_Asian": "p_asian",
    }  # fmt: skip
    assert about["without_patients"] and about["images"] == N and about["file"] == "mine.csv" and "split" not in predictions.table
    assert any("each image passes for a patient" in one and "too narrow" in one for one in about["said"])


def test_findings_keep_their_labels_empty_cells_and_patients(tmp_path):
    table = findings()
    table["Edema"] = table["Edema"].astype(object)
    table.loc[3, "Edema"] = None
    predictions, about = taken(tmp_path, table)
    assert predictions.targets == {"findings": Target("multilabel", ("Edema", "Pleural Effusion"))}
    np.testing.assert_array_equal(predictions.label("findings", "Edema"), table["Edema"].astype(float))
    np.testing.assert_allclose(predictions.scores("findings")[:, 1], table["prob_pleural_effusion"])
    assert list(predictions.table["patient_id"][:3]) == ["000", "000", "001"]  # text, with its zeros
    assert not about["without_patients"] and not any("passes for a patient" in one for one in about["said"])


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("image_id", ["image", "Image Index", "DICOM.ID", "file-name", "id", "sopInstanceUID"]),
        ("patient_id", ["patient_id", "PatientID", "Patient ID", "subject_id", "MRN"]),
        ("split", ["Split", "subset", "partition", "set"]),
        ("sex", ["Sex", "GENDER", "Patient Sex", "PatientGender"]),
        ("age", ["Patient Age", "anchor_age", "AGE_AT_CXR"]),
        ("view", ["ViewPosition", "View Position", "AP/PA"]),
        ("race", ["PRIMARY_RACE", "Ethnicity"]),
    ],
)
def test_names_of_keys(tmp_path, ours, theirs):
    for name in theirs:
        cells = {"split": "Test", "age": 40, "image_id": np.arange(N), "patient_id": np.arange(N)}.get(ours, "X")
        table = binary().drop(columns={"image_id": "image_id", "patient_id": "Patient ID"}.get(ours, [])).assign(**{name: cells})
        predictions, about = taken(tmp_path, table)
        assert about["columns"][ours] == name
        assert predictions.table[ours].iloc[-1] == {"split": "test", "age": 40.0, "image_id": str(N - 1), "patient_id": str(N - 1)}.get(ours, "X")


@pytest.mark.parametrize("score", ["score_Edema", "Edema-score", "prob_edema", "EDEMA_PROB", "p_Edema", "pred.Edema", "Edema_pred", "proba_Edema", "Edema_probability", "y_pred_Edema", "edema pred prob"])
@pytest.mark.parametrize("label", ["label_Edema", "Edema_label", "true_Edema", "Edema_true", "gt_edema", "Edema gt", "y_Edema", "target_Edema", "Edema", "y_true_Edema"])  # fmt: skip
def test_names_of_scores_and_labels(score, label):
    table = findings().rename(columns={"Edema": label, "prob_edema": score}).iloc[:, :4]
    reader = intake._Reader(table, "mine", settings())
    predictions, about = reader.predictions("mine")
    assert about["columns"]["label_Edema" if "label_Edema" in about["columns"] else "label_edema"] == label
    assert list(about["columns"].values()) == ["image_id", "Patient ID", score, label] and list(predictions.targets) == ["findings"]


@pytest.mark.parametrize(
    ("label", "score", "name"),
    [
        ("y_true", "y_score", "positive"), ("label", "prob", "positive"), ("target", "prediction", "positive"), ("truth", "y_pred_proba", "positive"),
        ("label", "prob_positive", "positive"), ("y_true", "prob_Edema", "Edema"), ("label_Edema", "score", "Edema"),
    ],
)  # fmt: skip
def test_a_binary_model(tmp_path, label, score, name):
    table = binary().rename(columns={"y_true": label, "y_score": score})
    predictions, about = taken(tmp_path, table)
    assert predictions.targets == {"findings": Target("multilabel", (name,))}
    assert about["columns"][f"label_{name}"] == label and about["columns"][f"score_{name}"] == score
    np.testing.assert_array_equal(predictions.label("findings", name), table[label])


@pytest.mark.parametrize("written", [("True", "False"), ("true", "false"), (True, False), ("1", "0"), (1.0, 0.0), ("TRUE", "0")])
def test_ways_to_write_a_label(tmp_path, written):
    table = binary()
    table["y_true"] = [written[0] if one else written[1] for one in table["y_true"]]
    predictions, _ = taken(tmp_path, table)
    np.testing.assert_array_equal(predictions.label("findings", "positive"), binary()["y_true"])


def own_names(t):
    return t.rename(columns={"p_white": "White", "p_black": "Black", "p_asian": "Asian"})


@pytest.mark.parametrize(
    ("change", "fields", "target", "classes", "label"),
    [
        (own_names, {}, "race", ("White", "Black", "Asian"), "race"),
        (lambda t: t.rename(columns={"race": "PRIMARY_RACE"}), {}, "race", ("White", "Black", "Asian"), "PRIMARY_RACE"),
        (lambda t: t.rename(columns={"race": "true_race"}), {}, "race", ("White", "Black", "Asian"), "true_race"),
        (lambda t: t.rename(columns={"race": "label"}), {}, "label", ("White", "Black", "Asian"), "label"),
        (lambda t: t.assign(race=t["race"].str.lower()), {}, "race", ("white", "black", "asian"), "race"),
        (lambda t: t.assign(race=t["race"].replace("White", "white-ish")).rename(columns={"p_white": "score.White ish"}), {}, "race", ("white-ish", "Black", "Asian"), "race"),
        # What a model says is no truth, and a label that is called one goes before an attribute.
        (lambda t: t.assign(predicted_race="White"), {}, "race", ("White", "Black", "Asian"), "race"),
        (lambda t: t.assign(label_race=t["race"]), {}, "race", ("White", "Black", "Asian"), "label_race"),
        (lambda t: t.assign(group=t["race"]), {"label": "group"}, "group", ("White", "Black", "Asian"), "group"),
        (
            lambda t: t.rename(columns={"p_white": "out1", "p_black": "out2", "p_asian": "out3"}),
            {"label": "race", "scores": ("Asian=out3", "white=out1", "Black=out2")}, "race", ("White", "Black", "Asian"), "race",
        ),
        # Classes by number, as whole numbers are written in a column that lacks one.
        (
            lambda t: t.assign(y_true=t["race"].map({"White": 0.0, "Black": 1.0, "Asian": 2.0}).where(t.index > 0)).rename(columns={"p_white": "prob_0", "p_black": "prob_1", "p_asian": "prob_2"}),
            {}, "y_true", ("0", "1", "2"), "y_true",
        ),
    ],
)  # fmt: skip
def test_which_column_is_the_label(tmp_path, change, fields, target, classes, label):
    table = change(races())
    predictions, about = taken(tmp_path, table, **fields)
    assert predictions.targets == {target: Target("multiclass", classes)}
    assert about["columns"][f"label_{target}"] == label
    np.testing.assert_allclose(predictions.scores(target), races()[["p_white", "p_black", "p_asian"]])
    if target == "race":
        assert predictions.table["race"].notna().all()


def test_exclusive_classes_beside_findings(tmp_path):
    table = races().join(findings()[["Edema", "prob_edema"]])
    predictions, _ = taken(tmp_path, table)
    assert predictions.targets == {"race": Target("multiclass", ("White", "Black", "Asian")), "findings": Target("multilabel", ("Edema",))}


def test_the_config_says_what_names_do_not(tmp_path):
    table = findings().rename(columns={"image_id": "a", "Patient ID": "b", "Edema": "c", "prob_edema": "d"}).iloc[:, :4]
    table = table.assign(e="F", f="public", set="MIMIC")
    predictions, about = taken(
        tmp_path, table, columns=("image_id=a", "patient_id = b", "sex=e", "insurance=f", "split="), attributes=("sex", "insurance"),
        labels=("Edema=c",), scores=("Edema=d",),
    )  # fmt: skip
    assert about["columns"] == {"image_id": "a", "patient_id": "b", "sex": "e", "insurance": "f", "score_Edema": "d", "label_Edema": "c"}
    assert set(predictions.table["insurance"]) == {"public"} and "split" not in predictions.table
    # A binary label is one too.
    predictions, _ = taken(tmp_path, binary().rename(columns={"y_true": "outcome"}), label="outcome")
    assert predictions.targets == {"findings": Target("multilabel", ("positive",))}


def test_what_the_error_says_settles_whether_classes_are_exclusive(tmp_path):
    table = races().assign(**{c: (races()["race"] == c) * 1 for c in ("White", "Black", "Asian")})
    assert list(taken(tmp_path, table, label="race")[0].targets) == ["race"]
    predictions, _ = taken(tmp_path, table, labels=("White=White",))
    assert predictions.targets == {"findings": Target("multilabel", ("White", "Black", "Asian"))}
    assert list(predictions.table["race"]) == list(table["race"])


def test_bands_are_told_apart_by_their_signs(tmp_path):
    table = races().replace({"White": "<40", "Black": "40+", "Asian": "40-"}).rename(columns={"p_white": "p_<40", "p_black": "p_40+", "p_asian": "p_40-"})
    predictions, about = taken(tmp_path, table)
    assert predictions.targets["race"].classes == ("<40", "40+", "40-") and about["columns"]["score_40+"] == "p_40+"


def test_a_finding_may_be_an_attribute_too(tmp_path):
    predictions, _ = taken(tmp_path, findings().rename(columns={"Edema": "label_Edema"}), attributes=("label_Edema", "Pleural Effusion"))
    assert predictions.targets["findings"].classes == ("Edema", "Pleural Effusion")
    assert set(predictions.table["Pleural Effusion"]) == {"0", "1"} and set(predictions.table["label_Edema"]) == {0.0, 1.0}


def test_attributes_that_are_asked_for_are_kept(tmp_path):
    predictions, about = taken(tmp_path, races().assign(Insurance="public", scanner="x"), attributes=("race", "insurance", "absent"))
    assert set(predictions.table["insurance"]) == {"public"} and "absent" not in predictions.table
    assert any("'scanner'" in one and "'Insurance'" not in one for one in about["said"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.assign(p_white=t["p_white"] * (t.index != 4)), "Warning: the scores of race do not add up to 1 in 1 row; they are off by up to 0."),
        (lambda t: t.assign(**{c: t[c] / 2 for c in ("p_white", "p_black", "p_asian")}), "do not add up to 1 in any row;"),
        (lambda t: t.assign(p_Other=0.0), "scores of 'Other', which no label in 'race' says"),
        (lambda t: t.assign(scanner=1, site=2), "2 further columns: 'scanner', 'site'"),
        (lambda t: t.assign(prob_Edema=0.5), "no label goes with it: 'prob_Edema'"),
        (lambda t: t.assign(label_Edema=0), "no score goes with it: 'label_Edema'"),
        (lambda t: t.assign(**{f"p_{c.lower()}": (t["race"] == c) * 1 for c in ("White", "Black", "Asian")}), "there are 0 and 1 alone, so these are classes called"),
        (lambda t: t.drop(columns="Path"), "called by the number of their row"),
        (lambda t: t.assign(pred_white=(t["p_white"] > 0.5) * 1), "'p_white', 'pred_white' the first is taken for the score"),
        (lambda t: t.join(findings()[["prob_edema"]]).assign(Edema=1), "to be told apart by 'Edema'"),
    ],
)
def test_what_is_said(tmp_path, change, said):
    predictions, about = taken(tmp_path, change(races()))
    assert len([one for one in about["said"] if said in one]) == 1, about["said"]
    assert predictions.targets["race"].classes[:3] == ("White", "Black", "Asian")


def test_of_few_patients_it_is_not_said_what_all_have(tmp_path):
    table = races(10).join(findings()[["prob_edema"]]).assign(Edema=1)
    _, about = taken(tmp_path, table)
    assert not any("'Edema'" in one for one in about["said"])


def test_a_label_in_which_nothing_is_recorded_goes_on(tmp_path):
    predictions, about = taken(tmp_path, races().assign(race=None), label="race")
    assert predictions.targets == {"race": Target("multiclass", ("white", "black", "asian"))}
    assert np.isnan(predictions.label("race", "white")).all()
    assert any("No label is recorded in 'race'" in one for one in about["said"])


def cell(column, row, value):
    def change(table):
        table = table.astype({column: object})
        table.loc[row, column] = value
        return table

    return change


@pytest.mark.parametrize(
    ("made", "change", "told"),
    [
        (races, cell("p_white", 2, None), r"mine\.csv: row 3, column 'p_white': nan found, a score from 0 to 1"),
        (races, cell("p_white", 2, "n/a"), "row 3, column 'p_white': 'n/a' found, a score"),
        (races, lambda t: t.assign(p_white=t["p_white"] * 100), "row 1, column 'p_white': .* divided by 100, logits to go through a softmax"),
        (races, lambda t: t.assign(p_white=t["p_white"].astype(str).str.replace(".", ",")), "row 1, column 'p_white': '0,.*, its decimals behind a point"),
        (races, lambda t: t.assign(White=(t["race"] == "White") * 1), "for the classes of column 'race', which exclude one another, or for findings such as column 'White'"),
        (races, cell("p_white", 4, -2.5), "row 5, column 'p_white': '-2.5' found"),
        (findings, cell("prob_edema", 4, 3.5), "row 5, column 'prob_edema': '3.5' found.*sigmoid.*1 such row"),
        (races, cell("race", 6, "Martian"), "row 7, column 'race': 'Martian' found, unknown label: one of White, Black, Asian"),
        (races, cell("race", 6, "BLACK"), "column 'race': 'Black' and 'BLACK' both go with scores 'p_black'"),
        (races, lambda t: t.assign(race="White"), "column 'race': no two different labels, so"),
        (races, cell("Path", 1, "a/0.jpg"), "row 2, column 'Path': 'a/0.jpg' found, each image once"),
        (races, cell("Path", 1, None), "row 2, column 'Path': nan found, an identifier"),
        (races, cell("AGE", 5, "90+"), r"row 6, column 'AGE': '90\+' found, a number of years"),
        (races, lambda t: t.assign(patient=t.index, subject_id=t.index), r"'patient' and 'subject_id' could both be patient_id; say which with --config.audit.columns=\"\('patient_id=patient',\)\""),
        (races, lambda t: t.assign(group=t["race"], PRIMARY=t["race"]).drop(columns="race"), "'group' and 'PRIMARY' could both be the label; say which with --config.audit.label=group"),
        (races, lambda t: t.assign(score_White=t["p_white"]), r"'p_white' and 'score_White' could both be the score of white; say which with --config.audit.scores=\"\('white=p_white',\)\""),
        (races, lambda t: t.assign(**{c: (t["race"] == c) * 1 for c in ("White", "Black", "Asian")}), "for the classes of column 'race', which exclude one another, or for findings such as column 'White'"),
        (races, lambda t: t.drop(columns="race"), "no labels with scores found. Looked for .*'p_white'"),
        (findings, lambda t: t.assign(label_Edema=1), r"'label_Edema' and 'Edema' could both be the label of edema; say which with --config.audit.labels=\"\('edema=label_Edema',\)\""),
        (findings, lambda t: t.assign(true_Edema=1, Edema_gt=1).drop(columns="Edema"), "'true_Edema' and 'Edema_gt' could both be the label"),
        (findings, cell("Edema", 3, -1), "row 4, column 'Edema': '-1' found, 1, 0 or empty; a finding that is uncertain"),
        (findings, cell("Edema", 3, "yes"), "row 4, column 'Edema': 'yes' found, 1, 0 or empty"),
        (findings, lambda t: t.assign(Edema=1, **{"Pleural Effusion": 0}), "columns 'Edema', 'Pleural Effusion': in none two different labels"),
        (findings, lambda t: t.assign(split="tset"), "row 1, column 'split': 'tset' found, train, validation, test"),
        (findings, lambda t: t.assign(split=np.resize(["test", "dev"], N)), "patient '000' is in splits test and validation"),
        (findings, lambda t: t.assign(split="valid"), r"no image of split 'test'.*config.audit.splits=\"\('validation',\)\""),
        (findings, lambda t: t.assign(split=["train"] * 30 + ["test"] * 30, Edema=[0, 1] * 15 + [0] * 30, **{"Pleural Effusion": 0}), "in none two different labels in split test"),
        (findings, cell("Patient ID", 3, None), "row 4, column 'Patient ID': nan found, an identifier"),
        (binary, lambda t: t.assign(label=t["y_true"]), "'y_true' and 'label' could both be the label; say which with --config.audit.labels"),
        (binary, lambda t: t.assign(y_prob=t["y_score"]), "'y_score' and 'y_prob' could both be the score of positive"),
        (binary, lambda t: t.head(0), "no row"),
        (binary, lambda t: t.drop(columns="y_true"), "no labels with scores found"),
        (binary, lambda t: t.rename(columns={"y_score": "all"}).assign(label_all=t["y_true"], score_all=0.5).drop(columns="all"), "must not be called 'all'"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_one_line(tmp_path, made, change, told):
    with pytest.raises(UserError, match=told) as caught:
        taken(tmp_path, change(made()))
    assert "\n" not in str(caught.value) and str(caught.value).startswith(str(tmp_path / "mine.csv"))


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"columns": ("patient_id=who",)}, "no column 'who', which config.audit.columns names; there are 'Path', 'race'"),
        ({"columns": ("view=empty",)}, "column 'empty', which config.audit.columns takes for view: nothing is recorded in it"),
        ({"label": "rcae"}, "no column 'rcae', which config.audit.label names"),
        ({"label": "gender"}, "row 1, column 'gender': 'F' found, unknown label: one of white, black, asian"),
        ({"labels": ("Edema=gender",)}, r"no score found for 'Edema'; name it with --config.audit.scores=\"\('Edema=COLUMN',\)\""),
        ({"scores": ("white=p_white", "White.=p_black")}, "names two classes that differ in case and punctuation alone"),
        ({"scores": ("white=Path",)}, "row 1, column 'Path': 'a/0.jpg' found, a score from 0 to 1"),
    ],
)
def test_a_config_that_does_not_fit_the_file(tmp_path, fields, told):
    with pytest.raises(UserError, match=told):
        taken(tmp_path, races().assign(empty=None), **fields)


def test_every_kind_of_file_gives_the_same(tmp_path):
    table = races()
    wanted, _ = taken(tmp_path, table)
    table.to_csv(tmp_path / "mine.csv.gz", index=False)
    table.to_csv(tmp_path / "mine.tsv", index=False, sep="\t")
    table.to_csv(tmp_path / "semicolon.csv", index=False, sep=";")
    table.to_csv(tmp_path / "bom.CSV", index=False, encoding="utf-8-sig")
    table.to_parquet(tmp_path / "mine.parquet")
    table.set_index("Path").to_parquet(tmp_path / "index.parquet")
    table.astype({"race": "category", "p_white": "float64"}).set_index(np.arange(N)[::-1] * 2).to_parquet(tmp_path / "odd.parquet")
    for name in ("mine.csv.gz", "mine.tsv", "semicolon.csv", "bom.CSV", "mine.parquet", "index.parquet", "odd.parquet"):
        found, about = intake.read(tmp_path / name, settings())
        pd.testing.assert_frame_equal(found.table, wanted.table, check_dtype=False, check_like=True, obj=name)
        assert any("semicolon" in one for one in about["said"]) == (name == "semicolon.csv")


def test_what_we_write_ourselves_is_read(tmp_path):
    first, _ = taken(tmp_path, races().assign(split="test"))
    first.write(tmp_path / "predictions.parquet")
    again, _ = intake.read(tmp_path / "predictions.parquet", settings())
    assert again.targets == first.targets
    pd.testing.assert_frame_equal(again.table, first.table, check_dtype=False, check_like=True)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("mine.csv", b"", "empty; a first line"),
        ("mine.csv", b"y_true,y_score\n", "no row"),
        ("mine.csv", b"y_true,y_score\n1,0.5,7\n0,0.5,8\n", "rows have more cells than the first line"),
        ("mine.csv", b"y_true,y_score\n1,0.5\n0,0.5,8\n", "not a CSV file.*Expected 2 fields in line 3, saw 3"),
        ("mine.csv", b"y_true,y_score,y_true\n1,0.5,1\n", "two columns are called 'y_true'"),
        ("mine.csv", "y_true,y_score\n1,0.5\n".encode("utf-16"), "not text in UTF-8"),
        ("mine.csv", b"PAR1\x00\xff\xfe\x00", "not text in UTF-8"),
        ("mine.csv.gz", gzip.compress(b"y_true,y_score\n1,0.5\n" * 1000, mtime=0)[:-20], "not a CSV file, or only half of one"),
        ("mine.csv.gz", b"y_true,y_score\n1,0.5\n", "not a CSV file, or only half of one"),
        ("mine.parquet", b"PAR1 and no more", "not a Parquet file, or only half of one"),
        ("mine.xlsx", b"PK", "a name that ends in .csv, .csv.gz, .tsv or .parquet expected"),
        ("mine.csv", b"y_true\n1\n", "no labels with scores found"),
        ("mine.csv", None, "no such file"),
    ],
)
def test_a_file_that_cannot_be_read(tmp_path, name, content, told):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=told) as caught:
        intake.read(tmp_path / name, settings())
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_text_are_told_by_row_and_column_and_not_in_full(tmp_path):
    path = tmp_path / "mine.parquet"
    races().assign(gender=[*[b"F", b"M"] * (N // 2 - 1), b"F", b"\xff" * 1000]).to_parquet(path)
    with pytest.raises(UserError, match=rf"mine.parquet: row {N}, column 'gender': b'\\xff.* and more found, text") as error:
        intake.read(path, settings())
    assert len(str(error.value)) < 400
    races().assign(gender=[b"F", b"M"] * (N // 2)).to_parquet(path)
    predictions, _ = intake.read(path, settings())
    assert set(predictions.table["sex"]) == {"F", "M"}


def test_half_a_parquet_and_a_folder(tmp_path):
    races().to_parquet(tmp_path / "mine.parquet")
    (tmp_path / "mine.parquet").write_bytes((tmp_path / "mine.parquet").read_bytes()[:-100])
    with pytest.raises(UserError, match="not a Parquet file, or only half of one"):
        intake.read(tmp_path / "mine.parquet", settings())
    (tmp_path / "folder.parquet").mkdir()
    with pytest.raises(UserError, match="a folder, not a file"):
        intake.read(tmp_path / "folder.parquet", settings())


def test_rounding_is_no_mistake(tmp_path):
    """Of a softmax in float32."""
    table = races()
    table.loc[0, ["p_white", "p_black", "p_asian"]] = [1.0000001, -1e-8, 0]
    predictions, _ = taken(tmp_path, table)
    assert isinstance(predictions.check(), Predictions) and predictions.scores("race")[0].tolist() == [1, 0, 0]


def test_many_rows_take_about_a_second(tmp_path):
    table = races(38_000).assign(a=1, b="x", c=0.5)
    table["patient_id"] = np.arange(len(table)) // 3
    path = saved(tmp_path, table)
    began = time.perf_counter()
    intake.read(path, settings())
    assert time.perf_counter() - began < 5  # .5 s alone; other work may be going on
