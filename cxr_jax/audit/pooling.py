"""Shrunk estimates of many small groups: partial pooling over the intersections of attributes.

A figure of a small cell is mostly chance, and the worst of many such cells mostly the unluckiest. Here each is moved towards
what its attributes would have without any interaction, by as much as its own error is large against the spread that the
cells show beyond chance. On the logit scale, cell i, with standard error s_i,

    y_i = x_i'b + u_i + e_i      u_i ~ N(0, τ²), the same for all cells;  e_i ~ N(0, s_i²)

where x_i has a 1 and an indicator of each group but one of each attribute, or the 1 alone where cells are too few for that.
τ² is found by Paule and Mandel's moments (Journal of Research of the NBS 87:377-385, 1982; with covariates DerSimonian and
Kacker, Contemporary Clinical Trials 28:105-114, 2007), b by weighted least squares. The shrunk figure is
x_i'b + w_i (y_i - x_i'b) with w_i = τ²/(τ² + s_i²), and its variance w_i s_i² + (1 - w_i)² var(x_i'b). τ² is taken as known,
so that intervals are somewhat narrow where there are few cells; images of one patient in two cells, which an age band can
bring about, are taken for independent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import optimize, special, stats

from cxr_jax.audit.estimates import Estimate

METHOD = "partial pooling on the logit scale towards the attributes' main effects (Paule and Mandel)"


class Shrunk(NamedTuple):
    """value, low, high: NaN where undefined. reason: why, or how far it was moved."""

    value: float
    low: float
    high: float
    reason: str


def shrink(cells: Sequence[Estimate], groups: Sequence[Sequence[str]], level: float) -> list[Shrunk]:
    """Each cell's shrunk figure. cells: AUCs or shares. groups: of each cell, its group of each attribute.

    Undefined cells have no part in it; an AUC of 0 or 1, which has no error, stays undefined; a share of 0 or 1 is taken
    with half a patient added to either side (Haldane, Annals of Human Genetics 20:309-311, 1956).
    """
    found = [Shrunk(np.nan, np.nan, np.nan, one.reason or "no standard error") for one in cells]
    y, v = np.array([_on_logit_scale(one) for one in cells]).reshape(-1, 2).T
    used = np.flatnonzero(np.isfinite(y) & np.isfinite(v) & (v > 0))
    if len(used) < 3:
        return [one._replace(reason="not shrunk: fewer than 3 cells have a figure and its error") for one in found]
    y, v, names = y[used], v[used], [groups[i] for i in used]
    design = _main_effects(names)
    between = _between(y, v, design)
    b, covariance = _fit(y, v + between, design)
    expected, its_variance = design @ b, np.einsum("ij,jk,ik->i", design, covariance, design)
    weight = between / (between + v)
    centre = expected + weight * (y - expected)
    half = stats.norm.ppf(0.5 + level / 2) * np.sqrt(weight * v + (1 - weight) ** 2 * its_variance)
    for i, c, h, w in zip(used, centre, half, weight, strict=True):
        value, low, high = special.expit([c, c - h, c + h])
        found[i] = Shrunk(float(value), float(low), float(high), f"own weight {w:.2f} among {len(used)} cells")
    return found


def _on_logit_scale(one: Estimate) -> tuple[float, float]:
    """(logit, its variance); NaN where undefined, and where rounding hides what it is made of."""
    if not one.defined or one.decimals is not None:
        return np.nan, np.nan
    if one.value in (0, 1):
        if one.scale != "share":
            return np.nan, np.nan
        p, n = (one.value * one.patients + 0.5) / (one.patients + 1), one.patients + 1
        return float(special.logit(p)), 1 / (n * p * (1 - p))
    slope = one.value * (1 - one.value)
    return float(special.logit(one.value)), (one.standard_error / slope) ** 2


def _main_effects(groups: Sequence[Sequence[str]]) -> np.ndarray:
    """1 and indicators of all groups but the first of each attribute: float64 [cells, b], b at most half the cells."""
    columns = [np.ones(len(groups))]
    for names in zip(*groups, strict=True):
        columns += [np.array([name == other for name in names], float) for other in sorted(set(names))[1:]]
    design = np.stack(columns, axis=1)
    full = 2 * design.shape[1] <= len(groups) and np.linalg.matrix_rank(design) == design.shape[1]
    return design if full else design[:, :1]


def _fit(y: np.ndarray, v: np.ndarray, design: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    covariance = np.linalg.inv((design / v[:, None]).T @ design)
    return covariance @ (design.T @ (y / v)), covariance


def _between(y: np.ndarray, v: np.ndarray, design: np.ndarray) -> float:
    """τ²: where the weighted residuals are as large as chance has them; 0 where they are smaller with it at 0."""
    degrees = len(y) - design.shape[1]

    def excess(tau: float) -> float:
        b, _ = _fit(y, v + tau, design)
        return float((((y - design @ b) ** 2) / (v + tau)).sum()) - degrees

    if excess(0.0) <= 0:
        return 0.0
    above = float(np.var(y) + v.max())
    while excess(above) > 0:
        above *= 2
    return float(optimize.brentq(excess, 0.0, above))
