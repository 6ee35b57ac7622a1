"""Small chest X-ray releases, drawn by a seed and written as the real ones are, so that builders can be run on them.

The real releases may not be redistributed. These have their file names, folders, columns, spellings and slips of the
pen, and invented patients. Each writer returns a `Truth`: what was drawn, before it was put into the release's own
words. What a builder stores is held against that, never against files read back.

Which slips of the pen there are is named in `Truth.images["quirks"]`, image by image; each of them is there for every
seed at the default number of patients. How PadChest spells missing cells was looked up in its real table; the counts of
`mimic_tables` are those of docs/cohorts.md and of the release's own table.
"""

from __future__ import annotations

import csv
import dataclasses
import datetime
import functools
import gzip
import io
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
from PIL import Image

# ---- what a release is ---------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class Truth:
    """What was drawn.

    folder: what a builder is given. MIMIC-CXR-JPG's own; the one that holds CheXpert-v1.0[-small] and the workbook
        CHEXPERT DEMO.xlsx; the one that holds PadChest's or NIH's table.
    iv_folder: of MIMIC-IV, which holds core/ or hosp/; None elsewhere.
    pictures: image_id -> pixels as drawn, (rows, columns), uint8, or uint16 for PadChest. The files that `fault` spoils
        are here too, as they were before. A JPEG decodes to within a few gray levels of it, a PNG to just this.
    images: one row an image that the table lists, in the table's order:
        image_id, patient_id, study_id (str; the release's own, and where it names no study, patient and visit)
        sex ('F', 'M', '')   age (float, in years at the study, NaN unknown)   view (the release's word, '' where blank)
        race_records (tuple of raw values: MIMIC, by time of admission; CheXpert, the one PRIMARY_RACE, '' where that is
            blank; () where the patient has no record or the release no race)   ethnicity (CheXpert's, raw)
        split (the release's, '' where it has none)   labelled (whether the release labels the image at all)
        path (relative to `folder`)   fault ('', 'missing', 'empty', 'truncated', 'not an image')
        mode (Pillow's, of the file)   rows, columns (of the file)   gray_mean (of the drawn pixels)
        quirks (tuple of str)   and finding_NAME (1, 0, -1 uncertain, NaN not mentioned), for every finding
    and what the release alone has, see its writer.
    """

    folder: pathlib.Path
    iv_folder: pathlib.Path | None
    images: pd.DataFrame
    pictures: Mapping[str, np.ndarray]

    def having(self, quirk: str) -> pd.DataFrame:
        """The images with that quirk. Raises ValueError where there is none, so that no test passes on nothing."""
        found = self.images[[quirk in quirks for quirks in self.images["quirks"]]]
        if found.empty:
            known = sorted({quirk for quirks in self.images["quirks"] for quirk in quirks})
            raise ValueError(f"no image has the quirk {quirk!r}; there are {', '.join(known)}")
        return found


FAULTS = ("missing", "empty", "truncated", "not an image")


def _truth(folder, iv_folder, rows: list[dict], findings: Sequence[str], pictures) -> Truth:
    """The records of `rows`, each with `findings` as a mapping, as columns in one order for all releases."""
    first = "image_id patient_id study_id sex age view race_records ethnicity split labelled path fault mode".split()
    first += ["rows", "columns", "gray_mean", "quirks"]
    for row in rows:
        drawn = row.pop("findings")
        row.update({f"finding_{name}": drawn.get(name, np.nan) for name in findings})
        row.update(gray_mean=float(pictures[row["image_id"]].mean()), quirks=tuple(row["quirks"]))
    images = pd.DataFrame(rows)
    last = [f"finding_{name}" for name in findings]
    own = [name for name in images.columns if name not in first and name not in last]
    numbers = {name: "float64" for name in ("age", "gray_mean", *last)}
    return Truth(folder, iv_folder, images[first + own + last].astype(numbers), pictures)


# ---- files ---------------------------------------------------------------------------------------------------------


def _write(path: pathlib.Path, text: str, gz: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if gz:  # without the time, so that a seed gives the same bytes
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(text.encode(), compresslevel=1, mtime=0))
    else:
        path.write_bytes(text.encode())


def _write_table(path: pathlib.Path, header: Sequence[str] | str, rows: Iterable[Sequence], gz: bool) -> None:
    """A CSV as the releases have it: \\n at a line's end, quotes only where needed. A header of str stays as it is."""
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    if isinstance(header, str):
        lines.write(header + "\n")
    else:
        writer.writerow(header)
    writer.writerows(rows)
    _write(path, lines.getvalue(), gz)


@functools.lru_cache(maxsize=64)
def _weights(length: int, nodes: int) -> np.ndarray:
    """(length, nodes): how much of each of `nodes` evenly spaced values a pixel takes; smooth, and rows sum to 1."""
    place = np.linspace(0, nodes - 1, length)
    left = np.minimum(place.astype(int), nodes - 2)
    share = place - left
    share = share * share * (3 - 2 * share)
    weights = np.zeros((length, nodes))
    weights[np.arange(length), left] = 1 - share
    weights[np.arange(length), left + 1] = share
    return weights


def _draw(rng: np.random.Generator, rows: int, columns: int, levels: int = 256) -> np.ndarray:
    """A smooth random field, which JPEG keeps nearly as it is; it has no symmetry, so that a turned one is noticed."""
    field = _weights(rows, 7) @ rng.random((7, 7)) @ _weights(columns, 7).T
    return (field * (levels - 1)).astype(np.uint8 if levels == 256 else np.uint16)


def _save(path: pathlib.Path, pixels: np.ndarray, mode: str, fault: str) -> None:
    """Writes one picture, and spoils it. RGB and RGBA have equal colours, as those of the releases have."""
    if fault == "missing":
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    colours = {"RGB": [pixels] * 3, "RGBA": [pixels] * 3 + [np.full_like(pixels, 255)]}
    picture = Image.fromarray(np.stack(colours[mode], axis=-1) if mode in colours else pixels)
    if picture.mode != mode:
        raise ValueError(f"{path.name}: drawn as {picture.mode}, {mode} meant")
    data = io.BytesIO()
    if path.suffix == ".jpg":
        picture.save(data, "JPEG", quality=95, subsampling=0)
    else:
        picture.save(data, "PNG", compress_level=1)
    written = data.getvalue()
    spoilt = {
        "": written,
        "empty": b"",
        "truncated": written[: len(written) // 2],
        "not an image": b"<html><body>503 Service Unavailable</body></html>\n",
    }
    path.write_bytes(spoilt[fault])


def _spoil(rng: np.random.Generator, rows: list[dict], faults: bool) -> None:
    """Gives each of FAULTS to one image, so that no quirk goes with its only picture."""
    for fault, row in zip(FAULTS, _plain_first(rng, rows) if faults else ()):
        row["fault"] = fault


def _plain_first(rng: np.random.Generator, rows: Sequence[dict], besides: frozenset[str] = frozenset()) -> list[dict]:
    """Shuffled, those without a quirk (`besides` those) before the others: a further quirk then goes to them."""
    return sorted(_shuffled(rng, rows), key=lambda row: bool(set(row["quirks"]) - besides))


def _save_all(folder: pathlib.Path, rows: list[dict], pictures: Mapping[str, np.ndarray]) -> None:
    for row in rows:
        _save(folder / row["path"], pictures[row["image_id"]], row["mode"], row["fault"])


def _at_least(patients: int, least: int) -> None:
    if patients < least:
        raise ValueError(f"patients: {patients} found, at least {least} expected: each quirk needs one")


def _pick(rng: np.random.Generator, values: Sequence, weights: Sequence[float] | None = None):
    """One of `values`, as it is: `rng.choice` would make NumPy's own types of them."""
    share = None if weights is None else np.divide(weights, np.sum(weights))
    return values[int(rng.choice(len(values), p=share))]


def _shuffled(rng: np.random.Generator, values: Sequence) -> list:
    return [values[i] for i in rng.permutation(len(values))]


def _digits(rng: np.random.Generator, count: int) -> str:
    return str(rng.integers(1, 10)) + "".join(map(str, rng.integers(0, 10, count - 1)))


def _distinct(rng: np.random.Generator, low: int, high: int, count: int) -> np.ndarray:
    return np.sort(low + rng.choice(high - low, count, replace=False))


# ---- MIMIC-CXR-JPG 2.x with MIMIC-IV -------------------------------------------------------------------------------

# In the order of its tables. CheXpert has its own.
MIMIC_FINDINGS = (
    "Atelectasis",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Enlarged Cardiomediastinum",
    "Fracture",
    "Lung Lesion",
    "Lung Opacity",
    "No Finding",
    "Pleural Effusion",
    "Pleural Other",
    "Pneumonia",
    "Pneumothorax",
    "Support Devices",
)
METADATA_COLUMNS = (
    "dicom_id",
    "subject_id",
    "study_id",
    "PerformedProcedureStepDescription",
    "ViewPosition",
    "Rows",
    "Columns",
    "StudyDate",
    "StudyTime",
    "ProcedureCodeSequence_CodeMeaning",
    "ViewCodeSequence_CodeMeaning",
    "PatientOrientationCodeSequence_CodeMeaning",
)
PATIENTS_COLUMNS = ("subject_id", "gender", "anchor_age", "anchor_year", "anchor_year_group", "dod")
_ADMISSIONS = (
    "subject_id,hadm_id,admittime,dischtime,deathtime,admission_type,{provider}admission_location,discharge_location,"
    "insurance,language,marital_status,{race},edregtime,edouttime,hospital_expire_flag"
)
ADMISSIONS_COLUMNS = {
    "1.0": tuple(_ADMISSIONS.format(provider="", race="ethnicity").split(",")),
    "2.2": tuple(_ADMISSIONS.format(provider="admit_provider_id,", race="race").split(",")),
    "3.1": tuple(_ADMISSIONS.format(provider="admit_provider_id,", race="race").split(",")),
}
MIMIC_LAYOUTS = tuple(ADMISSIONS_COLUMNS)

# v2.2: images by the race of the patient's first admission, of the whole release; None where there is no admission.
V22_FIRST_ADMISSION: Mapping[str | None, int] = {
    "WHITE": 203_169,
    "WHITE - OTHER EUROPEAN": 7_287,
    "WHITE - RUSSIAN": 5_993,
    "WHITE - EASTERN EUROPEAN": 996,
    "WHITE - BRAZILIAN": 758,
    "PORTUGUESE": 1_299,
    "BLACK/AFRICAN AMERICAN": 47_278,
    "BLACK/CAPE VERDEAN": 4_193,
    "BLACK/CARIBBEAN ISLAND": 2_403,
    "BLACK/AFRICAN": 1_963,
    "ASIAN": 3_499,
    "ASIAN - CHINESE": 4_736,
    "ASIAN - SOUTH EAST ASIAN": 1_285,
    "ASIAN - ASIAN INDIAN": 1_003,
    "ASIAN - KOREAN": 407,
    "HISPANIC OR LATINO": 3_747,
    "HISPANIC/LATINO - PUERTO RICAN": 7_200,
    "HISPANIC/LATINO - DOMINICAN": 3_953,
    "HISPANIC/LATINO - GUATEMALAN": 1_019,
    "HISPANIC/LATINO - SALVADORAN": 726,
    "HISPANIC/LATINO - COLUMBIAN": 511,
    "HISPANIC/LATINO - HONDURAN": 481,
    "HISPANIC/LATINO - CUBAN": 459,
    "HISPANIC/LATINO - MEXICAN": 387,
    "HISPANIC/LATINO - CENTRAL AMERICAN": 386,
    "SOUTH AMERICAN": 473,
    "OTHER": 11_721,
    "UNKNOWN": 10_037,
    "AMERICAN INDIAN/ALASKA NATIVE": 893,
    "UNABLE TO OBTAIN": 849,
    "PATIENT DECLINED TO ANSWER": 652,
    "MULTIPLE RACE/ETHNICITY": 407,
    "NATIVE HAWAIIAN OR OTHER PACIFIC ISLANDER": 277,
    None: 46_663,
}
V2_RACES = tuple(value for value in V22_FIRST_ADMISSION if value is not None)
V1_RACES = (
    "WHITE",
    "BLACK/AFRICAN AMERICAN",
    "HISPANIC/LATINO",
    "OTHER",
    "ASIAN",
    "UNKNOWN",
    "UNABLE TO OBTAIN",
    "AMERICAN INDIAN/ALASKA NATIVE",
)

# Images of the whole release by ViewPosition.
MIMIC_VIEWS: Mapping[str, int] = {
    "AP": 147_173,
    "PA": 96_161,
    "LATERAL": 82_853,
    "LL": 35_133,
    "": 15_769,
    "PA LLD": 4,
    "LAO": 3,
    "RAO": 3,
    "AP AXIAL": 2,
    "AP LLD": 2,
    "AP RLD": 2,
    "XTABLE LATERAL": 2,
    "SWIMMERS": 1,
    "PA RLD": 1,
    "LPO": 1,
}
RARE_VIEWS = tuple(view for view, images in MIMIC_VIEWS.items() if images < 10)
_VIEW_MEANINGS = {"AP": "antero-posterior", "PA": "postero-anterior", "LATERAL": "lateral", "LL": "left lateral"}
_STUDIES = (  # description, views of its images, how often
    ("CHEST (PORTABLE AP)", ("AP",), 8),
    ("CHEST (PA AND LAT)", ("PA", "LATERAL"), 6),
    ("CHEST (PA AND LAT)", ("PA", "LL"), 3),
    ("CHEST (PRE-OP PA AND LAT)", ("PA", "LL"), 1),
    ("CHEST PORT. LINE PLACEMENT", ("AP", "AP"), 1),
    ("CHEST, PA", ("PA",), 1),  # a comma, hence quotes
    ("", ("AP",), 1),
    ("", ("PA", "LATERAL", "LATERAL"), 1),
)

# quirk, the patient's records by time of admission
_SHARED_RECORDS = (
    ("no admission", ()),
    ("no admission", ()),
    ("no patients row", ()),
    ("no patients row", ()),
    ("two groups", ("WHITE", "ASIAN")),
    ("two groups", ("BLACK/AFRICAN AMERICAN", "WHITE", "WHITE")),
    ("known, then unknown", ("WHITE", "UNKNOWN")),
    ("unknown, then known", ("UNKNOWN", "BLACK/AFRICAN AMERICAN")),
    ("only unknown", ("UNKNOWN", "UNABLE TO OBTAIN")),
    ("repeated", ("WHITE", "WHITE", "WHITE")),
    ("repeated", ("ASIAN", "ASIAN")),
)
_RECORDS = {
    "1": (*_SHARED_RECORDS, ("White and Hispanic", ("WHITE", "HISPANIC/LATINO"))),
    "2": (
        *_SHARED_RECORDS,
        ("White and Hispanic", ("WHITE", "HISPANIC/LATINO - PUERTO RICAN")),
        ("White and Hispanic", ("HISPANIC OR LATINO", "WHITE")),
        ("one group in other words", ("WHITE", "WHITE - RUSSIAN")),
        ("one group in other words", ("ASIAN - CHINESE", "ASIAN", "ASIAN")),
    ),
}
_ANCHOR_GROUPS = ("2008 - 2010", "2011 - 2013", "2014 - 2016")


def mimic(
    folder: os.PathLike | str,
    *,
    layout: str = "2.2",
    gz: bool = True,
    patients: int = 40,
    seed: int = 0,
    picture: tuple[int, int] = (320, 288),
    faults: bool = False,
    iv_folder: str = "",
) -> Truth:
    """MIMIC-CXR-JPG 2.x in `folder`, and MIMIC-IV of `layout` in `folder`/`iv_folder`.

    patients: from 48 on, every race value is there.
    picture: rows and columns of most; some are wider than high.
    faults: spoils four pictures, one by each of FAULTS.

    Quirks. Of a patient: `no admission`; `no patients row` (hence no admission, sex or age); `two groups`; `known, then
    unknown`; `unknown, then known`; `only unknown`; `repeated`; `White and Hispanic`; `one group in other words` (not
    in 1.0, whose words are the groups); `admissions out of order` (in the file, which is sorted by hadm_id: its first
    is not the first in time); `top-coded` (anchor_age 91). Of a study: `unlabelled` (in neither label table); `no
    mention` (labelled, and every cell blank). Of an image: `no view`, `rare view`, `colour`.

    Truth's own columns: anchor_age, anchor_year (NaN without a patients row), study_date (str, YYYYMMDD), procedure,
    first_in_file (race of the admission that the file has first, '' where none). For ages over 89 the release gives 91
    in the anchor year, and Truth.age goes on from there as it does for others.
    """
    if layout not in MIMIC_LAYOUTS:
        raise ValueError(f"layout: {layout!r} found, one of {', '.join(MIMIC_LAYOUTS)} expected")
    special = _RECORDS["1" if layout == "1.0" else "2"]
    _at_least(patients, len(special) + 2)
    rng = np.random.default_rng((seed, 1))
    folder = pathlib.Path(folder)
    subjects = _mimic_patients(rng, patients, special, V1_RACES if layout == "1.0" else V2_RACES)
    rows = _mimic_images(rng, subjects, picture)
    _spoil(rng, rows, faults)
    pictures = {row["image_id"]: _draw(rng, row["rows"], row["columns"]) for row in rows}
    _save_all(folder, rows, pictures)
    _mimic_cxr_tables(rng, folder, rows, gz)
    _mimic_iv_tables(rng, folder / iv_folder, subjects, layout, gz)
    for row in rows:
        for name in ("study_time", "view_meaning", "orientation"):
            del row[name]
    return _truth(folder, folder / iv_folder, rows, MIMIC_FINDINGS, pictures)


def _mimic_patients(rng, count: int, special, races) -> list[dict]:
    """The patients, by subject_id. The special ones lie anywhere among them."""
    races = [races[i] for i in rng.permutation(len(races))]
    records = list(special)
    while len(records) < count:
        value = races[(len(records) - len(special)) % len(races)]
        records.append(("", (value,) * int(rng.integers(1, 4))))
    plain = len(special)  # the first patient without a quirk of race
    order = rng.permutation(count)
    # As the real ones: of eight digits, the first two of which name the folder.
    subject_ids = 10_000_000 + (np.arange(count) * 10_000_000 + rng.integers(0, 9_900_000, count)) // count
    hadm_pool = _shuffled(rng, _distinct(rng, 20_000_000, 29_999_990, 3 * count).tolist())
    patients = []
    for subject_id, i in zip(subject_ids.tolist(), order.tolist()):
        quirk, values = records[i]
        quirks = {quirk} - {""}
        top_coded = i == plain
        anchor_year = int(rng.integers(2112, 2198))
        admitted = datetime.datetime(anchor_year, 1, 1) + np.cumsum(
            [datetime.timedelta(minutes=int(m)) for m in rng.integers(20_000, 600_000, len(values))]
        )
        # The files are sorted by hadm_id, which does not grow with time.
        hadm_ids = sorted(hadm_pool.pop() for _ in values)
        reverse = len(values) > 1 and (i % 2 == 0 or quirk == "one group in other words")
        if reverse:
            hadm_ids.reverse()
            quirks.add("admissions out of order")
        if top_coded:
            quirks.add("top-coded")
        known = quirk != "no patients row"
        patients.append(
            {
                "subject_id": subject_id,
                "sex": _pick(rng, "FM") if known else "",
                "anchor_age": (91 if top_coded else int(rng.integers(20, 88))) if known else np.nan,
                "anchor_year": anchor_year if known else np.nan,
                "first_year": anchor_year,
                "admissions": [(h, a, v) for h, a, v in zip(hadm_ids, admitted, values)],
                "split": {3: "test", 5: "validate"}.get(i % 7, "train"),
                "quirks": quirks,
            }
        )
    return patients


def _mimic_images(rng, patients: list[dict], picture: tuple[int, int]) -> list[dict]:
    rows = []
    studies = iter(_shuffled(rng, _distinct(rng, 50_000_000, 59_999_999, 4 * len(patients)).tolist()))
    for patient in patients:
        for study_id in sorted(next(studies) for _ in range(int(rng.integers(1, 5)))):
            # Mostly in another year than the anchor's, so that anchor_age is seldom the age at the study.
            years = _pick(rng, (-1, 0, 1, 2, 3, 4, 6))
            day = datetime.date(patient["first_year"] + years, 1, 1) + datetime.timedelta(
                days=int(rng.integers(0, 360))
            )
            procedure, views, _ = _pick(rng, _STUDIES, [study[2] for study in _STUDIES])
            labels = _findings(rng, MIMIC_FINDINGS)
            for view in views:
                dicom_id = "-".join(f"{part:08x}" for part in rng.integers(0, 2**32, 5).tolist())
                size = picture[::-1] if rng.random() < 0.2 else picture
                subject = str(patient["subject_id"])
                rows.append(
                    {
                        "image_id": dicom_id,
                        "patient_id": subject,
                        "study_id": str(study_id),
                        "sex": patient["sex"],
                        "age": patient["anchor_age"] + day.year - patient["anchor_year"],
                        "view": view,
                        "race_records": tuple(value for _, _, value in patient["admissions"]),
                        "ethnicity": "",
                        "split": patient["split"],
                        "labelled": True,
                        "path": f"files/p{subject[:2]}/p{subject}/s{study_id}/{dicom_id}.jpg",
                        "fault": "",
                        "mode": "L",
                        "rows": size[0],
                        "columns": size[1],
                        "quirks": sorted(patient["quirks"]),
                        "findings": labels,
                        "anchor_age": patient["anchor_age"],
                        "anchor_year": patient["anchor_year"],
                        "study_date": f"{day:%Y%m%d}",
                        "procedure": procedure,
                        "first_in_file": min(patient["admissions"], default=("", "", ""))[2],
                        # A number to those who wrote it: 08:15:03.937 is 81503.937, just after midnight 12.5.
                        "study_time": repr(
                            round(int(rng.integers(24)) * 10_000 + int(rng.integers(60)) * 100 + rng.random() * 59, 3)
                        ),
                        "view_meaning": _VIEW_MEANINGS.get(view, ""),
                        "orientation": _pick(rng, ("Erect", "Recumbent", "")),
                    }
                )
    _mimic_slips(rng, rows)
    return rows


def _mimic_slips(rng, rows: list[dict]) -> None:
    """Quirks of studies and images."""
    common = frozenset(["admissions out of order"])
    studies = dict.fromkeys(row["study_id"] for row in _plain_first(rng, rows, common))
    for quirk, study_id in zip(("unlabelled", "no mention"), studies):
        for row in rows:
            if row["study_id"] == study_id:
                row["quirks"].append(quirk)
                row["findings"] = {}
                row["labelled"] = quirk != "unlabelled"
    plain = iter(_plain_first(rng, rows, common))
    for view, row in zip(("", "", "", *RARE_VIEWS[:6]), plain):
        row.update(view=view, view_meaning=_VIEW_MEANINGS["AP"] if view else "")
        row["quirks"].append("rare view" if view else "no view")
    row = next(plain)
    row["mode"] = "RGB"
    row["quirks"].append("colour")


def _findings(rng, names: Sequence[str]) -> dict[str, float]:
    """As the labellers give them: mostly not mentioned; where there is No Finding, nothing else but Support Devices."""
    values = {name: _pick(rng, (np.nan, 1.0, 0.0, -1.0), (10, 4, 3, 2)) for name in names}
    values["No Finding"] = np.nan
    if rng.random() < 0.25:
        values = {name: _pick(rng, (np.nan, 0.0), (3, 1)) for name in names}
        values["No Finding"] = 1.0
        values["Support Devices"] = _pick(rng, (np.nan, 1.0))
    elif not any(value == value for value in values.values()):
        values["Lung Opacity"] = 1.0  # only the study drawn for it mentions nothing
    return values


def _label_cell(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.1f}"


def _mimic_cxr_tables(rng, folder: pathlib.Path, rows: list[dict], gz: bool) -> None:
    def table(name, header, lines):
        _write_table(folder / f"mimic-cxr-2.0.0-{name}.csv", header, lines, gz)

    table(
        "metadata",
        METADATA_COLUMNS,
        [
            (
                row["image_id"], row["patient_id"], row["study_id"], row["procedure"], row["view"], row["rows"],
                row["columns"], row["study_date"], row["study_time"], row["procedure"], row["view_meaning"],
                row["orientation"],
            )
            for row in rows
        ],
    )  # fmt: skip
    table(
        "split",
        ("dicom_id", "study_id", "subject_id", "split"),
        [(row["image_id"], row["study_id"], row["patient_id"], row["split"]) for row in rows],
    )
    header = ("subject_id", "study_id", *MIMIC_FINDINGS)
    studies = {row["study_id"]: row for row in rows if row["labelled"]}.values()
    for name in ("chexpert", "negbio"):
        lines = []
        for row in studies:
            cells = [_label_cell(row["findings"].get(finding, np.nan)) for finding in MIMIC_FINDINGS]
            if name == "negbio":  # another labeller: agrees mostly, so that a builder that takes the wrong table shows
                cells = [cell if rng.random() < 0.8 else _pick(rng, ("", "1.0", "0.0", "-1.0")) for cell in cells]
            lines.append((row["patient_id"], row["study_id"], *cells))
        table(name, header, lines)


def _mimic_iv_tables(rng, folder: pathlib.Path, patients: list[dict], layout: str, gz: bool) -> None:
    tables = folder / ("core" if layout == "1.0" else "hosp")
    # Most of MIMIC-IV's patients were never X-rayed.
    strangers = [
        {
            "subject_id": 19_999_990 + i,
            "sex": "M",
            "anchor_age": 50,
            "anchor_year": 2150,
            "admissions": [(29_999_990 + i, datetime.datetime(2150, 5, 6, 22, 23), "OTHER")],
        }
        for i in range(3)
    ]
    everyone = [*patients, *strangers]
    _write_table(
        tables / "patients.csv",
        PATIENTS_COLUMNS,
        [
            (p["subject_id"], p["sex"], p["anchor_age"], p["anchor_year"], _pick(rng, _ANCHOR_GROUPS), "")
            for p in everyone
            if p["sex"]
        ],
        gz,
    )
    english = "English" if layout == "3.1" else "ENGLISH"
    lines = []
    for patient in everyone:
        for hadm_id, admitted, value in sorted(patient["admissions"]):
            left = admitted + datetime.timedelta(hours=int(rng.integers(5, 200)))
            emergency = rng.random() < 0.5
            cells = {
                "subject_id": patient["subject_id"],
                "hadm_id": hadm_id,
                "admittime": admitted,
                "dischtime": left,
                "deathtime": "",
                "admission_type": "EW EMER." if emergency else _pick(rng, ("URGENT", "ELECTIVE", "EU OBSERVATION")),
                "admit_provider_id": f"P{rng.integers(10, 100)}A{rng.integers(10)}K",
                "admission_location": "EMERGENCY ROOM" if emergency else "PHYSICIAN REFERRAL",
                "discharge_location": _pick(rng, ("HOME", "SKILLED NURSING FACILITY", "")),
                "insurance": _pick(rng, ("Medicare", "Medicaid", "Other")),
                "language": _pick(rng, (english, "Spanish" if layout == "3.1" else "?")),
                "marital_status": _pick(rng, ("MARRIED", "SINGLE", "WIDOWED", "")),
                "race": value,
                "ethnicity": value,
                "edregtime": admitted - datetime.timedelta(hours=3) if emergency else "",
                "edouttime": admitted + datetime.timedelta(hours=1) if emergency else "",
                "hospital_expire_flag": 0,
            }
            lines.append([cells[name] for name in ADMISSIONS_COLUMNS[layout]])
    _write_table(tables / "admissions.csv", ADMISSIONS_COLUMNS[layout], lines, gz)


# ---- MIMIC at the size of the release: tables alone ----------------------------------------------------------------

MIMIC_PATIENTS = 65_379
MIMIC_STUDIES = 227_835  # of which the label table has all but eight
MIMIC_IMAGES_WITHOUT_SEX = 19_568
MIMIC_UNLABELLED_STUDIES = 8


def mimic_tables(
    folder: os.PathLike | str,
    race_counts: Mapping[str | None, int] = V22_FIRST_ADMISSION,
    *,
    seed: int = 0,
    gz: bool = False,
) -> Truth:
    """The tables of a MIMIC-CXR-JPG 2.x and MIMIC-IV 2.2 as large as the real ones, without one picture.

    race_counts: images by the race of the patient's first admission in time, None for those without any; 377,110 in
        all, of which None has more than 19,568: the images of patients without a patients row, who are of no known sex.

    The rest is the release's too: 65,379 patients, 227,827 studies, the images of each view. Eight studies have no
    labels. Many patients have several admissions, some with other values than the first; the file has them by hadm_id,
    hence not in time order. Truth is as `mimic`'s, without pictures, quirks, procedure and first_in_file.
    """
    images = sum(MIMIC_VIEWS.values())
    if sum(race_counts.values()) != images:
        raise ValueError(f"race_counts: {sum(race_counts.values()):,} images in all, {images:,} expected")
    rng = np.random.default_rng((seed, 2))
    folder = pathlib.Path(folder)

    # Patients: to each value its share, and to each patient of a value some of its images, few many and many few.
    values = [value for value in race_counts if value is not None]
    per_group = np.array(
        [race_counts[value] for value in values]
        + [race_counts.get(None, 0) - MIMIC_IMAGES_WITHOUT_SEX, MIMIC_IMAGES_WITHOUT_SEX]
    )
    if per_group.min() < 1:
        raise ValueError(f"race_counts: an image of each value and {MIMIC_IMAGES_WITHOUT_SEX + 1:,} of None expected")
    per_group_patients = np.maximum(per_group * MIMIC_PATIENTS // images, 1)
    per_group_patients[per_group.argmax()] += MIMIC_PATIENTS - per_group_patients.sum()
    per_patient, group = [], []
    for i, (total, share) in enumerate(zip(per_group.tolist(), per_group_patients.tolist())):
        weights = rng.pareto(1.5, share) + 0.1
        per_patient.append(1 + rng.multinomial(total - share, weights / weights.sum()))
        group.append(np.full(share, i))
    order = rng.permutation(MIMIC_PATIENTS)
    per_patient, group = np.concatenate(per_patient)[order], np.concatenate(group)[order]
    subjects = _distinct(rng, 10_000_000, 20_000_000, MIMIC_PATIENTS)
    known = group != len(values) + 1  # has a patients row
    sexes = np.where(known, np.array(["F", "M"])[rng.integers(0, 2, MIMIC_PATIENTS)], "")
    anchor_age = rng.integers(18, 90, MIMIC_PATIENTS)
    anchor_age[rng.random(MIMIC_PATIENTS) < 0.02] = 91
    anchor_year = rng.integers(2110, 2200, MIMIC_PATIENTS)
    split = np.array(["train", "validate", "test"])[rng.choice(3, MIMIC_PATIENTS, p=(0.985, 0.0075, 0.0075))]

    # Images, by patient; a study begins at each patient's first and at as many others as there are studies to give.
    owner = np.repeat(np.arange(MIMIC_PATIENTS), per_patient)
    begins = np.zeros(images, bool)
    begins[np.cumsum(per_patient) - per_patient] = True
    begins[rng.choice(np.flatnonzero(~begins), MIMIC_STUDIES - MIMIC_PATIENTS, replace=False)] = True
    study = np.cumsum(begins) - 1
    study_ids = rng.permutation(_distinct(rng, 50_000_000, 60_000_000, MIMIC_STUDIES))
    study_owner = owner[begins]
    study_year = anchor_year[study_owner] + rng.integers(-2, 7, MIMIC_STUDIES)
    study_date = study_year * 10_000 + rng.integers(1, 13, MIMIC_STUDIES) * 100 + rng.integers(1, 29, MIMIC_STUDIES)
    study_time = rng.integers(24, size=MIMIC_STUDIES) * 10_000 + rng.integers(60, size=MIMIC_STUDIES) * 100 + 12.5
    views = np.repeat(np.array(list(MIMIC_VIEWS)), list(MIMIC_VIEWS.values()))[rng.permutation(images)]

    digits = rng.bytes(20 * images).hex()
    parts = [digits[i : i + 8] for i in range(0, len(digits), 8)]
    dicom_ids = ["-".join(parts[i : i + 5]) for i in range(0, len(parts), 5)]
    subject_cells, study_cells = _cells(subjects), _cells(study_ids)
    of_subject, of_study = [subject_cells[i] for i in owner], [study_cells[i] for i in study]
    procedure = ["CHEST (PORTABLE AP)" if view.startswith("AP") else "CHEST (PA AND LAT)" for view in views.tolist()]
    blank = [""] * images
    _write_columns(
        folder / "mimic-cxr-2.0.0-metadata.csv",
        METADATA_COLUMNS,
        [
            dicom_ids, of_subject, of_study, procedure, views.tolist(), ["3056"] * images, ["2544"] * images,
            _cells(study_date[study]), _cells(study_time[study]), procedure, blank, blank,
        ],
        gz,
    )  # fmt: skip
    _write_columns(
        folder / "mimic-cxr-2.0.0-split.csv",
        ("dicom_id", "study_id", "subject_id", "split"),
        [dicom_ids, of_study, of_subject, split[owner].tolist()],
        gz,
    )

    # Labels: drawn from a pool of whole rows, which is quicker than cell by cell and looks no different.
    pool = [_findings(rng, MIMIC_FINDINGS) for _ in range(500)]
    pool_values = np.array([[drawn[name] for name in MIMIC_FINDINGS] for drawn in pool])
    pool_cells = [",".join(map(_label_cell, row)) for row in pool_values]
    labels = rng.integers(0, len(pool), MIMIC_STUDIES)
    labelled = np.ones(MIMIC_STUDIES, bool)
    labelled[rng.choice(MIMIC_STUDIES, MIMIC_UNLABELLED_STUDIES, replace=False)] = False
    listed = np.flatnonzero(labelled).tolist()
    _write_columns(
        folder / "mimic-cxr-2.0.0-chexpert.csv",
        ("subject_id", "study_id", *MIMIC_FINDINGS),
        [
            [subject_cells[study_owner[i]] for i in listed],
            [study_cells[i] for i in listed],
            [pool_cells[labels[i]] for i in listed],
        ],
        gz,
    )

    records = _mimic_iv_at_scale(
        rng, folder / "hosp", subjects, values, group, known, sexes, anchor_age, anchor_year, gz
    )
    truth = pd.DataFrame(
        {
            "image_id": dicom_ids,
            "patient_id": of_subject,
            "study_id": of_study,
            "sex": sexes[owner],
            "age": np.where(known[owner], anchor_age[owner] + study_year[study] - anchor_year[owner], np.nan),
            "view": views,
            "race_records": [records[i] for i in owner],
            "ethnicity": "",
            "split": split[owner],
            "labelled": labelled[study],
            "path": [f"files/p{p[:2]}/p{p}/s{s}/{d}.jpg" for p, s, d in zip(of_subject, of_study, dicom_ids)],
            "fault": "missing",
            "mode": "",
            "rows": 3056,
            "columns": 2544,
            "gray_mean": np.nan,
            "quirks": [()] * images,
            "anchor_age": np.where(known, anchor_age, np.nan)[owner],
            "anchor_year": np.where(known, anchor_year, np.nan)[owner],
            "study_date": _cells(study_date[study]),
        }
    )
    drawn = np.where(labelled[study][:, None], pool_values[labels[study]], np.nan)
    names = [f"finding_{name}" for name in MIMIC_FINDINGS]
    return Truth(folder, folder, pd.concat([truth, pd.DataFrame(drawn, columns=names)], axis=1), {})


def _mimic_iv_at_scale(rng, folder, subjects, values, group, known, sexes, anchor_age, anchor_year, gz) -> list[tuple]:
    """Writes patients.csv and admissions.csv; each patient's race records by time."""
    subject_cells = _cells(subjects)
    listed = np.flatnonzero(known)
    _write_columns(
        folder / "patients.csv",
        PATIENTS_COLUMNS,
        [
            [subject_cells[i] for i in listed], sexes[listed].tolist(), _cells(anchor_age[listed]),
            _cells(anchor_year[listed]), ["2011 - 2013"] * len(listed), [""] * len(listed),
        ],
        gz,
    )  # fmt: skip

    admitted = np.flatnonzero(group < len(values))
    number = 1 + rng.poisson(1.5, len(admitted))
    owner = np.repeat(admitted, number)
    first = np.zeros(len(owner), bool)
    first[np.cumsum(number) - number] = True
    # The first in time has the value that counts; a tenth of the others has any.
    value = group[owner]
    stray = ~first & (rng.random(len(owner)) < 0.1)
    value[stray] = rng.integers(0, len(values), int(stray.sum()))
    # Each patient's admissions are at least ten days apart, since the n-th is so many times twenty thousand minutes on.
    place = np.arange(len(owner)) - np.repeat(np.cumsum(number) - number, number)
    year = (anchor_year[owner] - 1970).astype("datetime64[Y]").astype("datetime64[m]")
    when = year + (place * 20_000 + rng.integers(0, 5_000, len(owner))).astype("timedelta64[m]")
    hadm_ids = rng.permutation(_distinct(rng, 20_000_000, 30_000_000, len(owner)))
    order = np.lexsort((hadm_ids, owner))
    count = len(owner)
    columns = {
        "subject_id": [subject_cells[i] for i in owner[order]],
        "hadm_id": _cells(hadm_ids[order]),
        "admittime": _times(when[order]),
        "dischtime": _times(when[order] + np.timedelta64(4_321, "m")),
        "admission_type": ["EW EMER."] * count,
        "insurance": ["Medicare"] * count,
        "language": ["ENGLISH"] * count,
        "race": [values[i] for i in value[order]],
        "hospital_expire_flag": ["0"] * count,
    }
    names = ADMISSIONS_COLUMNS["2.2"]
    _write_columns(folder / "admissions.csv", names, [columns.get(name, [""] * count) for name in names], gz)

    records: list[tuple] = [()] * len(subjects)
    words = [values[i] for i in value]
    for i, start, length in zip(admitted.tolist(), (np.cumsum(number) - number).tolist(), number.tolist()):
        records[i] = tuple(words[start : start + length])
    return records


def _cells(numbers: np.ndarray) -> list[str]:
    return list(map(str, numbers.tolist()))


def _times(when: np.ndarray) -> list[str]:
    return [time.replace("T", " ") for time in np.datetime_as_string(when, unit="s").tolist()]


def _write_columns(path: pathlib.Path, header: Sequence[str], columns: Sequence[Sequence[str]], gz: bool) -> None:
    """A CSV of cells that need no quotes; several times as quick as the csv module."""
    lines = [",".join(header), *map(",".join, zip(*columns, strict=True)), ""]
    _write(path, "\n".join(lines), gz)


# ---- CheXpert v1.0 -------------------------------------------------------------------------------------------------

CHEXPERT_FINDINGS = (
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
)
CHEXPERT_COLUMNS = ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *CHEXPERT_FINDINGS)
CHEXPERT_DEMO = "CHEXPERT DEMO.xlsx"
CHEXPERT_DEMO_COLUMNS = ("PATIENT", "GENDER", "AGE_AT_CXR", "PRIMARY_RACE", "ETHNICITY")
CHEXPERT_RACES = (
    "White",
    "White, non-Hispanic",
    "White or Caucasian",
    "White, Hispanic",
    "Black or African American",
    "Black, non-Hispanic",
    "Black, Hispanic",
    "Asian",
    "Asian, non-Hispanic",
    "Asian, Hispanic",
    "Asian - Historical Conv",
    "Native Hawaiian or Other Pacific Islander",
    "Pacific Islander, non-Hispanic",
    "Pacific Islander, Hispanic",
    "American Indian or Alaska Native",
    "Native American, non-Hispanic",
    "Native American, Hispanic",
    "Other",
    "Other, non-Hispanic",
    "Other, Hispanic",
    "Race and Ethnicity Unknown",
    "Patient Refused",
    "Unknown",
)
CHEXPERT_ETHNICITIES = (
    "Non-Hispanic/Non-Latino",
    "Not Hispanic",
    "Hispanic/Latino",
    "Hispanic",
    "Unknown",
    "Patient Refused",
    "",
)
_CHEXPERT_SEXES = {"F": "Female", "M": "Male", "": "Unknown"}


def chexpert(
    folder: os.PathLike | str,
    *,
    small: bool = True,
    patients: int = 40,
    seed: int = 0,
    picture: tuple[int, int] = (320, 390),
    faults: bool = False,
    demo: bool = True,
) -> Truth:
    """CheXpert-v1.0-small (CheXpert-v1.0 where not `small`) below `folder`, with CHEXPERT DEMO.xlsx in it (`demo`).

    patients: from 33 on, each of the 23 values of PRIMARY_RACE is there.

    Quirks. Of a patient: `not in demo`, `race blank`, `ethnicity blank`, `Hispanic in race alone` (White, Hispanic;
    Unknown), `White and Hispanic` (White; Hispanic/Latino), `sex unknown`, `age 0` (and that is Truth's age), `age 90`
    (top-coded). Of an image: `LL`, `RL` (lateral, and yet called frontal), `colour`. The workbook has patients without
    an image.

    image_id is the path below the version's folder; study_id is PATIENT/STUDY. `view` is the AP/PA column. Truth's own
    columns: sex_written, projection (Frontal or Lateral). AGE_AT_CXR is the age at the first of a patient's studies.
    """
    _at_least(patients, 14)
    rng = np.random.default_rng((seed, 3))
    folder = pathlib.Path(folder)
    version = "CheXpert-v1.0-small" if small else "CheXpert-v1.0"
    people = _chexpert_patients(rng, patients)
    rows = []
    for person in people:
        ages = person["ages"]
        for study in _shuffled(rng, range(1, len(ages) + 1)):  # the table has a patient's studies in any order
            labels = _findings(rng, CHEXPERT_FINDINGS)
            if person["split"] == "valid":  # read by radiologists, who leave nothing blank or uncertain
                labels = {name: 1.0 if value == 1 else 0.0 for name, value in labels.items()}
            lateral = rng.random() < 0.3
            for number, projection in enumerate(("frontal", "lateral")[: 1 + lateral], 1):
                name = f"{person['split']}/{person['patient']}/study{study}/view{number}_{projection}.jpg"
                rows.append(
                    {
                        "image_id": name,
                        "patient_id": person["patient"],
                        "study_id": f"{person['patient']}/study{study}",
                        "sex": person["sex"],
                        "age": float(ages[study - 1]),
                        "view": "" if projection == "lateral" else _pick(rng, ("AP", "PA"), (5, 2)),
                        "race_records": () if person["race"] is None or not demo else (person["race"],),
                        "ethnicity": person["ethnicity"] if demo else "",
                        "split": person["split"],
                        "labelled": True,
                        "path": f"{version}/{name}",
                        "fault": "",
                        "mode": "L",
                        "rows": picture[0],
                        "columns": picture[1],
                        "quirks": sorted(person["quirks"]),
                        "findings": labels,
                        "sex_written": _CHEXPERT_SEXES[person["sex"]],
                        "projection": projection.capitalize(),
                    }
                )
    frontal = [row for row in rows if row["projection"] == "Frontal" and row["split"] == "train"]
    for row, quirk in zip(_plain_first(rng, frontal), ("LL", "RL", "colour")):
        row["quirks"].append(quirk)
        row.update({"mode": "RGB"} if quirk == "colour" else {"view": quirk})
    _spoil(rng, rows, faults)
    pictures = {row["image_id"]: _draw(rng, row["rows"], row["columns"]) for row in rows}
    _save_all(folder, rows, pictures)
    for split in ("train", "valid"):
        lines = [
            (
                row["path"], row["sex_written"], int(row["age"]), row["projection"], row["view"],
                *(_label_cell(row["findings"][name]) for name in CHEXPERT_FINDINGS),
            )
            for row in rows
            if row["split"] == split
        ]  # fmt: skip
        _write_table(folder / version / f"{split}.csv", CHEXPERT_COLUMNS, lines, gz=False)
    if demo:
        _write_demo(folder / CHEXPERT_DEMO, people)
    return _truth(folder, None, rows, CHEXPERT_FINDINGS, pictures)


def _chexpert_patients(rng, count: int) -> list[dict]:
    # race (None: not in the workbook, '': blank), ethnicity, sex, ages, quirks
    special = [
        {"race": None, "ethnicity": "", "quirks": {"not in demo"}},
        {"race": None, "ethnicity": "", "quirks": {"not in demo"}},
        {"race": "", "ethnicity": "Unknown", "quirks": {"race blank"}},
        {"race": "", "ethnicity": "", "quirks": {"race blank", "ethnicity blank"}},
        {"race": "White", "ethnicity": "", "quirks": {"ethnicity blank"}},
        {"race": "White", "ethnicity": "Hispanic/Latino", "quirks": {"White and Hispanic"}},
        {"race": "White, Hispanic", "ethnicity": "Unknown", "quirks": {"Hispanic in race alone"}},
        {"race": "White", "ethnicity": "Not Hispanic", "sex": "", "quirks": {"sex unknown"}},
        {"race": "Asian", "ethnicity": "Non-Hispanic/Non-Latino", "ages": [0], "quirks": {"age 0"}},
        {"race": "Black or African American", "ethnicity": "Not Hispanic", "ages": [90, 90], "quirks": {"age 90"}},
    ]
    # The large ones first, so that few patients do for them; then every value there is, then the large ones again.
    large = ("White", "Black or African American", "Asian", "White, non-Hispanic")
    others = 0
    races = [*large, *_shuffled(rng, [race for race in CHEXPERT_RACES if race not in large])]
    while len(special) < count:
        i = len(special) - 10
        race = races[i] if i < len(races) else large[i % len(large)]
        if race.endswith("non-Hispanic") or race in large:
            ethnicity = CHEXPERT_ETHNICITIES[int(rng.integers(2))]
        elif race.endswith("Hispanic"):
            ethnicity = CHEXPERT_ETHNICITIES[2 + int(rng.integers(2))]
        else:
            ethnicity = CHEXPERT_ETHNICITIES[others % (len(CHEXPERT_ETHNICITIES) - 1)]
            others += 1
        special.append({"race": race, "ethnicity": ethnicity, "quirks": set()})
    people = _shuffled(rng, special)
    plain = [i for i, person in enumerate(people) if not person["quirks"]]
    valid = set(_shuffled(rng, plain)[: max(2, count // 8)])
    people = [p for i, p in enumerate(people) if i not in valid] + [people[i] for i in sorted(valid)]
    numbers = _distinct(rng, 1, 64_540, count).tolist()
    for i, person in enumerate(people):
        train = i < count - len(valid)
        person["split"] = "train" if train else "valid"
        # The patients of valid.csv are numbered on from those of train.csv, and have one study each.
        person["patient"] = f"patient{numbers[i] if train else 64_541 + i - (count - len(valid)):05d}"
        person.setdefault("sex", _pick(rng, "FM"))
        studies = int(rng.integers(1, 4)) if train else 1
        start = int(rng.integers(18, 86))
        person.setdefault("ages", [min(90, start + year) for year in range(studies)])
    return people


def _write_demo(path: pathlib.Path, people: list[dict]) -> None:
    import openpyxl  # here, so that the other releases can be written without it

    book = openpyxl.Workbook()
    sheet = book.active
    sheet.append(CHEXPERT_DEMO_COLUMNS)
    for person in people:
        if person["race"] is not None:
            cells = (person["race"] or None, person["ethnicity"] or None)
            sheet.append((person["patient"], _CHEXPERT_SEXES[person["sex"]], person["ages"][0], *cells))
    for i in range(3):  # those of the test set, which was not in the release
        sheet.append((f"patient{64_741 + i}", "Male", 61, "White", "Non-Hispanic/Non-Latino"))
    book.save(path)


# ---- PadChest ------------------------------------------------------------------------------------------------------

PADCHEST_TABLE = "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv"
PADCHEST_COLUMNS = (
    "",
    "ImageID",
    "ImageDir",
    "StudyDate_DICOM",
    "StudyID",
    "PatientID",
    "PatientBirth",
    "PatientSex_DICOM",
    "ViewPosition_DICOM",
    "Projection",
    "MethodProjection",
    "Pediatric",
    "Modality_DICOM",
    "Manufacturer_DICOM",
    "PhotometricInterpretation_DICOM",
    "PixelRepresentation_DICOM",
    "PixelAspectRatio_DICOM",
    "SpatialResolution_DICOM",
    "BitsStored_DICOM",
    "WindowCenter_DICOM",
    "WindowWidth_DICOM",
    "Rows_DICOM",
    "Columns_DICOM",
    "XRayTubeCurrent_DICOM",
    "Exposure_DICOM",
    "ExposureInuAs_DICOM",
    "ExposureTime",
    "RelativeXRayExposure_DICOM",
    "ReportID",
    "Report",
    "MethodLabel",
    "Labels",
    "Localizations",
    "LabelsLocalizationsBySentence",
    "labelCUIS",
    "LocalizationsCUIS",
)
# Some of its labels, with the concept that the table names for each; several have none.
PADCHEST_LABELS: Mapping[str, str] = {
    "normal": "",
    "COPD signs": "C0024117",
    "cardiomegaly": "C0018800",
    "unchanged": "",
    "aortic elongation": "",
    "pleural effusion": "C2073625",
    "scoliosis": "C0036439",
    "pneumonia": "C0032285",
    "interstitial pattern": "C2073538",
    "infiltrates": "C0277877",
    "atelectasis": "C0004144",
    "laminar atelectasis": "",
    "nodule": "C0034079",
    "pacemaker": "C0030163",
    "NSG tube": "",
    "consolidation": "C0521530",
    "pulmonary edema": "C0034063",
    "emphysema": "C0034067",
    "hiatal hernia": "C3489393",
    "pneumothorax": "C2073565",
    "pulmonary mass": "C0149726",
    "callus rib fracture": "C0006767",
    "exclude": "",
    "suboptimal study": "C2828075",
}
PADCHEST_PROJECTIONS = ("PA", "L", "AP", "AP_horizontal", "COSTAL", "EXCLUDE", "UNK")
_PADCHEST_VIEWS = {"PA": ("POSTEROANTERIOR", "nan"), "L": ("LATERAL", "nan"), "AP": ("ANTEROPOSTERIOR", "nan")}
# Machines as the table has them: what their pictures come with.
_PADCHEST_MACHINES = (
    {
        "Modality_DICOM": "CR", "Manufacturer_DICOM": "ImagingDynamicsCompanyLtd", "PixelAspectRatio_DICOM": "None",
        "SpatialResolution_DICOM": "None", "BitsStored_DICOM": "12", "WindowCenter_DICOM": "2092",
        "WindowWidth_DICOM": "2251", "XRayTubeCurrent_DICOM": "250", "Exposure_DICOM": "2",
        "ExposureInuAs_DICOM": "2500", "ExposureTime": "10", "RelativeXRayExposure_DICOM": "-1.42",
    },
    {
        "Modality_DICOM": "CR", "Manufacturer_DICOM": "PhilipsMedicalSystems", "PixelAspectRatio_DICOM": "['1', '1']",
        "SpatialResolution_DICOM": "0.2000000029802", "BitsStored_DICOM": "12", "WindowCenter_DICOM": "2047.0",
        "WindowWidth_DICOM": "4095.0", "XRayTubeCurrent_DICOM": "None", "Exposure_DICOM": "None",
        "ExposureInuAs_DICOM": "None", "ExposureTime": "None", "RelativeXRayExposure_DICOM": "509",
    },
    {
        "Modality_DICOM": "CR", "Manufacturer_DICOM": "PhilipsMedicalSystems", "PixelAspectRatio_DICOM": "None",
        "SpatialResolution_DICOM": "None", "BitsStored_DICOM": "10", "WindowCenter_DICOM": "5.115000e+02",
        "WindowWidth_DICOM": "1.023000e+03", "XRayTubeCurrent_DICOM": "None", "Exposure_DICOM": "None",
        "ExposureInuAs_DICOM": "None", "ExposureTime": "None", "RelativeXRayExposure_DICOM": "None",
    },
    {
        "Modality_DICOM": "DX", "Manufacturer_DICOM": "PhilipsMedicalSystems", "PixelAspectRatio_DICOM": "None",
        "SpatialResolution_DICOM": "0.148", "BitsStored_DICOM": "12", "WindowCenter_DICOM": "2047.5",
        "WindowWidth_DICOM": "4095", "XRayTubeCurrent_DICOM": "320", "Exposure_DICOM": "3",
        "ExposureInuAs_DICOM": "3200", "ExposureTime": "9", "RelativeXRayExposure_DICOM": "390",
    },
    {
        "Modality_DICOM": "CR", "Manufacturer_DICOM": "ImagingDynamicsCompanyLtd", "PixelAspectRatio_DICOM": "None",
        "SpatialResolution_DICOM": "None", "BitsStored_DICOM": "12", "WindowCenter_DICOM": "None",
        "WindowWidth_DICOM": "None", "XRayTubeCurrent_DICOM": "0", "Exposure_DICOM": "0",
        "ExposureInuAs_DICOM": "None", "ExposureTime": "0", "RelativeXRayExposure_DICOM": "None",
    },
)  # fmt: skip
_PADCHEST_FOLDERS = ("0", "1", "12", "54")


def padchest(
    folder: os.PathLike | str,
    *,
    gz: bool = False,
    patients: int = 30,
    seed: int = 0,
    picture: tuple[int, int] = (320, 288),
    faults: bool = False,
) -> Truth:
    """PadChest in `folder`: the table of 160K, and pictures of 16 bits in the folders that ImageDir names.

    Missing cells are written as the real table does: sex, ViewPosition and Labels `nan`, PatientBirth and the concepts
    empty, what a machine tells `None`.

    Quirks. Of a patient: `sex O` and `sex nan` (both '' in Truth.sex), `birth empty`, `two sexes` (F in one study, M in
    another), `study of two patients` (one StudyID, two PatientIDs). Of a study: `labels nan`, `labels empty` (['']),
    `empty label` (among others), `space before label`, `label twice`. Of an image: `12 bit` and `10 bit` (its pixels
    fill BitsStored of the sixteen bits; those of the other pictures fill all), and the name of a projection that is
    neither PA nor L. The real table has all of these.

    `view` is the Projection. age is the year of the study less that of birth, which is all that the release tells.
    finding_NAME is 1 or 0 for each of PADCHEST_LABELS, NaN where Labels is nan. Truth's own columns: sex_written,
    view_position, labels (tuple, stripped, each once), labels_written, method (Physician or RNN_model), birth_written,
    study_date, and what the machine tells, under the table's names.
    """
    _at_least(patients, 12)
    rng = np.random.default_rng((seed, 4))
    folder = pathlib.Path(folder)
    rows = _padchest_images(rng, patients, picture)
    _spoil(rng, rows, faults)
    pictures = {row["image_id"]: _draw(rng, row["rows"], row["columns"], row.pop("levels")) for row in rows}
    _save_all(folder, rows, pictures)
    lines = []
    for i, row in enumerate(rows):
        labels = row["labels"]
        concepts = " ".join(f"'{PADCHEST_LABELS[label]}'" for label in labels if PADCHEST_LABELS[label])
        cells = {
            **row,
            "": i,
            "ImageID": row["image_id"],
            "ImageDir": row["path"].split("/")[0],
            "StudyDate_DICOM": row["study_date"],
            "StudyID": row["study_id"],
            "PatientID": row["patient_id"],
            "PatientBirth": row["birth_written"],
            "PatientSex_DICOM": row["sex_written"],
            "ViewPosition_DICOM": row["view_position"],
            "Projection": row["view"],
            "MethodProjection": "Manual review of DICOM fields" if i % 10 else "resnet-50.t7",
            "Pediatric": "PED" if row["age"] < 10 else "No",
            "PhotometricInterpretation_DICOM": "MONOCHROME2",
            "PixelRepresentation_DICOM": "0",
            "Rows_DICOM": row["rows"],
            "Columns_DICOM": row["columns"],
            "ReportID": row["report"],
            "Report": " torax sin hallazg ." if row["labelled"] else "nan",
            "MethodLabel": row["method"],
            "Labels": row["labels_written"],
            "Localizations": "[]" if row["labelled"] else "nan",
            "LabelsLocalizationsBySentence": repr([list(labels)]) if row["labelled"] else "nan",
            "labelCUIS": (f"[{concepts}]" if row["labelled"] else ""),
            "LocalizationsCUIS": "[]" if row["labelled"] else "",
        }
        lines.append([cells[name] for name in PADCHEST_COLUMNS])
        del row["report"]
    _write_table(folder / PADCHEST_TABLE, PADCHEST_COLUMNS, lines, gz)
    return _truth(folder, None, rows, tuple(PADCHEST_LABELS), pictures)


def _padchest_images(rng, count: int, picture: tuple[int, int]) -> list[dict]:
    studies = []  # one a dict; the first of the patients are those with quirks, then all are shuffled
    roles = ["sex O", "sex nan", "birth empty", "two sexes", "study of two patients", "study of two patients"]
    shared = None
    for i in range(count):
        quirks = [roles[i]] if i < len(roles) else []
        role = "".join(quirks)
        written = {"sex O": "O", "sex nan": "nan", "two sexes": "F", "study of two patients": "F"}.get(role)
        person = {
            "patient_id": _digits(rng, 38),
            "sex_written": written or _pick(rng, "FM"),
            # Children are there too. Who has one study under two names is one person.
            "birth": 1922
            if role == "study of two patients"
            else int(rng.integers(1922, 1992))
            if i % 13 != 6
            else 2008,
        }
        for visit in range(2 if role == "two sexes" else int(rng.integers(1, 4))):
            study = {
                **person,
                "quirks": list(quirks),
                "study_id": _digits(rng, 39),
                "study_date": f"{rng.integers(2009, 2018)}{rng.integers(1, 13):02d}{rng.integers(1, 29):02d}",
                "report": _digits(rng, 7),
                "method": _pick(rng, ("Physician", "RNN_model")),
                "labels_drawn": _padchest_labels(rng),
            }
            if role == "two sexes" and visit == 1:
                study["sex_written"] = "M"
            if role == "study of two patients" and visit == 0:
                # One examination, filed under two people: same day, report and labels.
                names = ("study_id", "study_date", "report", "method", "labels_drawn")
                shared = shared or {name: study[name] for name in names}
                study.update(shared)
            elif visit > 0 and role == "study of two patients":
                study["quirks"] = []
            studies.append(study)
    plain = _plain_first(rng, studies)
    slips = (
        ("labels nan", (), "nan"),
        ("labels empty", (), "['']"),
        ("empty label", ("cardiomegaly", "unchanged"), "['cardiomegaly', '', 'unchanged']"),
        ("space before label", ("cardiomegaly", "pacemaker"), "['cardiomegaly', ' pacemaker']"),
        ("label twice", ("atelectasis", "pneumonia"), "['atelectasis', 'pneumonia', ' atelectasis']"),
    )
    for study, (quirk, labels, text) in zip(plain, slips):
        study["labels_drawn"] = (labels, text)
        study["quirks"].append(quirk)
    for study, form in zip(plain[len(slips) :], ("{}_2", "{}-4")):  # so do some of the real ones end
        if "study of two patients" not in study["quirks"]:
            study["study_id"] = form.format(study["study_id"])

    rows = []
    for study in _shuffled(rng, studies):
        labels, text = study["labels_drawn"]
        birth = None if "birth empty" in study["quirks"] else study["birth"]
        sex = study["sex_written"]
        images = 2 if rng.random() < 0.4 else 1
        machine = _pick(rng, _PADCHEST_MACHINES)
        place = _pick(rng, _PADCHEST_FOLDERS)
        for view in ("PA", "L")[:images] if rng.random() < 0.85 else ("AP_horizontal", "AP")[:images]:
            ending = "".join(_pick(rng, "abcdefghijkmnopqrstuvwxyz0123456789") for _ in range(6))
            if study["method"] == "RNN_model":
                ending = f"{rng.integers(4):02d}-{rng.integers(1000):03d}-{rng.integers(1000):03d}"
            name = f"{study['study_id']}_{ending}.png"
            rows.append(
                {
                    "image_id": name,
                    "patient_id": study["patient_id"],
                    "study_id": study["study_id"],
                    "sex": sex if sex in ("F", "M") else "",
                    "age": np.nan if birth is None else float(int(study["study_date"][:4]) - birth),
                    "view": view,
                    "race_records": (),
                    "ethnicity": "",
                    "split": "",
                    "labelled": text != "nan",
                    "path": f"{place}/{name}",
                    "fault": "",
                    "mode": "I;16",
                    "rows": picture[0],
                    "columns": picture[1],
                    "quirks": list(study["quirks"]),
                    "findings": {} if text == "nan" else {label: float(label in labels) for label in PADCHEST_LABELS},
                    "sex_written": sex,
                    "view_position": _pick(rng, _PADCHEST_VIEWS.get(view, ("nan",))),
                    "labels": tuple(labels),
                    "labels_written": text,
                    "method": study["method"],
                    "birth_written": "" if birth is None else f"{birth}.0",
                    "study_date": study["study_date"],
                    "report": study["report"],
                    "levels": 2**16,
                    **machine,
                }
            )
    plain = iter(_plain_first(rng, rows))
    for view, row in zip(PADCHEST_PROJECTIONS[2:], plain):
        row.update(view=view, view_position="OBLICUA" if view == "EXCLUDE" else "nan")
    for machine, row in zip(_PADCHEST_MACHINES, plain):
        row.update(machine, levels=2 ** int(machine["BitsStored_DICOM"]))
        row["quirks"].append(f"{machine['BitsStored_DICOM']} bit")
    for row in rows:
        row["quirks"] += [row["view"]] * (row["view"] not in ("PA", "L"))
    return rows


def _padchest_labels(rng) -> tuple[tuple[str, ...], str]:
    """Labels, and the cell that has them: a Python list, as Python writes it."""
    names = list(PADCHEST_LABELS)[1:]
    labels = ["normal"]
    if rng.random() < 0.6:
        labels = [names[i] for i in rng.choice(len(names), int(rng.integers(1, 5)), replace=False)]
    return tuple(labels), repr(labels)


# ---- NIH ChestX-ray14 ----------------------------------------------------------------------------------------------

NIH_TABLE = "Data_Entry_2017_v2020.csv"
# Two columns a bracket: the header has a comma inside of each, and no quotes.
NIH_HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
)
NIH_LISTS = {"train_val": "train_val_list.txt", "test": "test_list.txt"}
NIH_FINDINGS = (
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
_NIH_ORIGINALS = (  # width, height, spacing in mm, as the table has them
    ("2682", "2749", "0.14300000000000002"),
    ("2500", "2048", "0.168"),
    ("2992", "2991", "0.14300000000000002"),
    ("2048", "2500", "0.171"),
    ("3056", "2544", "0.139"),
)


def nih(
    folder: os.PathLike | str,
    *,
    patients: int = 30,
    seed: int = 0,
    gz: bool = False,
    picture: tuple[int, int] = (256, 256),
    faults: bool = False,
    lists: bool = True,
) -> Truth:
    """NIH ChestX-ray14 in `folder`: its table, the official lists (`lists`), images_001/images to images_012/images.

    Quirks. Of a patient: `first image is not 000`. Of an image: `RGBA`, `two findings` (and more), `infant` (age 0).

    study_id is PATIENT_VISIT, since the release names none. Truth's own columns: follow_up, original_width,
    original_height, spacing_x, spacing_y.
    """
    _at_least(patients, 10)
    rng = np.random.default_rng((seed, 5))
    folder = pathlib.Path(folder)
    rows = []
    test = set(rng.choice(patients, max(2, patients // 5), replace=False).tolist())
    infant, late = 3, 5
    for i, number in enumerate(_distinct(rng, 1, 30_806, patients).tolist()):
        sex, age = _pick(rng, "FM"), int(rng.integers(1, 90))
        for visit in range(1 if i == infant else int(rng.integers(1, 5))):
            found = ["No Finding"]
            if rng.random() < 0.5:
                chosen = rng.choice(len(NIH_FINDINGS) - 1, int(rng.integers(1, 4)), replace=False)
                found = [NIH_FINDINGS[j] for j in sorted(chosen.tolist())]
            width, height, spacing = _pick(rng, _NIH_ORIGINALS)
            quirks = ["two findings"] * (len(found) > 1)
            quirks += ["infant"] * (i == infant) + ["first image is not 000"] * (i == late)
            rows.append(
                {
                    "image_id": f"{number:08d}_{visit + (i == late):03d}.png",
                    "patient_id": str(number),
                    "study_id": f"{number}_{visit}",
                    "sex": sex,
                    "age": 0.0 if i == infant else float(age + visit),
                    "view": _pick(rng, ("PA", "AP"), (3, 2)),
                    "race_records": (),
                    "ethnicity": "",
                    "split": ("test" if i in test else "train_val") if lists else "",
                    "labelled": True,
                    "path": "",
                    "fault": "",
                    "mode": "L",
                    "rows": picture[0],
                    "columns": picture[1],
                    "quirks": quirks,
                    "findings": {name: float(name in found) for name in NIH_FINDINGS},
                    "follow_up": visit,
                    "original_width": int(width),
                    "original_height": int(height),
                    "spacing_x": float(spacing),
                    "spacing_y": float(spacing),
                }
            )
    # At least one of several findings, whatever the seed.
    if not any("two findings" in row["quirks"] for row in rows):
        rows[0]["findings"] = {name: float(name in NIH_FINDINGS[:2]) for name in NIH_FINDINGS}
        rows[0]["quirks"].append("two findings")
    for row in _plain_first(rng, rows)[:2]:
        row["mode"] = "RGBA"
        row["quirks"].append("RGBA")
    for i, row in enumerate(rows):  # the twelve folders take turns in the table's order
        row["path"] = f"images_{1 + i * 12 // len(rows):03d}/images/{row['image_id']}"
    _spoil(rng, rows, faults)
    pictures = {row["image_id"]: _draw(rng, row["rows"], row["columns"]) for row in rows}
    _save_all(folder, rows, pictures)
    lines = [
        (
            row["image_id"], "|".join(name for name in NIH_FINDINGS if row["findings"][name]), row["follow_up"],
            row["patient_id"], int(row["age"]), row["sex"], row["view"], row["original_width"], row["original_height"],
            row["spacing_x"], row["spacing_y"],
        )
        for row in rows
    ]  # fmt: skip
    _write_table(folder / NIH_TABLE, NIH_HEADER, lines, gz)
    for split, name in NIH_LISTS.items() if lists else ():
        _write(folder / name, "".join(f"{row['image_id']}\n" for row in rows if row["split"] == split), gz=False)
    return _truth(folder, None, rows, NIH_FINDINGS, pictures)
