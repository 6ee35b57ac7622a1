"""What the builders of real releases share: a release read into records, and records made into a data set.

A builder of this kind says how its tables are read (`read_release`); all that follows is here: which pictures are
there, what is stored of each, what is set aside and why, how the release compares with what is published of it, and
whether one process or Apache Beam does the work. Either way gives the same records.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
import tensorflow_datasets as tfds
from absl import logging
from etils import epath
from tensorflow_datasets.core import writer as tfds_writer
from tensorflow_datasets.proto import tf_example_pb2

from cxr_jax import tables
from cxr_jax.tables import UserError
from tfds_builders import images, release

FINDING = "finding_"
WHOLE = "train"  # the one split of a release without splits of its own; TFDS reserves the name `all`

STORAGES = ("png", "raw")
PICTURES = ("released", "dicom")

_CHUNK = 256  # records that a Beam worker takes at a time


@dataclasses.dataclass(eq=False)
class ReleaseConfig(tfds.core.BuilderConfig):
    """What is built, and from where. The name follows from aspect, pictures and storage, which say what is stored.

    aspect: `squash` or `pad`, see `images.resize`.
    pictures: `released`, the PNG or JPEG files that the release is known for, or `dicom`, the same images as DICOM.
    storage: `png`, or `raw`: 65,536 bytes an image, which cost no decoding when they are read.
    raw_dir: folder of the release; empty: TFDS's manual_dir.
    mimic_iv_dir: for cxr_mimic, folder of MIMIC-IV where that does not lie in raw_dir.
    max_unreadable_share: of the images listed, above which the build fails.
    beam: whether pictures are read by Apache Beam; the runner is in TFDS's DownloadConfig.
    """

    aspect: str = "squash"
    pictures: str = "released"
    storage: str = "png"
    raw_dir: str = ""
    mimic_iv_dir: str = ""
    max_unreadable_share: float = 0.01
    beam: bool = False


def builder_config(
    raw_dir: os.PathLike | str = "",
    aspect: str = "squash",
    pictures: str = "released",
    storage: str = "png",
    mimic_iv_dir: os.PathLike | str = "",
    max_unreadable_share: float = 0.01,
    beam: bool = False,
) -> ReleaseConfig:
    """The config to hand to a builder. Raises UserError for an aspect, kind of pictures or storage that there is not."""
    images.check_aspect(aspect)
    for what, value, known in (("pictures", pictures, PICTURES), ("storage", storage, STORAGES)):
        if value not in known:
            raise UserError(f"{what}: {value!r} found, {' or '.join(known)} expected")
    how = {"squash": "both sides scaled to 256", "pad": "longer side scaled to 256, the other padded with black"}
    words = [aspect, *(["dicom"] if pictures == "dicom" else []), *(["raw"] if storage == "raw" else [])]
    return ReleaseConfig(
        name="_".join(words),
        description=f"256x256 gray images; {how[aspect]}; from {pictures} pictures, stored as {storage}.",
        aspect=aspect,
        pictures=pictures,
        storage=storage,
        raw_dir=os.fspath(raw_dir),
        mimic_iv_dir=os.fspath(mimic_iv_dir),
        max_unreadable_share=max_unreadable_share,
        beam=beam,
    )


def builder_configs() -> list[ReleaseConfig]:
    """Every config that TFDS may know by name."""
    return [
        builder_config(aspect=aspect, pictures=pictures, storage=storage)
        for storage in STORAGES
        for pictures in PICTURES
        for aspect in images.ASPECTS
    ]


@dataclasses.dataclass(frozen=True)
class Release:
    """A release as it lies on disk: everything about it that can be known without reading a picture.

    root: folder that `path` of the records is below.
    documents: the tables and lists that were read.
    records: one row an image of the table, in the table's order, indexed by line of the file (of several tables, by table
        and line). Columns image_id, patient_id, study_id, released_split, race, sex, view (str, '' where unknown), age
        (float64 years, NaN where unknown), `finding_NAME` (float32: 1, 0, -1 uncertain, NaN not mentioned), path (str,
        below `root`), size (int64 bytes of the picture file; below 0, as `release.sizes` has it, where there is none to be read), and what
        else the builder stores.
    counts: [{"count": what, "expected": as published or None, "found": n}]; where what is published is of one version
        of the release alone, "of" names it.
    statements: one for each thing that the whole release has and this one lacks, or that is not stored as it is.
    whole: whether the tables are those of the whole release.
    foreign: pictures that no table lists, as far as they were looked for.
    """

    root: epath.Path
    documents: tuple[epath.Path, ...]
    records: pd.DataFrame
    counts: list[dict]
    statements: list[str]
    whole: bool
    foreign: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether every count is as published, and no picture missing."""
        as_published = all(c["expected"] in (None, c["found"]) for c in self.counts if "of" not in c)
        return self.whole and as_published and bool((self.records["size"] >= 0).all())

    @functools.cached_property
    def fingerprint(self) -> str:
        """sha256 over the documents, and over the names and sizes of the pictures that they list."""
        return release.fingerprint(self.documents, self.records["image_id"], self.records["size"])


def held_against(
    found: Mapping[str, int], published: Mapping[str, int], whole: bool, source: os.PathLike | str
) -> list[dict]:
    """`Release.counts`: what was found beside what is published.

    whole: whether the table has the whole release's number of rows. Raises UserError, which names `source`, where it
    has, and yet counts otherwise than published.
    """
    if whole:
        for what, expected in published.items():
            if found.get(what, 0) != expected:
                raise UserError(
                    f"{source}: {what}: {found.get(what, 0):,} found, {expected:,} published; the table has the release's"
                    " number of rows but has been altered: download it again"
                )
    return [{"count": what, "expected": published.get(what), "found": int(n)} for what, n in found.items()]


def rows(found: Mapping[str, int], published: Mapping[str, int], whole: bool, root: epath.Path) -> list[dict]:
    """For `Release.counts`: the number of rows of each table or list, by its name without .gz; 0 for one that is missing.

    whole: whether the release's main table is whole. Raises UserError where it is, and another table is there in part.
    """
    plain = {name.removesuffix(".gz"): n for name, n in found.items()}
    for name, n in plain.items():
        if whole and 0 < n != published.get(name, n):
            raise UserError(
                f"{root}: {name}: {n:,} rows found, {published[name]:,} published; it may be cut short: download it again"
            )
    return [{"count": f"rows of {name}", "expected": published.get(name), "found": n} for name, n in plain.items()]


def count(records: pd.DataFrame, findings: Sequence[str]) -> dict[str, int]:
    """Images, patients and studies, and images by sex, view, unknown age and finding ('view PA', 'finding Mass', …)."""
    counts = {"images": len(records)}
    counts |= {"patients": records["patient_id"].nunique(), "studies": records["study_id"].nunique()}
    for column in ("sex", "view"):
        for value, n in records[column].value_counts().items():
            counts[f"{column} {value or 'unknown'}"] = int(n)
    counts["age unknown"] = int(records["age"].isna().sum())
    for finding in findings:
        counts[f"finding {finding}"] = int((records[FINDING + finding] == 1).sum())
    return counts


_VALUES = {"": np.nan, **{f"{value}{end}": float(value) for value in (1, 0, -1) for end in ("", ".0")}}


def findings(table: pd.DataFrame, names: Sequence[str], path: os.PathLike | str) -> pd.DataFrame:
    """`finding_NAME`, float32, of columns of text. Raises UserError for a cell that is not 1, 0, -1 or empty."""
    found = {}
    for name in names:
        code, words = pd.factorize(table[name])  # few words, of which each is judged once
        strange = ~words.isin(_VALUES.keys())
        release.refuse(pd.Series(strange[code], table.index), table[name], path, "1, 0, -1 or an empty cell")
        found[FINDING + name] = np.array([_VALUES[word] for word in words], np.float32)[code]
    return pd.DataFrame(found, index=table.index)


def of_one_table(
    root: epath.Path, path: epath.Path, records: pd.DataFrame, table: str, published: Mapping[str, int], findings: Sequence[str], said: Sequence[str] = ()
) -> Release:
    """A release of one table, without splits of its own. table: the name of the whole one. said: further statements, before that on missing pictures.

    Raises UserError as `held_against`.
    """
    whole = len(records) == published["images"]
    counts = rows({path.name: len(records)}, {table: published["images"]}, whole, root)
    counts += held_against(count(records, findings), published, whole, path)
    statements = [f"the release has no split of its own; all images are in split {WHOLE!r}"]
    if not whole:
        statements.append(f"{path.name}: {len(records):,} of {published['images']:,} rows")
    statements += [*said, *missing_pictures(records)]
    return Release(root, (path,), records, counts, statements, whole)


def missing_pictures(records: pd.DataFrame) -> list[str]:
    """At most two statements."""
    told = {
        release.MISSING: "images of the table that are missing: {}, the first {}",
        release.LEADS_OUT: "images, not read, for which a link leads out of the folder of the tables: {}, the first {}; lay the tables into the folder that the pictures are in",
    }
    found = {said: records.loc[records["size"] == code, "image_id"] for code, said in told.items()}
    return [said.format(f"{len(images):,}", images.iloc[0]) for said, images in found.items() if len(images)]


def image_feature(storage: str) -> tfds.features.FeatureConnector:
    """uint8 [256, 256, 1], as a PNG or as its bytes (`png`, `raw`)."""
    shape = (images.SIZE, images.SIZE, 1)
    if storage == "raw":
        return tfds.features.Tensor(shape=shape, dtype=np.uint8, encoding=tfds.features.Encoding.BYTES)
    return tfds.features.Image(shape=shape, dtype=np.uint8, encoding_format="png")


class ReproducibleWriter(tfds_writer.ExampleWriter):
    """Writes the same bytes for the same examples, whichever process they come from.

    An example is a protocol buffer's map, which each process writes in an order of its own unless it is told not to.
    """

    def write(self, path, examples):
        return super().write(path, ((key, _in_order(serialized)) for key, serialized in examples))


def _in_order(serialized: bytes) -> bytes:
    return tf_example_pb2.Example.FromString(serialized).SerializeToString(deterministic=True)


class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Base of the builders of real releases.

    FINDINGS: names in the release's order. EXTRA: features besides the common ones, each a column of the records.
    HOMEPAGE: where the release is had. OPEN_DATA: whether single images may be shown to anybody. read_release: reads the
        release in a config's raw_dir, and raises UserError naming what is missing or wrong, and where.
    """

    FINDINGS: tuple[str, ...]
    EXTRA: Mapping[str, tfds.features.FeatureConnector] = {}
    HOMEPAGE: str
    OPEN_DATA = False
    read_release: Callable[[ReleaseConfig], Release]
    BUILDER_CONFIGS = builder_configs()
    DEFAULT_BUILDER_CONFIG_NAME = "squash"

    def __init__(self, *, config: None | str | ReleaseConfig = None, **kwargs):
        # TFDS refuses a config of a name that it knows unless it is the very object listed above. The name alone says
        # what is built; where from, and with what patience, is this builder's own affair.
        known = {known.name: known for known in self.BUILDER_CONFIGS}
        self._source = config if isinstance(config, ReleaseConfig) else known.get(config, builder_config())
        super().__init__(config=config.name if isinstance(config, ReleaseConfig) else config, **kwargs)
        self._original_state["config"] = config  # what unpickling calls __init__ with

    def _info(self) -> tfds.core.DatasetInfo:
        text = {
            name: tfds.features.Text()
            for name in ("image_id", "patient_id", "study_id", "released_split", "race", "sex", "view")
        }
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "image": image_feature(self.builder_config.storage),
                    **text,
                    "age": tfds.features.Scalar(np.float32),
                    "findings": tfds.features.Tensor(shape=(len(self.FINDINGS),), dtype=np.float32),
                    **self.EXTRA,
                }
            ),
            homepage=self.HOMEPAGE,
            # What is known of a release only once it is built (`release_fingerprint`, `integrity`) joins these then.
            metadata=tfds.core.MetadataDict(
                findings=list(self.FINDINGS),
                races=[],
                open_data=self.OPEN_DATA,
                invented_groups=False,
                ceiling=False,
            ),
        )

    @functools.cached_property
    def release(self) -> Release:
        """What `read_release` says of the config's raw_dir. It is read once, whoever asks first."""
        return self.read_release(self._source)

    def _split_generators(self, dl_manager):
        if not self._source.raw_dir:
            self._source = dataclasses.replace(self._source, raw_dir=os.fspath(dl_manager.manual_dir))
        root, records = self.release.root, self.release.records
        for statement in self.release.statements:
            logging.warning("%s: %s", root, statement)

        self._quarantine = images.Quarantine(str(root), len(records), self._source.max_unreadable_share)
        absent = records[records["size"] < 0]
        try:
            self._quarantine.add(*((i, path, _ABSENT[size]) for i, path, size in zip(absent["image_id"], absent["path"], absent["size"])))
        except UserError as error:
            raise UserError("; ".join([str(error), *self.release.statements])) from None
        present = records[records["size"] >= 0]
        if present.empty:
            raise UserError(f"{root}: not one image of {self.release.documents[0].name} is there")
        stored_split = present["released_split"].where(present["released_split"] != "", WHOLE)
        return {
            split: self._generate_examples(rows.drop(columns="size"), split)
            for split, rows in present.groupby(stored_split, sort=True)
        }

    def _generate_examples(self, records: pd.DataFrame, split: str):
        if self._source.beam:
            return self._with_beam(records, split)
        return self._in_this_process(records, split)

    def _in_this_process(self, records: pd.DataFrame, split: str) -> Iterator[tuple[str, dict]]:
        root, stored = self.release.root, 0
        # A dict a record is large: those of a few at a time.
        chunks = (records.iloc[i : i + 4096].to_dict("records") for i in range(0, len(records), 4096))
        for rows in chunks:
            by_id = {row["image_id"]: row for row in rows}
            paths = ((image_id, root / row["path"]) for image_id, row in by_id.items())
            for image_id, image in images.read_all(paths, root, self.builder_config.aspect, self._quarantine):
                yield image_id, example(by_id[image_id], image, self.FINDINGS)
                stored += 1
        if not stored:  # possible only where max_unreadable_share is close to 1
            raise UserError(f"{root}: no image of split {split!r} can be read")

    def _with_beam(self, records: pd.DataFrame, split: str):
        """A Beam transform that gives (key, example) of every image that can be read, and writes down the others.

        Records go to the workers by way of a file in the data set's folder, which they must reach in any case: a
        pipeline that holds a whole release's records would be larger than some runners take.
        """
        import apache_beam as beam

        listed = self.data_path / f"{_LISTED}{split}.parquet"
        with listed.open("wb") as file:
            records.to_parquet(file, index=False, row_group_size=_CHUNK)
        read = functools.partial(
            _read_chunk, os.fspath(listed), os.fspath(self.release.root), self.builder_config.aspect, self.FINDINGS
        )
        set_aside = functools.partial(_set_aside, os.fspath(self.data_path / f"{_SET_ASIDE}{split}.json"))

        class Pictures(beam.PTransform):
            def expand(self, pipeline):
                done = (
                    pipeline
                    | beam.Create(range(-(-len(records) // _CHUNK)))
                    | beam.Reshuffle()
                    | beam.FlatMap(read).with_outputs("unreadable", main="readable")
                )
                _ = done.unreadable | beam.combiners.ToList() | beam.Map(set_aside)
                return done.readable

        return Pictures()

    def _example_writer(self) -> ReproducibleWriter:
        return ReproducibleWriter(file_format=self.info.file_format)

    def _download_and_prepare(self, dl_manager, download_config):
        super()._download_and_prepare(dl_manager, download_config)
        # Here data_path is the folder that takes the dataset's name only once all of it is written.
        for path in sorted(self.data_path.glob(f"{_SET_ASIDE}*")):
            self._quarantine.add(*map(tuple, json.loads(path.read_text())))
            path.unlink()
        for path in self.data_path.glob(f"{_LISTED}*"):
            path.unlink()
        self._quarantine.write(self.data_path / "quarantine.csv")
        self.info.metadata["release_fingerprint"] = self.release.fingerprint
        self.info.metadata["integrity"] = self._integrity()

    def _integrity(self) -> dict:
        """The release held against what is published of it, and what became of it; plain JSON."""
        found = self.release
        return {
            "documents": [path.name for path in found.documents],
            "counts": found.counts,
            "complete": found.complete and not self._quarantine.rows,
            "statements": found.statements,
            "files_not_in_table": {"count": len(found.foreign), "first": list(found.foreign[:5])},
            "quarantined": self._quarantine.reasons(),
            "stored": {name: split.num_examples for name, split in self.info.splits.items()},
        }


_ABSENT = {release.MISSING: images.MISSING, release.LEADS_OUT: images.LEADS_OUT, release.NO_FILE: images.NOT_READABLE}
_LISTED, _SET_ASIDE = "listed-", "set-aside-"  # files of a build by Beam, gone when it is done


def example(row: Mapping, image: np.ndarray, findings: Sequence[str]) -> dict:
    """What TFDS stores of a record: its columns, the image, and the findings as one vector."""
    kept = {name: value for name, value in row.items() if not name.startswith(FINDING) and name not in ("path", "size")}
    return {**kept, "image": image, "findings": np.array([row[FINDING + name] for name in findings], np.float32)}


def _read_chunk(listed: str, root: str, aspect: str, findings: Sequence[str], chunk: int) -> Iterator:
    """Runs on a Beam worker: (key, example) of each record of row group `chunk`, or what is set aside, so tagged."""
    import apache_beam as beam
    import pyarrow.parquet as pq

    with epath.Path(listed).open("rb") as file:
        rows = pq.ParquetFile(file).read_row_group(chunk).to_pandas().to_dict("records")
    for row in rows:
        try:
            image = images.read(epath.Path(root) / row["path"], aspect)
        except images.UnreadableImage as error:
            yield beam.pvalue.TaggedOutput("unreadable", (row["image_id"], row["path"], error.reason))
        else:
            yield row["image_id"], example(row, image, findings)


def _set_aside(path: str, rows: Sequence[tuple[str, str, str]]) -> None:
    tables.write_text(path, json.dumps(sorted(rows)))
