"""The builder on TFDS's own test case, on 496 real X-rays, on the whole table, and on releases that are wrong."""

import csv
import pathlib
import pickle
import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from cxr_jax.tables import UserError
from tfds_builders import images, release, released
from tfds_builders.cxr_nih import cxr_nih_dataset_builder as nih

DUMMY = pathlib.Path(__file__).parent / "dummy_data"
REAL = pathlib.Path(__file__).resolve().parents[3] / "shared" / "data" / "nih_sample"
HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
)


class CxrNihTest(tfds.testing.DatasetBuilderTestCase):
    """What TFDS asks of every builder."""

    BUILDER_CONFIG_NAMES_TO_TEST = ["squash", "pad", "squash_raw"]

    DATASET_CLASS = nih.Builder
    SPLITS = {"train_val": 4, "test": 2}


@pytest.fixture(scope="module")
def real() -> pathlib.Path:
    if not REAL.is_dir():
        pytest.skip(f"the sample of real NIH X-rays is absent: no folder {REAL}")
    return REAL


@pytest.fixture
def raw(tmp_path) -> pathlib.Path:
    """A release of six drawn pictures that a test may spoil."""
    return pathlib.Path(shutil.copytree(DUMMY, tmp_path / "raw"))


def table_of(raw: pathlib.Path) -> pathlib.Path:
    return raw / "Data_Entry_2017_v2020.csv"


def edit(path: pathlib.Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1, f"{old!r} is in {path.name} {text.count(old)} times"
    path.write_text(text.replace(old, new))


def build(raw, data_dir, **options) -> nih.Builder:
    builder = nih.Builder(config=released.builder_config(raw, **options), data_dir=data_dir)
    builder.download_and_prepare()
    return builder


def read(raw) -> released.Release:
    return nih.read_release(released.builder_config(raw))


def stored(builder, split) -> dict[str, dict]:
    return {row["image_id"].decode(): row for row in tfds.as_numpy(builder.as_dataset(split=split))}


# ---- the whole table -----------------------------------------------------------------------------------------------


def test_the_whole_table_counts_as_published(real):
    records, ages_refused = nih.read_table(real / "Data_Entry_2017_v2020.full.csv.gz")
    counts = released.count(records, nih.FINDINGS)
    assert {what: counts[what] for what in nih.PUBLISHED} == {
        "images": 112_120,
        "patients": 30_805,
        "sex M": 63_340,
        "view PA": 67_310,
        "finding No Finding": 60_361,
    }
    assert (counts["age unknown"], ages_refused) == (0, 0)
    assert not {"sex unknown", "view unknown"} & counts.keys()
    assert (records["age"].min(), records["age"].max()) == (0, 95)
    assert not records["study_id"].duplicated().any()
    # Each image has a finding or No Finding, never both or neither.
    fourteen = records[[f"finding_{name}" for name in nih.FINDINGS[:-1]]].to_numpy().any(axis=1)
    np.testing.assert_array_equal(fourteen, records["finding_No Finding"] == 0)


def test_a_whole_table_that_was_altered_is_refused(real, tmp_path):
    text = release.read_text(real / "Data_Entry_2017_v2020.full.csv.gz")
    row = "00000001_000.png,Cardiomegaly,0,1,57,M,PA,"
    assert row in text
    (tmp_path / "table.csv").write_text(text.replace(row, row.replace("M,PA", "F,PA")))
    counts = released.count(nih.read_table(tmp_path / "table.csv")[0], nih.FINDINGS)
    with pytest.raises(UserError, match=r"table.csv: sex M: 63,339 found, 63,340 published"):
        released.held_against(counts, nih.PUBLISHED, True, "table.csv")


# ---- 496 real X-rays -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real_build(real, tmp_path_factory):
    return build(real, tmp_path_factory.mktemp("real"))


@pytest.fixture(scope="module")
def real_rows(real):
    """The table as the csv module alone reads it: image name -> cells. Independent of the builder's parser."""
    with open(real / "Data_Entry_2017_v2020.csv", newline="") as lines:
        return {cells[0]: cells for cells in list(csv.reader(lines))[1:]}


def test_real_sample_is_stored_as_its_table_says(real_build, real_rows):
    examples = stored(real_build, released.WHOLE)
    assert examples.keys() == real_rows.keys() and len(examples) == 496
    findings = real_build.info.metadata["findings"]
    for name, cells in real_rows.items():
        row = examples[name]
        assert row["image"].shape == (256, 256, 1) and row["image"].dtype == np.uint8
        assert (row["patient_id"].decode(), row["sex"].decode(), row["view"].decode()) == (cells[3], cells[5], cells[6])
        assert (row["age"], row["follow_up"]) == (float(cells[4]), int(cells[2]))
        assert (row["original_width"], row["original_height"]) == (int(cells[7]), int(cells[8]))
        np.testing.assert_allclose([row["pixel_spacing_x"], row["pixel_spacing_y"]], [float(c) for c in cells[9:11]])
        assert {findings[i] for i in np.flatnonzero(row["findings"])} == set(cells[1].split("|"))
        assert set(np.unique(row["findings"])) <= {0, 1}
        assert (row["race"], row["released_split"]) == (b"", b"")


def test_real_pictures_are_those_of_the_files(real_build, real):
    examples = stored(real_build, released.WHOLE)
    modes = set()
    for path in sorted((real / "images").iterdir()):
        with Image.open(path) as picture:
            if picture.size == (512, 512) and "512" in modes:
                continue
            modes.add("512" if picture.size == (512, 512) else picture.mode)
            pixels = np.asarray(picture)
        # Equal colours, so that the first is the gray value; block means, which any fair reduction comes close to.
        gray = pixels if pixels.ndim == 2 else pixels[..., 0]
        block = gray.shape[0] // 256
        means = gray.reshape(256, block, 256, block).mean(axis=(1, 3))
        image = examples[path.name]["image"][..., 0]
        assert np.corrcoef(image.ravel(), means.ravel())[0, 1] > 0.998
        assert abs(image.mean() - gray.mean()) < 0.5
    assert modes == {"512", "L", "RGBA"}


def test_real_sample_s_integrity(real_build, real):
    reopened = nih.Builder(config="squash", data_dir=real_build.data_dir_root)
    integrity = reopened.info.metadata["integrity"]
    counts = {row["count"]: (row["expected"], row["found"]) for row in integrity["counts"]}
    assert counts["images"] == (112_120, 496) and counts["patients"] == (30_805, 496)
    assert counts["sex M"] == (63_340, 264) and counts["view PA"] == (67_310, 411)
    assert counts["finding No Finding"] == (60_361, 77) and counts["finding Hernia"] == (None, 17)
    assert integrity["complete"] is False and integrity["quarantined"] == {}
    assert integrity["stored"] == {released.WHOLE: 496}
    assert integrity["files_not_in_table"] == {"count": 0, "first": []}
    assert "train_val_list.txt and test_list.txt are missing" in integrity["statements"][0]
    assert integrity["statements"][1] == "Data_Entry_2017_v2020.csv: 496 of 112,120 rows"
    assert reopened.info.metadata["release_fingerprint"] == read(real).fingerprint
    assert (pathlib.Path(reopened.data_dir) / "quarantine.csv").read_text() == "image_id,path,reason\n"
    assert (reopened.info.metadata["races"], reopened.info.metadata["open_data"]) == ([], True)


def test_real_sample_with_official_lists(real, real_rows, tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    shutil.copy(real / "Data_Entry_2017_v2020.csv", raw)
    for number in (1, 2):
        (raw / f"images_{number:03d}" / "images").mkdir(parents=True)
    for i, name in enumerate(sorted(real_rows)):
        shutil.copy(real / "images" / name, raw / f"images_{1 + i % 2:03d}" / "images")
    test = set(sorted(real_rows)[::5])
    (raw / "test_list.txt").write_text("".join(f"{name}\n" for name in sorted(test)))
    # The official lists also name images that a part of the release lacks.
    (raw / "train_val_list.txt").write_text("\r\n".join([*sorted(real_rows.keys() - test), "00030805_000.png"]))
    found = read(raw)
    assert (found.records["size"] > 0).all() and not found.foreign
    assert set(found.records.loc[found.records["released_split"] == "test", "image_id"]) == test
    assert found.records["released_split"].value_counts().to_dict() == {"train_val": 396, "test": 100}


# ---- what is stored ------------------------------------------------------------------------------------------------


def test_depth_and_mode_do_not_show(raw, tmp_path):
    builder = build(raw, tmp_path / "out")
    examples = stored(builder, "train_val") | stored(builder, "test")
    kinds = {}
    for name, row in examples.items():
        with Image.open(raw / "images" / name) as picture:
            kinds[name] = picture.mode
        # Drawn in steps: the same ramp in every file, 20 brighter from each to the next.
        level = {"00000001_000": 1, "00000001_001": 2, "00000002_000": 3, "00000003_000": 4, "00000004_000": 5}
        if name[:-4] in level:
            assert row["image"][4, 4, 0] == 40 + 20 * level[name[:-4]]
    assert set(kinds.values()) == {"L", "RGBA", "I;16", "RGB", "P"}
    assert np.isnan(examples["00000005_000.png"]["age"])  # an empty cell
    assert examples["00000001_001.png"]["study_id"] == b"1_1"
    assert {row["released_split"] for row in stored(builder, "test").values()} == {b"test"}


def test_pad_and_squash_are_two_datasets(raw, tmp_path):
    squash, pad = (build(raw, tmp_path / "out", aspect=aspect) for aspect in images.ASPECTS)
    assert squash.data_dir != pad.data_dir
    image = stored(pad, "test")["00000003_000.png"]["image"]  # 64 rows, 48 columns
    assert (image[:, :32] == 0).all() and (image[:, 224:] == 0).all() and (image[:, 33:223] > 0).all()
    assert (stored(squash, "test")["00000003_000.png"]["image"] > 0).all()


def test_manual_dir_serves_where_no_folder_is_given(raw, tmp_path):
    builder = nih.Builder(data_dir=tmp_path / "out")
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=raw))
    assert builder.info.splits.total_num_examples == 6


def test_a_pickled_builder_still_knows_its_release(raw, tmp_path):
    builder = pickle.loads(pickle.dumps(nih.Builder(config=released.builder_config(raw), data_dir=tmp_path / "out")))
    builder.download_and_prepare()
    assert builder.info.splits.total_num_examples == 6


def test_building_twice_gives_the_same_records(raw, tmp_path):
    first, second = (build(raw, tmp_path / where) for where in "ab")
    for path in sorted(pathlib.Path(first.data_dir).glob("*.tfrecord*")):
        assert path.read_bytes() == (pathlib.Path(second.data_dir) / path.name).read_bytes()


def test_nothing_that_is_stored_tells_the_machine_s_paths(raw, tmp_path):
    builder = build(raw, tmp_path / "out")
    for path in pathlib.Path(builder.data_dir).glob("*.*"):
        if path.name != "dataset_info.json":  # TFDS's own
            assert str(tmp_path).encode() not in path.read_bytes(), path.name


@pytest.mark.parametrize(
    "header",
    [
        HEADER,
        HEADER + ",",  # the older table
        HEADER.replace("OriginalImage[Width,Height]", '"OriginalImage[Width, Height]"').replace(
            "OriginalImagePixelSpacing[x,y]", '"OriginalImagePixelSpacing[x, y]"'
        ),
        "\ufeff" + HEADER.replace(",", " , "),
    ],
    ids=["bare", "trailing comma", "quoted", "byte order mark and spaces"],
)
def test_the_split_header_is_read_however_it_is_written(raw, header):
    expected, _ = nih.read_table(table_of(raw))
    edit(table_of(raw), HEADER, header)
    if header.endswith(","):
        table_of(raw).write_text("".join(f"{line.rstrip(',')},\n" for line in table_of(raw).read_text().splitlines()))
    records, _ = nih.read_table(table_of(raw))
    assert records.equals(expected)
    assert records.iloc[0]["original_width"] == 2682 and records.iloc[0]["original_height"] == 2749


def test_columns_may_stand_in_another_order(raw):
    expected, _ = nih.read_table(table_of(raw))
    lines = [line.split(",") for line in table_of(raw).read_text().splitlines()]
    table_of(raw).write_text("".join(",".join(cells[::-1]) + "\n" for cells in lines))
    assert nih.read_table(table_of(raw))[0].equals(expected)


def test_the_older_table_and_its_ages(raw):
    table_of(raw).rename(raw / "Data_Entry_2017.csv")
    text = (raw / "Data_Entry_2017.csv").read_text()
    for old, new in (("1,57,M", "1,057Y,M"), ("1,58,M", "1,006M,M"), ("2,80,F", "2,414,F"), ("3,34,F", "3,014D,F")):
        text = text.replace(old, new)
    (raw / "Data_Entry_2017.csv").write_text(text)
    found = read(raw)
    np.testing.assert_allclose(found.records["age"], [57, 0.5, np.nan, 14 / 365.25, 82, np.nan])
    assert "ages above 120 years, stored as unknown: 1" in found.statements


def test_the_newer_table_is_taken_where_both_are_there(raw):
    (raw / "Data_Entry_2017.csv").write_text("older")
    assert read(raw).documents[0].name == "Data_Entry_2017_v2020.csv"


def test_leading_zeros_do_not_make_another_patient(raw):
    edit(table_of(raw), "Emphysema,1,1,58", "Emphysema,1,0001,58")
    assert read(raw).records["patient_id"].tolist() == ["1", "1", "2", "3", "4", "5"]


# ---- fingerprint ---------------------------------------------------------------------------------------------------


def test_fingerprint_knows_the_release_and_not_its_place(raw, tmp_path):
    here = read(raw).fingerprint
    moved = pathlib.Path(shutil.copytree(raw, tmp_path / "moved"))
    (moved / "images_001").mkdir()
    (moved / "images").rename(moved / "images_001" / "images")
    assert read(moved).fingerprint == here


@pytest.mark.parametrize("change", ["table", "list", "size", "name", "fewer", "broken link"])
def test_fingerprint_tells_releases_apart(raw, change):
    before = read(raw).fingerprint
    picture = raw / "images" / "00000001_000.png"
    if change == "table":
        edit(table_of(raw), "1,57,M", "1,56,M")
    elif change == "list":
        (raw / "test_list.txt").unlink()
        (raw / "train_val_list.txt").unlink()
    elif change == "size":
        picture.write_bytes(picture.read_bytes()[:-1])
    elif change == "name":
        picture.rename(picture.with_name("00000009_000.png"))
    elif change == "fewer":
        picture.unlink()
    elif change == "broken link":
        picture.unlink()
        picture.symlink_to(raw / "nowhere.png")
    assert read(raw).fingerprint != before


# ---- quarantine ----------------------------------------------------------------------------------------------------


def test_unreadable_images_are_set_aside_and_listed(raw, tmp_path):
    pictures = raw / "images"
    (pictures / "00000001_000.png").unlink()
    (pictures / "00000002_000.png").write_bytes((pictures / "00000002_000.png").read_bytes()[:100])
    (pictures / "00000003_000.png").write_bytes(b"")
    (pictures / "00000004_000.png").write_text("<html>busy</html>")
    builder = build(raw, tmp_path / "out", max_unreadable_share=4 / 6)
    assert stored(builder, "train_val").keys() == {"00000001_001.png"}
    assert stored(builder, "test").keys() == {"00000005_000.png"}
    assert (pathlib.Path(builder.data_dir) / "quarantine.csv").read_text().splitlines() == [
        "image_id,path,reason",
        "00000001_000.png,00000001_000.png,missing",
        "00000002_000.png,images/00000002_000.png,truncated",
        "00000003_000.png,images/00000003_000.png,empty",
        "00000004_000.png,images/00000004_000.png,not an image",
    ]
    integrity = builder.info.metadata["integrity"]
    assert integrity["quarantined"] == {"missing": 1, "truncated": 1, "empty": 1, "not an image": 1}
    assert integrity["stored"] == {"train_val": 1, "test": 1}
    assert "images of the table that are missing: 1, the first 00000001_000.png" in integrity["statements"]


def test_files_that_the_table_lacks_are_counted_and_named(raw, tmp_path):
    shutil.copy(raw / "images" / "00000001_000.png", raw / "images" / "00000009_000.png")
    (raw / "images" / ".DS_Store").write_text("not part of anything")
    builder = build(raw, tmp_path / "out")
    assert builder.info.splits.total_num_examples == 6
    integrity = builder.info.metadata["integrity"]
    assert integrity["files_not_in_table"] == {"count": 1, "first": ["00000009_000.png"]}
    assert "files not in the table, and not stored: 1, the first 00000009_000.png" in integrity["statements"]


def test_folders_that_are_missing_are_named(raw, tmp_path):
    (raw / "images_002").mkdir()
    (raw / "images").rename(raw / "images_002" / "images")
    integrity = build(raw, tmp_path / "out").info.metadata["integrity"]
    (folders,) = [statement for statement in integrity["statements"] if statement.startswith("folders")]
    assert "images_001/images, images_003/images" in folders and "images_012/images" in folders
    assert "images_002/images" not in folders


# ---- bad input: one line that names the culprit, and nothing left behind -------------------------------------------


def refused(raw, data_dir, **options) -> str:
    """The message of the UserError that building raises; sees to it that nothing is left that looks like a data set."""
    with pytest.raises(UserError) as caught:
        build(raw, data_dir, **options)
    message = str(caught.value)
    assert "\n" not in message
    # TFDS notes its default config, and makes a folder for downloads, before it asks the builder for anything.
    left = [path for path in pathlib.Path(data_dir).rglob("*") if path.is_file()]
    assert left in ([], [pathlib.Path(data_dir) / "cxr_nih" / ".config" / "metadata.json"])
    assert not list((pathlib.Path(data_dir) / "cxr_nih" / "squash").glob("*"))
    return message


def test_too_many_unreadable(raw, tmp_path):
    (raw / "images" / "00000003_000.png").write_bytes(b"")
    # The last split to be written: the first is complete by then, and must go too.
    message = refused(raw, tmp_path / "out")
    assert "of 6 images, 1 or more cannot be read (1 empty), above the share of 0.01" in message
    assert "images/00000003_000.png: empty" in message


def test_too_many_missing(raw, tmp_path):
    (raw / "images" / "00000003_000.png").unlink()
    message = refused(raw, tmp_path / "out")
    assert "1 missing" in message and "00000003_000.png: missing" in message
    # Of a release whose twelve folders are not all there, the folders are named.
    (raw / "images_004").mkdir()
    (raw / "images").rename(raw / "images_004" / "images")
    message = refused(raw, tmp_path / "out")
    assert "folders are missing: images_001/images, images_002/images, images_003/images, images_005/images" in message


def test_a_split_of_which_nothing_can_be_read(raw, tmp_path):
    for name in ("00000003_000.png", "00000005_000.png"):
        (raw / "images" / name).write_bytes(b"")
    assert "no image of split 'test' can be read" in refused(raw, tmp_path / "out", max_unreadable_share=1.0)


def test_nothing_can_be_found(raw, tmp_path):
    for path in (raw / "images").iterdir():
        path.unlink()
    message = refused(raw, tmp_path / "out", max_unreadable_share=1.0)
    assert "not one image of Data_Entry_2017_v2020.csv is there" in message


def test_missing_pieces(raw, tmp_path):
    missing = tmp_path / "missing"
    assert refused(missing, tmp_path / "out").startswith(f"{missing}: no such folder")
    shutil.rmtree(raw / "images")
    assert "pictures are missing: neither images/ nor images_001/images/" in refused(raw, tmp_path / "out")
    table_of(raw).unlink()
    assert "table is missing: no Data_Entry_2017_v2020.csv or Data_Entry_2017.csv, with" in refused(
        raw, tmp_path / "out"
    )
    with pytest.raises(UserError, match="dataset.raw_dir is not set"):
        read("")


def test_unknown_aspect():
    with pytest.raises(UserError, match="aspect: 'crop' found"):
        released.builder_config("somewhere", aspect="crop")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("Patient Gender,", "Patient Geschlecht,", "no column 'Patient Gender'; the table has Image Index, Finding"),
        ("[Width,Height]", "[Height]", "no column 'OriginalImage[Width'"),
        ("Patient Age,", "Patient ID,", "more than one column 'Patient ID'"),
        ("80,F,AP,2500,2048,0.171,0.171", "80,F,AP", "line 4: 7 cells found, 11 expected"),
        ("2048,2500,0.168,0.168\n", "2048,25", "line 7: 9 cells found, 11 expected"),
        ("82,M,AP", "82,M,AP,extra", "line 6: 12 cells found, 11 expected"),
        ("Hernia,", '"Hernia,', "not valid CSV"),
        (
            "00000002_000.png",
            "00000001_000.png",
            "lines 2 and 4, column 'Image Index': '00000001_000.png' found more than once",
        ),
        ("00000002_000.png", "../00000002_000.png", "line 4, column 'Image Index': '../00000002_000.png' found"),
        ("00000002_000.png", "/etc/passwd", "line 4, column 'Image Index'"),
        ("00000002_000.png", "..", "line 4, column 'Image Index'"),
        ("00000002_000.png", "", "line 4, column 'Image Index': '' found"),
        ("Hernia", "Hernai", "line 5, column 'Finding Labels': 'Hernai' found, one or more of Atelectasis"),
        ("Hernia", "", "line 5, column 'Finding Labels': '' found"),
        ("Hernia", "Hernia|No Finding", "line 5, column 'Finding Labels': 'Hernia|No Finding' found, either"),
        ("3,34,F", "3,34,X", "line 5, column 'Patient Gender': 'X' found, F, M or an empty cell"),
        ("82,M,AP", "82,M,LL", "line 6, column 'View Position': 'LL' found"),
        ("3,34,F", "3,-1,F", "line 5, column 'Patient Age': '-1' found, an age such as 58 or 058Y"),
        ("3,34,F", "3,old,F", "line 5, column 'Patient Age': 'old' found"),
        ("0,3,34", "0,three,34", "line 5, column 'Patient ID': 'three' found"),
        ("Hernia,0,3", "Hernia,x,3", "line 5, column 'Follow-up #': 'x' found, a whole number"),
        ("2582,2991", "0,2991", "line 5, column 'OriginalImage[Width': '0' found, a whole number of at least 1"),
        ("2048,2500,0.168,0.168", "2048,2500,nan,0.168", "line 7, column 'OriginalImagePixelSpacing[x': 'nan' found"),
        ("2048,2500,0.168,0.168", "2048,2500,0.168,", "line 7, column 'y]': '' found"),
    ],
)
def test_a_table_that_is_wrong(raw, old, new, message):
    edit(table_of(raw), old, new)
    with pytest.raises(UserError) as caught:
        read(raw)
    assert str(caught.value).startswith(str(table_of(raw))) and message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty; a table with the columns Image Index"),
        (HEADER.encode(), "a header and no rows"),
        (b"\xff\xfe\x00table", "not a readable text file"),
    ],
)
def test_a_file_that_is_no_table(raw, content, message):
    table_of(raw).write_bytes(content)
    with pytest.raises(UserError) as caught:
        read(raw)
    assert message in str(caught.value)


def test_a_table_error_leaves_nothing(raw, tmp_path):
    edit(table_of(raw), "Hernia", "Hernai")
    assert "'Hernai'" in refused(raw, tmp_path / "out")


def test_a_compressed_table_that_is_cut(real, tmp_path):
    whole = (real / "Data_Entry_2017_v2020.full.csv.gz").read_bytes()
    (tmp_path / "half.csv.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="half.csv.gz: not a readable text file"):
        nih.read_table(tmp_path / "half.csv.gz")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: (raw / "test_list.txt").unlink(), "test_list.txt is missing beside its fellow"),
        (lambda raw: (raw / "train_val_list.txt").unlink(), "train_val_list.txt is missing beside its fellow"),
        (
            lambda raw: edit(raw / "test_list.txt", "00000005_000.png\n", ""),
            "image '00000005_000.png' of the table is in neither train_val_list.txt nor test_list.txt (1 such)",
        ),
        (
            lambda raw: edit(raw / "test_list.txt", "00000005_000.png\n", "00000005_000.png\n00000004_000.png\n"),
            "image '00000004_000.png' is in both train_val_list.txt and test_list.txt (1 such)",
        ),
        (
            lambda raw: [
                edit(raw / "train_val_list.txt", "00000001_001.png\n", ""),
                edit(raw / "test_list.txt", "00000005_000.png\n", "00000005_000.png\n00000001_001.png\n"),
            ],
            "patient '1' is in splits test and train_val (1 such patient); splits must not share a patient;"
            " the patient's first images in train_val (line 2 of Data_Entry_2017_v2020.csv) and test (line 3 of Data_Entry_2017_v2020.csv)",
        ),
    ],
)
def test_lists_that_are_wrong(raw, change, message):
    change(raw)
    with pytest.raises(UserError) as caught:
        read(raw)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_the_same_picture_in_two_folders(raw):
    (raw / "images_001" / "images").mkdir(parents=True)
    shutil.copy(raw / "images" / "00000004_000.png", raw / "images_001" / "images")
    with pytest.raises(UserError, match=r"images_001/images/00000004_000.png: also there as .*images/00000004_000.png"):
        read(raw)
