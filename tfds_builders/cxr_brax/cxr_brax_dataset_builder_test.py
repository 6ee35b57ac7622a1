"""The builder on drawn releases, on TFDS's own test case, and on releases that are wrong."""

import pathlib

import numpy as np
import pandas as pd
import pytest
import tensorflow_datasets as tfds

from cxr_jax.tables import UserError
from tests import built, releases
from tfds_builders import released
from tfds_builders.cxr_brax import cxr_brax_dataset_builder as brax

SMALL = (24, 20)
TABLE = brax.TABLE


class CxrBraxTest(built.OnADrawnRelease, tfds.testing.DatasetBuilderTestCase):
    """What TFDS asks of every builder, on a release that is drawn for it."""

    DATASET_CLASS = brax.Builder

    @staticmethod
    def draw(folder):
        return releases.brax(folder, picture=SMALL)


@pytest.fixture
def raw(tmp_path) -> pathlib.Path:
    releases.brax(tmp_path / "raw", picture=SMALL)
    return tmp_path / "raw"


def read(raw, **options) -> released.Release:
    return brax.read_release(released.builder_config(raw, **options))


@pytest.mark.parametrize("gz", [False, True])
def test_the_release_is_stored_as_drawn(tmp_path, gz):
    truth = releases.brax(tmp_path / "raw", gz=gz, faults=True)
    builder = built.build(brax.Builder, tmp_path / "raw", tmp_path / "out", max_unreadable_share=0.1)
    found = built.assert_as_drawn(builder, truth, views=lambda view: "LATERAL" if view == "L" else view)
    drawn = truth.images.set_index("image_id").loc[found.index]
    for ours, theirs in (("manufacturer", "manufacturer"), ("age_bin", "age_written"), ("view_position", "view"), ("study_date", "study_date")):
        assert list(found[ours]) == list(drawn[theirs]), ours
    assert set(found["race"]) == {""} and set(found["original_height"]) == {2544} and set(found["original_width"]) == {3056}
    assert builder.info.metadata["findings"] == list(brax.FINDINGS) and not builder.info.metadata["open_data"]


def test_dicom_files_lie_where_the_table_says(tmp_path):
    truth = releases.brax(tmp_path / "raw", picture=SMALL)
    found = read(tmp_path / "raw", pictures="dicom").records
    assert list(found["path"]) == list(truth.images["dicom_path"]) and (found["size"] == -1).all()
    assert list(found["image_id"]) == list(read(tmp_path / "raw").records["image_id"])  # the same image, whichever file it is read from


def test_a_bin_is_stored_as_its_middle():
    written = {"0": 2, "20": 22, "80": 82, "70.0": 72, "70-74": 72, "70 to 74": 72, "85 or more": 85, "85": 85, "": np.nan}
    column = pd.Series(list(written), name="PatientAge", dtype="str")
    np.testing.assert_array_equal(brax.years(column, "table.csv"), list(written.values()))
    for low in range(0, 85, 5):  # the mean of the five ages of a bin, by hand
        assert brax.years(pd.Series([str(low)], dtype="str"), "table.csv")[0] == np.mean(range(low, low + 5))


def test_what_is_not_the_whole_release_is_said(raw):
    found = read(raw)
    assert not found.complete and not found.whole
    oldest = int((found.records["age"] == 85).sum())
    assert oldest and any(f"stored as 85: {oldest}" in statement for statement in found.statements)
    assert {"count": "studies", "expected": 24_959, "found": found.records["study_id"].nunique()} in found.counts


def test_a_whole_table_that_was_altered_is_refused(raw, monkeypatch):
    counts = {row["count"]: row["found"] for row in read(raw).counts}
    monkeypatch.setattr(brax, "PUBLISHED", {what: counts[what] for what in ("images", "studies")})
    assert read(raw).complete
    monkeypatch.setitem(brax.PUBLISHED, "studies", counts["studies"] + 1)
    with pytest.raises(UserError, match=f"{TABLE}: studies: .* found, .* published"):
        read(raw)


@pytest.mark.parametrize(
    "column, value, message",
    [
        ("PngPath", "images/../../a.png", "line 3, column 'PngPath': 'images/../../a.png' found, a path such as images/"),
        ("DicomPath", "/etc/passwd", "line 3, column 'DicomPath': '/etc/passwd' found"),
        ("PatientID", "", "line 3, column 'PatientID': '' found, an identifier"),
        ("AccessionNumber", "a b", "line 3, column 'AccessionNumber': 'a b' found, an identifier"),
        ("PatientSex", "X", "line 3, column 'PatientSex': 'X' found, F, M, O or an empty cell"),
        ("PatientAge", "71", "line 3, column 'PatientAge': '71' found, the lower edge of 5 years"),
        ("PatientAge", "70-79", "line 3, column 'PatientAge': '70-79' found, the lower edge of 5 years"),
        ("PatientAge", "90", "line 3, column 'PatientAge': '90' found, the lower edge of 5 years"),
        ("ViewPosition", "frontal", "line 3, column 'ViewPosition': 'frontal' found, a view such as PA"),
        ("Rows", "tall", "line 3, column 'Rows': 'tall' found, a number"),
        ("Edema", "2", "line 3, column 'Edema': '2' found, 1, 0, -1 or an empty cell"),
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


def test_missing_pieces_and_an_image_twice(raw):
    lines = (raw / TABLE).read_text().splitlines(keepends=True)
    (raw / TABLE).write_text("".join([*lines, lines[1]]))
    with pytest.raises(UserError, match="lines 2 and .*, column 'PngPath': .* found more than once"):
        read(raw)
    (raw / TABLE).unlink()
    with pytest.raises(UserError, match="the table is missing: no master_spreadsheet_update.csv"):
        read(raw)
