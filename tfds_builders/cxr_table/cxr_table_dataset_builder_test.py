"""The builder on a drawn and on the real NIH release, record for record beside cxr_nih, and on tables of every kind, right and wrong."""

import os
import pathlib
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cxr_jax.tables import UserError
from tests import built, releases
from tfds_builders import released
from tfds_builders.cxr_nih import cxr_nih_dataset_builder as nih
from tfds_builders.cxr_table import cxr_table_dataset_builder as own

REAL = pathlib.Path(__file__).resolve().parents[3] / "shared" / "data" / "nih_sample"
NIH = {  # as the README has it
    "table": "Data_Entry_2017_v2020.csv",
    "columns": (
        "image_id=Image Index", "patient_id=Patient ID", "sex=Patient Gender", "age=Patient Age", "view=View Position", "follow_up=Follow-up #",
        "original_width=OriginalImage[Width", "original_height=Height]", "pixel_spacing_x=OriginalImagePixelSpacing[x", "pixel_spacing_y=y]",
    ),
    "findings": ("*=Finding Labels",),
}  # fmt: skip


def build(raw, data_dir, hospital="here", **options) -> own.Builder:
    builder = own.Builder(config=own.builder_config(hospital, raw_dir=raw, **options), data_dir=data_dir)
    builder.download_and_prepare()
    return builder


def read(raw, **options) -> own.Table:
    return own.read_release(own.builder_config("here", **{"raw_dir": raw, "table": "table.csv", **options}))


# ---- beside the builder of a release -------------------------------------------------------------


def assert_same_records(raw, tmp_path, **options) -> int:
    ours = build(raw, tmp_path / "table", **NIH, **options)
    theirs = built.build(nih.Builder, raw, tmp_path / "nih", **options)
    mine, known = built.stored(ours), built.stored(theirs)
    # A finding that no row of a part lists is none of the table's.
    known = known.drop(columns=[f"finding_{name}" for name in nih.FINDINGS if not known[f"finding_{name}"].any()])
    assert set(mine) == set(known) and len(ours.info.metadata["findings"]) > 10
    mine = mine.loc[known.index]
    for column in set(known) - {"study_id", "image"}:  # of a study the table has no column; cxr_nih makes one of patient and visit
        if known[column].dtype == object or isinstance(known[column].iloc[0], str):
            assert list(mine[column]) == list(known[column]), column
        else:
            np.testing.assert_array_equal(mine[column].to_numpy(np.float32), known[column].to_numpy(np.float32), column)
    assert all((one == other).all() for one, other in zip(mine["image"], known["image"], strict=True))
    quarantined = [(pathlib.Path(builder.data_dir) / "quarantine.csv").read_text() for builder in (ours, theirs)]
    reasons = [sorted((line.split(",")[0], line.split(",")[-1]) for line in text.splitlines()) for text in quarantined]
    assert reasons[0] == reasons[1]
    return len(mine)


def test_a_drawn_release_is_stored_as_its_own_builder_stores_it(tmp_path):
    truth = releases.nih(tmp_path / "raw", lists=False, faults=True, picture=(40, 32))
    assert assert_same_records(tmp_path / "raw", tmp_path, max_unreadable_share=0.2) == len(truth.images) - len(releases.FAULTS)


@pytest.fixture(scope="module")
def real() -> pathlib.Path:
    if not REAL.is_dir():
        pytest.skip(f"the sample of real NIH X-rays is absent: no folder {REAL}")
    return REAL


def test_every_row_of_the_real_sample_is_read_as_its_own_builder_reads_it(real):
    mine, known = read(real, **NIH).records, nih.read_release(released.builder_config(real)).records
    assert len(mine) == 496 and set(known) == set(mine)
    for column in set(known) - {"study_id"}:  # of a study the table has no column
        assert (mine[column].to_numpy() == known[column].to_numpy()).all(), column


def test_real_pictures_are_stored_as_their_own_builder_stores_them(real, tmp_path):
    header, *rows = (real / NIH["table"]).read_text().splitlines(keepends=True)
    by_size = sorted(rows, key=lambda row: -(real / "images" / row.split(",")[0]).stat().st_size)[:48]  # those as released among them, in colour
    (tmp_path / "raw" / "images").mkdir(parents=True)
    (tmp_path / "raw" / NIH["table"]).write_text("".join([header, *by_size]))
    modes = set()
    for row in by_size:
        with Image.open(shutil.copy(real / "images" / row.split(",")[0], tmp_path / "raw" / "images")) as picture:
            modes.add(picture.mode)
    assert modes == {"L", "RGBA"}
    assert assert_same_records(tmp_path / "raw", tmp_path) == len(by_size)


@pytest.mark.slow
def test_the_whole_real_sample_is_stored_as_its_own_builder_stores_it(real, tmp_path):
    assert assert_same_records(real, tmp_path) == 496


# ---- tables of every kind ------------------------------------------------------------------------

ROWS = pd.DataFrame(
    {
        "Path": ["a/1.png", "a/2.png", "b/3.jpg", "b/4.png"],
        "Person": ["007", "007", "8", "9"],
        "Ethnic, group": ["White", "Black", "", "Asian"],
        "m_f": ["female", "F", "W", "Male"],
        "Years": ["70", "70.5", "", "0"],
        "Part": ["Training", "train", "val", "TEST"],
        "Projection": ["AP", "frontal", "PA", ""],
        "Dose": ["0.5", "", "1e-1", "2"],
        "Room": ["01", "02", "11", "01"],
        "Visit": ["1", "2", "1", "20140915"],
        "Day": ["20140915", "", "20140916", "20140917"],
        "Oedema": ["1", "0.0", "-1", ""],
        "Notes": ['says "no"', "a;b", "c|d", "e\tf"],
    }
)
MAP = {
    "columns": (
        "image_id=Path", "path=Path", "patient_id=Person", "race=Ethnic, group", "sex=m_f", "age=Years", "split=Part", "view=Projection",
        "dose=Dose", "room=Room", "visit=Visit", "day=Day",
    ),
    "findings": ("Edema=Oedema",),
    "words": ("sex:W=F", "view:frontal=PA"),
}  # fmt: skip


def write(folder, rows, name="table.csv") -> None:
    path = folder / name
    if name.endswith(".parquet"):
        typed = rows.assign(Years=pd.to_numeric(rows["Years"]), Oedema=pd.to_numeric(rows["Oedema"]), Visit=rows["Visit"].astype("int64"))
        typed.to_parquet(path)
    elif name.endswith(".xlsx"):
        rows.assign(Years=pd.to_numeric(rows["Years"]), Oedema=pd.to_numeric(rows["Oedema"])).to_excel(path, index=False)
    else:
        rows.to_csv(path, index=False, sep={"tsv": "\t", "semicolon.csv": ";"}.get(name.split(".", 1)[1].removesuffix(".gz"), ","))


@pytest.fixture
def raw(tmp_path) -> pathlib.Path:
    folder = tmp_path / "raw"
    for name in ROWS["Path"]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((20, 24), 40 * int(name[2]), np.uint8)).save(folder / name)
    write(folder, ROWS)
    return folder


@pytest.mark.parametrize("name", ["table.csv", "t.csv.gz", "t.tsv", "t.tsv.gz", "t.semicolon.csv", "t.parquet", "t.xlsx"])
def test_a_table_says_the_same_in_every_form(raw, name):
    write(raw, ROWS, name)
    found = read(raw, **MAP, table=name).records
    assert list(found.index) == list(range(1, 5) if name.endswith(".parquet") else range(2, 6))
    assert list(found["patient_id"]) == ["007", "007", "8", "9"] and list(found["path"]) == list(ROWS["Path"])
    assert list(found["race"]) == ["White|Black", "White|Black", "", "Asian"]
    assert list(found["sex"]) == ["F", "F", "F", "M"] and list(found["view"]) == ["AP", "PA", "PA", ""]
    assert list(found["released_split"]) == ["train", "train", "validation", "test"]
    np.testing.assert_array_equal(found["age"], [70, 70.5, np.nan, 0])
    np.testing.assert_array_equal(found["finding_Edema"], [1, 0, -1, np.nan])


def test_a_workbook_s_and_parquet_s_own_numbers_are_no_decimals(raw):
    rows = ROWS.assign(Person=[7, 7, 8, 9], Visit=[1.0, 2.0, None, 4.0])
    for name, to in (("t.parquet", "to_parquet"), ("t.xlsx", "to_excel")):
        getattr(rows, to)(raw / name, index=False)
        found = read(raw, **MAP, table=name).records
        assert list(found["patient_id"]) == ["7", "7", "8", "9"]
        np.testing.assert_array_equal(found["visit"], [1, 2, np.nan, 4])


def test_further_columns_are_stored_as_what_they_are(raw, tmp_path):
    assert read(raw, **MAP).kinds == {"dose": "number", "room": "text", "visit": "whole", "day": "text"}
    builder = build(raw, tmp_path / "out", table="table.csv", **MAP)
    found = built.stored(builder).loc[list(ROWS["Path"])]
    assert list(found["room"]) == list(ROWS["Room"]) and list(found["visit"]) == [1, 2, 1, 20140915]  # which float32 cannot hold
    assert list(found["day"]) == list(ROWS["Day"])
    np.testing.assert_array_equal(found["dose"].to_numpy(), np.array([0.5, np.nan, 0.1, 2], np.float32))
    assert [int(image.mean().round()) for image in found["image"]] == [40, 80, 120, 160]
    assert builder.info.metadata["races"] == ["Asian"] and not builder.info.metadata["open_data"]
    # Opened again without a table: what it holds it says itself.
    again = own.Builder(config=own.builder_config("here"), data_dir=tmp_path / "out")
    assert again.info.metadata["findings"] == ["Edema"] and set(again.info.features) == set(builder.info.features)
    pd.testing.assert_frame_equal(built.stored(again).drop(columns="image").loc[found.index], found.drop(columns="image"))


def test_our_own_names_are_found_and_may_be_declined(raw):
    rows = ROWS.rename(columns={"Path": "path", "Person": "patient_id", "m_f": "sex", "Years": "age", "Part": "split"}).drop(columns="Ethnic, group")
    write(raw, rows)
    found = read(raw, words=("sex:W=F",))
    assert list(found.records["image_id"]) == list(ROWS["Path"]) and set(found.records["released_split"]) == {"train", "validation", "test"}
    assert [name for name in found.records if name.startswith("finding_")] == []
    assert "no column is study_id, race, ethnicity, view" in found.statements and not any("studies" == c["count"] for c in found.counts)
    assert set(read(raw, columns=("split=",), words=("sex:W=F",)).records["released_split"]) == {""}


def test_a_table_without_findings_and_with_nothing_but_patients_can_be_stored(raw, tmp_path):
    write(raw, ROWS[["Path", "Person"]])
    found = built.stored(build(raw, tmp_path / "out", table="table.csv", columns=("path=Path", "patient_id=Person")))
    assert len(found) == 4 and set(found["sex"]) == {""} and found["age"].isna().all()


def test_listed_findings(raw):
    listed = ["Edema|PTX", "No Finding", "", " Edema || Mass "]
    write(raw, ROWS.assign(Labels=listed))
    found = read(raw, **{**MAP, "findings": ("*=Labels",)}).records
    assert [c for c in found if c.startswith("finding_")] == ["finding_Edema", "finding_Mass", "finding_No Finding", "finding_PTX"]
    np.testing.assert_array_equal(found["finding_Edema"], [1, 0, np.nan, 1])
    np.testing.assert_array_equal(found["finding_No Finding"], [0, 1, np.nan, 0])
    words = (*MAP["words"], "findings:PTX=Pneumothorax", "findings:=No Finding", "findings:Ruptured=x")
    table = read(raw, **{**MAP, "findings": ("*=Labels",), "words": words})
    np.testing.assert_array_equal(table.records["finding_No Finding"], [0, 1, 1, 0])
    np.testing.assert_array_equal(table.records["finding_Pneumothorax"], [1, 0, 0, 0])
    assert "words of config.dataset.words that no cell has: findings:Ruptured" in table.statements


# ---- where pictures lie --------------------------------------------------------------------------


def by_name(raw, ids, **options):
    write(raw, ROWS.assign(Id=ids))
    return read(raw, columns=("image_id=Id", "patient_id=Person"), **options)


def test_pictures_are_found_by_name_with_and_without_suffix(raw):
    found = by_name(raw, ["1", "2.png", "3", "5"])
    assert list(found.records["path"]) == ["a/1.png", "a/2.png", "b/3.jpg", "5"] and found.records["size"].iloc[-1] == -1
    assert found.foreign == ("b/4.png",) and not found.complete
    (raw / "a" / "1.png").rename(raw / "a" / "1.PNG")
    assert by_name(raw, ["1", "2.png", "3", "5"]).records["path"].iloc[0] == "a/1.PNG"


def test_dicom_files_are_found_by_the_same_names(raw):
    for name in ("1.dcm", "2.DCM", "1.2.840.3", "4"):
        (raw / "b" / name).write_bytes(b"anything")
    found = by_name(raw, ["1", "2.png", "1.2.840.3", "4.jpg"], pictures="dicom")
    assert list(found.records["path"]) == ["b/1.dcm", "b/2.DCM", "b/1.2.840.3", "b/4"]
    assert list(read(raw, **MAP, pictures="dicom").records["path"]) == ["a/1.dcm", "a/2.dcm", "b/3.dcm", "b/4.dcm"]


def test_a_name_is_looked_for_and_leads_nowhere_else(raw):
    (raw.parent / "outside.png").write_bytes((raw / "a" / "1.png").read_bytes())
    for name in ("../outside.png", "a/1.png", str(raw / "a" / "1.png")):
        with pytest.raises(UserError, match="line 2, column 'Id': .* found, a name without folders"):
            by_name(raw, [name, "2", "3", "4"])
    shutil.copy(raw / "a" / "1.png", raw / "9.png")  # which is no DICOM file, whatever lies there
    assert list(by_name(raw, ["..", "9.png", "3", "4"], pictures="dicom").records["size"]) == [-1] * 4


def test_two_pictures_of_an_image_are_told(raw):
    shutil.copy(raw / "a" / "1.png", raw / "b" / "1.jpg")
    with pytest.raises(UserError, match=r"line 2, column 'Id': '1' is both a/1.png and b/1.jpg \(1 such\); keep one, or name a column of paths"):
        by_name(raw, ["1", "2", "3", "4"])
    assert by_name(raw, ["1.png", "2", "3", "4"]).records["path"].iloc[0] == "a/1.png"


@pytest.mark.parametrize("name", ["/etc/passwd", "../raw/a/1.png", "a/../../raw/a/1.png", "C:\\a\\1.png", "a\\1.png", ""])
def test_a_path_that_leaves_the_folder_is_refused(raw, name):
    write(raw, ROWS.assign(Path=[name, *ROWS["Path"][1:]], Id=list("abcd")))
    with pytest.raises(UserError, match=r"table.csv: line 2, column 'Path': .* found, a path below config.dataset.raw_dir, .*expected") as caught:
        read(raw, **{**MAP, "columns": ("image_id=Id", *MAP["columns"][1:])})
    assert "\n" not in str(caught.value)


def test_a_link_out_of_the_folder_is_refused_and_one_within_is_not(raw, tmp_path):
    (raw / "a" / "1.png").rename(raw / "b" / "real.png")
    os.symlink(raw / "b" / "real.png", raw / "a" / "1.png")
    assert (read(raw, **MAP).records["size"] > 0).all()
    (raw / "b" / "real.png").rename(tmp_path / "outside.png")
    (raw / "a" / "1.png").unlink()
    os.symlink(tmp_path / "outside.png", raw / "a" / "1.png")
    for ask in (lambda: read(raw, **MAP), lambda: by_name(raw, ["1", "2", "3", "4"])):
        with pytest.raises(UserError, match="line 2, column .* no link leads out"):
            ask()
    (raw / "a" / "1.png").unlink()
    os.rename(tmp_path / "outside.png", raw / "a" / "1.png")
    (raw / "b").rename(tmp_path / "b")
    os.symlink(tmp_path / "b", raw / "b")
    write(raw, ROWS)
    with pytest.raises(UserError, match="line 4, column 'Path': 'b/3.jpg' found, a picture that no link leads out"):
        read(raw, **MAP)
    found = by_name(raw, ["1", "2", "3", "4"])
    assert list(found.records["size"] == -1) == [False, False, True, True] and "links to folders that are not followed: 1" in found.statements
    # The folder itself may be reached by a link.
    (raw / "b").unlink()
    (tmp_path / "b").rename(raw / "b")
    os.symlink(raw, tmp_path / "link")
    write(raw, ROWS)
    assert (read(tmp_path / "link", **MAP).records["size"] > 0).all()


# ---- another map is another release --------------------------------------------------------------


def test_the_fingerprint_changes_with_the_map_and_not_with_how_it_is_written(raw, tmp_path):
    before = read(raw, **MAP).fingerprint
    assert read(raw, **{**MAP, "columns": MAP["columns"][::-1]}).fingerprint == before
    for change in (
        {"columns": MAP["columns"][:-1]},
        {"columns": (*MAP["columns"][:-1], "day=Visit")},
        {"findings": ("Mass=Oedema",)},
        {"words": (*MAP["words"], "view:AP=PA")},
        {"open_data": True},
    ):
        assert read(raw, **{**MAP, **change}).fingerprint != before, change
    shutil.copytree(raw, tmp_path / "elsewhere")
    assert read(tmp_path / "elsewhere", **MAP).fingerprint == before
    (tmp_path / "elsewhere" / "table.csv").rename(tmp_path / "table.csv")
    assert read(tmp_path / "elsewhere", **MAP, table=str(tmp_path / "table.csv")).fingerprint == before


# ---- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "column, value, message",
    [
        ("Path", "a/1.png", "lines 2 and 3, column 'Path': 'a/1.png' found more than once, each image once expected"),
        ("Path", "", "line 3, column 'Path': '' found, an identifier, not an empty cell"),
        ("Person", " ", "line 3, column 'Person': '' found, an identifier, not an empty cell"),
        ("Ethnic, group", "a|b", "line 3, column 'Ethnic, group': 'a|b' found, a value without '|'"),
        ("m_f", "X", "line 3, column 'm_f': 'X' found, F, M, Female, Male or an empty cell, or a word that config.dataset.words translates"),
        ("Years", "old", "line 3, column 'Years': 'old' found, a number of years from 0 to 120"),
        ("Years", "121", "line 3, column 'Years': '121' found, a number of years from 0 to 120"),
        ("Years", "-1", "line 3, column 'Years': '-1' found"),
        ("Years", "nan", "line 3, column 'Years': 'nan' found"),
        ("Part", "tests", "line 3, column 'Part': 'tests' found, train, validation or test expected"),
        ("Part", "", "line 3, column 'Part': '' found"),
        ("Oedema", "2", "line 3, column 'Oedema': '2' found, 1, 0, -1 or an empty cell"),
        ("Part", "test", "patient '007' is in splits test and train"),
    ],
)
def test_a_cell_that_is_wrong_is_named(raw, column, value, message):
    rows = ROWS.copy()
    rows.loc[1, column] = value
    write(raw, rows)
    with pytest.raises(UserError) as caught:
        read(raw, **MAP)
    assert str(caught.value).startswith(str(raw / "table.csv")) and message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "table.csv: empty; a first line with the names of columns expected"),
        ("Path,Person\n", "table.csv: a header and no rows"),
        ("Path,Person\na/1.png,1\na/2.png\n", "table.csv: line 3: 1 cells found, 2 expected"),
        ("Path,Person\na/1.png,1,x\n", "table.csv: line 2: 3 cells found, 2 expected"),
        ("Path,Person,Person\na/1.png,1,2\n", "table.csv: more than one column 'Person'; rename one"),
        ('Path,Person\n"a/1.png,1\n', "table.csv: line 2: not valid CSV"),
        ("Pfad,Person\na/1.png,1\n", "table.csv: no column 'Path', which config.dataset.columns names for path"),
        ("Path,Persons\na/1.png,1\n", "no column 'Person', which config.dataset.columns names for patient_id; did you mean 'Persons'?"),
    ],
)
def test_a_table_that_is_wrong_is_told(raw, text, message):
    (raw / "table.csv").write_text(text)
    with pytest.raises(UserError) as caught:
        read(raw, columns=("path=Path", "patient_id=Person"))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_not_there_is_told(raw):
    with pytest.raises(UserError, match="config.dataset.table is not set"):
        read(raw, table="")
    with pytest.raises(UserError, match="config.dataset.table: no file 'tabel.csv', neither below .*raw nor by itself"):
        read(raw, table="tabel.csv")
    with pytest.raises(UserError, match="a name that ends in .csv, .* or .xlsx expected"):
        read(raw, table="a/1.png")
    with pytest.raises(UserError, match="config.dataset.raw_dir is not set"):
        read("")
    with pytest.raises(UserError, match="no column 'patient_id'; name the one that it is with --config.dataset.columns"):
        read(raw, columns=("path=Path",))
    with pytest.raises(UserError, match="no column 'image_id'; name the one"):
        read(raw, columns=("patient_id=Person",))
    (raw / "t.xlsx").write_bytes(b"no workbook")
    with pytest.raises(UserError, match="t.xlsx: not a readable workbook"):
        read(raw, **MAP, table="t.xlsx")
    (raw / "t.parquet").write_bytes(b"no parquet")
    with pytest.raises(UserError, match="t.parquet"):
        read(raw, **MAP, table="t.parquet")
    for name in ("t.xlsx", "t.parquet"):
        write(raw, ROWS[:0], name)
        with pytest.raises(UserError, match=f"{name}: no row"):
            read(raw, **MAP, table=name)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"columns": ("Person",)}, "config.dataset.columns: 'Person' found, NAME=COLUMN expected"),
        ({"columns": ("sex=a", "sex=b")}, "config.dataset.columns: 'sex=b' found, NAME=COLUMN expected, each name once"),
        ({"columns": ("Sex=a",)}, "nothing may be called 'Sex'; did you mean 'sex'?"),
        ({"columns": ("finding_Mass=a",)}, "nothing may be called 'finding_Mass'"),
        ({"columns": ("released_split=a",)}, "nothing may be called 'released_split'"),
        ({"findings": ("Edema=",)}, "config.dataset.findings"),
        ({"findings": ("*=a", "Edema=b")}, "*=COLUMN and nothing besides"),
        ({"words": ("sex=F",)}, "config.dataset.words: 'sex=F' found, FIELD:WORD=OURS expected"),
        ({"words": ("sexe:W=F",)}, "no words to be translated in 'sexe'; did you mean 'sex'?"),
        ({"words": ("age:old=90",)}, "no words to be translated in 'age'"),
        ({"words": ("sex:W=F", "sex:W=M")}, "each word of a field once"),
    ],
)
def test_a_map_that_is_wrong_is_told(options, message):
    with pytest.raises(UserError) as caught:
        own.builder_config("here", **options)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_hospital_s_name_is_part_of_a_folder_s():
    for name in ("", "my hospital", "../x", "a.b"):
        with pytest.raises(UserError, match="a name of letters, digits and _"):
            own.builder_config(name)
    assert own.builder_config("city", aspect="pad", storage="raw").name == "city_pad_raw"
    with pytest.raises(UserError, match="a config of `builder_config`"):
        own.Builder(config="squash")
    assert isinstance(own.builder_config("city"), released.ReleaseConfig)
