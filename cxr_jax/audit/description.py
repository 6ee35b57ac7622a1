"""What patients are like: shares of images and differences between groups, the patient being the unit of each."""

from __future__ import annotations

import numpy as np
from scipy import optimize, stats

from cxr_jax.audit.intervals import wilson


def by_patient(positive: np.ndarray, patient: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positive images and all images of each patient who has any: two int [k]. positive: bool [n]; patient: int [n]."""
    m = np.bincount(patient)
    y = np.bincount(patient, weights=positive).astype(np.int64)
    return y[m > 0], m[m > 0]


def share(y: np.ndarray, m: np.ndarray, level: float) -> tuple[float, float, float]:
    """Share of images over patients with y positive of m images each, int [k], k >= 1, and its interval at `level`.

    The share is a ratio estimate p = Σy/Σm. Its variance is that of ratio estimates for clusters drawn with replacement
    (Cochran, Sampling Techniques, 1977, section 6.3 and 9A), v = k/(k-1) Σ(y - p·m)²/(Σm)². The interval is Wilson's
    (1927) at the effective size p(1-p)/v, as Korn and Graubard (1998) and Dean and Pagano (2015) have it for surveys,
    never above the number of images; where v = 0, as it is where p is 0 or 1, at the number of patients. One patient
    alone has no variance, and so no interval: NaN.
    """
    k, images = len(m), int(m.sum())
    p = float(y.sum() / images)
    v = k / (k - 1) * ((y - p * m) ** 2).sum() / images**2 if k > 1 else np.nan
    n = k if v == 0 else np.minimum(p * (1 - p) / v, images)
    return p, *wilson(p, n, level)


def mean(values: np.ndarray, n: int, level: float) -> tuple[float, float, float]:
    """Mean of one value a patient, float [k], and Student's interval at `level`; NaN where undefined.

    n: at most k; the interval is as wide as n patients would have it.
    """
    if not len(values):
        return np.nan, np.nan, np.nan
    if n < 2 or len(values) < 2:
        return float(values.mean()), np.nan, np.nan
    half = stats.t.ppf(0.5 + level / 2, n - 1) * values.std(ddof=1) / np.sqrt(n)
    return float(values.mean()), float(values.mean() - half), float(values.mean() + half)


def standardised(a: np.ndarray, b: np.ndarray, categories: int, level: float) -> tuple[float, float, float]:
    """Standardised difference of two samples and its interval: (d, low, high), NaN where undefined.

    a, b: values of a quantity, float [k], or category numbers below `categories`, int [k], which is 0 for a quantity.

    A quantity: difference of means by the root of the mean of both variances. Two categories: the same for the share of
    the second, whose variance is p(1-p) (Austin, Statistics in Medicine 28:3083, 2009). More: Mahalanobis' distance of
    the shares, all but one, under the mean of both multinomial covariances; it has no sign (Yang and Dalton, SAS Global
    Forum, paper 335-2012). Undefined where neither sample varies.

    Intervals hold for large samples. One dimension: d ± z·sqrt((m+n)/(mn) + d²/(2(m+n))) (Hedges and Olkin,
    Statistical Methods for Meta-Analysis, 1985). Several: mn/(m+n)·d² is taken for a noncentral chi-squared of as many
    degrees of freedom, and its noncentrality bounded by inversion (Steiger and Fouladi, in What If There Were No
    Significance Tests?, 1997); where chance alone would often give as much, the interval begins at 0.
    """
    m, n = len(a), len(b)
    none = np.nan, np.nan, np.nan
    if not m or not n:
        return none
    if categories > 2:
        shares = np.array([np.bincount(x, minlength=categories) / len(x) for x in (a, b)])
        shares = shares[:, shares.any(axis=0)]
        if shares.shape[1] > 2:
            return _distance(shares, m, n, level)
        # All patients are of two categories, or of one.
        p, q = shares[:, -1]
        several = shares.shape[1]
    elif categories:
        p, q, several = (a == 1).mean(), (b == 1).mean(), categories
    if categories:
        if several < 2:
            return none
        difference, variances = p - q, [p * (1 - p), q * (1 - q)]
    else:
        if m < 2 or n < 2:
            return none
        difference, variances = a.mean() - b.mean(), [a.var(ddof=1), b.var(ddof=1)]
    spread = np.sqrt(np.mean(variances))
    if spread <= 0:
        return none
    d = difference / spread
    half = stats.norm.ppf(0.5 + level / 2) * np.sqrt((m + n) / (m * n) + d**2 / (2 * (m + n)))
    return float(d), float(d - half), float(d + half)


def _distance(shares: np.ndarray, m: int, n: int, level: float) -> tuple[float, float, float]:
    """`standardised` of shares [2, categories], three or more, of m and n patients."""
    free = shares[:, :-1]
    covariance = np.mean([np.diag(p) - np.outer(p, p) for p in free], axis=0)
    apart = free[0] - free[1]
    degrees = len(apart)
    if np.linalg.matrix_rank(covariance) < degrees:
        return np.nan, np.nan, np.nan
    squared = float(apart @ np.linalg.solve(covariance, apart))
    scale = m * n / (m + n)
    found = squared * scale

    def bound(tail: float) -> float:
        if stats.chi2.cdf(found, degrees) <= tail:
            return 0.0
        above = found + 12 * np.sqrt(found + degrees) + 60  # of a noncentrality this far off, `found` has no chance
        return float(optimize.brentq(lambda nc: stats.ncx2.cdf(found, degrees, nc) - tail, 1e-9, above))

    low, high = (np.sqrt(bound(tail) / scale) for tail in (0.5 + level / 2, 0.5 - level / 2))
    return float(np.sqrt(squared)), float(low), float(high)
