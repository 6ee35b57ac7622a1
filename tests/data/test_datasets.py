import io
import pathlib
import shutil
import subprocess
import sys
import textwrap

import numpy as np
import pandas as pd
import pytest

from cxr_jax import tables
from cxr_jax.data import datasets
from cxr_jax.tables import UserError
from configs import base
from tests import releases
from tests.data import tiny


def number(image_id):
    return int(image_id[1:])


def test_key_table_holds_every_stored_field(tiny_datasets):
    dataset = tiny_datasets("official")
    keys = dataset.keys
    assert dataset.images == len(keys) == 60
    assert list(keys["stored_split"].unique()) == list(dataset.info.splits)
    for split, records in keys.groupby("stored_split")["record"]:
        assert list(records) == list(range(dataset.info.splits[split].num_examples))
    assert sorted(keys["image_id"]) == [f"i{n:04d}" for n in range(60)]
    for row in keys.itertuples():
        n = number(row.image_id)
        assert row.patient_id == f"p{n // 2:04d}"
        assert row.sex == "FM"[n // 2 % 2] and row.follow_up == n % 2 and row.latent == -n
        assert (row.drawn_0, row.drawn_1) == (n, n + 0.5)
        assert row.true_Edema == 1 and row.finding_Fracture == 0 and row.ceiling_Kor == 0.5
        np.testing.assert_equal(row.finding_Edema, (-1, 0, 1, np.nan)[n % 4])
        np.testing.assert_equal(row.age, np.nan if n == 3 else n / 2)
    by_id = keys.set_index("image_id")
    assert by_id["study_id"].isna().all()
    assert by_id["race"].isna()["i0012"] and by_id["race"]["i0002"] == "Bel"
    assert by_id["view"].isna()["i0002"] and by_id["view"]["i0000"] == "PA"
    assert dataset.findings == tiny.FINDINGS and dataset.races == tiny.RACES


def test_key_table_names_the_stored_order(tiny_datasets):
    dataset = tiny_datasets("official")
    pictures = [
        image
        for split in dataset.info.splits
        for image in dataset.builder.as_dataset(split=split, read_config=datasets.STORED_ORDER).as_numpy_iterator()
    ]
    assert [p["image_id"].decode() for p in pictures] == list(dataset.keys["image_id"])


def test_key_table_is_kept_and_a_damaged_copy_read_afresh(tmp_path):
    dataset = datasets.prepare(tiny.config(tmp_path))
    first = dataset.keys
    path = dataset.folder / "keys.parquet"
    again = datasets.open(tiny.config(tmp_path)).keys
    assert again.equals(first) and (again.dtypes == first.dtypes).all()
    # That the copy is used shows when it says something else.
    tables.write_parquet(first.assign(age=1.0), path, {"dataset": dataset.info.full_name})
    assert (datasets.open(tiny.config(tmp_path)).keys["age"] == 1).all()
    for damage in (
        lambda: path.write_bytes(path.read_bytes()[:100]),
        lambda: tables.write_parquet(first[:5], path, {"dataset": dataset.info.full_name}),
        lambda: tables.write_parquet(first.assign(age=1.0), path, {"dataset": "another/1.0.0"}),
    ):
        damage()
        assert datasets.open(tiny.config(tmp_path)).keys.equals(first)
        assert len(tables.read_parquet(path)[0]) == 30


def test_nothing_is_said_that_the_user_cannot_use(tmp_path, capfd, caplog):
    dataset = datasets.prepare(tiny.config(tmp_path))
    assert len(dataset.keys) == 30
    assert capfd.readouterr() == ("", "") and not caplog.records


def test_summary_and_quarantine(tiny_datasets):
    dataset = tiny_datasets()
    assert dataset.summary() == {
        "name": "tiny",
        "variant": "plain",
        "version": "1.2.3",
        "images": 30,
        "patients": 15,
        "quarantined": 1,
        "integrity": {},
        "open_data": True,
        "invented_groups": True,
        "description": "Noise, with labels.",
    }
    assert list(dataset.quarantine["reason"]) == ["not an image"]


def test_a_killed_build_leaves_no_data_set_and_the_next_one_clears_up(tmp_path):
    script = f"""
        import signal
        from cxr_jax.data import datasets
        from tests.data import tiny
        datasets.BUILDERS["tiny"] = datasets._Known(
            lambda c: tiny.Tiny(config=tiny.TinyConfig(name="plain", fail="killed"), data_dir=c.data_dir))
        datasets.prepare(tiny.config({str(tmp_path)!r}))
    """
    died = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], cwd=pathlib.Path(__file__).parents[2])
    assert died.returncode == -9
    versions = tmp_path / "tiny" / "plain"
    assert [p.name.partition(".")[0] for p in versions.iterdir() if p.is_dir()] == ["incomplete"]
    with pytest.raises(UserError, match="no data set at .*run the stage `prepare` first"):
        datasets.open(tiny.config(tmp_path))
    assert len(datasets.prepare(tiny.config(tmp_path)).keys) == 30
    assert [p.name for p in versions.iterdir() if p.is_dir()] == ["1.2.3"]


def test_full_disk_is_said_and_leaves_nothing(tmp_path):
    with pytest.raises(UserError, match=r"no space left .*config\.dataset\.data_dir"):
        datasets.prepare(tiny.config(tmp_path, variant="full"))
    assert not [p for p in (tmp_path / "tiny" / "full").iterdir() if p.is_dir()]


@pytest.mark.parametrize("damage", ["removed", "cut short"])
def test_damaged_records_are_found_when_opened(tmp_path, damage):
    dataset = datasets.prepare(tiny.config(tmp_path))
    (path,) = dataset.folder.glob("*tfrecord*")
    if damage == "removed":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-100])
    for ask in (datasets.open, datasets.prepare):
        with pytest.raises(UserError, match="delete the folder"):
            ask(tiny.config(tmp_path))


def test_records_damaged_inside_are_found_when_read(tmp_path):
    dataset = datasets.prepare(tiny.config(tmp_path))
    (path,) = dataset.folder.glob("*tfrecord*")
    content = bytearray(path.read_bytes())
    content[1000] ^= 255
    path.write_bytes(content)
    with pytest.raises(UserError, match="records are damaged"):
        datasets.open(tiny.config(tmp_path)).keys


def test_damaged_description_is_a_one_line_error(tmp_path):
    dataset = datasets.prepare(tiny.config(tmp_path))
    (dataset.folder / "dataset_info.json").write_text("{")
    with pytest.raises(UserError, match="cannot be opened.*delete its folder"):
        datasets.open(tiny.config(tmp_path))


@pytest.mark.parametrize(
    "name, content, told",
    [
        ("dataset_info.json", None, "dataset_info.json is missing"),
        ("metadata.json", None, "metadata.json is missing"),
        ("metadata.json", '{"findings": ["No Fi', "its description cannot be read"),
        ("metadata.json", '{"findings": []}', "metadata.json has no release_fingerprint"),
        ("quarantine.csv", None, "quarantine.csv is missing"),
        ("quarantine.csv", "", "quarantine.csv cannot be read"),
        ("quarantine.csv", "image_id,path,reason\n", "quarantine.csv lists 0 images, and 1 were left out"),
    ],
)
def test_each_damaged_file_of_a_built_release_is_a_one_line_error(tmp_path, built_nih, name, content, told):
    folder = tmp_path / "built" / built_nih.folder.relative_to(built_nih.folder.parents[2])
    shutil.copytree(built_nih.folder, folder)
    config = shipped("nih", tmp_path / "built", max_unreadable_share=0.5)
    assert len(datasets.open(config).quarantine) == 1
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(content)
    for ask in (datasets.open, datasets.prepare):
        with pytest.raises(UserError) as caught:
            ask(config)
        assert f"{folder}: {told}" in str(caught.value) and "\n" not in str(caught.value)
        assert f"delete the folder {folder} and run `prepare` again" in str(caught.value)


@pytest.fixture(scope="module")
def built_nih(tmp_path_factory):
    """The few images of NIH, one of which is set aside, built."""
    folder = tmp_path_factory.mktemp("nih")
    shutil.copytree(pathlib.Path(__file__).parents[2] / "tfds_builders" / "cxr_nih" / "dummy_data", folder / "raw")
    next(iter(sorted((folder / "raw" / "images").iterdir()))).write_bytes(b"no picture")
    return datasets.prepare(shipped("nih", folder / "built", raw_dir=str(folder / "raw"), max_unreadable_share=0.5))


@pytest.mark.parametrize(
    "name, words",
    [
        ("mimic", ["dataset.raw_dir", "mimic-cxr-2.0.0-metadata.csv.gz", "MIMIC-IV (hosp/ or core/)"]),
        ("chexpert", ["dataset.raw_dir", "train.csv", "CHEXPERT DEMO.xlsx"]),
        ("nih", ["dataset.raw_dir", "Data_Entry_2017_v2020.csv"]),
        ("padchest", ["dataset.raw_dir", "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv"]),
        ("brax", ["dataset.raw_dir", "master_spreadsheet_update.csv"]),
        ("table", ["dataset.raw_dir", "config.dataset.table"]),
        ("phantm", ["no data set 'phantm'; there are phantom, "]),
    ],
)
def test_data_sets_that_are_not_there(tmp_path, name, words):
    config = base.get_config().dataset
    config.update(name=name, data_dir=str(tmp_path))
    with pytest.raises(UserError) as caught:
        datasets.prepare(config)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)
    with pytest.raises(UserError, match="no data set"):
        datasets.open(config)


# ---- the builders that ship ----------------------------------------------------------------------


def shipped(name, data_dir, **fields):
    config = base.get_config().dataset
    config.update(name=name, data_dir=str(data_dir), **fields)
    return config


def test_phantom_of_each_parameter_set_has_its_own_folder(tmp_path):
    config = shipped("phantom", tmp_path)
    config.phantom.patients = 8
    dataset = datasets.prepare(config)
    assert dataset.keys["patient_id"].nunique() == 8
    assert dataset.image_shape == (256, 256, 1)
    assert len(dataset.findings) == 14 and len(dataset.races) == 4
    ceilings = dataset.keys[[f"ceiling_{race}" for race in dataset.races]].to_numpy()
    np.testing.assert_allclose(ceilings.sum(1), 1, atol=1e-6)
    assert {f"true_{name}" for name in dataset.findings} <= set(dataset.keys)
    assert dataset.summary()["invented_groups"] and dataset.summary()["quarantined"] == 0

    config.phantom.seed = 1
    with pytest.raises(UserError, match="no data set at"):
        datasets.open(config)
    other = datasets.prepare(config)
    assert other.folder != dataset.folder and other.variant != dataset.variant
    assert not other.keys["age"].equals(dataset.keys["age"])

    config.variant = "plantd"
    with pytest.raises(UserError, match="planted"):
        datasets.prepare(config)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"race_rule": "four_race"}, "race 'MARTIAN' (1 images), race 'VENUSIAN' (2 images)"),
        ({"race_rule": "recorded"}, "race_rule: recorded, but data set mimic records race in the hospital's own words"),
    ],
)
def test_race_that_a_rule_makes_nothing_of_is_told_before_any_picture_is_read(tmp_path, fields, message):
    truth = releases.mimic(tmp_path / "raw", picture=(24, 20), gz=False)
    for path in truth.images["path"]:
        (tmp_path / "raw" / path).write_bytes(b"no picture: the build would end over this")
    admissions = tmp_path / "raw" / "hosp" / "admissions.csv"
    table = pd.read_csv(admissions, dtype=str, keep_default_na=False)
    of = truth.images["patient_id"].value_counts()
    one, two = (next(p for p in table["subject_id"] if of.get(p) == n) for n in (1, 2))
    table["race"] = table["race"].mask(table["subject_id"] == one, "MARTIAN").mask(table["subject_id"] == two, "VENUSIAN")
    table.to_csv(admissions, index=False)
    config = shipped("mimic", tmp_path / "built", raw_dir=str(tmp_path / "raw"), **fields)
    with pytest.raises(UserError) as caught:
        datasets.prepare(config)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not [path for path in (tmp_path / "built").rglob("*") if path.is_file() and path.suffix != ".lock"]


def test_chexpert_without_its_workbook_says_which_file_the_race_would_be_in(tmp_path):
    releases.chexpert(tmp_path / "raw", picture=(24, 20), demo=False)
    config = shipped("chexpert", tmp_path / "built", raw_dir=str(tmp_path / "raw"), race_rule="four_race")
    with pytest.raises(UserError, match="records no race; use recorded; .*raw.*: CHEXPERT DEMO.xlsx is missing: no race"):
        datasets.prepare(config)


def test_a_data_set_that_a_later_stage_needs_is_asked_for_by_the_field_that_names_it(tmp_path, built_nih):
    config = shipped("nih", tmp_path / "built")
    with pytest.raises(UserError, match="config.predict.raw_dir is not set, and there is no data set at .*nih"):
        datasets.check_source(config, "config.predict.raw_dir")
    config.raw_dir = str(tmp_path / "nowhere")
    with pytest.raises(UserError, match="config.predict.raw_dir: no folder .*nowhere"):
        datasets.check_source(config, "config.predict.raw_dir")
    # One that is built needs its release no more, and the phantom has none.
    datasets.check_source(shipped("nih", built_nih.folder.parents[2]), "config.predict.raw_dir")
    datasets.check_source(shipped("phantom", tmp_path), "config.predict.raw_dir")


def test_nih_is_held_to_the_release_it_was_built_from(tmp_path):
    repository = pathlib.Path(__file__).parents[2]
    raw = tmp_path / "raw"
    shutil.copytree(repository / "tfds_builders" / "cxr_nih" / "dummy_data", raw)
    config = shipped("nih", tmp_path / "built", max_unreadable_share=0.5)
    with pytest.raises(UserError, match="dataset.raw_dir is not set: it names the folder of the NIH ChestX-ray14 release"):
        datasets.prepare(config)
    config.raw_dir = str(tmp_path / "nowhere")
    with pytest.raises(UserError, match="config.dataset.raw_dir: no folder .*nowhere"):
        datasets.prepare(config)

    config.raw_dir = str(raw)
    dataset = datasets.prepare(config)
    assert dataset.races == () and dataset.images > 0 and dataset.keys["race"].isna().all()
    listed = len(pd.read_csv(raw / "Data_Entry_2017_v2020.csv", index_col=False))
    assert dataset.images + len(dataset.quarantine) == listed
    assert datasets.open(config).keys.equals(dataset.keys)
    config.raw_dir = ""
    assert datasets.open(config).images == dataset.images

    config.raw_dir = str(raw)
    with io.open(raw / "Data_Entry_2017_v2020.csv", "a") as table:
        table.write("\n")
    with pytest.raises(UserError, match="was built from another nih release than the one in .*data_dir, or delete"):
        datasets.prepare(config)
