"""Erasure: change features so that a concept (an attribute, such as race) can no longer be read off them by a linear probe.

Every method here but two gives an `Eraser`, an affine map x ↦ x - A (x - μ) of low rank that knows nothing of the image at hand but its
features, and so needs no attribute at test time. It is fitted on training patients. All arithmetic is in float64.

**LEACE** (Belrose et al. 2023, "LEACE: Perfect linear concept erasure in closed form", theorem 4.2). With Σ the covariance of features, Σ_xz
that with the concept's indicators, W = Σ^(-1/2), and P the orthogonal projection on the columns of W Σ_xz:

    A = W⁻¹ P W

makes the cross-covariance Σ_xz exactly 0 and, of all affine maps that do, changes x least in the mean square, in any norm given by
an inner product. By their theorem 3.1 no linear predictor then has a lower expected loss than the best constant, for any convex loss.
That is a statement about the patients it was fitted on. On others the concept comes back as far as Σ_xz was misjudged, which with
many features and few patients is far.

**Shrinkage.** Σ is replaced by α Σ + (1 - α) (tr Σ / d) I with the α that is best in the mean square as patients and features grow
together (Bodnar, Gupta and Parolya 2014), here kept within 0 and 1:

    1 - α = (tr Σ)² / m / (‖Σ‖² - (tr Σ)² / d),    m patients, d features

Whatever W is, the cross-covariance becomes exactly 0, x is moved along the columns of Σ_xz alone, and what is left of it is what does not
change along them. So a linear probe that is fitted anew and hardly penalised finds as much on others with shrinkage as without, and as much as
after orthogonalisation without confounders, below. What W decides is how far along them each image is moved, and so how much features change
(least, on the patients fitted on, where Σ is not shrunk) and what heads that stay as they are make of them.

Σ that is not shrunk is inverted in deviations of features, which gives the same A in whatever units they come. Where it has not full
rank (a dead feature, fewer patients than features), W is the root of its pseudo-inverse there.

**Orthogonalisation.** Features are regressed on the concept and on confounders together; the columns of the concept's coefficients, differences
between its classes among images that are alike otherwise, are projected out orthogonally, with each feature in units of its own
deviation: A = S P S⁻¹. Unlike LEACE it may leave what confounders alone tell of the concept, on purpose.

**Iterative null-space projection** (Ravfogel et al. 2020, "Null It Out"): a linear probe is fitted, the span of its coefficients projected out, and so
on, until what is left tells nothing or the rounds are used up; in the same units, A is the projection on all spans together.

**Pruning** sets to their mean those features that have most weight in a linear probe of the concept; what the field does by hand.

Two need the attribute at test time and are for comparison, never for use: the **oracle** (Belrose et al., section 5: what is
least to be taken away if one knows z is x's regression on it), and the **quadratic** one, which carries each class's mean and covariance
over to those of the one Gaussian that lies nearest to all (the barycentre by the 2-Wasserstein distance), so that no quadratic probe
tells the classes apart either. Σ̄ is the fixed point of

    S ↦ S^(-1/2) (Σ_c π_c (S^(1/2) Σ_c S^(1/2))^(1/2))² S^(-1/2)

(Álvarez-Esteban et al. 2016), and class c's x goes to μ + Σ_c^(-1/2) (Σ_c^(1/2) Σ̄ Σ_c^(1/2))^(1/2) Σ_c^(-1/2) (x - μ_c). The condition
of such products is that of a covariance squared, so they are never formed: for S = F Fᵀ and Σ_c = G Gᵀ, whatever the factors, Fᵀ Σ_c F has the
root V σ Vᵀ by the singular values of Gᵀ F = U σ Vᵀ, and F⁻ᵀ V σ Vᵀ F⁻¹ takes the place of S^(-1/2) (S^(1/2) Σ_c S^(1/2))^(1/2) S^(-1/2).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from cxr_jax import mesh
from cxr_jax.probes import logistic_regression
from cxr_jax.tables import UserError, not_finite

ROWS = 8192  # features in float64 at a time
# Of the greatest variance of a direction, in deviations of features: one that has less is rounding.
COVARIANCE_TOLERANCE = 1e-12
# Of a variance of class indicators and of confounders in deviations, and, squared, of the largest singular value of what is to be erased: the same.
RANK_TOLERANCE = 1e-10
# Of the barycentre's fixed point: steps, the change in deviations at which it stands, and that below which rounding alone may move it. Ten steps
# where classes are alike, eighty where their covariances, each with variances a million apart, have nothing to do with each other.
BARYCENTRE_STEPS, BARYCENTRE_TOLERANCE, BARYCENTRE_ROUNDING = 100, 1e-10, 1e-3
# In deviations: how far a class's covariance may be from the common one after it was carried over.
CARRIED_TOLERANCE = 1e-3
# Nats below the best constant that a probe must reach for what it reads to be projected out.
LEAST_GAIN = 1e-4


@dataclasses.dataclass(frozen=True)
class Eraser:
    """x ↦ x - left rightᵀ (x - mean), for each of B sets of weights.

    mean: float64 [B, d]. left, right: float64 [B, d, r]; columns of 0 where fewer than r directions are erased. rank: int [B], how many are.
    covariance_rank: int [B], of the features' covariance, where one was inverted; below d, directions that no training row had are left as they are.
    """

    mean: np.ndarray
    left: np.ndarray
    right: np.ndarray
    rank: np.ndarray
    covariance_rank: np.ndarray | None = None

    def __call__(self, features: np.ndarray, b: int = 0) -> np.ndarray:
        """float32 [n, d] of float32 [n, d]. Raises UserError for a feature that is no number, ValueError for another number of columns."""
        out = np.empty(features.shape, np.float32)
        for at, block in _blocks(features, self.mean.shape[1]):
            out[at] = block - ((block - self.mean[b]) @ self.right[b]) @ self.left[b].T
        return out


# --------------------------------------------------------------------------------------------------------------- moments


@dataclasses.dataclass(frozen=True)
class _Moments:
    """Of each of B sets of weights: rows' weight [B]; means [B, d], [B, k]; covariances [B, d, d], [B, d, k], [B, k, k]. Float64.

    A feature that varies by no more than float32 can be off has covariances of exactly 0, so that it has no part in anything.
    """

    weight: np.ndarray
    mean: np.ndarray
    concept: np.ndarray
    features: np.ndarray
    cross: np.ndarray
    concepts: np.ndarray


def _moments(features: np.ndarray, concept: np.ndarray, weights: np.ndarray, whose: Sequence[str] = ()) -> _Moments:
    """weights: [B, n]. whose: names of the B sets, for the message. Raises UserError where no feature varies."""
    # Rows that have the same weights everywhere are summed up once: of folds, every row once, however many folds there are.
    kinds, kind = np.unique(weights, axis=1, return_inverse=True)
    if kinds.shape[1] <= len(weights) + 1:
        pieces = [(np.flatnonzero(kind == i) if kinds[:, i].any() else np.empty(0, np.int64), None) for i in range(kinds.shape[1])]
        shares = kinds
    else:
        pieces = [(np.flatnonzero(weight), weight[weight > 0]) for weight in weights]
        shares = np.eye(len(weights))
    # About a mean that is nearly theirs, since a dim feature's is far above its deviation.
    some = np.flatnonzero(weights.any(axis=0))
    shift = sum(features[some[i : i + ROWS]].sum(axis=0, dtype=np.float64) for i in range(0, len(some), ROWS)) / len(some)
    d, k = features.shape[1], concept.shape[1]
    sums, products = np.empty((len(pieces), d + k)), np.empty((len(pieces), d + k, d + k))
    with mesh.float64_on_host():
        for piece, (rows, weight) in enumerate(pieces):
            total = (jnp.zeros(d + k), jnp.zeros((d + k, d + k)))
            for i in range(0, len(rows), ROWS):
                at = rows[i : i + ROWS]
                total = _add(total, features[at], concept[at], shift, np.ones(len(at)) if weight is None else weight[i : i + ROWS])
            sums[piece], products[piece] = total
    weight = weights.sum(axis=1)
    mean = shares @ sums / weight[:, None]
    covariance = np.tensordot(shares, products, 1) / weight[:, None, None] - mean[:, :, None] * mean[:, None, :]
    about = np.maximum(np.abs(mean[:, :d] + shift), np.abs(mean[:, :d]))
    variance = np.diagonal(covariance, axis1=1, axis2=2)[:, :d]
    varies = np.pad(variance > np.square(np.finfo(np.float32).eps * about), [(0, 0), (0, k)], constant_values=True)
    covariance = np.where(varies[:, :, None] & varies[:, None], covariance, 0)
    some = varies[:, :d].any(axis=1)
    if not some.all():
        of = f" of {whose[np.argmin(some)]}" if whose else ""
        raise UserError(f"no feature varies among the training images{of}: there is nothing to erase from")
    return _Moments(weight, mean[:, :d] + shift, mean[:, d:], covariance[:, :d, :d], covariance[:, :d, d:], covariance[:, d:, d:])


@jax.jit
def _add(total, features, concept, shift, weight):
    rows = jnp.concatenate([features.astype(jnp.float64) - shift, concept], axis=1)
    weighted = rows * weight[:, None]
    return total[0] + weighted.sum(axis=0), total[1] + weighted.T @ rows


@jax.jit
def _eigen(matrices):
    return jax.lax.map(jnp.linalg.eigh, matrices)


@jax.jit
def _right_singular(matrices):
    return jax.lax.map(lambda matrix: jnp.linalg.svd(matrix, full_matrices=False)[1:], matrices)


def _factors(covariance: np.ndarray, deviation: np.ndarray, tolerance: float = COVARIANCE_TOLERANCE) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(F, F⁻¹, rank) of each covariance F Fᵀ, [B, d, d]; by its eigenvalues in units of `deviation`, [B, d].

    Without features of deviation 0, and directions whose variance in these units is not above `tolerance` of the greatest.
    """
    to_units = _inverse(deviation)
    with mesh.float64_on_host():
        values, vectors = (np.asarray(x) for x in _eigen(jnp.asarray(covariance * to_units[:, :, None] * to_units[:, None])))
    kept = values > tolerance * values[:, -1:]
    root = np.sqrt(np.where(kept, values, 0))[:, None]
    factor, inverse = deviation[:, :, None] * vectors * root, to_units[:, :, None] * vectors * _inverse(root)
    return factor, inverse.swapaxes(1, 2), kept.sum(axis=1)


def _root_of_square(matrices: np.ndarray) -> np.ndarray:
    """(Mᵀ M)^(1/2) of each [B, d, d]."""
    with mesh.float64_on_host():
        singular, back = (np.asarray(x) for x in _right_singular(jnp.asarray(matrices)))
    return back.swapaxes(1, 2) @ (singular[:, :, None] * back)


def _deviations(covariance: np.ndarray) -> np.ndarray:
    """[B, d] of covariances [B, d, d]."""
    return np.sqrt(np.diagonal(covariance, axis1=1, axis2=2))


def _inverse(values: np.ndarray) -> np.ndarray:
    """1 over each; 0 over 0 is 0."""
    return np.divide(1, values, out=np.zeros_like(values), where=values > 0)


def shrunk(covariance: np.ndarray, patients: np.ndarray) -> np.ndarray:
    """Covariances [B, d, d] of so many patients [B], shrunk towards the multiple of the identity that has their trace; see above."""
    d = covariance.shape[-1]
    trace = np.trace(covariance, axis1=1, axis2=2)
    spread = np.square(covariance).sum(axis=(1, 2)) - trace**2 / d  # 0 for a multiple of the identity, which stays as it is
    off = np.clip(np.where(spread > 0, trace**2 / patients / np.where(spread > 0, spread, 1), 0), 0, 1)[:, None, None]
    return (1 - off) * covariance + off * (trace / d)[:, None, None] * np.eye(d)


# --------------------------------------------------------------------------------------------------------------- erasers


def leace(
    features: np.ndarray, labels: np.ndarray, patients: np.ndarray, *, classes: int | None = None, weights: np.ndarray | None = None, shrink: bool = True
) -> Eraser:
    """Least-squares concept erasure. See above.

    features: float32 [n, d]. labels: int [n], 0 … classes - 1, -1 where not known: such rows are left out. patients: [n], whose image each row
    is; of these are as many independent ones. weights: float [B, n], folds, say; None: [1, n] ones. Each takes some ten matrices [d, d] of memory.

    Raises UserError where fewer than two classes have weight, or a class of `classes` has none, or no feature varies; ValueError for shapes that do not agree.
    """
    concept, weights = _checked(features, labels, classes, weights)
    of = _moments(features, concept, weights)
    patients, deviation = _patients(patients, weights), _deviations(of.features)
    # What a multiple of the identity is depends on the units, so that shrinkage is in those that features come in.
    colour, whiten, rank = _factors(shrunk(of.features, patients), np.ones_like(deviation)) if shrink else _factors(of.features, deviation)
    spans, erased = _spans(whiten @ of.cross)
    return Eraser(of.mean, colour @ spans, whiten.swapaxes(1, 2) @ spans, erased, rank)


def orthogonalised(
    features: np.ndarray,
    labels: np.ndarray,
    confounders: np.ndarray | None = None,
    *,
    classes: int | None = None,
    weights: np.ndarray | None = None,
    names: Sequence[str] | None = None,
) -> Eraser:
    """Without the directions in which classes differ among images that are alike in confounders. See above.

    confounders: float [n, c], such as age, and 1 or 0 for a view, in any units; none: the differences between class means. names: of
    classes, for messages. Else as `leace`. Raises UserError, too, where confounders tell a class entirely, so that a difference cannot be told from
    theirs, or are not finite.
    """
    confounders = np.empty((len(features), 0)) if confounders is None else np.asarray(confounders, np.float64)
    if confounders.ndim != 2 or len(confounders) != len(features):
        raise ValueError(f"confounders {confounders.shape} for features {features.shape}")
    if not np.isfinite(confounders).all():
        raise UserError(f"confounders: row {int(np.argmin(np.isfinite(confounders).all(axis=1))) + 1} has one that is no number; leave such rows out")
    concept, weights = _checked(features, labels, classes, weights)
    k = concept.shape[1]
    # Confounders from their mean and in their deviation, lest what is rounding be told by their units.
    some = weights.any(axis=0)
    off = confounders - confounders[some].mean(axis=0)
    of = _moments(features, np.concatenate([concept, off * _inverse(np.sqrt(np.square(off[some]).mean(axis=0)))], axis=1), weights)
    for b, design in enumerate(of.concepts):
        told = _told(design, k)
        if len(told) > 1:
            names = [f"class {c}" for c in range(k)] if names is None else names
            apart = " from ".join(" or ".join(names[c] for c in group) for group in sorted(told, key=len))
            what = "tell the class of every image" if len(told) == k else f"alone tell {apart}"
            where = f" (weights {b})" if len(weights) > 1 else ""
            raise UserError(f"confounders {what}{where}: no difference between these is left that is not the confounders'")
    # Coefficients of the class indicators, less their mean over classes, which is not determined since indicators add up to 1.
    coefficients = (of.cross @ np.linalg.pinv(of.concepts, rcond=RANK_TOLERANCE, hermitian=True))[:, :, :k]
    spans, erased = _spans((coefficients - coefficients.mean(axis=2, keepdims=True)) * _inverse(_deviations(of.features))[:, :, None])
    return _in_deviations(of, spans, erased)


def _told(design: np.ndarray, k: int) -> list[list[int]]:
    """Groups of classes that confounders tell apart without an error, all in one where they tell none; of covariances [k + c, k + c] of both."""
    to_classes = design[:k, k:] @ np.linalg.pinv(design[k:, k:], rcond=RANK_TOLERANCE, hermitian=True)
    values, vectors = np.linalg.eigh(design[:k, :k] - to_classes @ design[k:, :k])
    # Functions of the class that have no variance beside the confounders; the constant, which has none of itself, is one.
    functions = vectors[:, values <= RANK_TOLERANCE]
    groups: list[list[int]] = []
    for c, value in enumerate(functions):
        like = next((group for group in groups if np.abs(functions[group[0]] - value).max() <= 1e-6 * np.abs(functions).max()), None)
        if like is None:
            groups.append([c])
        else:
            like.append(c)
    return groups


def nullspace_projected(
    features: np.ndarray,
    labels: np.ndarray,
    penalty: float,
    rounds: int,
    *,
    classes: int | None = None,
    weights: np.ndarray | None = None,
) -> Eraser:
    """Iterative null-space projection. See above.

    penalty: of the probe, as `logistic_regression.fit` takes it; the one that was chosen for this concept. rounds: at most; fewer where a probe
    is better than the best constant by less than LEAST_GAIN. Else as `leace`.
    """
    concept, weights = _checked(features, labels, classes, weights)
    codes, classes = np.maximum(labels, 0), concept.shape[1]
    of = _moments(features, concept, weights)
    deviation, bases = _deviations(of.features), []
    for b, weight in enumerate(weights):
        basis = np.zeros((features.shape[1], 0))
        share = of.concept[b]
        constant = -(share[share > 0] * np.log(share[share > 0])).sum()
        for _ in range(rounds):
            left = _in_deviations(of, np.broadcast_to(basis, (len(weights), *basis.shape)), None)(features, b)
            fit = logistic_regression.fit(left, codes, np.array([penalty]), weight[None].astype(np.float32), classes=classes)
            if constant - fit.objective[0, 0] < LEAST_GAIN:
                break
            coefficients = np.nan_to_num(fit.coefficients[0, 0]).T * deviation[b][:, None]
            new = coefficients - coefficients.mean(axis=1, keepdims=True)
            (new,), (count,) = _spans((new - basis @ (basis.T @ new))[None])
            if not count:
                break
            basis = np.linalg.qr(np.concatenate([basis, new[:, :count]], axis=1))[0]
        bases.append(basis)
    erased = np.array([basis.shape[1] for basis in bases])
    spans = np.stack([np.pad(basis, [(0, 0), (0, erased.max() - basis.shape[1])]) for basis in bases])
    return _in_deviations(of, spans, erased)


def pruned(
    features: np.ndarray,
    labels: np.ndarray,
    penalty: float,
    count: int,
    *,
    classes: int | None = None,
    weights: np.ndarray | None = None,
) -> Eraser:
    """The `count` features of most weight in a probe of the concept put to their mean: root of the sum of squared coefficients over classes, for
    features in deviations. penalty: as `nullspace_projected` takes it. Else as `leace`. Raises UserError, too, where none would be left that varies.
    """
    concept, weights = _checked(features, labels, classes, weights)
    of = _moments(features, concept, weights)
    varying = int((_deviations(of.features) > 0).sum(axis=1).min())
    if count >= varying:
        raise UserError(f"{count} features are to be pruned, and {varying} of {features.shape[1]} vary: nothing would be left; prune fewer")
    fit = logistic_regression.fit(features, np.maximum(labels, 0), np.array([penalty]), weights.astype(np.float32), classes=concept.shape[1])
    size = np.sqrt(np.square(np.nan_to_num(fit.coefficients[:, 0])).sum(axis=1)) * _deviations(of.features)
    chosen = np.argsort(-size, axis=1, kind="stable")[:, :count]
    spans = np.eye(features.shape[1])[chosen].transpose(0, 2, 1)
    return Eraser(of.mean, spans, spans, np.full(len(weights), chosen.shape[1]))


def _in_deviations(of: _Moments, spans: np.ndarray, erased: np.ndarray) -> Eraser:
    """The eraser that projects out orthonormal columns of features in deviations."""
    deviation = _deviations(of.features)[:, :, None]
    return Eraser(of.mean, deviation * spans, _inverse(deviation) * spans, erased)


@dataclasses.dataclass(frozen=True)
class Oracle:
    """x ↦ x - Σ_xz Σ_zz⁺ (z - mean of z): needs z, the class of the image at hand. shift: float64 [B, classes, d], what each class is moved by."""

    shift: np.ndarray

    def __call__(self, features: np.ndarray, labels: np.ndarray, b: int = 0) -> np.ndarray:
        """float32 [n, d]; the class of every row must be known. Raises as `Eraser` does."""
        labels, out = _known(labels, self.shift.shape[1], len(features)), np.empty(features.shape, np.float32)
        for at, block in _blocks(features, self.shift.shape[2]):
            out[at] = block - self.shift[b][labels[at]]
        return out


def oracle(features: np.ndarray, labels: np.ndarray, *, classes: int | None = None, weights: np.ndarray | None = None) -> Oracle:
    """The least change that leaves no cross-covariance, if one knows the class: each class's mean is moved to the common one. As `leace`."""
    concept, weights = _checked(features, labels, classes, weights)
    of = _moments(features, concept, weights)
    # Σ_xz Σ_zz⁺ (e_c - π) is what class c's mean is above the common one.
    regression = of.cross @ np.linalg.pinv(of.concepts, rcond=RANK_TOLERANCE, hermitian=True)
    return Oracle(np.einsum("bdk,bck->bcd", regression, np.eye(concept.shape[1]) - of.concept[:, None]))


@dataclasses.dataclass(frozen=True)
class Quadratic:
    """Carries the class of the image at hand over to the common Gaussian; so it needs that class.

    mean: float64 [d], the common one. means: [classes, d]. maps: [classes, d, d], symmetric. covariance: [d, d], the common one.
    """

    mean: np.ndarray
    means: np.ndarray
    maps: np.ndarray
    covariance: np.ndarray

    def __call__(self, features: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """float32 [n, d]; the class of every row must be known. Raises as `Eraser` does."""
        labels, out = _known(labels, len(self.means), len(features)), np.empty(features.shape, np.float32)
        for at, block in _blocks(features, len(self.mean)):
            for c, (mean, map_) in enumerate(zip(self.means, self.maps)):
                out[at][labels[at] == c] = self.mean + (block[labels[at] == c] - mean) @ map_
        return out


def quadratic(
    features: np.ndarray,
    labels: np.ndarray,
    patients: np.ndarray,
    *,
    classes: int | None = None,
    shrink: bool = True,
    names: Sequence[str] | None = None,
) -> Quadratic:
    """Quadratic concept erasure. See above; arguments as for `leace`, of one set of weights. names: of classes, for messages.

    Raises UserError, too, for a class of one patient, where a class's covariance has not full rank and is not shrunk, since no map carries over
    what is not there, and where deviations are too far apart for float64, from some 1e7 on.
    """
    concept, _ = _checked(features, labels, classes, None)
    d, share = features.shape[1], concept.sum(axis=0) / concept.sum()
    names, counts = [f"class {c}" for c in range(len(share))] if names is None else names, _patients(patients, concept.T)
    if (counts < 2).any():
        c = int(np.argmin(counts))
        n = int(concept[:, c].sum())
        raise UserError(f"{names[c]} has {n:,} image{'s' if n > 1 else ''} of one patient: that has no covariance to carry over; leave the class out")
    of = _moments(features, np.empty((len(features), 0)), concept.T, names)
    covariance = shrunk(of.features, counts) if shrink else of.features
    own, own_inverse, rank = _factors(covariance, _deviations(covariance))
    if (rank < d).any():
        c = int(np.argmin(rank))
        raise UserError(f"the covariance of {names[c]} has rank {rank[c]} of {d}: a feature that does not vary there, or too few images; shrink it")
    middle, change = np.einsum("c,cde->de", share, covariance), np.inf
    for _ in range(BARYCENTRE_STEPS):
        factor, inverse = _one_factor(middle)
        root = inverse.T @ np.einsum("c,cde->de", share, _root_of_square(own.swapaxes(1, 2) @ factor))
        before, middle, deviation = middle, root @ root.T, _deviations(middle[None])[0]
        last, change = change, np.abs((middle - before) / np.outer(deviation, deviation)).max()
        if change <= BARYCENTRE_TOLERANCE or last <= change < BARYCENTRE_ROUNDING:
            break
    maps = own_inverse.swapaxes(1, 2) @ _root_of_square(_one_factor(middle)[0].T @ own) @ own_inverse
    apart = np.abs((maps @ covariance @ maps - middle) / np.outer(deviation, deviation)).max()
    if not apart < CARRIED_TOLERANCE:
        raise UserError(
            f"features' deviations, up to {deviation.max() / deviation.min():.0e} times the least, are too far apart for quadratic erasure in"
            " float64; scale features, or leave out those that hardly vary"
        )
    return Quadratic(share @ of.mean, of.mean, maps, middle)


def _one_factor(covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(F, F⁻¹) of F Fᵀ, [d, d], of full rank."""
    factor, inverse, _ = _factors(covariance[None], _deviations(covariance[None]), tolerance=np.finfo(np.float64).eps)
    return factor[0], inverse[0]


# -------------------------------------------------------------------------------------------------------------- plumbing


def _spans(directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(orthonormal columns float64 [B, d, r] that span those of `directions` [B, d, k], filled up with 0; how many there are [B])."""
    u, singular, _ = np.linalg.svd(directions, full_matrices=False)
    kept = singular > np.maximum(np.sqrt(RANK_TOLERANCE) * singular[:, :1], np.finfo(np.float64).tiny)
    return u * kept[:, None], kept.sum(axis=1)


def _checked(features, labels, classes, weights) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(Class indicators float64 [n, classes], weights float64 [B, n], 0 where the class is not known)."""
    labels = np.asarray(labels)
    if features.ndim != 2 or not features.shape[1] or labels.shape != features.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels {labels.dtype} {labels.shape} for features {features.shape}")
    classes = int(labels.max(initial=0)) + 1 if classes is None else classes
    if labels.max(initial=-1) >= classes or labels.min(initial=0) < -1:
        raise ValueError(f"labels from {labels.min()} to {labels.max()} for {classes} classes")
    weights = np.ones((1, len(labels))) if weights is None else np.asarray(weights, np.float64)
    if weights.ndim != 2 or weights.shape[1] != len(labels) or not (np.isfinite(weights) & (weights >= 0)).all():
        raise ValueError(f"weights {weights.shape} for {len(labels)} rows, or one that is negative or no number")
    for first in range(0, len(features), ROWS):
        if not np.isfinite(features[first : first + ROWS]).all():
            raise not_finite(np.asarray(features), "features")
    concept = (labels[:, None] == np.arange(classes)).astype(np.float64)
    weights = weights * (labels >= 0)
    present = weights @ concept > 0
    if classes < 2 or (present.sum(axis=1) < 2).any():
        raise UserError("the attribute has one class only among the training images, or none: there is nothing to erase")
    if not present.all():
        raise UserError(f"class {int(np.argmin(present.all(axis=0)))} of the attribute has no training image; leave it out, or draw the cohort otherwise")
    return concept, weights


def _patients(patients: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """How many patients have an image with weight, [B]."""
    if np.shape(patients) != weights.shape[1:]:
        raise ValueError(f"patients {np.shape(patients)} for {weights.shape[1]} rows")
    codes = np.unique(np.asarray(patients), return_inverse=True)[1]
    return np.array([len(np.unique(codes[weight > 0])) for weight in weights])


def _blocks(features: np.ndarray, width: int) -> Iterator[tuple[slice, np.ndarray]]:
    """(Which rows, they in float64), ROWS at a time. Raises UserError for a feature that is no number, ValueError for another number of columns."""
    if features.ndim != 2 or features.shape[1] != width:
        raise ValueError(f"features {features.shape} for an eraser of {width} columns")
    for first in range(0, len(features), ROWS):
        block = np.asarray(features[first : first + ROWS], np.float64)
        if not np.isfinite(block).all():
            raise not_finite(np.asarray(features), "features")
        yield slice(first, first + ROWS), block


def _known(labels: np.ndarray, classes: int, rows: int) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.shape != (rows,) or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels {labels.dtype} {labels.shape} for {rows} rows of features")
    if (labels < 0).any() or (labels >= classes).any():
        raise UserError("this eraser needs the class of every image, and some have none that it knows")
    return labels
