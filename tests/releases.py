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


def _row(**drawn) -> dict:
    """One image's row of `Truth.images`, as far as it is not like most. A key with _ before it is for the files alone."""
    usual = {"race_records": (), "ethnicity": "", "split": "", "labelled": True, "fault": "", "mode": "L"}
    return {**usual, **drawn, "quirks": list(drawn["quirks"])}


def _truth(folder, iv_folder, rows: list[dict], pictures) -> Truth:
    images = pd.DataFrame([{name: value for name, value in row.items() if name[0] != "_"} for row in rows])
    images["quirks"] = images["quirks"].map(tuple)
    images["gray_mean"] = [float(pictures[image_id].mean()) for image_id in images["image_id"]]
    numbers = ["age", *(name for name in images if name.startswith("finding_"))]
    return Truth(folder, iv_folder, images.astype(dict.fromkeys(numbers, "float64")), pictures)


# ---- files ---------------------------------------------------------------------------------------------------------


def _write(path: pathlib.Path, text: str, gz: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if gz:  # without the time, so that a seed gives the same bytes
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(text.encode(), compresslevel=1, mtime=0))
    else:
        path.write_bytes(text.encode())


def _write_table(path: pathlib.Path, columns: Mapping[str, str], rows: Iterable[Mapping], gz: bool) -> None:
    """A CSV as the releases have it: \\n at a line's end, quotes only where needed, NaN an empty cell.

    columns: the table's column -> which entry of a row is in it.
    """
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow("" if row[name] != row[name] else row[name] for name in columns.values())
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
    if mode in ("RGB", "RGBA"):
        pixels = np.stack([pixels] * 3 + [np.full_like(pixels, 255)] * (mode == "RGBA"), axis=-1)
    data = io.BytesIO()
    if path.suffix == ".jpg":
        Image.fromarray(pixels).save(data, "JPEG", quality=95, subsampling=0)
    else:
        Image.fromarray(pixels).save(data, "PNG", compress_level=1)
    written = data.getvalue()
    html = b"<html><body>503 Service Unavailable</body></html>\n"
    path.write_bytes({"": written, "empty": b"", "truncated": written[: len(written) // 2], "not an image": html}[fault])


def _pictures(rng: np.random.Generator, folder: pathlib.Path, rows: list[dict], faults: bool) -> dict[str, np.ndarray]:
    """Draws and writes the picture of every row; of `faults` each goes to one that no quirk has need of."""
    for fault, row in zip(FAULTS, _plain_first(rng, rows) if faults else ()):
        row["fault"] = fault
    drawn = {row["image_id"]: _draw(rng, row["rows"], row["columns"], row.get("_levels", 256)) for row in rows}
    for row in rows:
        _save(folder / row["path"], drawn[row["image_id"]], row["mode"], row["fault"])
    return drawn


# ---- chance --------------------------------------------------------------------------------------------------------


def _at_least(patients: int, least: int) -> None:
    if patients < least:
        raise ValueError(f"patients: {patients} found, at least {least} expected: each quirk needs one")


def _plain_first(rng: np.random.Generator, rows: Sequence[dict], besides: frozenset[str] = frozenset()) -> list[dict]:
    """Shuffled, those without a quirk (`besides` those) before the others: a further quirk then goes to them."""
    return sorted(_shuffled(rng, rows), key=lambda row: bool(set(row["quirks"]) - besides))


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


def _findings(rng: np.random.Generator, names: Sequence[str]) -> dict[str, float]:
    """As the labellers give them: mostly not mentioned; where there is No Finding, nothing else but Support Devices."""
    values = {f"finding_{name}": _pick(rng, (np.nan, 1.0, 0.0, -1.0), (10, 4, 3, 2)) for name in names}
    values["finding_No Finding"] = np.nan
    if rng.random() < 0.25:
        values = {f"finding_{name}": _pick(rng, (np.nan, 0.0), (3, 1)) for name in names}
        values["finding_No Finding"] = 1.0
        values["finding_Support Devices"] = _pick(rng, (np.nan, 1.0))
    elif not any(value == value for value in values.values()):
        values["finding_Lung Opacity"] = 1.0  # only the study drawn for it mentions nothing
    return values


# ---- MIMIC-CXR-JPG 2.x with MIMIC-IV -------------------------------------------------------------------------------

# In the order of its tables. CheXpert has its own.
MIMIC_FINDINGS = (
    "Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Enlarged Cardiomediastinum", "Fracture", "Lung Lesion",
    "Lung Opacity", "No Finding", "Pleural Effusion", "Pleural Other", "Pneumonia", "Pneumothorax", "Support Devices",
)  # fmt: skip
_METADATA = {
    "dicom_id": "image_id", "subject_id": "patient_id", "study_id": "study_id",
    "PerformedProcedureStepDescription": "procedure", "ViewPosition": "view", "Rows": "rows", "Columns": "columns",
    "StudyDate": "study_date", "StudyTime": "_study_time", "ProcedureCodeSequence_CodeMeaning": "procedure",
    "ViewCodeSequence_CodeMeaning": "_view_meaning", "PatientOrientationCodeSequence_CodeMeaning": "_orientation",
}  # fmt: skip
_SPLIT = {"dicom_id": "image_id", "study_id": "study_id", "subject_id": "patient_id", "split": "split"}
_LABELS = {"subject_id": "patient_id", "study_id": "study_id"} | {name: f"finding_{name}" for name in MIMIC_FINDINGS}
_PATIENTS = {name: name for name in "subject_id gender anchor_age anchor_year anchor_year_group dod".split()}
_V2_ADMISSIONS = {name: name for name in (
    "subject_id hadm_id admittime dischtime deathtime admission_type admit_provider_id admission_location "
    "discharge_location insurance language marital_status race edregtime edouttime hospital_expire_flag"
).split()}  # fmt: skip
_V1_ADMISSIONS = {"ethnicity" if k == "race" else k: v for k, v in _V2_ADMISSIONS.items() if k != "admit_provider_id"}
_ADMISSIONS = {"1.0": _V1_ADMISSIONS, "2.2": _V2_ADMISSIONS, "3.1": _V2_ADMISSIONS}
MIMIC_LAYOUTS = tuple(_ADMISSIONS)

# v2.2: images by the race of the patient's first admission, of the whole release; None where there is no admission.
V22_FIRST_ADMISSION: Mapping[str | None, int] = {
    "WHITE": 203_169, "WHITE - OTHER EUROPEAN": 7_287, "WHITE - RUSSIAN": 5_993, "WHITE - EASTERN EUROPEAN": 996,
    "WHITE - BRAZILIAN": 758, "PORTUGUESE": 1_299,
    "BLACK/AFRICAN AMERICAN": 47_278, "BLACK/CAPE VERDEAN": 4_193, "BLACK/CARIBBEAN ISLAND": 2_403, "BLACK/AFRICAN": 1_963,
    "ASIAN": 3_499, "ASIAN - CHINESE": 4_736, "ASIAN - SOUTH EAST ASIAN": 1_285, "ASIAN - ASIAN INDIAN": 1_003,
    "ASIAN - KOREAN": 407,
    "HISPANIC OR LATINO": 3_747, "HISPANIC/LATINO - PUERTO RICAN": 7_200, "HISPANIC/LATINO - DOMINICAN": 3_953,
    "HISPANIC/LATINO - GUATEMALAN": 1_019, "HISPANIC/LATINO - SALVADORAN": 726, "HISPANIC/LATINO - COLUMBIAN": 511,
    "HISPANIC/LATINO - HONDURAN": 481, "HISPANIC/LATINO - CUBAN": 459, "HISPANIC/LATINO - MEXICAN": 387,
    "HISPANIC/LATINO - CENTRAL AMERICAN": 386, "SOUTH AMERICAN": 473,
    "OTHER": 11_721, "UNKNOWN": 10_037, "AMERICAN INDIAN/ALASKA NATIVE": 893, "UNABLE TO OBTAIN": 849,
    "PATIENT DECLINED TO ANSWER": 652, "MULTIPLE RACE/ETHNICITY": 407, "NATIVE HAWAIIAN OR OTHER PACIFIC ISLANDER": 277,
    None: 46_663,
}  # fmt: skip
V2_RACES = tuple(value for value in V22_FIRST_ADMISSION if value is not None)
V1_RACES = (
    "WHITE", "BLACK/AFRICAN AMERICAN", "HISPANIC/LATINO", "OTHER", "ASIAN", "UNKNOWN", "UNABLE TO OBTAIN",
    "AMERICAN INDIAN/ALASKA NATIVE",
)  # fmt: skip

# Images of the whole release by ViewPosition.
MIMIC_VIEWS: Mapping[str, int] = {
    "AP": 147_173, "PA": 96_161, "LATERAL": 82_853, "LL": 35_133, "": 15_769, "PA LLD": 4, "LAO": 3, "RAO": 3,
    "AP AXIAL": 2, "AP LLD": 2, "AP RLD": 2, "XTABLE LATERAL": 2, "SWIMMERS": 1, "PA RLD": 1, "LPO": 1,
}  # fmt: skip
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
_V1_RECORDS = (
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
    ("White and Hispanic", ("WHITE", "HISPANIC/LATINO")),
)
_V2_RECORDS = (
    *_V1_RECORDS[:-1],
    ("White and Hispanic", ("WHITE", "HISPANIC/LATINO - PUERTO RICAN")),
    ("White and Hispanic", ("HISPANIC OR LATINO", "WHITE")),
    ("one group in other words", ("WHITE", "WHITE - RUSSIAN")),
    ("one group in other words", ("ASIAN - CHINESE", "ASIAN", "ASIAN")),
)


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
    special, races = (_V1_RECORDS, V1_RACES) if layout == "1.0" else (_V2_RECORDS, V2_RACES)
    _at_least(patients, len(special) + 2)
    rng = np.random.default_rng((seed, 1))
    folder = pathlib.Path(folder)
    people = _mimic_patients(rng, patients, special, races)
    rows = _mimic_images(rng, people, picture)
    pictures = _pictures(rng, folder, rows, faults)

    cxr = {name: folder / f"mimic-cxr-2.0.0-{name}.csv" for name in ("metadata", "split", "chexpert", "negbio")}
    _write_table(cxr["metadata"], _METADATA, rows, gz)
    _write_table(cxr["split"], _SPLIT, rows, gz)
    studies = list({row["study_id"]: row for row in rows if row["labelled"]}.values())
    _write_table(cxr["chexpert"], _LABELS, studies, gz)
    # Another labeller: it agrees mostly, so that a builder that takes the wrong table shows.
    _write_table(cxr["negbio"], _LABELS, [study | _second_opinion(rng, study) for study in studies], gz)
    _mimic_iv_tables(folder / iv_folder / ("core" if layout == "1.0" else "hosp"), people, layout, gz)
    return _truth(folder, folder / iv_folder, rows, pictures)


def _second_opinion(rng, study: dict) -> dict:
    names = [f"finding_{name}" for name in MIMIC_FINDINGS]
    return {name: study[name] if rng.random() < 0.8 else _pick(rng, ("", "1.0", "0.0", "-1.0")) for name in names}


def _mimic_patients(rng, count: int, special, races) -> list[dict]:
    """The patients, by subject_id. The special ones lie anywhere among them."""
    races = _shuffled(rng, races)
    records = list(special)
    while len(records) < count:
        value = races[(len(records) - len(special)) % len(races)]
        records.append(("", (value,) * int(rng.integers(1, 4))))
    order = rng.permutation(count)
    # As the real ones: of eight digits, the first two of which name the folder.
    subject_ids = 10_000_000 + (np.arange(count) * 10_000_000 + rng.integers(0, 9_900_000, count)) // count
    hadm_pool = _shuffled(rng, _distinct(rng, 20_000_000, 29_999_990, 3 * count).tolist())
    patients = []
    for subject_id, i in zip(subject_ids.tolist(), order.tolist()):
        quirk, values = records[i]
        quirks = {quirk} - {""}
        known, top_coded = quirk != "no patients row", i == len(special)  # the first without a quirk of race
        year = int(rng.integers(2112, 2198))
        waits = np.cumsum([datetime.timedelta(minutes=int(m)) for m in rng.integers(20_000, 600_000, len(values))])
        # The files are sorted by hadm_id, which does not grow with time.
        hadm_ids = sorted(hadm_pool.pop() for _ in values)
        if len(values) > 1 and (i % 2 == 0 or quirk == "one group in other words"):
            hadm_ids.reverse()
            quirks.add("admissions out of order")
        if top_coded:
            quirks.add("top-coded")
        patients.append(
            {
                "subject_id": subject_id,
                "gender": _pick(rng, "FM") if known else "",
                "anchor_age": (91 if top_coded else int(rng.integers(20, 88))) if known else np.nan,
                "anchor_year": year if known else np.nan,
                "year": year,
                "admissions": list(zip(hadm_ids, datetime.datetime(year, 1, 1) + waits, values)),
                "split": {3: "test", 5: "validate"}.get(i % 7, "train"),
                "quirks": sorted(quirks),
            }
        )
    return patients


def _mimic_images(rng, patients: list[dict], picture: tuple[int, int]) -> list[dict]:
    rows = []
    studies = iter(_shuffled(rng, _distinct(rng, 50_000_000, 59_999_999, 4 * len(patients)).tolist()))
    for patient in patients:
        subject = str(patient["subject_id"])
        for study_id in sorted(next(studies) for _ in range(int(rng.integers(1, 5)))):
            # Mostly in another year than the anchor's, so that anchor_age is seldom the age at the study.
            year = patient["year"] + _pick(rng, (-1, 0, 1, 2, 3, 4, 6))
            day = datetime.date(year, 1, 1) + datetime.timedelta(days=int(rng.integers(0, 360)))
            procedure, views, _ = _pick(rng, _STUDIES, [study[2] for study in _STUDIES])
            labels = _findings(rng, MIMIC_FINDINGS)
            for view in views:
                dicom_id = "-".join(f"{part:08x}" for part in rng.integers(0, 2**32, 5).tolist())
                size = picture[::-1] if rng.random() < 0.2 else picture
                # A number to those who wrote it: 08:15:03.937 is 81503.937, just after midnight 12.5.
                clock = int(rng.integers(24)) * 10_000 + int(rng.integers(60)) * 100 + rng.random() * 59
                rows.append(_row(
                    image_id=dicom_id, patient_id=subject, study_id=str(study_id), sex=patient["gender"],
                    age=patient["anchor_age"] + year - patient["anchor_year"], view=view, split=patient["split"],
                    race_records=tuple(value for _, _, value in patient["admissions"]), quirks=patient["quirks"],
                    path=f"files/p{subject[:2]}/p{subject}/s{study_id}/{dicom_id}.jpg", rows=size[0], columns=size[1],
                    anchor_age=patient["anchor_age"], anchor_year=patient["anchor_year"], study_date=f"{day:%Y%m%d}",
                    procedure=procedure, first_in_file=min(patient["admissions"], default=("", "", ""))[2],
                    _study_time=round(clock, 3), _view_meaning=_VIEW_MEANINGS.get(view, ""),
                    _orientation=_pick(rng, ("Erect", "Recumbent", "")), **labels,
                ))  # fmt: skip

    common = frozenset(["admissions out of order"])
    studies = dict.fromkeys(row["study_id"] for row in _plain_first(rng, rows, common))
    for quirk, study_id in zip(("unlabelled", "no mention"), studies):
        for row in (row for row in rows if row["study_id"] == study_id):
            row["quirks"].append(quirk)
            row.update(dict.fromkeys(labels, np.nan), labelled=quirk != "unlabelled")
    plain = iter(_plain_first(rng, rows, common))
    for view, row in zip(("", "", "", *RARE_VIEWS[:6]), plain):
        row.update(view=view, _view_meaning=_VIEW_MEANINGS["AP"] if view else "")
        row["quirks"].append("rare view" if view else "no view")
    row = next(plain)
    row["mode"] = "RGB"
    row["quirks"].append("colour")
    return rows


def _mimic_iv_tables(folder: pathlib.Path, patients: list[dict], layout: str, gz: bool) -> None:
    """admissions.csv and patients.csv, with three besides: most of MIMIC-IV's patients were never X-rayed."""
    for i in range(3):
        admissions = [(29_999_990 + i, datetime.datetime(2150, 5, 6, 22, 23), "OTHER")]
        stranger = {"subject_id": 19_999_990 + i, "gender": "M", "anchor_age": 50, "anchor_year": 2150}
        patients = [*patients, {**stranger, "admissions": admissions}]
    listed = [{**p, "anchor_year_group": "2011 - 2013", "dod": ""} for p in patients if p["gender"]]
    _write_table(folder / "patients.csv", _PATIENTS, listed, gz)
    usual = dict.fromkeys(_ADMISSIONS["2.2"], "") | {
        "admission_type": "EW EMER.",
        "insurance": "Medicare",
        "language": "English" if layout == "3.1" else "ENGLISH",
        "hospital_expire_flag": 0,
    }
    rows = [
        {**usual, "subject_id": patient["subject_id"], "hadm_id": hadm_id, "admittime": admitted, "race": value}
        | {"dischtime": admitted + datetime.timedelta(hours=77), "edregtime": admitted - datetime.timedelta(hours=3)}
        for patient in patients
        for hadm_id, admitted, value in sorted(patient["admissions"])
    ]
    _write_table(folder / "admissions.csv", _ADMISSIONS[layout], rows, gz)


# ---- MIMIC at the size of the release: tables alone ----------------------------------------------------------------

MIMIC_PATIENTS = 65_379
MIMIC_STUDIES = 227_835  # of which the label table has all but eight
MIMIC_UNLABELLED_STUDIES = 8
MIMIC_IMAGES_WITHOUT_SEX = 19_568  # of patients without a patients row


def mimic_tables(folder: os.PathLike | str) -> None:
    """The tables of a MIMIC-CXR-JPG 2.x and MIMIC-IV 2.2 as large as the real ones, without one picture.

    V22_FIRST_ADMISSION, MIMIC_VIEWS and the counts above hold of them. Many patients have several admissions, some with
    other values than the first; the file has them by hadm_id, hence not in time order.
    """
    rng = np.random.default_rng((0, 2))
    folder = pathlib.Path(folder)
    (folder / "hosp").mkdir(parents=True)

    def write(name: str, columns: Mapping[str, str], drawn: pd.DataFrame) -> None:
        drawn[list(columns.values())].to_csv(folder / name, header=list(columns), index=False)

    # Patients: to each group of race its share, and an image or more to each. The last two groups have no admission, the
    # very last no patients row either.
    images = sum(MIMIC_VIEWS.values())
    without = V22_FIRST_ADMISSION[None] - MIMIC_IMAGES_WITHOUT_SEX
    of_group = np.array([*(V22_FIRST_ADMISSION[value] for value in V2_RACES), without, MIMIC_IMAGES_WITHOUT_SEX])
    patients = np.maximum(of_group * MIMIC_PATIENTS // images, 1)
    patients[of_group.argmax()] += MIMIC_PATIENTS - patients.sum()
    group = np.repeat(np.arange(len(patients)), patients)
    first_of_group = np.cumsum(patients) - patients
    more = [rng.integers(start, start + n, total - n) for start, n, total in zip(first_of_group, patients, of_group)]
    owner = np.sort(np.concatenate([np.arange(MIMIC_PATIENTS), *more]))  # of an image: the place of its patient
    subjects = rng.permutation(_distinct(rng, 10_000_000, 20_000_000, MIMIC_PATIENTS))
    gender = np.array(["F", "M"])[rng.integers(0, 2, MIMIC_PATIENTS)]
    age, year = rng.choice([*range(18, 90), 91], MIMIC_PATIENTS), rng.integers(2110, 2200, MIMIC_PATIENTS)
    people = pd.DataFrame({"subject_id": subjects, "gender": gender, "anchor_age": age, "anchor_year": year})
    people = people.assign(anchor_year_group="2011 - 2013", dod="")
    write("hosp/patients.csv", _PATIENTS, people[group < len(V2_RACES) + 1])

    # A study begins at each patient's first image and at as many others as there are studies to give.
    begins = np.diff(owner, prepend=-1) > 0
    begins[rng.choice(np.flatnonzero(~begins), MIMIC_STUDIES - MIMIC_PATIENTS, replace=False)] = True
    study, study_owner = np.cumsum(begins) - 1, owner[begins]
    study_ids = rng.permutation(_distinct(rng, 50_000_000, 60_000_000, MIMIC_STUDIES))
    dates = (year[study_owner] + rng.integers(-2, 7, MIMIC_STUDIES)) * 10_000 + 101 + rng.integers(0, 28, MIMIC_STUDIES)
    views = rng.permutation(np.repeat(list(MIMIC_VIEWS), list(MIMIC_VIEWS.values())))
    listed = pd.DataFrame({
        "image_id": [f"{i:08x}-00000000-00000000-00000000-00000000" for i in rng.permutation(images)],
        "patient_id": subjects[owner], "study_id": study_ids[study], "view": views, "study_date": dates[study],
        "split": np.array(["train", "validate", "test"])[rng.choice(3, MIMIC_PATIENTS, p=(0.985, 0.0075, 0.0075))][owner],
    }).assign(procedure="CHEST", rows=3056, columns=2544, _study_time=12.5, _view_meaning="", _orientation="")  # fmt: skip
    write("mimic-cxr-2.0.0-metadata.csv", _METADATA, listed)
    write("mimic-cxr-2.0.0-split.csv", _SPLIT, listed)

    # Labels: drawn from a pool of whole rows, which is quicker than cell by cell and looks no different.
    pool = pd.DataFrame([_findings(rng, MIMIC_FINDINGS) for _ in range(500)])
    labels = pool.iloc[rng.integers(0, len(pool), MIMIC_STUDIES)].reset_index(drop=True)
    labels = labels.assign(patient_id=subjects[study_owner], study_id=study_ids)
    unlabelled = rng.choice(MIMIC_STUDIES, MIMIC_UNLABELLED_STUDIES, replace=False)
    write("mimic-cxr-2.0.0-chexpert.csv", _LABELS, labels.drop(index=unlabelled))

    # Admissions. The first in time has the value that counts; a tenth of the others has any.
    admitted = np.flatnonzero(group < len(V2_RACES))
    owner = np.repeat(admitted, 1 + rng.poisson(1.5, len(admitted)))
    place = pd.Series(owner).groupby(owner).cumcount().to_numpy()
    value = group[owner]
    stray = (place > 0) & (rng.random(len(owner)) < 0.1)
    value[stray] = rng.integers(0, len(V2_RACES), stray.sum())
    # A patient's are at least ten days apart, since the n-th is so many times twenty thousand minutes on.
    minutes = (place * 20_000 + rng.integers(0, 5_000, len(owner))).astype("timedelta64[m]")
    when = ((year[owner] - 1970).astype("datetime64[Y]") + minutes).astype("datetime64[s]")
    hadm_ids = rng.permutation(_distinct(rng, 20_000_000, 30_000_000, len(owner)))
    admissions = pd.DataFrame({**dict.fromkeys(_V2_ADMISSIONS, ""), "subject_id": subjects[owner], "hadm_id": hadm_ids})
    admissions = admissions.assign(admittime=when, race=np.array(V2_RACES)[value], hospital_expire_flag=0)
    write("hosp/admissions.csv", _V2_ADMISSIONS, admissions.sort_values(["subject_id", "hadm_id"]))


# ---- CheXpert v1.0 -------------------------------------------------------------------------------------------------

CHEXPERT_FINDINGS = (
    "No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema", "Consolidation",
    "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture", "Support Devices",
)  # fmt: skip
_CHEXPERT = {
    "Path": "path", "Sex": "sex_written", "Age": "age", "Frontal/Lateral": "projection", "AP/PA": "view",
    **{name: f"finding_{name}" for name in CHEXPERT_FINDINGS},
}  # fmt: skip
CHEXPERT_DEMO = "CHEXPERT DEMO.xlsx"
CHEXPERT_RACES = (
    "White", "White, non-Hispanic", "White or Caucasian", "White, Hispanic",
    "Black or African American", "Black, non-Hispanic", "Black, Hispanic",
    "Asian", "Asian, non-Hispanic", "Asian, Hispanic", "Asian - Historical Conv",
    "Native Hawaiian or Other Pacific Islander", "Pacific Islander, non-Hispanic", "Pacific Islander, Hispanic",
    "American Indian or Alaska Native", "Native American, non-Hispanic", "Native American, Hispanic",
    "Other", "Other, non-Hispanic", "Other, Hispanic", "Race and Ethnicity Unknown", "Patient Refused", "Unknown",
)  # fmt: skip
CHEXPERT_ETHNICITIES = (
    "Non-Hispanic/Non-Latino", "Not Hispanic", "Hispanic/Latino", "Hispanic", "Unknown", "Patient Refused", "",
)  # fmt: skip
_CHEXPERT_SEXES = {"F": "Female", "M": "Male", "": "Unknown"}
_CHEXPERT_SPECIAL = (  # quirks, race (None: not in the workbook, '': blank), ethnicity, what else is fixed
    ({"not in demo"}, None, "", {}),
    ({"not in demo"}, None, "", {}),
    ({"race blank"}, "", "Unknown", {}),
    ({"race blank", "ethnicity blank"}, "", "", {}),
    ({"ethnicity blank"}, "White", "", {}),
    ({"White and Hispanic"}, "White", "Hispanic/Latino", {}),
    ({"Hispanic in race alone"}, "White, Hispanic", "Unknown", {}),
    ({"sex unknown"}, "White", "Not Hispanic", {"sex": ""}),
    ({"age 0"}, "Asian", "Non-Hispanic/Non-Latino", {"ages": [0]}),
    ({"age 90"}, "Black or African American", "Not Hispanic", {"ages": [90, 90]}),
)


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
        for study in _shuffled(rng, range(1, len(person["ages"]) + 1)):  # the table has a patient's studies in any order
            labels = _findings(rng, CHEXPERT_FINDINGS)
            if person["split"] == "valid":  # read by radiologists, who leave nothing blank or uncertain
                labels = {name: 1.0 if value == 1 else 0.0 for name, value in labels.items()}
            for number, projection in enumerate(("frontal", "lateral")[: 1 + (rng.random() < 0.3)], 1):
                name = f"{person['split']}/{person['patient']}/study{study}/view{number}_{projection}.jpg"
                rows.append(_row(
                    image_id=name, patient_id=person["patient"], study_id=f"{person['patient']}/study{study}",
                    sex=person["sex"], age=person["ages"][study - 1], split=person["split"], path=f"{version}/{name}",
                    view="" if projection == "lateral" else _pick(rng, ("AP", "PA"), (5, 2)),
                    race_records=() if person["race"] is None or not demo else (person["race"],),
                    ethnicity=person["ethnicity"] if demo else "", quirks=sorted(person["quirks"]),
                    rows=picture[0], columns=picture[1], sex_written=_CHEXPERT_SEXES[person["sex"]],
                    projection=projection.capitalize(), **labels,
                ))  # fmt: skip
    frontal = [row for row in rows if row["projection"] == "Frontal" and row["split"] == "train"]
    for row, quirk in zip(_plain_first(rng, frontal), ("LL", "RL", "colour")):
        row["quirks"].append(quirk)
        row.update({"mode": "RGB"} if quirk == "colour" else {"view": quirk})
    pictures = _pictures(rng, folder, rows, faults)
    for split in ("train", "valid"):
        listed = [row for row in rows if row["split"] == split]
        _write_table(folder / version / f"{split}.csv", _CHEXPERT, listed, gz=False)
    if demo:
        _write_demo(folder / CHEXPERT_DEMO, people)
    return _truth(folder, None, rows, pictures)


def _chexpert_patients(rng, count: int) -> list[dict]:
    people = [{"quirks": q, "race": race, "ethnicity": e, **more} for q, race, e, more in _CHEXPERT_SPECIAL]
    # The large ones first, so that few patients do for them; then every value there is, then the large ones again.
    large = ("White", "Black or African American", "Asian", "White, non-Hispanic")
    races = [*large, *_shuffled(rng, [race for race in CHEXPERT_RACES if race not in large])]
    others = 0
    for i in range(count - len(people)):
        race = races[i] if i < len(races) else large[i % len(large)]
        if race.endswith("non-Hispanic") or race in large:
            ethnicity = CHEXPERT_ETHNICITIES[int(rng.integers(2))]
        elif race.endswith("Hispanic"):
            ethnicity = CHEXPERT_ETHNICITIES[2 + int(rng.integers(2))]
        else:
            ethnicity = CHEXPERT_ETHNICITIES[others % (len(CHEXPERT_ETHNICITIES) - 1)]
            others += 1
        people.append({"quirks": set(), "race": race, "ethnicity": ethnicity})
    people = _shuffled(rng, people)
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
    sheet.append(("PATIENT", "GENDER", "AGE_AT_CXR", "PRIMARY_RACE", "ETHNICITY"))
    for person in people:
        if person["race"] is not None:
            cells = (person["race"] or None, person["ethnicity"] or None)
            sheet.append((person["patient"], _CHEXPERT_SEXES[person["sex"]], person["ages"][0], *cells))
    for i in range(3):  # those of the test set, which was not in the release
        sheet.append((f"patient{64_741 + i}", "Male", 61, "White", "Non-Hispanic/Non-Latino"))
    book.save(path)


# ---- PadChest ------------------------------------------------------------------------------------------------------

PADCHEST_TABLE = "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv"
_PADCHEST = {
    "": "_place", "ImageID": "image_id", "ImageDir": "_folder", "StudyDate_DICOM": "study_date", "StudyID": "study_id",
    "PatientID": "patient_id", "PatientBirth": "birth_written", "PatientSex_DICOM": "sex_written",
    "ViewPosition_DICOM": "view_position", "Projection": "view", "MethodProjection": "_method_projection",
    "Pediatric": "_pediatric", "Modality_DICOM": "Modality_DICOM", "Manufacturer_DICOM": "Manufacturer_DICOM",
    "PhotometricInterpretation_DICOM": "_photometric", "PixelRepresentation_DICOM": "_zero",
    "PixelAspectRatio_DICOM": "PixelAspectRatio_DICOM", "SpatialResolution_DICOM": "SpatialResolution_DICOM",
    "BitsStored_DICOM": "BitsStored_DICOM", "WindowCenter_DICOM": "WindowCenter_DICOM",
    "WindowWidth_DICOM": "WindowWidth_DICOM", "Rows_DICOM": "rows", "Columns_DICOM": "columns",
    "XRayTubeCurrent_DICOM": "XRayTubeCurrent_DICOM", "Exposure_DICOM": "Exposure_DICOM",
    "ExposureInuAs_DICOM": "ExposureInuAs_DICOM", "ExposureTime": "ExposureTime",
    "RelativeXRayExposure_DICOM": "RelativeXRayExposure_DICOM", "ReportID": "_report_id", "Report": "_report",
    "MethodLabel": "method", "Labels": "labels_written", "Localizations": "_places",
    "LabelsLocalizationsBySentence": "_sentences", "labelCUIS": "_concepts", "LocalizationsCUIS": "_place_concepts",
}  # fmt: skip
# Some of its labels, with the concept that the table names for each; several have none.
PADCHEST_LABELS: Mapping[str, str] = {
    "normal": "", "COPD signs": "C0024117", "cardiomegaly": "C0018800", "unchanged": "", "aortic elongation": "",
    "pleural effusion": "C2073625", "scoliosis": "C0036439", "pneumonia": "C0032285", "interstitial pattern": "C2073538",
    "infiltrates": "C0277877", "atelectasis": "C0004144", "laminar atelectasis": "", "nodule": "C0034079",
    "pacemaker": "C0030163", "NSG tube": "", "consolidation": "C0521530", "pulmonary edema": "C0034063",
    "emphysema": "C0034067", "hiatal hernia": "C3489393", "pneumothorax": "C2073565", "pulmonary mass": "C0149726",
    "callus rib fracture": "C0006767", "exclude": "", "suboptimal study": "C2828075",
}  # fmt: skip
PADCHEST_PROJECTIONS = ("PA", "L", "AP", "AP_horizontal", "COSTAL", "EXCLUDE", "UNK")
_PADCHEST_VIEWS = {"PA": ("POSTEROANTERIOR", "nan"), "L": ("LATERAL", "nan"), "AP": ("ANTEROPOSTERIOR", "nan")}
# Machines as the table has them: what their pictures come with.
_PADCHEST_MACHINES = [
    dict(zip((name for name in _PADCHEST.values() if name.endswith(("_DICOM", "ExposureTime"))), line.split("|")))
    for line in (
        "CR|ImagingDynamicsCompanyLtd|None|None|12|2092|2251|250|2|2500|10|-1.42",
        "CR|PhilipsMedicalSystems|['1', '1']|0.2000000029802|12|2047.0|4095.0|None|None|None|None|509",
        "CR|PhilipsMedicalSystems|None|None|10|5.115000e+02|1.023000e+03|None|None|None|None|None",
        "DX|PhilipsMedicalSystems|None|0.148|12|2047.5|4095|320|3|3200|9|390",
        "CR|ImagingDynamicsCompanyLtd|None|None|12|None|None|0|0|None|0|None",
    )
]
_PADCHEST_ROLES = ("sex O", "sex nan", "birth empty", "two sexes", "study of two patients", "study of two patients")
_PADCHEST_SLIPS = (  # quirk, labels, the cell that has them
    ("labels nan", (), "nan"),
    ("labels empty", (), "['']"),
    ("empty label", ("cardiomegaly", "unchanged"), "['cardiomegaly', '', 'unchanged']"),
    ("space before label", ("cardiomegaly", "pacemaker"), "['cardiomegaly', ' pacemaker']"),
    ("label twice", ("atelectasis", "pneumonia"), "['atelectasis', 'pneumonia', ' atelectasis']"),
)


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
    rows = _padchest_images(rng, _padchest_studies(rng, patients), picture)
    pictures = _pictures(rng, folder, rows, faults)
    for i, row in enumerate(rows):
        read = row["labelled"]
        concepts = " ".join(f"'{PADCHEST_LABELS[label]}'" for label in row["labels"] if PADCHEST_LABELS[label])
        row |= {
            "_place": i,
            "_folder": row["path"].split("/")[0],
            "_method_projection": "Manual review of DICOM fields" if i % 10 else "resnet-50.t7",
            "_pediatric": "PED" if row["age"] < 10 else "No",
            "_photometric": "MONOCHROME2",
            "_zero": "0",
            "_report": " torax sin hallazg ." if read else "nan",
            "_places": "[]" if read else "nan",
            "_sentences": repr([list(row["labels"])]) if read else "nan",
            "_concepts": f"[{concepts}]" if read else "",
            "_place_concepts": "[]" if read else "",
        }
    _write_table(folder / PADCHEST_TABLE, _PADCHEST, rows, gz)
    return _truth(folder, None, rows, pictures)


def _padchest_studies(rng, patients: int) -> list[dict]:
    studies = []
    shared = None
    for i in range(patients):
        role = _PADCHEST_ROLES[i] if i < len(_PADCHEST_ROLES) else ""
        written = {"sex O": "O", "sex nan": "nan", "two sexes": "F", "study of two patients": "F"}.get(role)
        person = {"patient_id": _digits(rng, 38), "sex": written or _pick(rng, "FM")}
        # Children are there too. Who has one study under two names is one person.
        born = 1922 if role == "study of two patients" else int(rng.integers(1922, 1992)) if i % 13 != 6 else 2008
        person["birth"] = None if role == "birth empty" else born
        for visit in range(2 if role == "two sexes" else int(rng.integers(1, 4))):
            examination = {
                "study_id": _digits(rng, 39),
                "study_date": f"{rng.integers(2009, 2018)}{rng.integers(1, 13):02d}{rng.integers(1, 29):02d}",
                "report": _digits(rng, 7),
                "method": _pick(rng, ("Physician", "RNN_model")),
                "labels": _padchest_labels(rng),
            }
            quirks = [role] if role else []
            if role == "study of two patients":  # the first: same day, report and labels, filed under two people
                if visit == 0:
                    examination = shared = shared or examination
                else:
                    quirks = []
            studies.append({**person, **examination, "quirks": quirks})
            if role == "two sexes" and visit == 1:
                studies[-1]["sex"] = "M"
    plain = _plain_first(rng, studies)
    for study, (quirk, labels, text) in zip(plain, _PADCHEST_SLIPS):
        study["labels"] = (labels, text)
        study["quirks"].append(quirk)
    for study, ending in zip(plain[len(_PADCHEST_SLIPS) :], ("_2", "-4")):  # so do some of the real ones end
        if "study of two patients" not in study["quirks"]:
            study["study_id"] += ending
    return studies


def _padchest_images(rng, studies: list[dict], picture: tuple[int, int]) -> list[dict]:
    rows = []
    for study in _shuffled(rng, studies):
        labels, text = study["labels"]
        birth = study["birth"]
        images = 2 if rng.random() < 0.4 else 1
        machine = _pick(rng, _PADCHEST_MACHINES)
        place = _pick(rng, ("0", "1", "12", "54"))
        for view in ("PA", "L")[:images] if rng.random() < 0.85 else ("AP_horizontal", "AP")[:images]:
            ending = "".join(_pick(rng, "abcdefghijkmnopqrstuvwxyz0123456789") for _ in range(6))
            if study["method"] == "RNN_model":
                ending = f"{rng.integers(4):02d}-{rng.integers(1000):03d}-{rng.integers(1000):03d}"
            name = f"{study['study_id']}_{ending}.png"
            rows.append(_row(
                image_id=name, patient_id=study["patient_id"], study_id=study["study_id"], study_date=study["study_date"],
                sex=study["sex"] if study["sex"] in ("F", "M") else "", sex_written=study["sex"],
                age=np.nan if birth is None else int(study["study_date"][:4]) - birth,
                birth_written="" if birth is None else f"{birth}.0",
                view=view, view_position=_pick(rng, _PADCHEST_VIEWS.get(view, ("nan",))), path=f"{place}/{name}",
                labelled=text != "nan", labels=labels, labels_written=text, method=study["method"],
                quirks=study["quirks"], mode="I;16", rows=picture[0], columns=picture[1], _levels=2**16,
                _report_id=study["report"], **machine,
                **{f"finding_{n}": np.nan if text == "nan" else float(n in labels) for n in PADCHEST_LABELS},
            ))  # fmt: skip
    plain = iter(_plain_first(rng, rows))
    for view, row in zip(PADCHEST_PROJECTIONS[2:], plain):
        row.update(view=view, view_position="OBLICUA" if view == "EXCLUDE" else "nan")
    for machine, row in zip(_PADCHEST_MACHINES, plain):
        row.update(machine, _levels=2 ** int(machine["BitsStored_DICOM"]))
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
_NIH = {
    "Image Index": "image_id", "Finding Labels": "_labels", "Follow-up #": "follow_up", "Patient ID": "patient_id",
    "Patient Age": "age", "Patient Gender": "sex", "View Position": "view", "OriginalImage[Width": "original_width",
    "Height]": "original_height", "OriginalImagePixelSpacing[x": "spacing_x", "y]": "spacing_y",
}  # fmt: skip
NIH_LISTS = {"train_val": "train_val_list.txt", "test": "test_list.txt"}
NIH_FINDINGS = (
    "Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia", "Pneumothorax",
    "Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural_Thickening", "Hernia", "No Finding",
)  # fmt: skip
_NIH_ORIGINALS = (  # width, height, spacing in mm, as the table has them
    (2682, 2749, 0.14300000000000002),
    (2500, 2048, 0.168),
    (2992, 2991, 0.14300000000000002),
    (2048, 2500, 0.171),
    (3056, 2544, 0.139),
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
    for i, number in enumerate(_distinct(rng, 1, 30_806, patients).tolist()):
        infant, late = i == 3, i == 5
        sex, age = _pick(rng, "FM"), int(rng.integers(1, 90))
        for visit in range(1 if infant else int(rng.integers(1, 5))):
            found = ["No Finding"]
            if rng.random() < 0.5:
                chosen = rng.choice(len(NIH_FINDINGS) - 1, int(rng.integers(1, 4)), replace=False)
                found = [NIH_FINDINGS[j] for j in sorted(chosen.tolist())]
            width, height, spacing = _pick(rng, _NIH_ORIGINALS)
            rows.append(_row(
                image_id=f"{number:08d}_{visit + late:03d}.png", patient_id=str(number), study_id=f"{number}_{visit}",
                sex=sex, age=0 if infant else age + visit, view=_pick(rng, ("PA", "AP"), (3, 2)),
                split=("test" if i in test else "train_val") if lists else "", rows=picture[0], columns=picture[1],
                quirks=["two findings"] * (len(found) > 1) + ["infant"] * infant + ["first image is not 000"] * late,
                follow_up=visit, original_width=width, original_height=height, spacing_x=spacing, spacing_y=spacing,
                _labels="|".join(found), **{f"finding_{name}": float(name in found) for name in NIH_FINDINGS},
            ))  # fmt: skip
    for row in _plain_first(rng, rows)[:2]:
        row["mode"] = "RGBA"
        row["quirks"].append("RGBA")
    for i, row in enumerate(rows):  # the twelve folders take turns in the table's order
        row["path"] = f"images_{1 + i * 12 // len(rows):03d}/images/{row['image_id']}"
    pictures = _pictures(rng, folder, rows, faults)
    _write_table(folder / NIH_TABLE, _NIH, rows, gz)
    for split, name in NIH_LISTS.items() if lists else ():
        _write(folder / name, "".join(f"{row['image_id']}\n" for row in rows if row["split"] == split), gz=False)
    return _truth(folder, None, rows, pictures)


# ---- BRAX v1.1.0 ---------------------------------------------------------------------------------------------------

BRAX_TABLE = "master_spreadsheet_update.csv"
BRAX_FINDINGS = (
    "No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Lesion", "Lung Opacity", "Edema", "Consolidation",
    "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture", "Support Devices",
)  # fmt: skip
_BRAX = {
    "DicomPath": "dicom_path", "PngPath": "path", "PatientID": "patient_id", "PatientSex": "sex_written",
    "PatientAge": "age_written", "AccessionNumber": "study_id", "StudyDate": "study_date",
    **{name: f"finding_{name}" for name in BRAX_FINDINGS},
    "ViewPosition": "view", "Rows": "original_height", "Columns": "original_width", "Manufacturer": "manufacturer",
}  # fmt: skip
_BRAX_PEOPLE = (  # quirk, what is fixed of the patient
    ("sex O", {"sex_written": "O"}),
    ("85 or more", {"age": 93}),
    ("age empty", {"age": None}),
    ("two bins", {"age": 44}),
)


def brax(
    folder: os.PathLike | str,
    *,
    patients: int = 30,
    seed: int = 0,
    gz: bool = False,
    picture: tuple[int, int] = (320, 288),
    faults: bool = False,
) -> Truth:
    """BRAX v1.1.0 in `folder`: its table, and images/. The DICOM files that the table names too are not drawn.

    Quirks. Of a patient: `sex O` ('' in Truth.sex), `85 or more`, `age empty`, `two bins` (a year older at the next study).
    Of an image: `no view`, and the name of a view that is neither PA, AP nor L.

    age is the middle of the bin (the lower edge and two years; 85 for the last). Truth's own columns: age_written,
    sex_written, study_date, dicom_path, original_height, original_width, manufacturer.
    """
    _at_least(patients, 8)
    rng = np.random.default_rng((seed, 6))
    folder = pathlib.Path(folder)
    rows = []
    for i in range(patients):
        quirk, fixed = _BRAX_PEOPLE[i] if i < len(_BRAX_PEOPLE) else ("", {})
        person = {"sex_written": _pick(rng, "FM"), "age": int(rng.integers(1, 80)), **fixed}
        patient, machine = f"id_{_code(rng)}", str(rng.integers(1, 5))
        for visit in range(2 if quirk == "two bins" else int(rng.integers(1, 4))):
            labels, study = _findings(rng, BRAX_FINDINGS), _code(rng)
            edge = None if person["age"] is None else (person["age"] + visit) // 5 * 5
            written = "" if edge is None else "85 or more" if edge >= 85 else str(edge)
            below = f"{patient}/Study_{_code(rng)}"
            for view in ("PA", "L") if rng.random() < 0.6 else ("AP",):
                name = f"{below}/Series_{_code(rng)}/image-{_code(rng)}"
                rows.append(_row(
                    image_id=f"{name}.png", path=f"images/{name}.png", dicom_path=f"Anonymized_DICOMs/{name}.dcm",
                    patient_id=patient, study_id=study, sex=person["sex_written"].replace("O", ""), sex_written=person["sex_written"],
                    age=np.nan if edge is None else min(edge + 2, 85), age_written=written, view=view, manufacturer=machine,
                    study_date=f"{rng.integers(2008, 2018)}{rng.integers(1, 13):02d}{rng.integers(1, 29):02d}",
                    rows=picture[0], columns=picture[1], original_height=2544, original_width=3056, quirks=[quirk] * bool(quirk), **labels,
                ))  # fmt: skip
    for row, view in zip(_plain_first(rng, rows), ("", "RLO", "AP LLD")):
        row["view"] = view
        row["quirks"].append(view or "no view")
    pictures = _pictures(rng, folder, rows, faults)
    _write_table(folder / BRAX_TABLE, _BRAX, rows, gz)
    return _truth(folder, None, rows, pictures)


def _code(rng: np.random.Generator) -> str:
    return "-".join(f"{part:08x}" for part in rng.integers(0, 2**32, 4).tolist())
