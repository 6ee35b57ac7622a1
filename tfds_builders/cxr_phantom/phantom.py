"""Draws a population of chest-like phantoms whose truth is known: who they are, what they have, and what a picture can
tell of it.

Two steps. `sample_population` draws every variable of every image (who, which findings, the latent, the shapes, the
exposure) together with the exact posterior of the group. `draw_images` turns rows of it into pictures. NumPy alone does
both, and TensorFlow is not needed for either.

The four groups are invented, and so is what tells them apart: a faint oblique texture over the whole field, which is no
part of the drawn anatomy. The README beside this file states the model in formulas.

Everything is a function of the parameters. Each variable has a random stream of its own, laid out by patient, so that
 * the first patients of a population of 1,000 are those of a population of 100,
 * the variants of one seed hold the same patients, who differ only in what the variant changes, and
 * an image is the same whether it is drawn alone or among others.
"""

from __future__ import annotations

import dataclasses
import functools
import zlib
from collections.abc import Mapping, Sequence

import numpy as np

from cxr_jax.tables import UserError
from tfds_builders.release import CHEXPERT_FINDINGS

# CheXpert's findings in CheXpert's order (Irvin et al., 2019, https://arxiv.org/abs/1901.07031).
FINDINGS = CHEXPERT_FINDINGS
_INDEX = {name: i for i, name in enumerate(FINDINGS)}
# A picture with a support device and nothing else is still one of No Finding, as CheXpert has it.
PATHOLOGIES = tuple(name for name in FINDINGS if name not in ("No Finding", "Support Devices"))

GROUPS = ("Alder", "Birch", "Cedar", "Dogwood")  # invented; nothing about them stands for people
PRIOR = (0.40, 0.25, 0.20, 0.15)  # share of patients

VARIANTS = {
    "planted": "the latent drawn as a texture depends on the group",
    "null": "nothing drawn depends on the group",
    "confounded": "the group changes only the prevalence of findings",
    "acquisition": "the group changes only the view, and the view the exposure",
    "underdiagnosed": "as planted, and in one group a known share of images with findings is recorded as No Finding",
    "shortcut": "as planted, and the prevalence of one hard finding differs strongly by group",
}
LATENT_VARIANTS = ("planted", "underdiagnosed", "shortcut")  # those whose latent depends on the group

LATENT_MEANS = (-2.35, -0.85, 0.65, 2.35)  # of the latent by group, in units of its standard deviation within a group
LATENT_PATIENT_SHARE = 0.7  # of the latent's variance within a group, that lies between patients
UNDERDIAGNOSED_GROUP = "Dogwood"  # whom pictures tell best, so that a model of findings can learn to whom the record denies them
SHORTCUT_FINDING = "Lung Lesion"

# The findings other than No Finding, in the order in which they are drawn: a finding is a Bernoulli variable whose
# log-odds are intercept + slope * (age - 60) / 10 + the weights of those present among the findings drawn before it.
# Intercepts give about the prevalences reported for hospital releases; the README holds the table that results.
CHAIN = (
    ("Cardiomegaly", -1.43, 0.25, {}),
    ("Enlarged Cardiomediastinum", -3.57, 0.10, {"Cardiomegaly": 1.2}),
    ("Edema", -2.30, 0.15, {"Cardiomegaly": 1.3}),
    ("Pneumonia", -2.44, 0.05, {}),
    ("Consolidation", -3.15, 0.00, {"Pneumonia": 2.2}),
    ("Lung Lesion", -3.01, 0.25, {}),
    ("Pleural Effusion", -1.67, 0.15, {"Edema": 1.4, "Cardiomegaly": 0.5, "Consolidation": 0.8, "Lung Lesion": 0.6}),
    ("Atelectasis", -1.79, 0.10, {"Pleural Effusion": 1.3}),
    ("Pneumothorax", -2.84, -0.10, {"Pleural Effusion": 0.3}),
    ("Pleural Other", -3.70, 0.20, {"Pleural Effusion": 0.6}),
    ("Fracture", -3.35, 0.30, {"Pneumothorax": 0.9}),
    (
        "Lung Opacity",
        -1.96,
        0.00,
        {"Edema": 1.0, "Consolidation": 1.6, "Pneumonia": 1.6, "Atelectasis": 0.8, "Lung Lesion": 0.8},
    ),
    (
        "Support Devices",
        -1.27,
        0.10,
        {"Edema": 1.0, "Pleural Effusion": 0.9, "Pneumothorax": 1.6, "Consolidation": 0.4},
    ),
)
# Added to a finding's log-odds, by group.
GROUP_LOG_ODDS: Mapping[str, Mapping[str, tuple[float, ...]]] = {
    "confounded": {
        "Cardiomegaly": (-0.5, 1.1, -0.4, -0.4),
        "Edema": (-0.4, 0.7, 0.0, 0.0),
        "Pneumonia": (-0.5, 0.0, 1.5, 0.0),
        "Lung Lesion": (-0.5, 0.0, 1.4, 0.0),
        "Pneumothorax": (-0.5, 0.0, 0.0, 1.5),
        "Fracture": (-0.4, 0.0, 0.0, 1.6),
        "Pleural Effusion": (-0.4, 0.3, 0.0, 0.7),
    },
    "shortcut": {SHORTCUT_FINDING: (-0.5, 0.8, 2.0, 3.2)},
}
# Log-odds of an AP view: the sick are imaged lying down.
VIEW_INTERCEPT, VIEW_AGE = -0.9, 0.15
VIEW_WEIGHTS = {"Support Devices": 1.2, "Edema": 0.8, "Pleural Effusion": 0.5}
GROUP_VIEW_LOG_ODDS = {"acquisition": (-1.5, -0.4, 0.8, 2.2)}

# Normal variables of a patient's anatomy, and of one image of it: name -> (mean, standard deviation). Lengths are in
# units of half the picture's side, y downward; what sex, age, view and findings add is in `_shapes`.
_PATIENT_SHAPES = {
    "thorax_half_width": (0.765, 0.028),
    "thorax_height": (0.985, 0.03),
    "heart_share": (0.455, 0.028),  # width of the heart over that of the thorax
    "heart_height": (0.335, 0.02),
    "mediastinum_half_width": (0.118, 0.012),
    "diaphragm_gap": (0.055, 0.025),  # how far the patient's right dome stands above the left
    "dome_height": (0.15, 0.02),
    "rib_spacing": (0.196, 0.008),
    "rib_slope": (0.21, 0.035),
    "clavicle_rise": (0.15, 0.035),
    "soft_tissue": (0.5, 0.16),  # density over the lower lungs, from none (0) to much (1)
    "bone_density": (1.0, 0.12),
    "vessel_density": (1.0, 0.15),
    "aortic_knob": (0.085, 0.012),
}
_IMAGE_SHAPES = {
    "inspiration": (0.0, 0.032),  # how far the diaphragm stands below its mean
    "shift_x": (0.0, 0.02),
    "shift_y": (0.0, 0.02),
    "tilt": (0.0, 0.016),  # radians
    "rib_phase": (0.0, 0.25),  # of a rib's spacing
    "exposure": (0.0, 0.10),  # added to the density before display
    "contrast": (1.0, 0.05),
    "noise": (3.0, 0.4),  # standard deviation of the grain, gray levels
}
SHAPES = (*_PATIENT_SHAPES, *_IMAGE_SHAPES)  # columns of an image's `shapes`
# Standard deviations are kept from adding up to a broken picture: a normal variable is cut at this many.
_CUT = 2.5

TEXTURE_AMPLITUDE = 7.0  # gray levels, of both orientations together, at signal 1
TEXTURE_CYCLES = (12.0, 14.0)  # cycles across the picture's side
TEXTURE_SCALE = 3.0  # of the latent: the balance of orientations is tanh(latent / scale)


@dataclasses.dataclass(frozen=True)
class Parameters:
    """What is drawn.

    variant: a key of VARIANTS.
    patients: how many, each with 1 to 4 images.
    seed: of everything; a non-negative integer below 2**32.
    signal: strength of the texture, as a multiple of TEXTURE_AMPLITUDE; 0 draws none, and the ceiling then leaves the
        latent out, since no picture shows it.
    effect: multiplies the log-odds by which groups differ (confounded, acquisition, shortcut); 0 makes them alike.
    underdiagnosed_share: probability that an image with a pathology, of the underdiagnosed group, is recorded as
        No Finding; only in that variant.

    Raises UserError where a value is out of range.
    """

    variant: str = "planted"
    patients: int = 1000
    seed: int = 0
    signal: float = 1.0
    effect: float = 1.0
    underdiagnosed_share: float = 0.4

    def __post_init__(self):
        if self.variant not in VARIANTS:
            raise UserError(f"phantom: no variant {self.variant!r}; the variants are {', '.join(VARIANTS)}")
        for name, low, high in (
            ("patients", 1, 10**7),
            ("seed", 0, 2**32 - 1),
            ("signal", 0, 10),
            ("effect", 0, 10),
            ("underdiagnosed_share", 0, 1),
        ):
            value = getattr(self, name)
            whole = name in ("patients", "seed")
            number = (int, np.integer) if whole else (int, float, np.integer, np.floating)
            if isinstance(value, bool) or not isinstance(value, number):
                raise UserError(f"phantom: {name} is {value!r}; {'a whole' if whole else 'a'} number is expected")
            if not low <= value <= high:
                raise UserError(f"phantom: {name} is {value!r}; a value from {low} to {high} is expected")

    def latent_means(self) -> np.ndarray:
        """float64 [groups]: mean of the latent."""
        return np.array(LATENT_MEANS if self.variant in LATENT_VARIANTS else [0.0] * len(GROUPS))

    def finding_log_odds(self, finding: str) -> np.ndarray:
        """float64 [groups]: what a group adds to the finding's log-odds."""
        offsets = GROUP_LOG_ODDS.get(self.variant, {}).get(finding, (0.0,) * len(GROUPS))
        return self.effect * np.array(offsets)

    def view_log_odds(self) -> np.ndarray:
        """float64 [groups]: what a group adds to the log-odds of an AP view."""
        return self.effect * np.array(GROUP_VIEW_LOG_ODDS.get(self.variant, (0.0,) * len(GROUPS)))


@dataclasses.dataclass(frozen=True)
class Population:
    """Every variable of every image, in the order of patients; n images, F findings, K groups, S shapes.

    columns:
        image_id, patient_id, study_id   str [n]
        image_index                      int64 [n]: 4 * patient + image; with the seed, the key of the picture's grain
        group                            int64 [n], index into GROUPS
        sex, view                        str [n]: F, M; PA, AP
        age                              float32 [n], whole years; one a patient, whose images are of one year
        true_findings, findings          float32 [n, F], 1 or 0: what is there, and what is recorded
        relabelled                       int64 [n]: 1 where findings were recorded as No Finding
        severity, side, place            float32 [n, F], [n, F], [n, F, 2]: of each true finding, within 0 to 1, -1 (the
                                         picture's left) or 1, and 0 to 1; where it is absent, 0 and the rest NaN
        latent                           float32 [n]
        posterior                        float32 [n, K]: P(group | all that shapes the picture)
        shapes                           float32 [n, S]: the columns of SHAPES
        texture                          float32 [n, 3]: cycles across the side, and two phases in radians
    """

    parameters: Parameters
    columns: Mapping[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.columns["image_id"])

    def __getitem__(self, name: str) -> np.ndarray:
        return self.columns[name]


# The population ------------------------------------------------------------------------------------------------------


def _stream(seed: int, name: str) -> np.random.Generator:
    # A stream a variable, named and not numbered, so that a new variable leaves the others as they were.
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, zlib.crc32(name.encode())])))


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * x))


def _log_bernoulli(value: np.ndarray, log_odds: np.ndarray) -> np.ndarray:
    """log P(value), for value 0 or 1: -log(1 + exp(-+log_odds))."""
    return -np.logaddexp(0, np.where(value > 0.5, -log_odds, log_odds))


def finding_log_odds(findings: np.ndarray, age: np.ndarray, finding: str) -> np.ndarray:
    """Log-odds of one finding before any group effect, given those drawn before it.

    findings: [..., F] of 0 and 1; age: years, broadcasts with findings[..., 0]. Returns float64 [...].
    """
    intercept, slope, weights = next((i, s, w) for name, i, s, w in CHAIN if name == finding)
    log_odds = intercept + slope * (np.asarray(age, np.float64) - 60) / 10
    return log_odds + sum(weight * findings[..., _INDEX[name]] for name, weight in weights.items())


def view_log_odds(findings: np.ndarray, age: np.ndarray) -> np.ndarray:
    """Log-odds of an AP view before any group effect; shapes as in `finding_log_odds`."""
    log_odds = VIEW_INTERCEPT + VIEW_AGE * (np.asarray(age, np.float64) - 60) / 10
    return log_odds + sum(weight * findings[..., _INDEX[name]] for name, weight in VIEW_WEIGHTS.items())


def posterior(
    parameters: Parameters, findings: np.ndarray, age: np.ndarray, view: np.ndarray, latent: np.ndarray
) -> np.ndarray:
    """P(group | all that shapes the picture): float64 [n, K], by Bayes' rule from the model that draws.

    findings: true ones, [n, F]; age: years [n]; view: str [n]; latent: [n].

    Only factors that differ between groups are multiplied in: the others cancel, and leaving them out keeps images that
    cannot be told apart exactly tied (in `null` every row is the prior to the last bit, and the AUC is .5).
    """
    findings = np.asarray(findings, np.float64)
    log_posterior = np.tile(np.log(PRIOR), (len(findings), 1))
    means = parameters.latent_means()
    if parameters.signal > 0 and np.ptp(means) > 0:
        log_posterior -= 0.5 * (np.asarray(latent, np.float64)[:, None] - means) ** 2
    for name, *_ in CHAIN:
        offsets = parameters.finding_log_odds(name)
        if np.ptp(offsets) > 0:
            log_odds = finding_log_odds(findings, age, name)[:, None] + offsets
            log_posterior += _log_bernoulli(findings[:, [_INDEX[name]]], log_odds)
    offsets = parameters.view_log_odds()
    if np.ptp(offsets) > 0:
        log_odds = view_log_odds(findings, age)[:, None] + offsets
        log_posterior += _log_bernoulli((np.asarray(view) == "AP")[:, None], log_odds)
    weights = np.exp(log_posterior - log_posterior.max(1, keepdims=True))
    return weights / weights.sum(1, keepdims=True)


def sample_population(parameters: Parameters) -> Population:
    """Draws all variables of all images of all patients."""
    n, slots = parameters.patients, 4
    stream = functools.partial(_stream, parameters.seed)

    group = np.searchsorted(np.cumsum(PRIOR)[:-1], stream("group").random(n), side="right")
    sex = np.where(stream("sex").random(n) < 0.5, "F", "M")
    age = np.clip(np.rint(60 + 16 * stream("age").standard_normal(n)), 18, 95)
    images = 1 + np.searchsorted(np.cumsum((0.35, 0.25, 0.20)), stream("images").random(n), side="right")

    # Findings persist: an image of the same study has the findings of the one before, a later study has them with
    # probability 1/2 or draws them anew. Either way a single image's findings follow the chain exactly, which is what
    # makes the posterior of one image closed.
    same_study = stream("same_study").random((n, slots)) < 0.3
    persists = same_study | (stream("persists").random((n, slots)) < 0.5)
    same_study[:, 0] = persists[:, 0] = False
    uniforms = stream("findings").random((n, slots, len(CHAIN)))
    findings = np.zeros((n, slots, len(FINDINGS)))
    for j, (name, *_) in enumerate(CHAIN):
        log_odds = finding_log_odds(findings, age[:, None], name)
        log_odds = log_odds + parameters.finding_log_odds(name)[group][:, None]
        findings[..., _INDEX[name]] = uniforms[..., j] < _sigmoid(log_odds)
    for j in range(1, slots):
        findings[:, j] = np.where(persists[:, j, None], findings[:, j - 1], findings[:, j])
    pathological = findings[..., [_INDEX[name] for name in PATHOLOGIES]].any(-1)
    findings[..., _INDEX["No Finding"]] = ~pathological

    log_odds = view_log_odds(findings, age[:, None]) + parameters.view_log_odds()[group][:, None]
    view = np.where(stream("view").random((n, slots)) < _sigmoid(log_odds), "AP", "PA")

    relabelled = np.zeros((n, slots), bool)
    if parameters.variant == "underdiagnosed":
        missed = stream("underdiagnosed").random((n, slots)) < parameters.underdiagnosed_share
        relabelled = missed & pathological & (group == GROUPS.index(UNDERDIAGNOSED_GROUP))[:, None]
    recorded = findings.copy()
    recorded[..., [_INDEX[name] for name in PATHOLOGIES]] *= ~relabelled[..., None]
    recorded[..., _INDEX["No Finding"]] = np.where(relabelled, 1, findings[..., _INDEX["No Finding"]])

    patient_part = stream("latent_patient").standard_normal(n)
    image_part = stream("latent_image").standard_normal((n, slots))
    latent = (
        parameters.latent_means()[group][:, None]
        + np.sqrt(LATENT_PATIENT_SHARE) * patient_part[:, None]
        + np.sqrt(1 - LATENT_PATIENT_SHARE) * image_part
    ).astype(np.float32)

    # A patient's lesion stays where it is; how marked it is changes from image to image.
    severity = stream("severity").random((n, slots, len(FINDINGS)))
    side = np.where(stream("side").random((n, 1, len(FINDINGS))) < 0.5, -1.0, 1.0)
    place = stream("place").random((n, 1, len(FINDINGS), 2))
    present = findings > 0
    severity = np.where(present, severity, 0)
    side = np.where(present, side, np.nan)
    place = np.where(present[..., None], place, np.nan)

    texture = np.empty((n, slots, 3))
    draws = stream("texture").random((n, slots, 3))
    texture[..., 0] = TEXTURE_CYCLES[0] + (TEXTURE_CYCLES[1] - TEXTURE_CYCLES[0]) * draws[..., 0]
    texture[..., 1:] = 2 * np.pi * draws[..., 1:]

    shapes = _shapes(stream, sex, age, view, findings, severity)

    kept = np.arange(slots) < images[:, None]
    patient, image = np.nonzero(kept)
    study = np.cumsum(~same_study, axis=1)[kept]
    patient_id = np.array([f"P{p:05d}" for p in range(n)])[patient]  # the same in a population of any size
    columns = {
        "image_id": np.array([f"{p}_I{i + 1}" for p, i in zip(patient_id, image)]),
        "patient_id": patient_id,
        "study_id": np.array([f"{p}_S{s}" for p, s in zip(patient_id, study)]),
        "image_index": slots * patient + image,
        "group": group[patient],
        "sex": sex[patient],
        "age": age[patient].astype(np.float32),
        "view": view[kept],
        "true_findings": findings[kept].astype(np.float32),
        "findings": recorded[kept].astype(np.float32),
        "relabelled": relabelled[kept].astype(np.int64),
        "severity": severity[kept].astype(np.float32),
        "side": side[kept].astype(np.float32),
        "place": place[kept].astype(np.float32),
        "latent": latent[kept],
        "shapes": shapes[kept].astype(np.float32),
        "texture": texture[kept].astype(np.float32),
    }
    columns["posterior"] = posterior(
        parameters, columns["true_findings"], columns["age"], columns["view"], columns["latent"]
    ).astype(np.float32)
    return Population(parameters, columns)


def _shapes(stream, sex, age, view, findings, severity) -> np.ndarray:
    """float64 [patients, images, S]: normal variables, moved by sex, age, view and findings, and never by the group."""
    n, slots = view.shape
    values = {}
    for name, (mean, spread) in _PATIENT_SHAPES.items():
        draw = np.clip(stream(name).standard_normal(n), -_CUT, _CUT)
        values[name] = np.repeat((mean + spread * draw)[:, None], slots, axis=1)
    for name, (mean, spread) in _IMAGE_SHAPES.items():
        values[name] = mean + spread * np.clip(stream(name).standard_normal((n, slots)), -_CUT, _CUT)

    male, portable, decades = (sex == "M")[:, None], view == "AP", (age[:, None] - 60) / 10
    values["thorax_half_width"] += np.where(male, 0.022, -0.022)
    values["soft_tissue"] += np.where(male, -0.28, 0.22)
    values["bone_density"] += np.where(male, 0.05, -0.05) - 0.03 * decades
    values["aortic_knob"] += 0.006 * decades
    values["heart_share"] += 0.006 * decades
    # Lying down: the heart is magnified, the breath shallower, the film lighter and flatter.
    values["heart_share"] += np.where(portable, 0.03, 0)
    values["inspiration"] -= np.where(portable, 0.05, 0)
    values["exposure"] += np.where(portable, 0.13, -0.05)
    values["contrast"] *= np.where(portable, 0.90, 1.04)

    def marked(name, least):  # 0 where absent, else from `least` to 1
        i = _INDEX[name]
        return findings[..., i] * (least + (1 - least) * severity[..., i])

    values["heart_share"] += 0.16 * marked("Cardiomegaly", 0.5)
    values["heart_height"] += 0.05 * marked("Cardiomegaly", 0.5)
    values["mediastinum_half_width"] += 0.09 * marked("Enlarged Cardiomediastinum", 0.4)
    values["vessel_density"] += 0.9 * marked("Edema", 0.4)
    return np.stack([values[name] for name in SHAPES], axis=-1)


# The pictures --------------------------------------------------------------------------------------------------------
#
# A picture is a map of density (soft tissue about .6, lung about .2, bone more), shown through a smooth tone curve,
# with grain and the texture added in gray levels. x and y run from -1 to 1, to the right of the picture and downward;
# the patient's right is the picture's left, and u = x - (the midline at y).
#
# What is soft is drawn at half the size and enlarged; only what is sharp (collarbones, devices, thin lines, grain and
# texture) pays for every pixel.


def draw_images(population: Population, indices: Sequence[int] | np.ndarray, size: int = 256) -> np.ndarray:
    """Draws rows of the population: uint8 [len(indices), size, size, 1].

    An image depends on its own row and on (seed, image_index) alone. At another `size`, which must be even, the same
    anatomy is drawn with another grain.
    """
    indices = np.asarray(indices, np.int64).reshape(-1)
    if size < 32 or size % 2:
        raise ValueError(f"size must be even and at least 32, not {size}")
    pictures = np.empty((len(indices), size, size, 1), np.uint8)
    for row, index in enumerate(indices):
        pictures[row, ..., 0] = _draw(population, int(index), size)
    return pictures


def _step(distance: np.ndarray, softness: float) -> np.ndarray:
    """0 below -softness, 1 above softness, smooth between: for edges, and cheaper than a logistic curve."""
    t = distance * np.float32(0.5 / softness)
    t += np.float32(0.5)
    np.maximum(t, 0, out=t)
    np.minimum(t, 1, out=t)
    curve = t * np.float32(-2)
    curve += np.float32(3)
    curve *= t
    curve *= t
    return curve


def _bell(x: np.ndarray, centre: float, width: float) -> np.ndarray:
    """exp(-((x - centre) / width)^2), for one axis; the outer product of two is a spot."""
    return np.exp(-(((x - np.float32(centre)) / np.float32(width)) ** 2))


@functools.lru_cache(maxsize=8)
def _grid(size: int) -> np.ndarray:
    return ((np.arange(size, dtype=np.float32) + np.float32(0.5)) * np.float32(2 / size) - 1).astype(np.float32)


@functools.lru_cache(maxsize=32)
def _interpolation(coarse: int, size: int) -> np.ndarray:
    """float32 [size, coarse]: rows that blend the nearest two of `coarse` equally spaced values, level at each."""
    at = (np.arange(size) + 0.5) / size * (coarse - 1)
    left = np.minimum(at.astype(int), coarse - 2)
    t = at - left
    t = t * t * (3 - 2 * t)
    weights = np.zeros((size, coarse), np.float32)
    weights[np.arange(size), left] = 1 - t
    weights[np.arange(size), left + 1] = t
    return weights


def _smooth_noise(rng: np.random.Generator, coarse: int, size: int) -> np.ndarray:
    """float32 [size, size]: standard normal at coarse x coarse points, blended between them."""
    weights = _interpolation(coarse, size)
    values = weights @ rng.standard_normal((coarse, coarse), np.float32)
    # In bands of rows, each too small a product for a BLAS to wake its threads, which would cost more than they save.
    band = max(1, 2**17 // (coarse * size))
    noise = np.empty((size, size), np.float32)
    for start in range(0, size, band):
        np.matmul(values[start : start + band], weights.T, out=noise[start : start + band])
    return noise


def _doubled(coarse: np.ndarray) -> np.ndarray:
    """Enlarges [n, n] to [2n, 2n]: a new value is 3/4 of the nearest old one and 1/4 of the next, along each axis."""
    n = len(coarse)
    near, far = np.float32(0.75) * coarse, np.float32(0.25) * coarse
    tall = np.empty((2 * n, n), np.float32)
    tall[0], tall[-1] = coarse[0], coarse[-1]
    np.add(near[1:], far[:-1], out=tall[2::2])
    np.add(near[:-1], far[1:], out=tall[1:-1:2])
    near, far = np.float32(0.75) * tall, np.float32(0.25) * tall
    fine = np.empty((2 * n, 2 * n), np.float32)
    fine[:, 0], fine[:, -1] = tall[:, 0], tall[:, -1]
    np.add(near[:, 1:], far[:, :-1], out=fine[:, 2::2])
    np.add(near[:, :-1], far[:, 1:], out=fine[:, 1:-1:2])
    return fine


@functools.lru_cache(maxsize=4)
def _polar(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Direction (in 512ths of a turn) and distance about the middle of a field of twice the picture's side."""
    far = ((np.arange(2 * size) + 0.5 - size) * (2 / size)).astype(np.float32)
    angle = np.arctan2(far[:, None], far[None, :]) * np.float32(256 / np.pi)
    return angle, np.hypot(far[:, None], far[None, :])


class _Frame:
    """Where things are in one picture, at one resolution; float32 [size, size] unless said otherwise.

    p: the image's shapes, by name. lift: how far each dome of the diaphragm is raised, on the picture's left and right.
    """

    def __init__(self, p: Mapping[str, float], lift: tuple[float, float], size: int):
        self.p, self.size = p, size
        axis = _grid(size)
        self.y = (axis - np.float32(p["shift_y"]))[:, None]  # [size, 1]
        self.x = (axis - np.float32(p["shift_x"]))[None, :]  # [1, size]
        self.half = p["thorax_half_width"]
        widest, apex = 0.22, 0.35
        rise = np.clip((widest - self.y) / np.float32(p["thorax_height"]), 0, 1)
        swell = np.sqrt(1 - rise ** np.float32(2.4))
        middle = p["mediastinum_half_width"] + 0.05 * _step(self.y - 0.05, 0.3)
        # Half widths of the rib cage and of what lies between the lungs, which meet at the apex of a lung: [size, 1].
        self.outer = apex + (self.half - apex) * swell
        self.inner = apex - (apex - middle) * swell ** np.float32(0.65)
        self.open = _step(swell - 0.2, 0.2)  # [size, 1]: 0 above the apex
        self.hilum = p["mediastinum_half_width"] + 0.025  # distance of the hila from the midline
        base = 0.50 + p["inspiration"]
        self.domes = (base - 0.5 * p["diaphragm_gap"] - lift[0], base + 0.5 * p["diaphragm_gap"] - lift[1])
        level = self.domes[0] + (self.domes[1] - self.domes[0]) * _step(self.x, 0.15)
        self.dome = level + p["dome_height"] * ((np.abs(self.x) - 0.36) / 0.36) ** 2  # [1, size]

    @functools.cached_property
    def u(self):
        return self.x - np.float32(self.p["tilt"]) * self.y

    @functools.cached_property
    def across(self):
        return np.abs(self.u)

    @functools.cached_property
    def wall(self):
        """Distance within the rib cage."""
        return self.outer - self.across

    @functools.cached_property
    def above(self):
        """Distance above the diaphragm."""
        return (self.dome - np.float32(self.p["tilt"]) * self.x) - self.y

    @functools.cached_property
    def lung(self):
        """1 within the lungs."""
        lung = _step(self.wall, 0.05) * _step(self.across - self.inner, 0.05)
        lung *= _step(self.above, 0.045)
        lung *= self.open
        return lung

    @functools.cached_property
    def heart(self):
        """1 within the heart: an ellipse that leans to the picture's right."""
        half = self.p["heart_share"] * self.half
        run = (self.u - np.float32(0.34 * half + 0.025)) * np.float32(1 / half)
        rise = (self.y - np.float32(self.domes[1] - 0.24)) * np.float32(1 / self.p["heart_height"])
        away = run * (run - np.float32(0.62) * rise)
        away += rise * rise
        return _step(1 - away, 0.20)

    @functools.cached_property
    def airy(self):
        """1 within the lungs where they are not behind the heart."""
        return self.lung * (1 - np.float32(0.8) * self.heart)

    def spot(self, side: float, place: Sequence[float], width: float, height: float) -> np.ndarray:
        """A soft spot in one lung, at `place` (0 to 1: from the middle to the wall, from the apex to the base)."""
        return _bell(self.y, -0.52 + 0.90 * place[1], height) * _bell(self.x, side * (0.27 + 0.30 * place[0]), width)


def _draw(population: Population, index: int, size: int) -> np.ndarray:
    c = population.columns
    p = dict(zip(SHAPES, c["shapes"][index].tolist()))
    key = population.parameters.seed, int(c["image_index"][index])
    # A stream for the anatomy, the findings and the film each: what a finding spends leaves the grain as it was.
    anatomy, local, film = (np.random.Generator(np.random.SFC64(np.random.SeedSequence([*key, i]))) for i in range(3))
    found = {}  # name -> severity, side, place
    for i in np.flatnonzero(c["true_findings"][index]):
        found[FINDINGS[i]] = float(c["severity"][index, i]), float(c["side"][index, i]), c["place"][index, i].tolist()
    lift = [0.0, 0.0]
    if "Atelectasis" in found:
        severity, side, _ = found["Atelectasis"]
        lift[int(side > 0)] = 0.07 * severity

    soft = _Frame(p, tuple(lift), size // 2)
    density = _soft_parts(soft, anatomy)
    for name in found:  # in the order of FINDINGS, so that the stream is spent in one order
        if name in _SOFT_FINDINGS:
            _SOFT_FINDINGS[name](density, soft, *found[name], local)

    density = _doubled(density)
    sharp = _Frame(p, tuple(lift), size)
    _collarbones(density, sharp)
    for name in found:
        if name in _SHARP_FINDINGS:
            _SHARP_FINDINGS[name](density, sharp, *found[name])

    # Display: a tone curve that never clips, so that the texture survives at either end.
    density += np.float32(p["exposure"] - 0.54)
    density *= np.float32(2.5 * p["contrast"])
    np.tanh(density, out=density)
    density *= np.float32(112)
    density += np.float32(128)

    density += _grain(film, size, p["noise"])
    signal = population.parameters.signal
    if signal > 0:
        density += _texture(film, size, TEXTURE_AMPLITUDE * signal, c["latent"][index], c["texture"][index])
    np.rint(density, out=density)
    np.maximum(density, 0, out=density)
    np.minimum(density, 255, out=density)
    return density


def _soft_parts(at: _Frame, rng: np.random.Generator) -> np.ndarray:
    """Density of everything without a sharp edge: body, lungs and vessels, heart and what lies between, ribs."""
    p = at.p
    # Body: a neck that widens to shoulders, then the flanks.
    flank = at.half + 0.13 + 0.12 * p["soft_tissue"]
    edge = 0.38 + 0.93 * _step(at.y + 0.82, 0.20) - (1.31 - flank) * _step(at.y + 0.25, 0.35)
    body = edge - at.across
    density = _step(body, 0.10)
    density *= 0.20 + 0.42 * _step(body, 0.30)

    # Lungs, but for where the heart lies before them; their rim is behind more of the chest's wall.
    air = 0.25 + 0.17 * _step(at.wall, 0.26)
    air *= at.lung
    air *= 1 - np.float32(0.86) * at.heart
    density -= air
    density += 0.09 * _step(-at.above, 0.10) * _step(at.wall, 0.035)

    # Middle: spine, windpipe, heart, aortic knob, hila.
    spine = 0.10 + 0.025 * np.cos(at.y * np.float32(2 * np.pi / 0.155))
    density += spine * _bell(at.x, 0, 0.11)
    density -= (0.13 * _step(-0.30 - at.y, 0.12)) * _bell(at.x, 0.008, 0.04)
    density += 0.05 * at.heart
    knob = p["aortic_knob"]
    density += (0.19 * _bell(at.y, -0.32, 1.1 * knob)) * _bell(at.x, p["mediastinum_half_width"] + 0.01, knob)
    for side in (-1, 1):
        spot = _bell(at.x, side * (at.hilum + 0.035), 0.07)
        density += (0.14 * p["vessel_density"] * _bell(at.y, -0.02 - 0.03 * side, 0.12)) * spot
    # Vessels, and the fine mottle of those too small to tell apart.
    vessels = _vessels(at, rng)
    vessels += np.float32(0.014) * _smooth_noise(rng, 33, at.size)
    vessels *= at.airy
    density += vessels

    # Ribs: the posterior ones run out and down from the spine, the anterior ones in and down from the wall, fainter.
    t = np.abs(at.x) * np.float32(1 / at.half)
    behind = p["rib_slope"] * (1.35 * t**2.2 - 0.45 * t) + p["tilt"] * at.x
    front = 0.42 * (1 - t) - p["tilt"] * at.x
    turns, phase = 2 * np.pi / p["rib_spacing"], 2 * np.pi * p["rib_phase"]
    wave = np.cos((at.y * turns - phase).astype(np.float32) - (behind * turns).astype(np.float32))
    ribs = _step(wave - np.float32(0.28), 0.42)
    ribs *= 0.075 * _step(0.62 - at.y, 0.2)
    ribs *= _step(t - 0.13, 0.1)
    wave = np.cos((at.y * 0.86 * turns - phase - 1).astype(np.float32) - (front * 0.86 * turns).astype(np.float32))
    forward = _step(wave - np.float32(0.35), 0.45)
    forward *= 0.045 * _step(0.42 - at.y, 0.2) * _step(at.y + 0.5, 0.2)
    forward *= _step(t - 0.45, 0.22)
    ribs += forward
    ribs *= _step(at.wall, 0.03)
    ribs *= np.float32(p["bone_density"])
    density += ribs

    # Soft tissue over the lower lungs.
    fold = _step(0.42 + 0.10 * p["soft_tissue"] - at.y, 0.10) * _step(at.y + 0.15, 0.5)
    density += (0.16 * p["soft_tissue"] * fold) * (_bell(at.x, -0.45, 0.30) + _bell(at.x, 0.45, 0.30))
    return density


def _vessels(at: _Frame, rng: np.random.Generator) -> np.ndarray:
    """Vessels run out from each hilum, winding, and thin on the way."""
    size, middle = at.size, at.size // 2
    angle, distance = _polar(size)
    row = round((1 - 0.02 + at.p["shift_y"]) * size / 2)
    bend = _smooth_noise(rng, 9, size)
    bend *= np.float32(22)
    vessels = np.empty((size, size), np.float32)
    # Density by direction: a few narrow peaks for vessels on nothing; then by distance: none at the hilum itself, where
    # all would run together.
    peaks = 15
    at_peak = (np.arange(peaks) + rng.random((2, peaks))) * (512 / peaks)
    widths = 2.6 + 3.4 * rng.random((2, peaks))
    heights = 0.35 + 0.65 * rng.random((2, peaks))
    at_peak, widths, heights = (draws.astype(np.float32)[..., None] for draws in (at_peak, widths, heights))
    away = np.abs(np.arange(512, dtype=np.float32) - at_peak)  # [side, peak, direction]
    away = np.minimum(away, 512 - away) / widths
    spokes = (heights * np.exp(-away * away)).sum(1)
    reach = np.arange(1024, dtype=np.float32) / 256  # distance in 256ths
    fading = 0.17 * np.float32(at.p["vessel_density"]) * _step(0.60 - reach, 0.62) * _step(reach - 0.12, 0.09)
    for i, side in enumerate((-1, 1)):
        columns = slice(0, middle) if side < 0 else slice(middle, size)
        column = round((1 + at.p["shift_x"] + side * at.hilum) * size / 2)
        window = slice(size - row, 2 * size - row), slice(size - column + columns.start, size - column + columns.stop)
        far = distance[window]
        turned = bend[:, columns] * far
        turned += angle[window]
        part = spokes[i].take(turned.astype(np.intp) & 511)
        part *= fading.take((far * np.float32(256)).astype(np.intp))
        vessels[:, columns] = part
    return vessels


def _collarbones(density: np.ndarray, at: _Frame) -> None:
    rows = slice(0, int(0.40 * at.size))
    t = np.abs(at.x)
    along = np.clip((t - 0.06) / 0.80, 0, 1) ** 0.8
    bar = -0.45 - (0.06 + at.p["clavicle_rise"]) * np.sin(along * np.float32(np.pi / 2))
    away = np.abs((at.y[rows] + np.float32(at.p["tilt"]) * at.x) - bar)
    bone = _step(0.036 - away, 0.016)
    bone *= 1 - np.float32(0.3) * _step(0.014 - away, 0.014)  # a rim denser than the core
    bone *= (0.12 * at.p["bone_density"]) * (_step(t - 0.09, 0.03) * _step(0.84 - t, 0.08))
    density[rows] += bone


@functools.lru_cache(maxsize=1)
def _normal_quantiles() -> np.ndarray:
    """float32 [256]: about standard normal under a uniform byte (the logistic quantiles, scaled to variance 1)."""
    share = (np.arange(256) + 0.5) / 256
    quantiles = np.log(share / (1 - share))
    return (quantiles / quantiles.std()).astype(np.float32)


def _grain(rng: np.random.Generator, size: int, deviation: float) -> np.ndarray:
    return (np.float32(deviation) * _normal_quantiles()).take(np.frombuffer(rng.bytes(size * size), np.uint8)).reshape(
        size, size
    )


def _texture(rng, size: int, amplitude: float, latent: float, texture: np.ndarray) -> np.ndarray:
    """Two oblique gratings, at right angles, whose phases wander: their balance is tanh(latent / TEXTURE_SCALE)."""
    cycles, *phases = texture.tolist()
    balance = float(np.tanh(float(latent) / TEXTURE_SCALE))
    turn = _grid(size) * np.float32(np.pi * cycles / np.sqrt(2))
    drawn = np.zeros((size, size), np.float32)
    for sign, phase in zip((1, -1), phases):
        grating = _smooth_noise(rng, 8, size)
        grating *= np.float32(1.3)
        grating += (turn + np.float32(phase))[:, None]
        grating += np.float32(sign) * turn
        np.cos(grating, out=grating)
        grating *= np.float32(amplitude * (1 + sign * balance) / 2)
        drawn += grating
    return drawn


# Findings ------------------------------------------------------------------------------------------------------------
#
# Each changes the density in place. Cardiomegaly and Enlarged Cardiomediastinum are shapes of their own (`_shapes`).


def _edema(density, at, severity, side, place, rng):
    haze = _bell(at.y, 0.05, 0.42) * (_bell(at.x, -0.30, 0.22) + _bell(at.x, 0.30, 0.22))
    density += (0.10 + 0.12 * severity) * haze * at.airy * (1 + 0.25 * _smooth_noise(rng, 25, at.size))


def _consolidation(density, at, severity, side, place, rng):
    spot = at.spot(side, place, 0.19, 0.17)
    patch = _step(spot * (1 + 0.30 * _smooth_noise(rng, 13, at.size)) - 0.45, 0.30)
    density += (0.18 + 0.12 * severity) * patch * at.airy


def _pneumonia(density, at, severity, side, place, rng):
    patches = np.maximum(0.5 + 0.8 * _smooth_noise(rng, 21, at.size), 0)
    density += (0.12 + 0.10 * severity) * at.spot(side, place, 0.23, 0.22) * patches * at.airy


def _lung_opacity(density, at, severity, side, place, rng):
    density += (0.09 + 0.10 * severity) * at.spot(side, place, 0.25, 0.28) * at.airy


def _atelectasis(density, at, severity, side, place, rng):
    # A plate of airless lung a little above the dome, which is raised (`_draw`).
    y = at.domes[int(side > 0)] - 0.10 - 0.12 * place[1]
    slope = 0.35 * (place[0] - 0.5) * (np.abs(at.x) - 0.4)
    plate = _bell(at.y - slope, y, 0.018 + 0.012 * severity) * _bell(at.x, side * 0.42, 0.17)
    density += (0.10 + 0.12 * severity) * plate * at.airy


def _pleural_effusion(density, at, severity, side, place, rng):
    # Fluid collects in the angle between wall and diaphragm, and its surface climbs toward the wall.
    surface = at.domes[int(side > 0)] + 0.08 - 0.42 * severity
    surface = surface - 0.22 * np.minimum(at.across * np.float32(1 / at.half), 1) ** 5
    density += 0.33 * _step(at.y - surface, 0.07) * at.airy * _step(side * at.x, 0.02)


def _pleural_other(density, at, severity, side, place, rng):
    # Hard: thickening along the wall, over a part of its height.
    rim = _step(0.03 + 0.03 * severity - at.wall, 0.02)
    stretch = _bell(at.y, -0.35 + 0.6 * place[1], 0.22) * _step(side * at.x, 0.02)
    density += (0.09 + 0.08 * severity) * rim * stretch * at.airy


def _lung_lesion(density, at, severity, side, place):
    # Hard: a nodule no wider than a rib, and not much denser.
    radius = 0.030 + 0.028 * severity
    x, y = side * (0.29 + 0.32 * place[0]), -0.48 + 0.85 * place[1]
    nodule = _step(1 - ((at.x - x) ** 2 + (at.y - y) ** 2) * np.float32(1 / radius**2), 0.7)
    density += (0.10 + 0.06 * severity) * nodule * at.airy


def _pneumothorax(density, at, severity, side, place):
    # Hard: a thin line along the upper wall, and beyond it a little less density.
    depth = (0.05 + 0.09 * severity) * _step(0.15 - at.y, 0.45)
    here = at.airy * (_step(side * at.x, 0.02) * _step(0.25 - at.y, 0.2))
    beyond = depth - at.wall
    density += here * (0.06 * _bell(beyond, -0.01, 0.011) - (0.03 + 0.03 * severity) * _step(beyond, 0.012))


def _fracture(density, at, severity, side, place):
    # Hard: a short dark cleft across a rib near the wall, with a little callus about it.
    y = -0.30 + 0.65 * place[1]
    row = int(np.clip((y + 1) / 2 * at.size, 0, at.size - 1))
    x = side * (float(at.outer[row, 0]) - 0.06 - 0.10 * place[0])
    callus = _bell(at.y, y, 0.055) * _bell(at.x, x, 0.05)
    cleft = _bell(at.x - 0.4 * (at.y - y), x, 0.010) * _bell(at.y, y, 0.045)
    density += (0.05 + 0.05 * severity) * callus - (0.12 + 0.08 * severity) * cleft


def _support_devices(density, at, severity, side, place):
    """A central line always; a breathing tube above a severity of .45; a pacemaker above .75."""
    dip = np.clip((at.y + 0.62) / 0.62, 0, 1)
    line = side * 0.34 * (1 - dip) ** 3 - 0.10 * dip - 0.02
    shown = _step(at.y + 0.66, 0.02) * _step(0.02 + 0.20 * place[1] - at.y, 0.02)
    density += 0.22 * _bell(at.x - line, 0, 0.010) * shown
    if severity > 0.45:
        tube = 0.008 + 0.02 * place[0] * (at.y + 1)
        edges = _bell(at.x - tube, -0.020, 0.008) + _bell(at.x - tube, 0.020, 0.008)
        density += 0.16 * edges * _step(-0.34 + 0.1 * place[0] - at.y, 0.01)
    if severity > 0.75:
        x, y = side * 0.60, -0.36 + 0.08 * place[1]
        case = ((at.x - x) / 0.10) ** 4 + ((at.y - y) / 0.08) ** 4
        density += 0.40 * _step(1 - case, 0.25) + 0.10 * _step(1 - 2.5 * case, 0.25)
        t = np.clip((at.y - y) / 0.75, 0, 1)
        lead = x * (1 - t) ** 2.5 + 0.24 * t - side * 0.10 * np.sin(np.float32(np.pi) * t)
        density += 0.30 * _bell(at.x - lead, 0, 0.011) * (_step(at.y - y, 0.01) * _step(y + 0.75 - at.y, 0.01))


_SOFT_FINDINGS = {
    "Lung Opacity": _lung_opacity,
    "Edema": _edema,
    "Consolidation": _consolidation,
    "Pneumonia": _pneumonia,
    "Atelectasis": _atelectasis,
    "Pleural Effusion": _pleural_effusion,
    "Pleural Other": _pleural_other,
}
_SHARP_FINDINGS = {
    "Lung Lesion": _lung_lesion,
    "Pneumothorax": _pneumothorax,
    "Fracture": _fracture,
    "Support Devices": _support_devices,
}
