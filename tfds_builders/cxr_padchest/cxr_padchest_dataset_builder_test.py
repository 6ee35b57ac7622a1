"""The builder on drawn releases, on TFDS's own test case, on the real table, and on releases that are wrong."""

import ast
import pathlib

import numpy as np
import pandas as pd
import pytest
import tensorflow_datasets as tfds

from cxr_jax.tables import UserError
from tests import built, releases
from tfds_builders import released
from tfds_builders.cxr_padchest import cxr_padchest_dataset_builder as padchest

SMALL = (24, 20)
TABLE = padchest.TABLE
MAPPING = pd.read_csv(padchest.MAPPING, keep_default_na=False)


class CxrPadchestTest(built.OnADrawnRelease, tfds.testing.DatasetBuilderTestCase):
    """What TFDS asks of every builder, on a release that is drawn for it."""

    DATASET_CLASS = padchest.Builder

    @staticmethod
    def draw(folder):
        return releases.padchest(folder, picture=SMALL)


@pytest.fixture
def raw(tmp_path) -> pathlib.Path:
    releases.padchest(tmp_path / "raw", picture=SMALL)
    return tmp_path / "raw"


def read(raw, **options) -> released.Release:
    return padchest.read_release(released.builder_config(raw, **options))


def findings_by_hand(labels: tuple[str, ...]) -> set[str] | None:
    """None where nothing was read."""
    if "exclude" in labels or not set(labels) - {"unchanged", "suboptimal study"}:
        return None
    found = set(MAPPING.loc[MAPPING["label"].isin(labels), "finding"]) - {""}
    return found - {"No Finding"} if found - {"No Finding", "Support Devices"} else found


@pytest.mark.parametrize("gz", [False, True])
def test_the_release_is_stored_as_drawn(tmp_path, gz):
    truth = releases.padchest(tmp_path / "raw", gz=gz, faults=True)
    builder = built.build(padchest.Builder, tmp_path / "raw", tmp_path / "out", max_unreadable_share=0.1)
    drawn = truth.images[[c for c in truth.images if not c.startswith("finding_")]]  # by label; ours are by the mapping
    # White is that of the bits that a picture was drawn with.
    bits = {i: bits for bits in (10, 12) for i in truth.having(f"{bits} bit")["image_id"]}
    pictures = {i: picture / (2 ** bits.get(i, 16) - 1) * 255 for i, picture in truth.pictures.items()}
    found = built.assert_as_drawn(builder, releases.Truth(truth.folder, None, drawn, pictures), padchest.VIEWS.get)
    drawn = drawn.set_index("image_id").loc[found.index]
    assert list(found["projection"]) == list(drawn["view"]) and set(found["race"]) == {""}
    unread = 0
    for image_id, row in drawn.iterrows():
        labels = tuple(label.lower() for label in row["labels"])
        expected = findings_by_hand(labels)
        stored = found.loc[image_id, [f"finding_{name}" for name in padchest.FINDINGS]].to_numpy(np.float64)
        unread += expected is None
        if expected is None:
            assert np.isnan(stored).all()
        else:
            assert {n for n, v in zip(padchest.FINDINGS, stored, strict=True) if v == 1} == expected
            assert set(stored) <= {0, 1}
        assert found.loc[image_id, "labels"] == "|".join(dict.fromkeys(labels))
    assert 0 < unread < len(drawn) / 2
    for quirk in ("sex O", "birth empty", "labels nan", "empty label", "space before label", "label twice", "two sexes"):
        truth.having(quirk)


def test_pictures_may_lie_in_one_folder(tmp_path):
    truth = releases.padchest(tmp_path / "raw", picture=SMALL)
    (tmp_path / "raw" / "images").mkdir()
    for path in truth.images["path"]:
        (tmp_path / "raw" / path).rename(tmp_path / "raw" / "images" / pathlib.Path(path).name)
    for folder in {pathlib.Path(path).parent for path in truth.images["path"]}:
        (tmp_path / "raw" / folder).rmdir()
    assert (read(tmp_path / "raw").records["size"] > 0).all()


def test_a_picture_beside_the_table_is_no_matter(tmp_path):
    truth = releases.padchest(tmp_path / "raw", picture=SMALL)
    (tmp_path / "raw" / "overview.png").write_bytes(b"anything")
    records = read(tmp_path / "raw").records
    assert list(records["path"]) == list(truth.images["path"]) and (records["size"] > 0).all()


def test_views_and_acquisition(tmp_path):
    truth = releases.padchest(tmp_path / "raw", picture=SMALL)
    records, drawn = read(tmp_path / "raw").records, truth.images
    named = {"PA": "PA", "AP": "AP", "AP_horizontal": "AP", "L": "LATERAL", "COSTAL": "COSTAL", "EXCLUDE": "", "UNK": ""}
    assert list(records["view"]) == [named[view] for view in drawn["view"]]
    for column, name in (("window_center", "WindowCenter_DICOM"), ("window_width", "WindowWidth_DICOM"), ("exposure", "Exposure_DICOM")):
        np.testing.assert_array_equal(records[column], pd.to_numeric(drawn[name].replace("None", np.nan)).astype(float))
    assert list(records["manufacturer"]) == list(drawn["Manufacturer_DICOM"])
    np.testing.assert_array_equal(records["bits_stored"], drawn["BitsStored_DICOM"].astype(float))
    assert list(records["method_label"]) == list(drawn["method"])
    assert list(records["view_position"]) == list(drawn["view_position"].replace("nan", ""))
    assert list(records["pediatric"]) == ["yes" if age < 10 else "no" for age in drawn["age"]]
    assert "LATERAL" in set(records["view_position"]) and "yes" in set(records["pediatric"])


# ---- the real table ------------------------------------------------------------------------------


@pytest.mark.peers
def test_the_real_table(xrayvision):
    path = xrayvision / f"{TABLE}.gz"
    records = padchest.read_table(path)
    counts = released.count(records, padchest.FINDINGS)
    released.held_against(counts, padchest.PUBLISHED, True, path)
    assert (counts["images"], counts["patients"]) == (160_861, 67_625)
    assert (counts["sex F"], counts["sex M"], counts["sex unknown"]) == (79_919, 80_920, 22)
    assert counts["view AP"] == 14_346 + 4_559 and counts["view PA"] == 91_728
    # By pandas and sets, without the builder's own parsing.
    table = pd.read_csv(path, usecols=["Labels"], dtype=str)["Labels"]
    parsed = {text: tuple(w.strip().lower() for w in ast.literal_eval(text) if w.strip()) for text in table.dropna().unique()}
    said = {text: findings_by_hand(labels) for text, labels in parsed.items()}
    for name in ("No Finding", "Pneumonia", "Support Devices", "Nodule"):
        assert counts[f"finding {name}"] == sum(name in (said.get(text) or ()) for text in table)
    unread = sum(said.get(text) is None for text in table)
    assert records["finding_Edema"].isna().sum() == unread == 6_330
    assert counts["finding No Finding"] == 50_447
    assert (records["pediatric"] == "yes").sum() == 274 and (records["view_position"] == "").sum() == 69_085
    assert records["bits_stored"].value_counts().to_dict() == {12: 144_051, 10: 16_810}


@pytest.mark.peers
def test_every_label_of_the_real_table_was_reviewed(xrayvision):
    table = pd.read_csv(xrayvision / f"{TABLE}.gz", usecols=["Labels"], dtype=str)["Labels"].dropna().unique()
    labels = {word.strip().lower() for text in table for word in ast.literal_eval(text)} - {""}
    assert labels == set(MAPPING["label"]) and len(labels) == 193
    assert set(MAPPING["finding"]) == {"", *padchest.FINDINGS}


# ---- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "column, value, message",
    [
        ("ImageID", "../a.png", "line 3, column 'ImageID': '../a.png' found"),
        ("ImageDir", "..", "line 3, column 'ImageDir': '..' found"),
        ("PatientSex_DICOM", "X", "line 3, column 'PatientSex_DICOM': 'X' found, F, M, O or an empty cell"),
        ("Projection", "AXIAL", "line 3, column 'Projection': 'AXIAL' found, one of PA, AP"),
        ("Pediatric", "maybe", "line 3, column 'Pediatric': 'maybe' found, PED, No or an empty cell"),
        ("PatientBirth", "old", "line 3, column 'PatientBirth': 'old' found, a number"),
        ("StudyDate_DICOM", "2014", "line 3, column 'StudyDate_DICOM': '2014' found"),
        ("Labels", "['normal'", "line 3, column 'Labels': \"['normal'\" found, a Python list of labels"),
        ("Labels", "['marsquake']", "line 3, column 'Labels': labels that findings.csv lacks: 'marsquake' (1); add a row"),
    ],
)
def test_a_table_that_is_wrong(raw, column, value, message):
    table = pd.read_csv(raw / TABLE, dtype=str, keep_default_na=False)
    table.loc[1, column] = value
    table.to_csv(raw / TABLE, index=False)
    with pytest.raises(UserError) as caught:
        read(raw)
    assert str(caught.value).startswith(str(raw / TABLE)) and message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_pieces(raw):
    (raw / TABLE).unlink()
    with pytest.raises(UserError, match="the table is missing: no PADCHEST_chest_x_ray_images"):
        read(raw)
