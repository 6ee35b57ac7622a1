"""Data sets as they lie on disk: which there are, how one is built, its key table. The only importer of tfds_builders.

A data set is a folder of TFRecords that TensorFlow Datasets (TFDS) wrote, one record a readable image of the
release. What a run needs to know about the images without looking at them is the key table: one row a record, in
stored order.

    stored_split, record          where the record lies: the TFDS split, and the position in it (int64)
    image_id, patient_id, …       every text field; empty text is null
    age, …                        every number, float64 or int64; unknown is NaN
    finding_<Name>                as released: 1, 0, -1 (uncertain), NaN (not mentioned)
    true_<Name>                   where the data's truth is known: 1 or 0
    ceiling_<Group>               where the generative model is known: the exact posterior of each group
    severity_<Name>, side_<Name>, shape_<Name>, <field>_<i>
                                  entries of other vector fields, by name where they have one

Stored order is the order of records in the files, split after split. Everything that depends on an order (the
pipeline's, the cohort's rows) means this one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import functools
import importlib
import io
import json
import logging as _logging
import os
import pathlib
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping

# TensorFlow reads these once, when it is imported: without them lines on CPU features and oneDNN precede our own. It
# only decodes pictures here, so oneDNN has nothing to speed up.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

import numpy as np
import pandas as pd
import tensorflow as tf
import tensorflow_datasets as tfds
from absl import logging
from etils import epath

from cxr_jax import tables
from cxr_jax.data import race_rules
from cxr_jax.experiment import nearest_first
from cxr_jax.tables import UserError

# The accelerators are JAX's. TensorFlow would take their memory for itself.
tf.config.set_visible_devices([], "GPU")
tf.config.set_visible_devices([], "TPU")

# TFDS warns of every config that is not in its own list, as those with parameters never are, and of its own use of a
# field that it deprecates.
_NOISE = ("Using custom data configuration", "`FeatureConnector.dtype` is deprecated")
logging.get_absl_logger().addFilter(lambda record: not record.getMessage().startswith(_NOISE))

# Files one after the other, so that stored order is the files' own and (split, position) names a record for good.
STORED_ORDER = tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False)

# Vector fields whose entries have names: field → (prefix of its columns, where the metadata holds the names). The
# others' entries are numbered.
_ENTRIES = {
    "findings": ("finding_", "findings"),
    "true_findings": ("true_", "findings"),
    "posterior": (tables.CEILING, "races"),
    "severity": ("severity_", "findings"),
    "side": ("side_", "findings"),
    "shapes": ("shape_", "shapes"),
}
_FIRST_COLUMNS = (
    "image_id", "patient_id", "study_id", "released_split", "race", "ethnicity", "sex", "view", "age",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A data set that is built and whole.

    name: as in `config.dataset.name`.
    builder: its TFDS builder, for the pipeline; `builder.info` says what TFDS knows.
    own_groups: whether its values of race, if it names them, are groups as they are, not words that a rule makes groups of.
    """

    name: str
    builder: tfds.core.DatasetBuilder
    own_groups: bool = True

    @property
    def info(self) -> tfds.core.DatasetInfo:
        return self.builder.info

    @property
    def folder(self) -> pathlib.Path:
        return pathlib.Path(self.builder.data_dir)

    @property
    def metadata(self) -> Mapping:
        return self.info.metadata or {}

    @property
    def variant(self) -> str:
        return self.builder.builder_config.name if self.builder.builder_config else ""

    @property
    def version(self) -> str:
        return str(self.builder.version)

    @property
    def findings(self) -> tuple[str, ...]:
        """Names of the findings, in the order of the release."""
        return tuple(self.metadata["findings"])

    @property
    def races(self) -> tuple[str, ...]:
        """Values of race that the release records, in the builder's order; empty where it records none of its own."""
        return tuple(self.metadata["races"]) if self.own_groups else ()

    @property
    def images(self) -> int:
        return sum(split.num_examples for split in self.info.splits.values())

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width, channels of every stored image."""
        return tuple(self.info.features["image"].shape)

    @functools.cached_property
    def keys(self) -> pd.DataFrame:
        """The key table (see the module), one row a record. Do not change it in place.

        It is read from the records once, without decoding an image, and kept as `keys.parquet` in the data set's
        folder; a copy that is damaged, or of another number of rows, is read afresh. Who is recorded in several groups
        of the data set's own has none. Raises UserError where records are damaged.
        """
        keys = self._stored_keys()
        if not self.races:
            return keys
        return keys.assign(race=keys["race"].mask(keys["race"].str.contains(race_rules.BETWEEN, regex=False, na=False), None))

    def _stored_keys(self) -> pd.DataFrame:
        path = self.folder / "keys.parquet"
        if path.exists():
            with contextlib.suppress(UserError):
                keys, meta = tables.read_parquet(path)
                if meta.get("dataset") == self.info.full_name and len(keys) == self.images:
                    return keys
        keys = _read_keys(self)
        # The copy only saves time: a data set on a disk that is full or not ours to write to is as good without it.
        with contextlib.suppress(OSError):
            tables.write_parquet(keys, path, {"dataset": self.info.full_name})
        return keys

    @functools.cached_property
    def quarantine(self) -> pd.DataFrame:
        """Images of the release that could not be read, as the builder listed them in `quarantine.csv`; often empty."""
        path = self.folder / "quarantine.csv"
        if not path.exists():
            return pd.DataFrame({"image_id": pd.Series(dtype="str"), "reason": pd.Series(dtype="str")})
        try:
            return pd.read_csv(path, dtype="str", keep_default_na=False)
        except ValueError as error:  # pandas' errors of parsing are of this kind
            raise _damaged(self.folder, f"quarantine.csv cannot be read ({_first_line(error)})") from None

    @property
    def integrity(self) -> dict:
        """The release held against what is published of it (see `tfds_builders.released`); {} for the phantom."""
        return json.loads(json.dumps(self.metadata.get("integrity", {})))  # TFDS gives immutable kinds of dict and list

    def summary(self) -> dict:
        """What the run record says of the data: plain values, ready for JSON."""
        return {
            "name": self.name,
            "variant": self.variant,
            "version": self.version,
            "images": self.images,
            "patients": int(self.keys["patient_id"].nunique()),
            "quarantined": len(self.quarantine),
            "integrity": self.integrity,
            "open_data": bool(self.metadata["open_data"]),
            "invented_groups": bool(self.metadata["invented_groups"]),
            # The first paragraph: builders that follow TFDS's conventions give the whole of their README.
            "description": " ".join(self.info.description.strip().split("\n\n")[0].split()),
        }


def prepare(config) -> Dataset:
    """Builds the data set that `config` (a run's `config.dataset`) names where it is absent, else verifies it.

    A build that is killed leaves nothing that passes for a data set; the next one clears its remains away. Processes
    that ask for the same data set at once wait for one of them to build it.
    Raises UserError for an unknown data set, a missing release, one whose race `config.race_rule` makes nothing of (before
    a picture is read), a full disk, a damaged data set, or one built from another release than `config.raw_dir`.
    """
    builder = _builder(config)
    folder = pathlib.Path(builder.data_dir)
    if not folder.exists():
        with _explained(folder), _alone(folder):
            # Whoever held the lock before may have built it.
            if not folder.exists():
                _build(config, builder)
        # Read back what was written, as every later run will.
        return _verified(config, _builder(config))
    dataset = _verified(config, builder)
    fingerprint = _known(config).fingerprint
    with _explained(folder):
        changed = fingerprint and config.raw_dir and fingerprint(config) != dataset.metadata["release_fingerprint"]
    if changed:
        raise UserError(
            f"config.dataset.raw_dir: {dataset.folder} was built from another {config.name} release than the one in"
            f" {config.raw_dir}{_MAPPED if config.name == 'table' else ''}; give another config.dataset.data_dir, or delete that folder to build it anew"
        )
    listed = dataset.images + len(dataset.quarantine)
    if len(dataset.quarantine) > config.max_unreadable_share * listed:
        raise UserError(
            f"config.dataset.max_unreadable_share: {dataset.folder} was built without {len(dataset.quarantine):,} of"
            f" {listed:,} images, above the share of {config.max_unreadable_share:g}; see its quarantine.csv"
        )
    return dataset


# What else makes another release of a table, as an error says it.
_MAPPED = ", or by another config.dataset.table, columns, findings, words or open_data (table.NAME of another name has a folder of its own)"


def open(config) -> Dataset:
    """The data set that `config` (a run's `config.dataset`) names, which must have been built.

    Raises UserError where it was not, or where it is damaged. Whether the release is still the one it was built from is
    `prepare`'s to ask: that takes a look at every picture file.
    """
    builder = _builder(config)
    if not pathlib.Path(builder.data_dir).exists():
        raise UserError(
            f"config.dataset: no data set at {builder.data_dir}; run the stage `prepare` first, with the same"
            " config.dataset, or point config.dataset.data_dir to where it was built"
        )
    return _verified(config, builder)


def check_source(config, field: str) -> None:
    """Raises UserError, which names `field`, where the data set that `config` names neither is built nor can be.

    For a data set that a later stage builds, so that a folder that was not named is told before hours of training.
    """
    if not _known(config).fingerprint:
        return
    if config.raw_dir and not epath.Path(config.raw_dir).expanduser().is_dir():
        raise UserError(f"{field}: no folder {config.raw_dir!r}; give the {config.name} release's own folder")
    built = pathlib.Path(_builder(config).data_dir)
    if not config.raw_dir and not built.exists():
        raise UserError(f"{field} is not set, and there is no data set at {built}: it names the folder of the {config.name} release")


# ---- which data sets there are -------------------------------------------------------------------


def _phantom(config) -> tfds.core.DatasetBuilder:
    from tfds_builders.cxr_phantom import cxr_phantom_dataset_builder as module

    builder_config = module.builder_config(variant=config.variant, storage=config.storage, **config.phantom)
    return module.Builder(config=builder_config, data_dir=_data_dir(config))


def _released(config) -> tfds.core.DatasetBuilder:
    module, builder_config = _release(config)
    return module.Builder(config=builder_config, data_dir=_data_dir(config))


def _release_fingerprint(config) -> str:
    module, builder_config = _release(config)
    return module.read_release(builder_config).fingerprint


def _release(config):
    """The builder's module of a real release, and the builder's config."""
    from tfds_builders import released

    # Their folders are named alike, and importing one at a time lets a run on one data set load one builder.
    module = importlib.import_module(f"tfds_builders.cxr_{config.name}.cxr_{config.name}_dataset_builder")
    options = {
        "raw_dir": config.raw_dir,
        "mimic_iv_dir": config.mimic_iv_dir,
        "aspect": config.aspect,
        "pictures": config.pictures,
        "storage": config.storage,
        "max_unreadable_share": config.max_unreadable_share,
        "beam": bool(config.beam_runner),
    }
    if config.name != "table":
        return module, released.builder_config(**options)
    own = {name: getattr(config, name) for name in ("table", "columns", "findings", "words", "open_data")}
    return module, module.builder_config(config.variant, **own, **options)


@dataclasses.dataclass(frozen=True)
class _Known:
    """How to get at a data set.

    build: config.dataset → TFDS builder.
    fingerprint: config.dataset → fingerprint of the release in its raw_dir; None for a data set that needs no release.
    """

    build: Callable[..., tfds.core.DatasetBuilder]
    fingerprint: Callable[..., str] | None = None


BUILDERS: dict[str, _Known] = {
    "phantom": _Known(_phantom),
    **{name: _Known(_released, _release_fingerprint) for name in ("mimic", "chexpert", "nih", "padchest", "brax", "table")},
}


def _known(config) -> _Known:
    if config.name not in BUILDERS:
        near = nearest_first(config.name, BUILDERS)
        raise UserError(f"config.dataset.name: no data set {config.name!r}; there are {', '.join(near)}")
    return BUILDERS[config.name]


def _own_groups(config) -> bool:
    """Whether a data set's values of race are groups as they are; a table's are, unless a rule of `race_rules` is to make groups of them."""
    return config.name != "table" or config.race_rule == "recorded"


def _data_dir(config) -> str | None:
    return os.path.expanduser(config.data_dir) if config.data_dir else None


def _builder(config) -> tfds.core.DatasetBuilder:
    known = _known(config)
    if known.fingerprint and config.raw_dir and not epath.Path(config.raw_dir).expanduser().is_dir():
        raise UserError(
            f"config.dataset.raw_dir: no folder {config.raw_dir!r}; give the {config.name} release's own folder"
        )
    try:
        return known.build(config)
    except UserError:
        raise
    except Exception as error:
        # TFDS reads an existing data set's own description here, and fails in many ways where that is damaged.
        raise UserError(
            f"config.dataset: {config.name} in {_data_dir(config) or tfds.core.constants.DATA_DIR} cannot be opened"
            f" ({_first_line(error)}); delete its folder and run `prepare` again"
        ) from error


# ---- building and verifying ----------------------------------------------------------------------


def _build(config, builder) -> None:
    if _known(config).fingerprint and not (config.name == "table" and _own_groups(config)):
        # A rule that does not suit what the release records is told when its tables are read, not after its pictures are.
        race = [name for name in ("race", "ethnicity") if name in builder.release.records]
        recorded = builder.release.records[race]
        try:
            race_rules.apply(recorded.where(recorded != "", None), (), config)
        except UserError as error:
            # Where no image has a race, the release may know why: of which table it is in, that this one is missing.
            why = [s for s in builder.release.statements if "race" in s and (recorded["race"] == "").all()]
            raise UserError("; ".join([str(error), *(f"{builder.release.root}: {s}" for s in why)])) from None
    folder = pathlib.Path(builder.data_dir)
    # TFDS writes to incomplete.XXXXXX_VERSION and renames at the end. Under the lock, such a folder has no owner left.
    for remains in folder.parent.glob(f"{tfds.core.constants.INCOMPLETE_PREFIX}*_{folder.name}"):
        shutil.rmtree(remains)
    tfds.display_progress_bar(sys.stderr.isatty())
    # TFDS announces sizes that it does not know, on stdout, in bold.
    with contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare(download_config=_beam(config))


def _beam(config) -> tfds.download.DownloadConfig | None:
    """Runner and options, as TFDS takes them, where Apache Beam is to build."""
    if not config.beam_runner:
        return None
    import apache_beam
    from apache_beam.options.pipeline_options import PipelineOptions

    # Here and on the workers Beam logs every step that it takes, unless it is told otherwise.
    _logging.getLogger("apache_beam").setLevel(_logging.ERROR)
    try:
        apache_beam.runners.create_runner(config.beam_runner)
    except (ValueError, ImportError) as error:
        raise UserError(f"config.dataset.beam_runner: {config.beam_runner!r}: {_first_line(error)}") from None
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told):  # where the parser of options says what is wrong, before it exits
            options = PipelineOptions(["--default_sdk_harness_log_level=ERROR", *config.beam_options])
            options.get_all_options()
    except SystemExit:
        said = told.getvalue().strip().splitlines()[-1:] or ["not understood"]
        raise UserError(f"config.dataset.beam_options: {said[0]}") from None
    return tfds.download.DownloadConfig(beam_runner=config.beam_runner, beam_options=options)


@contextlib.contextmanager
def _alone(folder: pathlib.Path) -> Iterator[None]:
    """Holds the lock on building `folder`. The kernel lets go of it when its holder dies, in whatever way."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with io.open(folder.parent / f".{folder.name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _verified(config, builder) -> Dataset:
    """Every file is there with the size that its records add up to."""
    folder = pathlib.Path(builder.data_dir)
    # Without one of these TFDS goes by what the code says of the data set, which does not know the release.
    for name in ("dataset_info.json", "metadata.json", *(["features.json"] if config.name == "table" else [])):
        if not (folder / name).exists():
            raise _damaged(folder, f"{name} is missing")
    dataset = Dataset(config.name, builder, _own_groups(config))
    try:
        metadata = dataset.metadata
    except (ValueError, TypeError) as error:  # TFDS reads them when they are first asked for
        raise _damaged(folder, f"its description cannot be read ({_first_line(error)})") from None
    if _known(config).fingerprint:
        for name in ("release_fingerprint", "integrity"):
            if name not in metadata:
                raise _damaged(folder, f"metadata.json has no {name}")
        # The builder writes the list whether or not there is anything to list, and counts what it lists.
        if not (folder / "quarantine.csv").exists():
            raise _damaged(folder, "quarantine.csv is missing")
        counted = sum(dataset.integrity["quarantined"].values())
        if len(dataset.quarantine) != counted:
            raise _damaged(folder, f"quarantine.csv lists {len(dataset.quarantine):,} images, and {counted:,} were left out")
    if config.name == "table" and metadata["open_data"] and not config.open_data:
        raise UserError(
            f"config.dataset.open_data: False, but {folder} was built as open data; delete it and run `prepare` again, or set"
            " config.dataset.open_data=True"
        )
    for split in dataset.info.splits.values():
        found = 0
        for path in split.filepaths:
            if not path.exists():
                raise UserError(f"{path}: missing; delete the folder {dataset.folder} and run `prepare` again")
            found += path.stat().length
        if found != split.num_bytes + _TFRECORD_FRAME * split.num_examples:
            raise UserError(
                f"{dataset.folder}: the files of split {split.name!r} hold {found:,} bytes, which is not what was"
                " written; delete the folder and run `prepare` again"
            )
    return dataset


def _damaged(folder: pathlib.Path, what: str) -> UserError:
    return UserError(f"{folder}: {what}; delete the folder {folder} and run `prepare` again")


_TFRECORD_FRAME = 16  # bytes: the length and two checksums that a TFRecord adds to each record


@contextlib.contextmanager
def _explained(folder: pathlib.Path) -> Iterator[None]:
    """Raises, for an error while building that the user can mend, the UserError that it amounts to; others as they are."""
    try:
        yield
    except Exception as error:
        for link in tables.causes(error):  # TFDS wraps what a builder raises
            if isinstance(link, UserError):
                raise link from None
            full = isinstance(link, OSError) and (link.errno == errno.ENOSPC or "Not enough disk space" in str(link))
            if full or (isinstance(link, tf.errors.ResourceExhaustedError) and "No space left" in str(link)):
                raise UserError(
                    f"{folder}: no space left on its disk; free some, or point config.dataset.data_dir elsewhere"
                ) from error
            if isinstance(link, PermissionError | tf.errors.PermissionDeniedError):
                # Of the release's files or of ours; the operating system says which.
                where = getattr(link, "filename", None) or folder
                raise UserError(
                    f"{where}: permission denied; config.dataset.raw_dir must be readable, config.dataset.data_dir writable"
                ) from error
        raise


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextlib.contextmanager
def reading(folder: pathlib.Path) -> Iterator[None]:
    """Turns TensorFlow's errors on damaged or vanished records into a UserError that names `folder`."""
    try:
        yield
    except (tf.errors.DataLossError, tf.errors.InvalidArgumentError, tf.errors.NotFoundError) as error:
        raise UserError(
            f"{folder}: records are damaged ({_first_line(error)[:120]}); delete the folder and run `prepare` again"
        ) from error


# ---- the key table -------------------------------------------------------------------------------


def _read_keys(dataset: Dataset) -> pd.DataFrame:
    features = dataset.info.features
    names = [name for name in features if name != "image"]
    partial = tfds.decode.PartialDecoding({name: True for name in names})
    parts: dict[str, list[np.ndarray]] = {name: [] for name in names}
    with reading(dataset.folder):
        for split in dataset.info.splits:
            stored = dataset.builder.as_dataset(
                split=split, batch_size=1024, shuffle_files=False, decoders=partial, read_config=STORED_ORDER
            )
            for batch in tfds.as_numpy(stored):
                for name in names:
                    parts[name].append(batch[name])

    counts = {name: split.num_examples for name, split in dataset.info.splits.items()}
    columns: dict[str, object] = {
        "stored_split": pd.Series(np.repeat(list(counts), list(counts.values())), dtype="str"),
        "record": np.concatenate([np.arange(n, dtype=np.int64) for n in counts.values()]),
    }
    for name in [*(n for n in _FIRST_COLUMNS if n in names), *(n for n in names if n not in _FIRST_COLUMNS)]:
        values = np.concatenate(parts[name])
        if isinstance(features[name], tfds.features.Text):
            columns[name] = pd.Series([value.decode() or None for value in values], dtype="str")
            continue
        values = values.astype(np.float64 if np.issubdtype(values.dtype, np.floating) else np.int64)
        if values.ndim == 1:
            columns[name] = values
            continue
        prefix, entries = _ENTRIES.get(name, (f"{name}_", None))
        labels = list(dataset.metadata[entries]) if entries else range(int(np.prod(values.shape[1:])))
        for label, column in zip(labels, values.reshape(len(values), -1).T, strict=True):
            columns[f"{prefix}{label}"] = column
    return pd.DataFrame(columns)
