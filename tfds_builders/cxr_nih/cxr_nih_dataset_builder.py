"""TFDS builder of NIH ChestX-ray14: the release's table and pictures, stored once; see README.md."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd
import tensorflow_datasets as tfds
from absl import logging
from etils import epath

from cxr_jax.tables import UserError
from tfds_builders import images, release

# The fourteen in the order in which the release's documentation numbers them, then the one that we derive: 1 where the
# table says `No Finding`, which is where none of the fourteen was found.
FINDINGS = (
    "Atelectasis",
    "Cardiomegaly",
    "Effusion",
    "Infiltration",
    "Mass",
    "Nodule",
    "Pneumonia",
    "Pneumothorax",
    "Consolidation",
    "Edema",
    "Emphysema",
    "Fibrosis",
    "Pleural_Thickening",
    "Hernia",
    "No Finding",
)
_NO_FINDING = FINDINGS[-1]

TABLES = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")  # the newer is taken where both are there
LISTS = {"train_val": "train_val_list.txt", "test": "test_list.txt"}  # stored split -> official list of image names
WHOLE = "train"  # the one split where there are no lists; TFDS reserves the name `all`
_FOLDERS = 12  # images_001 ... images_012, where pictures are not all in images/

# The header puts commas inside the brackets of a pair, so that each pair fills two columns.
COLUMNS = (
    "Image Index",
    "Finding Labels",
    "Follow-up #",
    "Patient ID",
    "Patient Age",
    "Patient Gender",
    "View Position",
    "OriginalImage[Width",
    "Height]",
    "OriginalImagePixelSpacing[x",
    "y]",
)

# What the release says of itself. A table of this many rows that counts otherwise has been altered.
PUBLISHED = {
    "images": 112_120,
    "patients": 30_805,
    "sex M": 63_340,
    "view PA": 67_310,
    f"finding {_NO_FINDING}": 60_361,
}

OLDEST = 120  # years; the older table has ages up to 414, which are slips of the pen, stored as unknown
_YEARS = {"Y": 1.0, "M": 1 / 12, "W": 7 / 365.25, "D": 1 / 365.25}  # units of a DICOM age such as 058Y
_WHAT = "the NIH ChestX-ray14 release, with Data_Entry_2017_v2020.csv and images/ in it"


@dataclasses.dataclass(eq=False)
class NihConfig(tfds.core.BuilderConfig):
    """What is built, and from where.

    aspect: `squash` or `pad`, see `images.resize`; also the config's name.
    raw_dir: folder of the release; empty: TFDS's manual_dir.
    max_unreadable_share: of the images listed, above which the build fails.
    """

    raw_dir: str = ""
    aspect: str = "squash"
    max_unreadable_share: float = 0.01


def builder_config(
    raw_dir: os.PathLike | str = "", aspect: str = "squash", max_unreadable_share: float = 0.01
) -> NihConfig:
    """The config to hand to `Builder(config=...)`. Named by the aspect policy; raises UserError for an unknown one."""
    images.check_aspect(aspect)
    how = {"squash": "both sides scaled to 256", "pad": "longer side scaled to 256, the other padded with black"}
    return NihConfig(
        name=aspect,
        description=f"256x256 gray images; {how[aspect]}.",
        raw_dir=os.fspath(raw_dir),
        aspect=aspect,
        max_unreadable_share=max_unreadable_share,
    )


@dataclasses.dataclass(frozen=True)
class Release:
    """A release as it lies on disk: everything about it that can be known without reading a picture.

    root: its folder. table_path: of the table found.
    records: one row an image of the table, in the table's order, indexed by line of the file; columns image_id,
        patient_id, study_id, released_split, sex, view (str, '' where unknown), age (float64 years, NaN where unknown),
        follow_up, original_width, original_height (int32, the latter two in pixels), pixel_spacing_x, pixel_spacing_y
        (float64, mm as the release has them), and `finding_NAME` (float32, 0 or 1). An image_id is its file's name, as
        the table and the lists have it.
    files: the pictures by file name.
    ages_refused: ages above OLDEST, stored as unknown.
    fingerprint: see `release_fingerprint`.
    """

    root: epath.Path
    table_path: epath.Path
    records: pd.DataFrame
    files: Mapping[str, epath.Path]
    ages_refused: int
    fingerprint: str


def release_fingerprint(raw_dir: os.PathLike | str) -> str:
    """What identifies the release in `raw_dir`: sha256 over its table and lists, and its pictures' names and sizes.

    Pictures are not read. A built dataset has the same in `info.metadata['release_fingerprint']`, so that a dataset
    built from other files than these is known. Raises UserError where folder, table or pictures are missing.
    """
    root = release.folder(raw_dir, _WHAT)
    return _fingerprint(root, _table_path(root), _pictures(root))


def read_release(raw_dir: os.PathLike | str) -> Release:
    """Reads and checks table, lists and folders. Raises UserError naming what is missing or wrong, and where."""
    root = release.folder(raw_dir, _WHAT)
    table_path = _table_path(root)
    files = _pictures(root)
    records, ages_refused = read_table(table_path)
    records["released_split"] = _released_splits(root, records)
    return Release(root, table_path, records, files, ages_refused, _fingerprint(root, table_path, files))


def read_table(path: os.PathLike | str) -> tuple[pd.DataFrame, int]:
    """The records of `Release`, `released_split` aside, and how many ages were refused. Takes .csv and .csv.gz.

    Raises UserError naming file, line and column for whatever is not as the release writes it; and, where the table has
    the whole release's number of rows, for counts other than those published.
    """
    table = release.read_table(path, COLUMNS)
    name, labels, follow_up, patient, age, sex, view, width, height, spacing_x, spacing_y = (table[c] for c in COLUMNS)

    # An image name becomes part of a path, so it may not lead anywhere else.
    plain = name.str.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*\.(?:png|jpe?g)", flags=re.IGNORECASE)
    release.refuse(~plain, name, path, "a plain file name ending in .png")
    release.refuse_duplicates(name, path)
    release.refuse(~patient.str.fullmatch(r"\d+"), patient, path, "a whole number")
    release.refuse(~sex.isin(("F", "M", "")), sex, path, "F, M or an empty cell")
    release.refuse(~view.isin(("PA", "AP", "")), view, path, "PA, AP or an empty cell")
    years, refused = _years(age, path)
    follow_ups = release.numbers(follow_up, path, whole=True)
    # Leading zeros, which some copies have, do not make another patient.
    patients = patient.str.lstrip("0").mask(lambda p: p == "", "0")

    records = pd.DataFrame(
        {
            "image_id": name,
            "patient_id": patients,
            # The release numbers a patient's visits and names no study; a visit is one.
            "study_id": patients + "_" + follow_ups.astype("str"),
            "sex": sex,
            "age": years,
            "view": view,
            "follow_up": follow_ups,
            "original_width": release.numbers(width, path, whole=True, least=1),
            "original_height": release.numbers(height, path, whole=True, least=1),
            "pixel_spacing_x": release.numbers(spacing_x, path, whole=False),
            "pixel_spacing_y": release.numbers(spacing_y, path, whole=False),
        }
    )
    for finding, values in _findings(labels, path).items():
        records[f"finding_{finding}"] = values
    if len(records) == PUBLISHED["images"]:
        counts = count(records)
        for what, expected in PUBLISHED.items():
            if counts[what] != expected:
                raise UserError(
                    f"{path}: {what}: {counts[what]:,} found, {expected:,} published; the table has the release's"
                    " number of rows but has been altered: download it again"
                )
    return records, refused


def count(records: pd.DataFrame) -> dict[str, int]:
    """Images and patients, and images by sex, view and finding ('sex M', 'view PA', 'finding Mass', ...)."""
    counts = {"images": len(records), "patients": records["patient_id"].nunique()}
    for column, values in (("sex", ("F", "M", "")), ("view", ("PA", "AP", ""))):
        for value in values:
            counts[f"{column} {value or 'unknown'}"] = int((records[column] == value).sum())
    counts["age unknown"] = int(records["age"].isna().sum())
    for finding in FINDINGS:
        counts[f"finding {finding}"] = int(records[f"finding_{finding}"].sum())
    return counts


def _table_path(root: epath.Path) -> epath.Path:
    for name in TABLES:
        if (root / name).is_file():
            return root / name
    raise UserError(f"{root}: the table is missing: neither {' nor '.join(TABLES)}")


def _pictures(root: epath.Path) -> dict[str, epath.Path]:
    # Tarballs unpacked one upon another leave one images/; unpacked each in its own folder, images_001/images/ and on.
    folders = [root / "images", *(p / "images" for p in sorted(root.glob("images_*")))]
    folders = [folder for folder in folders if folder.is_dir()]
    if not folders:
        raise UserError(f"{root}: the pictures are missing: neither images/ nor images_001/images/ is there")
    return release.picture_files(folders)


def _fingerprint(root: epath.Path, table_path: epath.Path, files: Mapping[str, epath.Path]) -> str:
    lists = [root / name for name in LISTS.values() if (root / name).is_file()]
    return release.fingerprint([table_path, *lists], files)


def _years(age: pd.Series, path) -> tuple[pd.Series, int]:
    parts = age.str.extract(r"^(\d{1,4})([YMWD]?)$")
    release.refuse(parts[0].isna() & (age != ""), age, path, "an age such as 58 or 058Y, or an empty cell")
    years = parts[0].astype("float64") * parts[1].replace("", "Y").map(_YEARS).astype("float64")
    refused = years > OLDEST
    return years.mask(refused), int(refused.sum())


def _findings(labels: pd.Series, path) -> dict[str, np.ndarray]:
    named = labels.str.split("|").explode().str.strip()
    strange = ~named.isin(FINDINGS)
    if strange.any():
        first = named[strange]
        raise UserError(
            f"{path}: line {first.index[0]}, column {labels.name!r}: {first.iloc[0]!r} found, one or more of"
            f" {', '.join(FINDINGS)}, separated by |, expected ({int(strange.sum())} such)"
        )
    found = {
        finding: labels.index.isin(named.index[(named == finding).to_numpy()]).astype(np.float32)
        for finding in FINDINGS
    }
    torn = (found[_NO_FINDING] == 1) & (sum(found[finding] for finding in FINDINGS[:-1]) > 0)
    release.refuse(pd.Series(torn, labels.index), labels, path, f"either {_NO_FINDING!r} or findings")
    return found


def _released_splits(root: epath.Path, records: pd.DataFrame) -> pd.Series:
    """Each record's official list, or '' where the release has no lists."""
    paths = {split: root / name for split, name in LISTS.items()}
    missing = [path.name for path in paths.values() if not path.is_file()]
    if len(missing) == len(paths):
        return pd.Series("", records.index, dtype="str")
    if missing:
        raise UserError(f"{root}: {missing[0]} is missing beside its fellow; add it, or do without both")

    listed = {split: {line.strip() for line in release.read_text(path).splitlines()} for split, path in paths.items()}
    names = records["image_id"]
    membership = pd.DataFrame({split: names.isin(listed[split]) for split in paths})
    both, neither = membership.all(axis=1), ~membership.any(axis=1)
    if both.any():
        raise UserError(
            f"{root}: image {names[both].iloc[0]!r} is in both {' and '.join(LISTS.values())}"
            f" ({int(both.sum())} such); splits must not share an image"
        )
    if neither.any():
        raise UserError(
            f"{root}: image {names[neither].iloc[0]!r} of the table is in neither {' nor '.join(LISTS.values())}"
            f" ({int(neither.sum())} such); take the lists that belong to the table, or remove both"
        )
    splits = membership.idxmax(axis=1).astype("str")
    per_patient = splits.groupby(records["patient_id"]).nunique()
    torn = per_patient.index[per_patient > 1]
    if len(torn):
        raise UserError(
            f"{root}: patient {torn[0]!r} is in both {' and '.join(LISTS.values())} ({len(torn)} such);"
            " splits must not share a patient"
        )
    return splits


class Builder(tfds.core.GeneratorBasedBuilder):
    """NIH ChestX-ray14. See README.md, beside this file."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}
    BUILDER_CONFIGS = [builder_config(aspect=aspect) for aspect in images.ASPECTS]
    DEFAULT_BUILDER_CONFIG_NAME = "squash"
    MANUAL_DOWNLOAD_INSTRUCTIONS = """\
    Download NIH ChestX-ray14 (open access, no account needed) from https://nihcc.app.box.com/v/ChestXray-NIHCC and lay
    it into manual_dir: Data_Entry_2017_v2020.csv; the pictures, in images/ or in images_001/images/ to
    images_012/images/; and train_val_list.txt with test_list.txt where the official split is wanted.
    """

    def __init__(self, *, config: None | str | NihConfig = None, **kwargs):
        # TFDS refuses a config of a name that it knows unless it is the very object listed above. The name alone says
        # what is built; where from, and with what patience, is this builder's own affair.
        self._source = config if isinstance(config, NihConfig) else builder_config()
        super().__init__(config=config.name if isinstance(config, NihConfig) else config, **kwargs)
        self._original_state["config"] = config  # what unpickling calls __init__ with

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(
                        shape=(images.SIZE, images.SIZE, 1), dtype=np.uint8, encoding_format="png"
                    ),
                    "image_id": tfds.features.Text(),
                    "patient_id": tfds.features.Text(),
                    "study_id": tfds.features.Text(),
                    "released_split": tfds.features.Text(),
                    "race": tfds.features.Text(),
                    "sex": tfds.features.Text(),
                    "view": tfds.features.Text(),
                    "age": tfds.features.Scalar(np.float32),
                    "findings": tfds.features.Tensor(shape=(len(FINDINGS),), dtype=np.float32),
                    "follow_up": tfds.features.Scalar(np.int32),
                    "original_width": tfds.features.Scalar(np.int32),
                    "original_height": tfds.features.Scalar(np.int32),
                    "pixel_spacing_x": tfds.features.Scalar(np.float32),
                    "pixel_spacing_y": tfds.features.Scalar(np.float32),
                }
            ),
            homepage="https://nihcc.app.box.com/v/ChestXray-NIHCC",
            # What is known of a release only once it is built (`release_fingerprint`, `integrity`) joins these then.
            metadata=tfds.core.MetadataDict(
                findings=list(FINDINGS), races=[], open_data=True, invented_groups=False, ceiling=False
            ),
        )

    def _split_generators(self, dl_manager):
        self._release = read_release(self._source.raw_dir or dl_manager.manual_dir)
        root, records, files = self._release.root, self._release.records, self._release.files
        self._missing = self._name_what_is_missing()
        for statement in self._missing:
            logging.warning("%s: %s", root, statement)

        self._quarantine = images.Quarantine(str(root), len(records), self._source.max_unreadable_share)
        absent = ~records["image_id"].isin(files.keys())
        try:
            self._quarantine.add(*((name, name, images.MISSING) for name in records.loc[absent, "image_id"]))
        except UserError as error:
            raise UserError("; ".join([str(error), *self._missing_folders()])) from None
        present = records[~absent]
        if present.empty:
            raise UserError(f"{root}: not one image of {self._release.table_path.name} is there")
        splits = {split: present[present["released_split"] == split] for split in ("", *LISTS)}
        return {
            split or WHOLE: self._generate_examples(rows, split or WHOLE) for split, rows in splits.items() if len(rows)
        }

    def _generate_examples(self, records: pd.DataFrame, split: str) -> Iterator[tuple[str, dict]]:
        rows = {row["image_id"]: row for row in records.to_dict("records")}
        paths = ((image_id, self._release.files[image_id]) for image_id in rows)
        stored = 0
        for image_id, image in images.read_all(
            paths, self._release.root, self.builder_config.aspect, self._quarantine
        ):
            row = rows[image_id]
            example = {name: row[name] for name in self.info.features if name in row}
            yield image_id, {
                **example,
                "image": image,
                "race": "",
                "findings": np.array([row[f"finding_{finding}"] for finding in FINDINGS], np.float32),
            }
            stored += 1
        if not stored:  # possible only where max_unreadable_share is close to 1
            raise UserError(f"{self._release.root}: no image of split {split!r} can be read")

    def _download_and_prepare(self, dl_manager, download_config):
        super()._download_and_prepare(dl_manager, download_config)
        # Here data_path is the folder that takes the dataset's name only once all of it is written.
        self._quarantine.write(self.data_path / "quarantine.csv")
        self.info.metadata["release_fingerprint"] = self._release.fingerprint
        self.info.metadata["integrity"] = self._integrity()

    def _name_what_is_missing(self) -> list[str]:
        """One statement for each thing that the whole release has and this one lacks, or that is not stored as is."""
        root, records, files = self._release.root, self._release.records, self._release.files
        statements = []
        if not (root / LISTS["test"]).is_file():
            statements.append(
                f"{' and '.join(LISTS.values())} are missing: no official split; all images are in split {WHOLE!r}"
            )
        statements += self._missing_folders()
        if len(records) < PUBLISHED["images"]:
            statements.append(f"{self._release.table_path.name}: {len(records):,} of {PUBLISHED['images']:,} rows")
        absent = records.loc[~records["image_id"].isin(files.keys()), "image_id"]
        if len(absent):
            statements.append(f"images of the table that are missing: {len(absent):,}, the first {absent.iloc[0]}")
        foreign = self._foreign_files()
        if foreign:
            statements.append(f"files not in the table, and not stored: {len(foreign):,}, the first {foreign[0]}")
        if self._release.ages_refused:
            statements.append(f"ages above {OLDEST} years, stored as unknown: {self._release.ages_refused:,}")
        return statements

    def _missing_folders(self) -> list[str]:
        """At most one statement; none where no numbered folder is there, since the pictures are then in images/."""
        wanted = [f"images_{n:03d}/images" for n in range(1, _FOLDERS + 1)]
        missing = [folder for folder in wanted if not (self._release.root / folder).is_dir()]
        return [f"folders are missing: {', '.join(missing)}"] if 0 < len(missing) < len(wanted) else []

    def _foreign_files(self) -> list[str]:
        return sorted(set(self._release.files) - set(self._release.records["image_id"]))

    def _integrity(self) -> dict:
        """The release held against what is published of it, and what became of it; plain JSON."""
        found = count(self._release.records)
        foreign = self._foreign_files()
        return {
            "table": self._release.table_path.name,
            "counts": [{"count": k, "expected": PUBLISHED.get(k), "found": n} for k, n in found.items()],
            "complete": found["images"] == PUBLISHED["images"] and not self._quarantine.rows,
            "statements": self._missing,
            "ages_refused": self._release.ages_refused,
            "files_not_in_table": {"count": len(foreign), "first": foreign[:5]},
            "quarantined": self._quarantine.reasons(),
            "stored": {name: split.num_examples for name, split in self.info.splits.items()},
        }
