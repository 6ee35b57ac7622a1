"""Tables are read by line, and pictures looked at, whatever their cells and folders are like."""

import contextlib
import os
import pathlib
import tempfile

import pandas as pd
import pytest
from etils import epath

from cxr_jax.tables import UserError
from tfds_builders import images, release


def test_lines_are_those_of_the_file_however_long_a_row_is(tmp_path):
    path = tmp_path / "table.csv"
    lines = ["a,b"] + [f"{i},x" for i in range(5000)]
    lines[1500] = '1499,"one\r\ntwo\nthree"'  # three lines of the file
    lines[3500] = "\n\n3499,x"  # after two blank ones
    path.write_bytes("\n".join(lines).encode())
    table = release.read_table(path, ["b", "a"])
    assert list(table["a"]) == [str(i) for i in range(5000)] and table["b"].iloc[1499] == "one\r\ntwo\nthree"
    # The line that a row ends on; the header is 1.
    assert list(table.index) == [i + 2 + 2 * (i >= 1499) + 2 * (i >= 3499) for i in range(5000)]
    for cells, said in (("4499", "1 cells found, 2"), ("4499,x,y", "3 cells found, 2"), ('4499,"x" y', "not valid CSV")):
        path.write_bytes("\n".join([*lines[:4500], cells, *lines[4501:]]).encode())
        with pytest.raises(UserError, match=f"line 4505: {said}"):
            release.read_table(path, ["a"])


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("last", ["", "\n", "\n\n", "\n\n0,0,0\n"])
def test_a_table_without_quotes_is_read_as_csv_reads_it(tmp_path, monkeypatch, end, last):
    lines = ["a, b ,c"] + [f"{i}, {'é nan NULL'.split()[i % 3]} ,{'x' * (i % 2)}" for i in range(3000)]
    (tmp_path / "table.csv").write_bytes((end.join(lines) + last.replace("\n", end)).encode())
    plain = release.read_table(tmp_path / "table.csv", ["c", "b"])
    assert list(plain["b"][:3]) == ["é", "nan", "NULL"] and list(plain["c"][:3]) == ["", "x", ""]  # and none is missing
    monkeypatch.setattr(release, "_read_plain", lambda *_: None)
    by_csv = release.read_table(tmp_path / "table.csv", ["c", "b"])
    pd.testing.assert_frame_equal(plain, by_csv, check_index_type=False)
    assert len(plain) == 3000 + last.count("0,0,0") and plain.index[-1] == 3001 + 2 * last.count("0,0,0")


def test_quotes_are_csv_s(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text('a,b\n1,"x"\n2,"y ""z"""\n')
    assert list(release.read_table(path, ["b"])["b"]) == ["x", 'y "z"']
    path.write_text('a,b\n1,"x\n')
    with pytest.raises(UserError, match="line 2: not valid CSV"):
        release.read_table(path, ["b"])


@contextlib.contextmanager
def nobody():
    """Whoever runs the tests has no rights of root meanwhile: root may read everything."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        if user == 0:
            os.seteuid(user)


def test_what_may_not_be_looked_at_is_not_missing():
    with tempfile.TemporaryDirectory() as name:  # not below pytest's own folder, which nobody may enter
        root = pathlib.Path(name)
        root.chmod(0o755)
        for folder in ("open", "shut"):
            (root / folder).mkdir()
            (root / folder / "a.png").write_bytes(b"four")
        (root / "open" / "locked.png").write_bytes(b"four")
        (root / "open" / "locked.png").chmod(0)
        (root / "open" / "circle.png").symlink_to("circle.png")
        (root / "shut").chmod(0)
        expected = {
            "open/a.png": 4, "open/none.png": -1, "none/a.png": -1, "open/a.png/a.png": -1,
            "open/locked.png": 4, "shut/a.png": 0, "open/circle.png": 0,
        }  # fmt: skip
        with nobody():
            assert list(release.sizes(epath.Path(root), pd.Series(list(expected), dtype="str"))) == list(expected.values())
            for path in ("open/locked.png", "shut/a.png", "open/circle.png"):
                with pytest.raises(images.UnreadableImage) as caught:
                    images.read(root / path)
                assert caught.value.reason == images.NOT_READABLE
        (root / "shut").chmod(0o755)


@pytest.mark.parametrize("cell, value", [("", None), ("213014.531", 213014.531), ("-1.5e2", -150.0)])
def test_optional_numbers(cell, value):
    column = pd.Series(["1", cell], index=[2, 3], name="StudyTime", dtype="str")
    found = release.optional_numbers(column, "table.csv")
    assert found.dtype == "float64" and (found[3] == value or (value is None and pd.isna(found[3])))


def test_an_optional_number_that_is_none():
    column = pd.Series(["", "noon"], index=[2, 3], name="StudyTime", dtype="str")
    with pytest.raises(UserError, match="table.csv: line 3, column 'StudyTime': 'noon' found, a number or an empty cell"):
        release.optional_numbers(column, "table.csv")
