"""What files that others made must not do: run code, lead out of a folder, fill the memory, write into a page; and what a run must not write down.

Of builders' tables, whose paths are checked where they are read, see the tests beside the builders; of links and bombs of every kind, here.
"""

import html.parser
import io
import json
import os
import pathlib
import pickle
import re
import shlex
import shutil
import struct
import subprocess
import sys
import threading
import tracemalloc
import types
import xml.etree.ElementTree
import zipfile
import zlib

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pydicom
import pytest
from etils import epath
from pydicom.encaps import encapsulate
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEGBaseline8Bit, RLELossless

from configs import base, race
from cxr_jax import experiment, main, sweeps, tables
from cxr_jax.audit import intake, readings, travel
from cxr_jax.models import pretrained
from cxr_jax.probes import embeddings
from cxr_jax.report import compare, demographics, figures, leakage, mechanism, page
from cxr_jax.report import html as report
from cxr_jax.report import travel as travel_page
from cxr_jax.tables import Features, Predictions, UserError
from tests import releases
from tests.audit import test_readings
from tests.phantoms import ROOT, as_user, small_config
from tests.report import test_compare
from tests.report.conftest import FINDINGS, make_workdir, narrowed, odd_cohort
from tests.test_mechanism_run import FEW, LEAST
from tests.test_probe_run import probe_config
from tfds_builders import images, release, released
from tfds_builders.cxr_nih import cxr_nih_dataset_builder as nih
from tfds_builders.cxr_table import cxr_table_dataset_builder as own
from tfds_builders.images_test import dicom, encoded, reason

# ------------------------------------------------------------------------------------------------------------- pickles


class Payload:
    def __init__(self, marker: pathlib.Path):
        self.marker = marker

    def __reduce__(self):
        return pathlib.Path.touch, (self.marker,)


@pytest.fixture
def payload(tmp_path):
    """Bytes that touch a file when they are unpickled, as they are shown to do here; that file must not be there after a test."""
    marker = tmp_path / "executed"
    made = pickle.dumps(Payload(marker))
    pickle.loads(made)
    assert marker.exists()
    marker.unlink()
    yield made
    assert not marker.exists()


def refusal(read, *arguments, **keywords) -> str:
    with pytest.raises(UserError) as caught:
        read(*arguments, **keywords)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def npy(array) -> bytes:
    content = io.BytesIO()
    np.save(content, array, allow_pickle=True)
    return content.getvalue()


def npz(**arrays) -> bytes:
    content = io.BytesIO()
    np.savez(content, allow_pickle=True, **arrays)
    return content.getvalue()


def header(text: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text) + 1) + text.encode() + b"\n"


def harmful(payload: bytes, marker: pathlib.Path) -> dict[str, bytes]:
    """Content of files that are called .npy."""
    one = Payload(marker)
    return {
        "a pickle": payload,
        "an array of objects": npy(np.array([[one, one]], object)),
        "objects beside numbers": npy(np.array([(1.0, one)], [("a", float), ("b", object)])),
        "an archive": npz(a=np.array([one], object)),
        "a header that is a program": header("{'descr': __import__('os').getcwd(), 'fortran_order': False, 'shape': (2, 2)}"),
        "a header without end": header("(" * 9000),
        "a shape beyond every number": header("{'descr': '<f4', 'fortran_order': False, 'shape': (18446744073709551616, 2)}"),
        "a shape beyond the file": header("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 1024)}"),
        "nothing": b"",
    }


KEYS = pd.DataFrame({"image_id": ["a", "b"], "patient_id": ["p", "q"]})


def test_vectors_that_are_no_plain_numbers_are_not_loaded(payload, tmp_path):
    KEYS.to_csv(tmp_path / "keys.csv", index=False)
    tables.write_parquet(KEYS, tmp_path / "test.parquet", {"arrays": {"features": 2}, "classes": {}})
    for what, content in harmful(payload, tmp_path / "executed").items():
        (tmp_path / "test.npy").write_bytes(content)
        assert "test.npy: not a .npy file, or only half of one" in refusal(embeddings.read, tmp_path / "test.npy", tmp_path / "keys.csv", "x"), what
        assert "test.npy: cannot be read" in refusal(Features.read, tmp_path, "test"), what
    (tmp_path / "test.npy").write_bytes(npy(np.ones((2, 2), np.float32)))
    assert embeddings.read(tmp_path / "test.npy", tmp_path / "keys.csv", "x")[1].shape == (2, 2) and Features.read(tmp_path, "test").arrays["features"].shape == (2, 2)


def test_arrays_that_a_run_left_are_loaded_only_where_they_are_numbers(payload, tmp_path):
    path = tmp_path / "maps.npz"
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("groups.npy", payload)
    one = Payload(tmp_path / "executed")
    for content in (payload, npz(a=np.ones(2), groups=np.array([one], object)), packed.getvalue(), npz(a=np.ones(2))[:100], b""):
        path.write_bytes(content)
        assert f"{path}: not a file of plain arrays" in refusal(tables.read_arrays, path, "mechanism")
    path.write_bytes(npz(a=np.ones(2), groups=np.array(["A", "B"])))
    assert list(tables.read_arrays(path, "mechanism")["groups"]) == ["A", "B"]
    assert "run the stage mechanism again" in refusal(tables.read_arrays, tmp_path / "none.npz", "mechanism")


def test_cells_and_types_of_a_parquet_file_are_never_unpickled(payload, tmp_path):
    path = tmp_path / "mine.parquet"
    ids, people = pa.array(["a", "b"]), pa.array(["p", "q"])
    # Until 14.0.1 Arrow unpickled what such a field says of its type (CVE-2023-47248).
    extension = {"ARROW:extension:name": "arrow.py_extension_type", "ARROW:extension:metadata": payload}
    for type_of, metadata in ((pa.binary(), None), (pa.binary(), extension)):
        schema = pa.schema([pa.field("image_id", pa.string()), pa.field("patient_id", pa.string()), pa.field("feature_0", type_of, metadata=metadata)])
        pq.write_table(pa.Table.from_arrays([ids, people, pa.array([payload, payload], type_of)], schema=schema), path)
        tables.read_parquet(path)
        assert "row 1, column 'feature_0'" in refusal(embeddings.read, path, None, "feature_")
    pq.write_table(pa.table({"image_id": pa.array([payload, b"b"]), "patient_id": people, "feature_0": [1.0, 2.0]}), path)
    assert re.search("row 1, column 'image_id': .* found, text expected .1 such row.", refusal(embeddings.read, path, None, "feature_"))
    pq.write_table(pa.table({"image_id": pa.array([b"a", b"b"]), "patient_id": people, "feature_0": [1.0, 2.0]}), path)  # text, as some programs write it
    assert list(embeddings.read(path, None, "feature_")[0]["image_id"]) == ["a", "b"]
    path.write_bytes(payload)
    for read in (tables.read_parquet, Predictions.read, tables.Readings.read, lambda p: embeddings.read(p, None, "feature_"), lambda p: intake.read(p, base.get_config().audit)):
        assert "not a Parquet file" in refusal(read, path)


def test_what_a_parquet_file_says_of_itself_is_checked(tmp_path):
    path, table = tmp_path / "mine.parquet", pa.table({"image_id": ["a"], "patient_id": ["p"]})
    index = {"index_columns": ["__import__('os')"], "columns": [], "column_indexes": []}
    for metadata in ({b"cxr_jax": b"{"}, {b"cxr_jax": b"\xff"}, {b"pandas": b"{"}, {b"pandas": json.dumps(index).encode()}):
        pq.write_table(table.replace_schema_metadata(metadata), path)
        assert "whose own description cannot be read" in refusal(tables.read_parquet, path)
    for about in ({"targets": [1], "open_data": True}, {"targets": {"a": "b"}, "open_data": True}, {"targets": {}}, {"targets": {"a": {"kind": "x", "classes": ["a"]}}, "open_data": True}):
        tables.write_parquet(KEYS, path, about)
        assert "not as `predict` writes it" in refusal(Predictions.read, path)
    tables.write_parquet(KEYS, path, {"readings": [{"what": 1}], "targets": {}})
    assert "not as `probe` writes it" in refusal(tables.Readings.read, path)


def test_weights_that_are_a_program_are_not_run(payload, tmp_path):
    """With torch here, and without: of its own formats `tests/models/test_pretrained_torch.py` has more."""
    for name in ("w.pt", "w.pth", "w.tar", "w.safetensors", "w.pkl", "w.npz"):
        (tmp_path / name).write_bytes(payload)
        refusal(pretrained.read, tmp_path / name, classifier=True)
    with zipfile.ZipFile(tmp_path / "zip.pt", "w") as archive:
        archive.writestr("zip/data.pkl", payload)
        archive.writestr("zip/version", "3\n")
    # What is told to be typed does nothing else, whatever the file is called.
    shutil.copy(tmp_path / "zip.pt", tmp_path / "$(touch executed)'.pt")
    for name in ("zip.pt", "$(touch executed)'.pt"):
        typed = refusal(pretrained.read, tmp_path / name, classifier=True).partition('python -c "')[2]
        assert typed and "$(" not in typed


RESTORING = """
import jax, pathlib, shutil, sys
import numpy as np
from cxr_jax.tables import Target, UserError
from cxr_jax.training import checkpoints

folder, payload = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]).read_bytes()
state = {"w": jax.numpy.arange(6.0).reshape(2, 3), "step": jax.numpy.asarray(1)}
described = checkpoints.ModelDescription({"growth": 32, "blocks": (6, 12), "stem_constant": False}, {"race": Target("multiclass", ("a", "b"))}, 64)
with checkpoints.Checkpoints(folder / "whole", described, keep=1) as kept:
    kept.save("last", 1, state)
files = [path.relative_to(folder / "whole") for path in (folder / "whole" / "last").rglob("*") if path.is_file()]
of_arrays = [path for path in files if path.name != "_METADATA"]
assert len(files) > 8 and len(of_arrays) == len(files) - 1
for chosen in (files, of_arrays, *([path] for path in files)):
    harmed = pathlib.Path(shutil.copytree(folder / "whole", folder / "harmed"))
    for path in chosen:
        (harmed / path).write_bytes(payload)
    try:
        np.testing.assert_array_equal(checkpoints.restore(harmed, "last", state)["w"], state["w"])
        print("not needed:", *chosen)
    except UserError as error:
        print("refused:", error)
    shutil.rmtree(harmed)
(folder / "whole" / "model.json").write_bytes(payload)
try:
    checkpoints.ModelDescription.read(folder / "whole")
except UserError as error:
    print("refused:", error)
"""


def test_nothing_of_a_checkpoint_is_unpickled(payload, tmp_path):
    """In a process of its own: what fails within Orbax is said once more by its threads, later, wherever that falls."""
    (tmp_path / "payload").write_bytes(payload)
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", RESTORING, tmp_path, tmp_path / "payload"], cwd=ROOT, env=as_user(JAX_PLATFORMS="cpu"), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert all(line.startswith(("refused: ", "not needed: ")) for line in lines)
    assert lines[0].startswith("refused: ") and lines[1].startswith("refused: ") and "model.json: not JSON" in lines[-1]
    assert sum(line.startswith("refused: ") for line in lines) >= 5


def test_a_data_set_s_own_description_names_no_code_of_others(payload, tmp_path, monkeypatch):
    """TFDS imports the module of every feature that features.json names."""
    folder = tmp_path / "data" / "cxr_table" / "here_squash" / "1.0.0"
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "of_others.py").write_text(f"import pickle\npickle.loads({payload!r})\n")
    monkeypatch.syspath_prepend(tmp_path / "modules")
    text = {"pythonClassName": "tensorflow_datasets.core.features.text_feature.Text", "text": {}}
    for foreign in (
        {"pythonClassName": "of_others.Text"},
        {"python_class_name": "tensorflow_datasets.core.features../of_others.Text"},
        {"pythonClassName": "tensorflow_datasets.core.features.text_feature.Text", "jsonFeature": {"json": '{"type": "of_others.Text", "content": {}}'}},
        {"type": "of_others.Text", "content": {}},
    ):
        tables.write_json(folder / "dataset_info.json", {"name": "cxr_table", "version": "1.0.0"})
        tables.write_json(folder / "features.json", {"featuresDict": {"features": {"race": text, "type": text, "view": foreign}}})
        assert "which is no feature of TFDS" in refusal(own.Builder, config=own.builder_config("here"), data_dir=tmp_path / "data")
    tables.write_json(folder / "features.json", {"featuresDict": {"features": {"race": text, "type": text}}})
    own.check_features(epath.Path(folder / "features.json"))


# ------------------------------------------------------------------------------------------------------------- secrets

SECRET = "hunter2"
OPTIONS = (
    f"--password={SECRET}", "--project=mine", f"--temp_location=gs://me:{SECRET}@bucket/x?sig={SECRET}", "--azure_connection_string", f"AccountKey={SECRET}", "--num_workers", "8",
    f"--s3_session_token {SECRET}", f"-p{SECRET}", SECRET, f"--environment_config={{\n{SECRET}}}", "--streaming", "--direct-num-workers=2",
)  # fmt: skip
RAW = f"https://me:p@{SECRET}@host.example/mimic/2.0?versionId=3&X-Amz-Signature={SECRET}#token={SECRET}"


def test_what_may_be_secret_is_not_told_and_the_rest_is():
    config = experiment.apply_diff(race.get_config(), {"dataset.beam_runner": "DataflowRunner", "dataset.beam_options": OPTIONS, "dataset.raw_dir": RAW})
    told = experiment.told(config)
    assert SECRET not in json.dumps(told) and experiment.told(told) == told
    assert told["dataset"]["raw_dir"] == "https://***@host.example/mimic/2.0?versionId=***&X-Amz-Signature=***#token=***"
    assert told["dataset"]["beam_options"] == (
        "--password=***", "--project=mine", "--temp_location=gs://***@bucket/x?sig=***", "--azure_connection_string", "***", "--num_workers", "8",
        "--s3_session_token***", "***", "***", "--environment_config=***", "--streaming", "--direct-num-workers=2",
    )  # fmt: skip
    plain = race.get_config("mimic")
    plain.dataset.update({"raw_dir": "/data/mimic@2.0", "data_dir": "gs://bucket/data sets/v1", "table": "a?b=c.csv"})
    assert experiment.told(plain) == plain.to_dict()
    with pytest.raises(UserError, match="dataset.beam_options=.*--project=mine.*options of a runner") as caught:
        experiment.validate(experiment.apply_diff(race.get_config(), {"dataset.beam_options": OPTIONS}))
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "words",
    [
        [f"--config.dataset.beam_options={OPTIONS!r}"],
        ["--config.dataset.beam_options", repr(OPTIONS)],
        [f"-config.dataset.beam_options=--password={SECRET}"],
        [f"--config.dataset.beam_options=('--password={SECRET}')"],
        [f"--config.dataset.beam_options=('--password={SECRET}"],  # which is no tuple
        [f"--config.dataset.raw_dir={RAW}"],
        ["--config.predict.raw_dir", RAW],
    ],
)
def test_nor_by_the_command_line(words):
    told = experiment.told_command(shlex.join(["python", "-m", "cxr_jax.main", "--config=configs/race.py:mimic", *words, "--workdir=it's here"]))
    assert SECRET not in told and "***" in told and experiment.told_command(told) == told
    first, *_, last = shlex.split(told)
    assert first == "python" and last == "--workdir=it's here" and len(shlex.split(told)) == 5 + len(words)


def test_no_file_of_a_run_holds_a_secret_and_it_is_gone_on_with(phantom, phantom_dir, tmp_path, capsys):
    def config(secret):
        made = small_config(phantom_dir, stages=("prepare",))
        options = tuple(option.replace(SECRET, secret) for option in OPTIONS)
        return experiment.apply_diff(made, {"dataset.beam_runner": "DirectRunner", "dataset.beam_options": options, "dataset.raw_dir": RAW.replace(SECRET, secret)})

    def command(secret):
        return shlex.join(["python", "-m", "cxr_jax.main", f"--config.dataset.raw_dir={RAW.replace(SECRET, secret)}"])

    main.run(config(SECRET), tmp_path, command(SECRET))
    main.run(config(SECRET), tmp_path, command(SECRET))
    main.run(config("swordfish"), tmp_path, command("swordfish"))  # a new password is no new config
    printed = capsys.readouterr()
    assert printed.out.count("this run is done") == 2
    stored = tables.read_json(tmp_path / "config.json")
    assert stored["dataset"]["raw_dir"].startswith("https://***@host.example/mimic") and "--project=mine" in stored["dataset"]["beam_options"]
    assert experiment.fingerprint(stored, files={}) == experiment.fingerprint(config(SECRET), files={}) == tables.read_json(tmp_path / "run.json")["fingerprint"]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"config.json", "config_diff.json", "run.json", "cohort.html"} <= {path.name for path in files}
    for secret in (SECRET.encode(), b"swordfish"):
        assert not [path.name for path in files if secret in path.read_bytes()] and secret.decode() not in printed.out + printed.err
    # What an earlier version wrote down is taken back at the next start.
    tables.write_json(tmp_path / "config.json", config(SECRET).to_dict())
    main.run(config(SECRET), tmp_path, command(SECRET))
    assert "this run is done" in capsys.readouterr().out and SECRET not in (tmp_path / "config.json").read_text()


# --------------------------------------------------------------------------------------------------------------- pages

EVIL = {
    "Alder": "<script>alert(1)</script>",
    "Birch": '"><img src=x onerror=alert(2)>',
    "Cedar": "'--><svg onload=alert(3)>]]>",
    "Dogwood": "{{ 7+7 }}{% raw %}$\\x$",
    "Cardiomegaly": "=cmd|' /C calc'!A0</title><script>",
    "No Finding": "<b>No Finding",
    "Edema": "&lt;script&gt;",
}
ALLOWED = {  # of elements, none of which asks for anything or runs
    "html", "head", "meta", "title", "style", "body", "header", "nav", "main", "section", "div", "h1", "h2", "h3", "p", "a", "ul", "li", "dl", "dt", "dd", "table", "caption", "thead",
    "tbody", "tr", "th", "td", "figure", "figcaption", "img", "details", "summary", "code", "pre", "span", "strong", "em", "br", "wbr",
}  # fmt: skip
ATTRIBUTES = ("src", "href", "alt", "class", "id", "lang", "width", "height", "scope", "content", "name", "charset", "data-head", "tabindex", "aria-label")


class Page(html.parser.HTMLParser):
    """A page of ours; fails where an element, or an attribute, is none that our templates have."""

    def __init__(self, path: pathlib.Path):
        super().__init__()
        self.stack, self.text, self.attributes = [], "", ""
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert not self.stack

    def handle_starttag(self, tag, attributes):
        assert tag in ALLOWED, (tag, attributes)
        for name, value in attributes:
            assert name in ATTRIBUTES, name
            assert name != "src" or value.startswith(("data:image/svg+xml;base64,", "data:image/png;base64,")), value
            assert name != "href" or re.fullmatch(r"#[\w-]+|\w+\.html", value), value
            self.attributes += f"{value}\n"
        if tag not in ("meta", "br", "img", "wbr"):
            self.stack.append(tag)

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        self.text += data


def assert_shown(path: pathlib.Path, *names: str) -> None:
    """Names stand on the page as they are, and are nothing else there; nor in the figures beside it."""
    found = Page(path)
    for name in names:
        assert name in found.text.replace("/\N{ZERO WIDTH SPACE}", "/"), name
    for figure in (path.parent / "figures").glob("*.svg"):
        for element in xml.etree.ElementTree.fromstring(figure.read_text()).iter():
            assert element.tag.rpartition("}")[2] in ("svg", "g", "path", "defs", "clipPath", "rect", "use", "style", "image", "linearGradient", "stop"), element.tag
            for name, value in element.attrib.items():
                assert not name.startswith("on") and ("href" not in name or value.startswith(("#", "data:image/png;base64,")))


GROUPS = [EVIL[name] for name in ("Alder", "Birch", "Cedar", "Dogwood")]


@pytest.fixture(scope="module")
def evil_workdir(tmp_path_factory):
    """A run whose groups, findings, rules, config, command and file names would be elements, attributes, templates and formulas, if they could."""
    table = odd_cohort(300).rename(columns={f"finding_{name}": f"finding_{EVIL[name]}" for name in EVIL if name in FINDINGS})
    to = dict(zip("ABCDEF", [*GROUPS[:2], "=1+1", *GROUPS[2:], "@SUM(1)"]))  # by how many they are
    table["race"] = pd.Series([to.get(group) for group in table["race"]], dtype="str")
    table, steps = narrowed(table, (EVIL["Alder"], lambda t: t["view"] != "LL"))
    folder = make_workdir(tmp_path_factory.mktemp("evil"), "race", table=table, steps=steps)
    config, run = tables.read_json(folder / "config.json"), tables.read_json(folder / "run.json")
    config["name"] = EVIL["Birch"]
    run |= {"headline": EVIL["Alder"], "command": EVIL["Birch"], "packages": {EVIL["Cedar"]: EVIL["Alder"]}, "git_commit": EVIL["Alder"]}
    run["outside"] = {"file": EVIL["Birch"], "columns": {EVIL["Cedar"]: EVIL["Birch"]}, "said": [EVIL["Alder"]], "images": 1, "without_patients": True}
    run["dataset"] |= {"name": "table", "variant": EVIL["Birch"], "description": EVIL["Cedar"], "open_data": True}
    tables.write_json(folder / "config.json", config)
    tables.write_json(folder / "run.json", run)
    tables.write_json(folder / "config_diff.json", {EVIL["Cedar"]: {"base": EVIL["Birch"], "run": [EVIL["Alder"]]}})
    (folder / "quarantine.csv").write_text(f"image_id,reason\na,{EVIL['Alder']}\n")
    races, settings = tuple(sorted(to.values())), types.SimpleNamespace(**config["audit"])
    counts = [{"count": EVIL["Alder"], "expected": 1, "found": 2}]
    integrity = {"counts": counts, "complete": False, "statements": [EVIL["Birch"]], "quarantined": {}, "stored": {}}
    demographics.write(folder, table, steps, run["dataset"] | {"integrity": integrity}, settings, races)
    return folder


def test_reports_escape_what_they_show(evil_workdir):
    picture = np.zeros((8, 8), np.uint8)
    report.write(evil_workdir, [(picture, EVIL["Birch"])], [(EVIL["Alder"], [(picture, EVIL["Cedar"])])])
    assert_shown(evil_workdir / "report.html", *GROUPS)
    alone = Page(evil_workdir / "report.html")
    assert f"Example image: {EVIL['Birch']}" in alone.attributes and alone.text.count(EVIL["Alder"]) > 8
    assert_shown(evil_workdir / "cohort.html", *GROUPS, *(EVIL[name] for name in EVIL if name in FINDINGS))
    assert len([name for name in os.listdir(evil_workdir / "figures")]) > 4


def test_and_those_of_what_it_does_elsewhere(evil_workdir, tmp_path):
    folder = pathlib.Path(shutil.copytree(evil_workdir, tmp_path / "run"))
    predictions = Predictions.read(folder / "predictions.parquet")
    config = base.get_config().audit
    config.update({"replicates": 100, "attributes": ("race",), "case_mix": (), "intersections": (), "min_patients": 2})
    place = "table.there"
    tables.write_json(folder / "travel_audit.json", travel.travel(predictions, {place: predictions}, config))
    run = tables.read_json(folder / "run.json")
    tables.write_json(folder / "run.json", run | {"travelled": {place: run["dataset"]}})
    assert_shown(travel_page.write(folder), *GROUPS)


def test_and_those_of_probes_and_of_what_leaks(tmp_path, monkeypatch):
    monkeypatch.setattr(test_readings, "CLASSES", tuple(GROUPS[:3]))
    made = test_readings.drawn()
    vectors = np.random.default_rng(1).normal(size=(test_readings.IMAGES, 1)).astype(np.float32)  # of which there is no map, which would take its time
    config = experiment.apply_diff(base.get_config(), {"name": EVIL["Alder"], "audit.replicates": 100, "audit.predictions": ""})
    tables.write_json(tmp_path / "config.json", config.to_dict())
    tables.write_json(tmp_path / "config_diff.json", {})
    tables.write_json(tmp_path / "run.json", {"stages": {}, "headline": EVIL["Alder"], "dataset": {"name": EVIL["Cedar"], "open_data": True, "invented_groups": False}})
    tables.write_json(tmp_path / "probe_audit.json", readings.audit(made, vectors, config.audit, True) | {"absent": [EVIL["Dogwood"]]})
    assert_shown(report.write(tmp_path), *GROUPS)
    reasons = {"reidentification": EVIL["Birch"], "membership": EVIL["Cedar"], "images": EVIL["Alder"]}
    tables.write_json(tmp_path / "leakage_audit.json", {"reidentification": None, "membership": None, "images": None, "reasons": reasons})
    assert_shown(leakage.write(tmp_path), *GROUPS[:3])


def test_and_those_of_sections(tmp_path):
    """Of which all further pages are made."""
    picture = page.pictures([(np.zeros((8, 8), np.uint8), EVIL["Birch"])])
    sections = [
        page.Section(
            "evil", EVIL["Alder"], [EVIL["Birch"]], [page.table(EVIL["Cedar"], [EVIL["Dogwood"], f"{EVIL['Alder']}\nn"], [(EVIL["Birch"], [[EVIL["Cedar"], EVIL["Alder"]]])])],
            examples=[(EVIL["Alder"], picture)], details=[(EVIL["Birch"], [page.table(EVIL["Alder"], ["a", EVIL["Edema"]], [(EVIL["Cedar"], [EVIL["Birch"]])])])],
        )
    ]  # fmt: skip
    path = page.write_sections(tmp_path, "mechanism.html", EVIL["Alder"], EVIL["Birch"], False, sections, [EVIL["Cedar"]])
    assert_shown(path, *GROUPS, EVIL["Edema"])


def test_and_those_of_several_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(test_compare, "GROUPS", tuple(GROUPS[:3]))
    monkeypatch.setattr(test_compare, "FINDINGS", (EVIL["Cardiomegaly"], EVIL["No Finding"], EVIL["Edema"]))
    names = ["<img src=x onerror=alert(1)>", "b'\"&\x1b[31m"]
    both = [test_compare.make_run(tmp_path / name, 1.0 + i, ("race", "findings"), table=test_compare.images(), seed=i, name=f"<b>{i}") for i, name in enumerate(names)]
    found = compare.read(both)
    compare.write(found, tmp_path / "page.html")
    assert_shown(tmp_path / "page.html", *GROUPS[:3], EVIL["Cardiomegaly"], EVIL["No Finding"], EVIL["Edema"], names[0])
    assert "\x1b" not in compare.text(found, classes=True)  # which a terminal would obey


def test_names_do_not_become_paths_of_figures(evil_workdir):
    for figure in (evil_workdir / "figures").iterdir():
        assert re.fullmatch(r"[\w.-]+\.svg", figure.name)
    draw = figures.styled(lambda target: (f"roc_{target}", figures.new_figure(1), "", ""))
    several = [draw("../" * 100 + end).name for end in ("a", "b")] + [draw("\N{HANGUL SYLLABLE GA}" * 200).name]
    assert len(set(several)) == 3 and all(re.fullmatch(r"roc_[\w.-]+", name) and len(name.encode()) <= 200 for name in several)


def test_cells_of_a_table_to_be_handed_on_are_no_formulas(evil_workdir, tmp_path):
    text = (evil_workdir / "cohort.csv").read_text()
    raw = pd.read_csv(io.StringIO(text), dtype="str", keep_default_na=False)
    texts = raw[list(demographics.TEXTS)]
    assert not texts.apply(lambda column: column.str.match(r"[=+\-@\t\r]")).any(axis=None)
    assert (texts == "'=1+1").any(axis=None) and (texts == "'" + EVIL["Cardiomegaly"]).any(axis=None)
    rows = demographics.read(evil_workdir / "cohort.csv")  # other pages have the names as they are
    assert "=1+1" in set(rows["group"]) and EVIL["Cardiomegaly"] in set(rows["attribute"])
    awkward = ["=a", "'=a", "''=a", "'a", "a", "", "-1", "+", "\t=", "'", "@x"]
    columns = pd.DataFrame(dict.fromkeys(demographics.TEXTS, awkward))
    assert demographics._unquoted(demographics._quoted(columns)).equals(columns) and demographics._quoted(columns)["note"].nunique() == len(awkward)


def in_evil(value):
    """The same JSON, with the phantom's names exchanged for those of EVIL."""
    if isinstance(value, dict):
        return {in_evil(key): in_evil(one) for key, one in value.items()}
    if isinstance(value, list):
        return [in_evil(one) for one in value]
    return re.sub("|".join(map(re.escape, EVIL)), lambda found: EVIL[found[0]], value) if isinstance(value, str) else value


@pytest.mark.slow
def test_every_page_of_a_whole_run_escapes_what_it_shows(phantom_dir, tmp_path):
    """Names are exchanged in what the audits wrote, of which pages are made and of nothing else."""
    stages = ("prepare", "train", "predict", "extract", "probe", "mechanism", "audit", "report")
    further = {"audit.min_patients": 2, "audit.leakage": True, "predict.datasets": ("phantom.null",), "predict.splits": ("train", "validation", "test"), "probe.controls": ("scores",)}
    folder = tmp_path / "<b>run&'\""
    main.run(experiment.apply_diff(probe_config(phantom_dir), {**LEAST, **FEW, **further, "stages": stages}), folder, command="the command")
    for path in folder.glob("*.json"):
        tables.write_json(path, in_evil(tables.read_json(path)))
    rows = demographics.read(folder / "cohort.csv")
    demographics._quoted(rows.assign(**{name: in_evil(list(rows[name])) for name in demographics.TEXTS})).to_csv(folder / "cohort.csv", index=False)
    arrays = tables.read_arrays(folder / "mechanism" / "maps.npz", "mechanism")
    np.savez(folder / "mechanism" / "maps.npz", **{in_evil(name): np.array(in_evil(values.tolist())) if values.dtype.kind == "U" else values for name, values in arrays.items()})
    shutil.rmtree(folder / "figures")
    picture = (np.zeros((8, 8), np.uint8), EVIL["Cedar"])
    pages = [report.write(folder, [picture], [(EVIL["Alder"], [picture])]), travel_page.write(folder), leakage.write(folder), mechanism.write(folder, {"low_pass": [picture]})]
    for path in pages:
        assert_shown(path)
        assert any(name in Page(path).text for name in EVIL.values())
    assert all(name in "".join(Page(path).text for path in pages) for name in EVIL.values())
    compare.write(compare.read([folder, pathlib.Path(shutil.copytree(folder, tmp_path / "other"))]), tmp_path / "compared.html")
    assert_shown(tmp_path / "compared.html", EVIL["Cardiomegaly"], folder.name)


# --------------------------------------------------------------------------------------------------------------- paths


@pytest.fixture
def tree(tmp_path):
    """root/ with files and links of every kind; outside/ beside it."""
    root, outside = tmp_path / "root", tmp_path / "outside"
    for folder in (root / "a", outside / "b"):
        folder.mkdir(parents=True)
        (folder / "1.png").write_bytes(b"four")
    (root / "a" / "within.png").symlink_to("1.png")
    (root / "b").symlink_to("a")
    (root / "a" / "out.png").symlink_to(outside / "b" / "1.png")
    (root / "out").symlink_to(outside)
    (root / "a" / "two.png").symlink_to(root / "out" / "b" / "1.png")  # by way of another link
    (root / "a" / "broken.png").symlink_to(outside / "none.png")
    (root / "a" / "zero.png").symlink_to("/dev/zero")
    os.mkfifo(root / "a" / "pipe.png")
    return root


def test_a_picture_is_looked_for_below_the_release_alone(tree):
    expected = {
        "a/1.png": 4, "a/within.png": 4, "b/1.png": 4, "b/within.png": 4, "a/../a/1.png": 4, "a/none.png": release.MISSING, "a/broken.png": release.MISSING,
        "a/out.png": release.LEADS_OUT, "a/two.png": release.LEADS_OUT, "out/b/1.png": release.LEADS_OUT, "../outside/b/1.png": release.LEADS_OUT, "a/../../outside/b/1.png": release.LEADS_OUT,
        "/etc/passwd": release.LEADS_OUT, "a/zero.png": release.LEADS_OUT, "a/pipe.png": release.NO_FILE,
    }  # fmt: skip
    paths = pd.Series(list(expected), dtype="str")
    assert dict(zip(expected, release.sizes(epath.Path(tree), paths))) == expected
    (tree.parent / "by_link").symlink_to(tree)  # the release itself may be reached by one
    assert dict(zip(expected, release.sizes(epath.Path(tree.parent / "by_link"), paths))) == expected
    assert list(release.sizes(epath.Path(tree), paths, epath.Path(tree.parent / "outside")) == 4) == [path in expected and (expected[path] == 4 or "out" in path or "two" in path) for path in expected]
    assert list(release.sizes(epath.Path("/"), pd.Series(["etc/passwd", "none/x"], dtype="str")) >= 0) == [True, False]


def test_a_link_out_of_a_release_is_set_aside_with_its_reason(tmp_path):
    truth = releases.nih(tmp_path / "raw", picture=(40, 32))
    chosen = truth.images["image_id"].iloc[3]
    (picture,) = (tmp_path / "raw").rglob(chosen)
    secret = tmp_path / "of_somebody_else.png"
    picture.rename(secret)
    picture.symlink_to(secret)
    found = nih.read_release(released.builder_config(tmp_path / "raw"))
    (said,) = (s for s in found.statements if "a link leads out" in s)
    assert f"1, the first {chosen}" in said and not found.complete
    builder = nih.Builder(config=released.builder_config(tmp_path / "raw", max_unreadable_share=0.2), data_dir=tmp_path / "data")
    builder.download_and_prepare()
    listed = pd.read_csv(pathlib.Path(builder.data_dir) / "quarantine.csv")
    assert listed[["image_id", "reason"]].values.tolist() == [[chosen, images.LEADS_OUT]]
    assert sum(split.num_examples for split in builder.info.splits.values()) == len(truth.images) - 1
    # And a folder of pictures that lies elsewhere is an error, in a line that says what to do.
    folder = picture.parent
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    builder = nih.Builder(config=released.builder_config(tmp_path / "raw"), data_dir=tmp_path / "again")
    with pytest.raises(UserError, match=f"{images.LEADS_OUT}.*lay the tables into the folder that the pictures are in") as caught:
        builder.download_and_prepare()
    assert "\n" not in str(caught.value)


def test_names_that_become_folders_and_files_lead_nowhere_else(tmp_path):
    config = race.get_config()
    for field in ("predict.datasets", "extract.datasets"):
        for name in ("../x", "table.../x", "table.a/b", "table.", "phantom.../x", "phantom./etc", "/etc"):
            with pytest.raises(UserError):
                experiment.validate(experiment.apply_diff(race.get_config(), {field: (name,)}))
    with pytest.raises(UserError, match="mitigate.method"):
        experiment.validate(experiment.apply_diff(config, {"mitigate.method": "../x", "stages": ("prepare", "train", "extract", "mitigate")}))
    with pytest.raises(UserError, match="mitigate.method"):  # of a run that somebody else handed on
        experiment.mitigated_folder(tmp_path, {"mitigate": {"method": "../../x"}})
    with pytest.raises(UserError):
        race.get_config("table.../x")
    (tmp_path / "sweeps").mkdir()
    for name in ("../x", "a/b", "..", ".hidden", "a\\b", ""):
        (tmp_path / "sweeps" / "mine.py").write_text(f"from configs import race\nget_base = race.get_config\ndef get_diffs():\n    return {{{name!r}: {{}}}}\n")
        with pytest.raises(UserError, match="is to name a run and its folder; it cannot"):
            sweeps.read(str(tmp_path / "sweeps" / "mine.py"))
    tables.write_parquet(KEYS, tmp_path / "test.parquet", {"arrays": {"../../x": 2}, "classes": {}})
    assert "which is a path" in refusal(Features.read, tmp_path, "test")


# --------------------------------------------------------------------------------------------------------------- bombs

RAMP = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)


def deflated(data: bytes) -> bytes:
    """The same DICOM file, packed as a whole."""
    dataset = pydicom.dcmread(io.BytesIO(data))
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    content = io.BytesIO()
    dataset.save_as(content, enforce_file_format=True)
    return content.getvalue()


def test_a_dicom_file_that_is_packed_as_a_whole_is_read_up_to_a_limit(monkeypatch):
    plain = dicom(RAMP)
    np.testing.assert_array_equal(images.decode(deflated(plain)), images.decode(plain))
    assert reason(deflated(plain)[:-500]) in (images.TRUNCATED, images.CORRUPT)
    monkeypatch.setattr(images, "MAX_BYTES", 2**20)
    bomb = deflated(dicom(np.zeros((4096, 2048), np.uint16)))
    assert len(bomb) < 2**15
    tracemalloc.start()
    try:
        assert reason(bomb) == images.TOO_LARGE
        assert tracemalloc.get_traced_memory()[1] < 2**23  # of 16 MiB
    finally:
        tracemalloc.stop()


def test_a_picture_within_a_dicom_file_has_the_size_that_the_file_says():
    small, large = (encoded(np.zeros((side, side), np.uint8), "JPEG") for side in (64, 2000))
    eight = dicom(np.zeros((64, 64), np.uint8), bits=8)

    def of(frame, syntax=JPEGBaseline8Bit):
        dataset = pydicom.dcmread(io.BytesIO(eight))
        dataset.BitsAllocated = 8
        dataset.PixelData = encapsulate([frame])
        dataset["PixelData"].is_undefined_length = True
        dataset.file_meta.TransferSyntaxUID = syntax
        content = io.BytesIO()
        dataset.save_as(content, enforce_file_format=True)
        return content.getvalue()

    assert images.decode(of(small)).shape == (64, 64)
    with pytest.raises(images.UnreadableImage, match="corrupt .the picture within is 2000x2000, its header says 64x64"):
        images.decode(of(large))
    waves = [encoded(np.zeros((side, side), np.uint8), "JPEG2000", no_jp2=True) for side in (64, 2000)]
    assert images.decode(of(waves[0], pydicom.uid.JPEG2000Lossless)).shape == (64, 64)
    with pytest.raises(images.UnreadableImage, match="the picture within is 2000x2000"):
        images.decode(of(waves[1], pydicom.uid.JPEG2000Lossless))
    # Two bytes of run-length code are 128.
    runs = [struct.pack("<16I", 1, 64, *[0] * 14) + b"\x81\x07" * n for n in (32, 100_000)]
    np.testing.assert_array_equal(images.decode(of(runs[0], RLELossless)), np.float32(7))
    with pytest.raises(images.UnreadableImage, match="unpacks to more than the 4,096 bytes"):
        images.decode(of(runs[1], RLELossless))


def test_a_file_is_read_up_to_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "MAX_BYTES", 2**25)
    with open(tmp_path / "sparse.png", "wb") as file:
        file.write(encoded(RAMP.astype(np.uint8)))
        file.truncate(2**40)
    with pytest.raises(images.UnreadableImage, match="more than 33,554,432 bytes") as caught:
        images.read(tmp_path / "sparse.png")
    assert caught.value.reason == images.TOO_LARGE
    content = encoded(RAMP.astype(np.uint8))
    (tmp_path / "whole.png").write_bytes(content[:33] + chunk(b"teXt", b"a\0" + b"b" * 2**24) + content[33:])  # larger than what is asked for first
    assert images.read(tmp_path / "whole.png").shape == (256, 256, 1)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def test_large_pictures_are_decoded_one_at_a_time(monkeypatch):
    monkeypatch.setattr(images, "_LARGE", 10**4)
    large, small, done = encoded(np.zeros((101, 100), np.uint8)), encoded(np.zeros((100, 100), np.uint8)), threading.Event()
    of_dicom = dicom(np.zeros((101, 100), np.uint16))
    for content in (large, of_dicom):
        done.clear()
        waiting = threading.Thread(target=lambda: (images.from_bytes(content), done.set()))
        with images._one_at_a_time:
            waiting.start()
            assert images.from_bytes(small).shape == (256, 256, 1)  # others need not wait
            assert not done.wait(0.2)
        assert done.wait(10)
        waiting.join()
    for broken in (large[:-30] + large[-12:], b"\0" * 128 + b"DICM"):
        reason(broken)
    assert not images._one_at_a_time.locked()
