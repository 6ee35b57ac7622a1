import json
import os
import pathlib

import numpy as np
import pandas as pd
import pytest

from cxr_jax import tables
from cxr_jax.tables import Predictions, Target, UserError


def small() -> Predictions:
    table = pd.DataFrame(
        {
            "image_id": ["a", "b", "c"],
            "patient_id": ["p", "p", "q"],
            "split": ["test"] * 3,
            "age": [45.0, np.nan, 60.0],
            "label_sex": ["F", None, "M"],
            "score_F": [0.9, 0.5, 0.2],
            "score_M": [0.1, 0.5, 0.8],
            "ceiling_F": [0.9, 0.5, 0.1],
            "ceiling_M": [0.1, 0.5, 0.9],
            "label_Edema": [1.0, 0.0, np.nan],
            "score_Edema": [0.7, 0.1, 0.3],
        }
    )
    return Predictions(table, {"sex": Target("multiclass", ("F", "M")), "findings": Target("multilabel", ("Edema",))})


def test_predictions_survive_the_disk(tmp_path):
    small().write(tmp_path / "predictions.parquet")
    back = Predictions.read(tmp_path / "predictions.parquet")
    pd.testing.assert_frame_equal(back.table, small().table, check_dtype=False)
    assert back.targets == small().targets
    assert os.listdir(tmp_path) == ["predictions.parquet"]  # no partial file is left behind


def test_labels_are_one_vs_rest_and_nan_where_unknown():
    np.testing.assert_array_equal(small().label("sex", "F"), [1, np.nan, 0])
    np.testing.assert_array_equal(small().label("findings", "Edema"), [1, 0, np.nan])
    assert small().scores("sex").shape == (3, 2)


@pytest.mark.parametrize(
    ("column", "row", "value", "told"),
    [
        ("score_F", 1, 1.5, "row 2, column 'score_F'"),
        ("score_F", 2, np.nan, "row 3, column 'score_F'"),
        ("score_F", 1, "high", "row 2, column 'score_F': 'high' found"),
        ("ceiling_M", 2, np.nan, "row 3, column 'ceiling_M': nan found"),
        ("ceiling_M", 1, 1.5, "row 2, column 'ceiling_M': 1.5 found"),
        ("age", 2, "045Y", "row 3, column 'age': '045Y' found, a number of years, or an empty cell expected"),
        ("label_Edema", 1, "no", "row 2, column 'label_Edema': 'no' found"),
        ("label_sex", 0, "X", "row 1, column 'label_sex'"),
        ("label_Edema", 0, -1.0, "row 1, column 'label_Edema'"),
        ("image_id", 1, "a", "row 2, column 'image_id'"),
        ("patient_id", 0, None, "row 1, column 'patient_id'"),
        ("split", 0, "tset", "row 1, column 'split'"),
        ("split", 0, "train", "patient 'p' is in splits test and train"),
    ],
)
def test_a_bad_cell_is_named(tmp_path, column, row, value, told):
    predictions = small()
    if isinstance(value, str):
        predictions.table[column] = predictions.table[column].astype(object)
    predictions.table.loc[row, column] = value
    with pytest.raises(UserError, match=told):
        predictions.write(tmp_path / "predictions.parquet")
    assert not os.listdir(tmp_path)


def test_numbers_may_come_in_any_type_of_column():
    predictions = small()
    ages = [pd.array([45, None, 60], "Int64"), pd.array([45.5, None, 60], "Float32"), np.array([45, pd.NA, 60], object)]
    for age in [*ages, [None] * 3]:
        Predictions(predictions.table.assign(age=age), predictions.targets).check()
    labels = pd.array([1, 0, None], "Int8")
    typed = Predictions(predictions.table.assign(label_Edema=labels), predictions.targets).check()
    np.testing.assert_array_equal(typed.label("findings", "Edema"), [1, 0, np.nan])


def test_a_missing_column_and_a_shared_class_are_named():
    predictions = small()
    with pytest.raises(UserError, match="no column 'score_M'"):
        Predictions(predictions.table.drop(columns="score_M"), predictions.targets).check()
    twice = {"a": Target("multiclass", ("F", "M")), "b": Target("multiclass", ("F", "N"))}
    with pytest.raises(UserError, match="'F' belongs to two targets"):
        Predictions(predictions.table, twice).check()


def test_half_a_file_and_no_file_are_told(tmp_path):
    path = tmp_path / "predictions.parquet"
    with pytest.raises(UserError, match="no such file"):
        Predictions.read(path)
    small().write(path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match="half of one"):
        Predictions.read(path)


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.json"
    tables.write_json(path, {"a": 1})
    with pytest.raises(RuntimeError), tables.whole_file(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError("the disk went away")
    assert json.loads(path.read_text()) == {"a": 1}
    assert os.listdir(tmp_path) == ["file.json"]


def test_json_has_null_for_what_is_undefined(tmp_path):
    tables.write_json(tmp_path / "x.json", [{"value": np.float32("nan"), "n": np.int64(3), "low": -np.inf, "all": np.arange(2)}])
    assert json.loads((tmp_path / "x.json").read_text()) == [{"value": None, "n": 3, "low": None, "all": [0, 1]}]


ABOUT = {"classes": {"race": ["A", "B"]}, "weights": "best"}
ROWS = 13


def images(split: str = "test") -> pd.DataFrame:
    return pd.DataFrame({"image_id": [f"i{i}" for i in range(ROWS)], "patient_id": [f"p{i // 2}" for i in range(ROWS)], "split": split})


def vectors(width: int) -> np.ndarray:
    return np.random.default_rng(width).normal(size=(ROWS, width)).astype(np.float32)


def write_features(folder, batches=None, about=ABOUT, batch_size=4) -> int:
    """Appends as many batches as named, all of them without; returns the batch that it began with."""
    files = tables.FeatureFiles(folder, "test", ROWS, about)
    start = files.start({"features": 5, "stem": 2}, batch_size)
    for at in range(start * batch_size, ROWS, batch_size)[:batches]:
        files.append({"features": vectors(5)[at : at + batch_size], "stem": vectors(2)[at : at + batch_size]})
    if batches is None:
        files.finish(images())
    files.close()
    return start


def assert_whole(folder):
    back = tables.Features.read(folder, "test")
    assert sorted(back.arrays) == ["features", "stem"]
    assert isinstance(back.arrays["features"], np.memmap)
    for name, width in (("features", 5), ("stem", 2)):
        np.testing.assert_array_equal(back.arrays[name], vectors(width))
    assert back.about["classes"] == {"race": ["A", "B"]}
    pd.testing.assert_frame_equal(back.table, images(), check_dtype=False)
    assert not [name for name in os.listdir(folder) if name.endswith(".partial")]


def test_features_survive_the_disk(tmp_path):
    assert write_features(tmp_path) == 0
    assert_whole(tmp_path)
    assert tables.FeatureFiles(tmp_path, "test", ROWS, ABOUT).whole
    assert not tables.FeatureFiles(tmp_path, "test", ROWS, {**ABOUT, "weights": "last"}).whole


@pytest.mark.parametrize("torn", [0, 3, 21])
def test_features_go_on_where_a_killed_writer_was(tmp_path, torn):
    write_features(tmp_path, batches=2)
    with open(tmp_path / ".test.features.npy.partial", "r+b") as part:
        part.truncate(os.path.getsize(part.name) - torn)  # half a row, or a row and more, never reached the disk
    with pytest.raises(UserError, match="run the extract stage first"):
        tables.Features.read(tmp_path, "test")
    assert write_features(tmp_path) == (2 if torn == 0 else 1)
    assert_whole(tmp_path)


def test_features_of_other_weights_are_begun_anew(tmp_path):
    write_features(tmp_path, batches=2, about={**ABOUT, "weights": "last"})
    assert write_features(tmp_path) == 0
    assert_whole(tmp_path)


def test_features_that_lack_rows_are_not_put_in_place(tmp_path):
    files = tables.FeatureFiles(tmp_path, "test", ROWS, ABOUT)
    files.start({"features": 5}, 4)
    files.append({"features": vectors(5)[:4]})
    with pytest.raises((RuntimeError, ValueError)):
        files.finish(images())
    with pytest.raises(UserError):
        tables.Features.read(tmp_path, "test")


def test_features_that_were_damaged_are_refused(tmp_path):
    write_features(tmp_path)
    path = tmp_path / "test.stem.npy"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(UserError, match=r"test\.stem\.npy: cannot be read .*run the extract stage again"):
        tables.Features.read(tmp_path, "test")
    np.save(path, vectors(3))
    with pytest.raises(UserError, match=r"float32 \[13, 3\] found, float32 \[13, 2\] expected"):
        tables.Features.read(tmp_path, "test")


def test_readings_survive_the_disk(tmp_path):
    one = tables.Reading("race", "knn", "features", about={"fit_images": 3})
    other = tables.Reading("race", "knn", "features", attribute="view", group="AP", about={"reason": "none"})
    scores = {one.name: vectors(2), other.name: np.full((ROWS, 2), np.nan, np.float32)}
    table = images().assign(label_race="A", shuffled_race=None)
    tables.Readings(table, {"race": ("A", "B")}, [one, other], scores, {"agreement": [{"p": 0.5}], "absent": []}).write(tmp_path / "r.parquet")
    back = tables.Readings.read(tmp_path / "r.parquet")
    assert back.readings == [one, other] and back.readings[0].about == {"fit_images": 3}
    assert back.targets == {"race": ("A", "B")} and back.found["agreement"] == [{"p": 0.5}]
    for name in scores:
        np.testing.assert_array_equal(back.scores[name], scores[name])
    assert not [c for c in back.table if c.startswith("score_")]


def test_what_a_kill_leaves_of_a_file_is_removed_and_parts_that_are_gone_on_with_are_not(tmp_path):
    (tmp_path / "features").mkdir()
    halves = []
    with pytest.raises(KeyboardInterrupt), pytest.MonkeyPatch.context() as patched:
        patched.setattr(pathlib.Path, "unlink", lambda *_, **__: None)  # a kill lets nothing be tidied up
        with tables.whole_file(tmp_path / "features" / "run.json") as path:
            halves.append(path)
            raise KeyboardInterrupt
    files = tables.FeatureFiles(tmp_path / "features", "train", 4, {})
    files.start({"features": 3}, 2)
    files.append({"features": np.zeros((2, 3), np.float32)})
    files.close()
    parts = {path for path in (tmp_path / "features").iterdir() if path.name.endswith(".partial")} - set(halves)
    assert halves[0].exists() and len(parts) == 2
    tables.remove_half_files(tmp_path)
    assert not halves[0].exists() and all(path.exists() for path in parts)
