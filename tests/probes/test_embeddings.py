"""A user's own vectors: every way in gives the same, and what does not fit is told in one line."""

import numpy as np
import pandas as pd
import pytest

from cxr_jax.probes import embeddings
from cxr_jax.tables import UserError

N = 6


def keys() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "image_id": [f"i{i}" for i in range(N)],
            "patient_id": ["007", "007", "8", "9", "10", "11"],
            "split": ["train", "train", "train", "validation", "test", "test"],
            "race": ["A", "A", "B", "A", "B", None],
            "age": [40.0, 41.0, np.nan, 50.0, 60.0, 70.0],
        }
    )


def vectors() -> np.ndarray:
    return np.arange(3 * N, dtype=np.float32).reshape(N, 3) / 7


def whole() -> pd.DataFrame:
    return pd.concat([keys(), pd.DataFrame(vectors(), columns=[f"feature_{i}" for i in range(3)])], axis=1)


def written(tmp_path, how):
    """(path of the vectors, path of the keys or '', columns)."""
    if how == "csv":
        whole().to_csv(tmp_path / "mine.csv", index=False)
        return tmp_path / "mine.csv", "", "feature_"
    if how == "parquet":
        whole().to_parquet(tmp_path / "mine.parquet")
        return tmp_path / "mine.parquet", "", "feature_"
    if how == "lists":
        keys().assign(embedding=list(vectors())).to_parquet(tmp_path / "mine.parquet")
        return tmp_path / "mine.parquet", "", "embedding"
    keys().to_csv(tmp_path / "keys.csv", index=False)
    if how == "npy":
        np.save(tmp_path / "mine.npy", vectors().astype(np.float64))
        return tmp_path / "mine.npy", tmp_path / "keys.csv", "feature_"
    shuffled = whole()[["image_id", "feature_0", "feature_1", "feature_2"]].iloc[::-1]
    shuffled.to_parquet(tmp_path / "mine.parquet")
    return tmp_path / "mine.parquet", tmp_path / "keys.csv", "feature_"


@pytest.mark.parametrize("how", ["csv", "parquet", "lists", "npy", "matched"])
def test_every_way_in_gives_the_same(tmp_path, how):
    table, found = embeddings.read(*written(tmp_path, how))
    np.testing.assert_array_equal(found, vectors())
    assert found.dtype == np.float32
    assert list(table["patient_id"]) == list(keys()["patient_id"])  # text, with its zeros
    assert list(table["race"].isna()) == [False] * 5 + [True]
    assert not [c for c in table if c.startswith(("feature_", "embedding"))]


def broken(tmp_path, change):
    change(whole()).to_csv(tmp_path / "mine.csv", index=False)
    return tmp_path / "mine.csv", "", "feature_"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda t: t.assign(feature_1=[0, 1, np.nan, 3, 4, 5]), r"mine\.csv: row 3, column 'feature_1': nan found"),
        (lambda t: t.assign(feature_1=[0, 1, 2, np.inf, np.inf, 5]), r"row 4, column 'feature_1': inf .*\(2 such rows\)"),
        (lambda t: t.assign(feature_2=["x", *"12345"]), r"row 1, column 'feature_2': 'x' found, a number expected"),
        (lambda t: t.assign(feature_0=[0, 1e30, 2, 3, 4, 5]), r"row 2, column 'feature_0': 1e\+30 found, a number within"),
        (lambda t: t.assign(age=["40", "41", "90+", "50", "60", "70"]), r"row 3, column 'age': '90\+' found, a number of years"),
        (lambda t: t.assign(label_Edema=[0, 1, -1, 0, 1, 0]), r"row 3, column 'label_Edema': -1 found, 1, 0 or empty expected"),
        (lambda t: t.assign(label_Edema=["yes", "no", "no", "no", "no", "no"]), "row 1, column 'label_Edema': 'yes' found"),
        (lambda t: t.assign(score_0_0=0.5), "column 'score_0_0': a name that begins as our own results do"),
        (lambda t: t.head(0), "no row"),
        (lambda t: t.drop(columns="patient_id"), "no column 'patient_id'"),
        (lambda t: t.assign(image_id=["i0"] * N), "row 2, column 'image_id'"),
        (lambda t: t.assign(split=["train", "test", *["test"] * 4]), "patient '007' is in splits test and train"),
        (lambda t: t.drop(columns=[f"feature_{i}" for i in range(3)]), "no column whose name begins with 'feature_'"),
    ],
)
def test_a_table_that_cannot_be_read_is_told(tmp_path, change, told):
    with pytest.raises(UserError, match=told):
        embeddings.read(*broken(tmp_path, change))


def test_files_that_do_not_go_together(tmp_path):
    path, table, columns = written(tmp_path, "npy")
    with pytest.raises(UserError, match="which images are these"):
        embeddings.read(path, "", columns)
    np.save(path, vectors()[:-1])
    with pytest.raises(UserError, match="5 rows found, 6 expected, one for each row"):
        embeddings.read(path, table, columns)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(UserError, match=r"mine\.npy: not a \.npy file, or only half of one"):
        embeddings.read(path, table, columns)
    with pytest.raises(UserError, match="no such file"):
        embeddings.read(tmp_path / "other.npy", table, columns)

    path, table, columns = written(tmp_path, "matched")
    keys().iloc[:-1].to_csv(table, index=False)
    with pytest.raises(UserError, match=r"image 'i5' is not in .*keys\.csv \(1 such images\)"):
        embeddings.read(path, table, columns)
    keys().to_csv(table, index=False)
    whole().drop(index=2).to_parquet(path)
    with pytest.raises(UserError, match=r"row 3, image 'i2' has no vector in .* \(1 such images\)"):
        embeddings.read(path, table, columns)


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([[1.0, 2.0]] * (N - 1) + [[1.0]], "row 6, column 'embedding': 1 numbers found, 2 expected"),
        ([["a", "b"]] * N, "row 1, column 'embedding': .* found, a list of numbers expected"),
        ([1.0] * N, "row 1, column 'embedding': 1.0 found, a list of numbers expected"),
        ([[]] * N, "row 1, column 'embedding': .* found, a list of numbers expected"),
    ],
)
def test_lists_that_are_no_vectors(tmp_path, rows, told):
    keys().assign(embedding=rows).to_parquet(tmp_path / "mine.parquet")
    with pytest.raises(UserError, match=told):
        embeddings.read(tmp_path / "mine.parquet", "", "embedding")


def test_what_pandas_writes(tmp_path):
    """An index that is the image, and columns that are called by number."""
    table = whole().rename(columns={f"feature_{i}": i for i in range(3)}).set_index("image_id")
    table.columns = table.columns.astype(str)
    table.rename(columns={str(i): f"feature_{i}" for i in range(3)}).to_parquet(tmp_path / "mine.parquet")
    found, vectors_found = embeddings.read(tmp_path / "mine.parquet", "", "feature_")
    assert list(found["image_id"]) == list(keys()["image_id"])
    np.testing.assert_array_equal(vectors_found, vectors())


def test_words_are_classes_whatever_they_are(tmp_path):
    whole().assign(race=["NA", "None", "B", "nan", "B", ""]).to_csv(tmp_path / "mine.csv", index=False)
    table, _ = embeddings.read(tmp_path / "mine.csv", "", "feature_")
    assert list(table["race"][:5]) == ["NA", "None", "B", "nan", "B"] and table["race"].isna()[5]
