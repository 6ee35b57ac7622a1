"""Logistic regression on frozen features, L2-penalised, solved to an optimum that is certified in float64.

One problem has rows x_i with weights w_i ≥ 0 (Σw their sum), and standardises features by its own weighted mean and
deviation, z_i = (x_i - m) / s. It minimises over coefficients W and intercepts c

    F(W, c) = (1/Σw) Σ_i w_i loss(W z_i + c, y_i) + (λ/2) ‖W‖²

with loss the cross-entropy of a softmax (one label of K) or of a sigmoid (each of F findings for itself). A call solves
the problems of all weights × strengths λ together. Features are held once, whatever the number of problems: m and s are
folded into W before each product and out of the gradient after it.

**Method.** Nonlinear conjugate gradients (Polak and Ribière, β cut at 0), preconditioned, all problems in step, so
that an iteration is two matrix products whatever the number of problems: of the features with all directions, and with
all residuals. The step is found on the logits, which are linear in it: the derivative along a direction is monotone,
and Newton's method within a bracket finds its zero without another product. The Hessian in W is

    H = (1/Σw) Σ_i w_i (diag(p_i) - p_i p_iᵀ) ⊗ z_i z_iᵀ + λI  ≈  A ⊗ C + λI,

C the correlation matrix and A the class matrix diag(π) - ππᵀ at the share π of each class (as if no feature told
anything; ½(I - 11ᵀ/K) in its place would be a bound on H: Böhning, Annals of the Institute of Statistical Mathematics
44, 1992). With one eigendecomposition of C the right-hand side is inverted exactly for every λ, and that is the
preconditioner. C is taken from all weights together and some rows; this may cost iterations and cannot move the
optimum.

**Certificate.** F is λ-strongly convex in W and convex in c. With g its gradient at (W, c), for the optimum (W*, c*)

    F(W*, c*) ≥ F(W, c) + g_W·(W* - W) + g_c·(c* - c) + (λ/2) ‖W* - W‖²
    F(W, c) - F(W*, c*) ≤ ‖g_W‖² / (2λ) + ‖g_c‖ ‖c* - c‖.

The first term is `gap`. The second is not covered, since nothing penalises the intercepts: it is `intercept_gradient`
for each unit by which they are off, and `converged` asks that to be as small as the gap. Products are in float32;
objective, gradient and moments are computed in float64 on the host from the features as given. Where float32 stalls
short of the tolerance, the solver starts again from the float64 gradient, and takes from float32 only how it changes;
where the intercepts alone are not there, they take Newton's step in float64. An objective near 0 (separable classes
and a tiny λ) can stay out of reach of a relative tolerance; `converged` is then False. The certificate is about this
data and this λ; it says nothing about the strength that should have been chosen.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from cxr_jax import mesh
from cxr_jax.tables import UserError, not_finite

# Strengths solved in step. With more, strong penalties, which are soon done, would wait for weak ones.
STRENGTHS = 4
MAX_LOGITS = 2**27  # logits of problems solved at once: 512 MiB for each of the five arrays of that size
EXACT_ROWS = 2048  # rows at a time in float64
MOMENT_CELLS = 2**17  # features at a time for their moments: 1 MiB, which stays in a core's cache
SCORED_LOGITS = 2**23  # logits scored at once
# Rows per column from which the preconditioner's correlations are taken.
CORRELATION_ROWS = 8
# Share of the slope at the start of a line search that may be left at its end.
SLOPE_LEFT = 0.3
SEARCH_STEPS = 12
# Float32 has stalled where this many iterations did not lower the gap.
PATIENCE = 20
RESTARTS = 4

_product = functools.partial(jnp.einsum, precision=lax.Precision.HIGHEST)


@dataclasses.dataclass(frozen=True)
class Fit:
    """Solutions of B × S problems: B sets of weights, S strengths; O outputs, which are classes or findings.

    A class without weight has NaN coefficients and scores, the others being those of a fit without it. Where fewer than
    two classes have weight (for a finding: no 1, or no 0), nothing is fitted, all is NaN and `converged` False.

    coefficients: float64 [B, S, O, d], for features as given. intercepts: float64 [B, S, O].
    penalties: float64 [S], λ.
    independent: whether outputs are findings, each with its own sigmoid, instead of the classes of one softmax.
    centre: float32 [d], about the mean of the features; scores are computed from there to lose no digits.

    Of each problem, [B, S] for classes and [B, S, F] for findings, float64 unless said:
    objective: F at the solution. gap: ‖g_W‖² / (2λ), see above. gradient: ‖g_W‖. intercept_gradient: ‖g_c‖.
    converged: bool; gap and intercept_gradient are both at most tolerance × objective.
    iterations: int32, of conjugate gradients.
    """

    coefficients: np.ndarray
    intercepts: np.ndarray
    penalties: np.ndarray
    independent: bool
    centre: np.ndarray
    objective: np.ndarray
    gap: np.ndarray
    gradient: np.ndarray
    intercept_gradient: np.ndarray
    converged: np.ndarray
    iterations: np.ndarray

    def select(self, b: int, s: int) -> Fit:
        """The solution for weights b and strength s alone, as a Fit with B = S = 1."""
        of_problems = "coefficients intercepts objective gap gradient intercept_gradient converged iterations".split()
        chosen = {name: getattr(self, name)[b, s][None, None] for name in of_problems}
        return dataclasses.replace(self, penalties=self.penalties[[s]], **chosen)

    def scores(self, features: np.ndarray | jax.Array) -> np.ndarray:
        """Probabilities, float32 [B, S, m, O], of features, float32 [m, d]; NaN where there is no coefficient.

        Raises UserError for a feature that is NaN or infinite, ValueError for another number of columns.
        """
        rows = _checked_features(features, self.coefficients.shape[-1])
        at = self.intercepts + self.coefficients @ self.centre.astype(np.float64)
        known = np.isfinite(self.intercepts)
        W = np.where(known[..., None], self.coefficients, 0).astype(np.float32)
        c = np.where(known, at, 0).astype(np.float32)
        # Powers of two, so that few shapes are compiled.
        chunk = 1 << max(0, (SCORED_LOGITS // known.size).bit_length() - 1)
        chunk = min(chunk, 8192, 1 << (max(len(rows), 1) - 1).bit_length())
        scores = np.empty((*known.shape[:2], len(rows), known.shape[2]), np.float32)
        for first, block in _chunks(rows, chunk):
            if not np.isfinite(block).all():
                raise not_finite(rows, "features")
            part = np.asarray(_scores(block, self.centre, W, c, known, self.independent))
            scores[:, :, first : first + chunk] = part[:, :, : len(rows) - first]
        return scores


def fit(
    features: np.ndarray | jax.Array,
    labels: np.ndarray,
    penalties: np.ndarray,
    weights: np.ndarray | None = None,
    *,
    classes: int | None = None,
    start: Fit | None = None,
    tolerance: float = 1e-6,
    max_iterations: int = 1000,
) -> Fit:
    """Solves all problems of B sets of weights × S strengths.

    features: float32 [n, d]; NumPy, a memory-map, or a JAX array, which may be split by rows over a mesh. The device holds
        one standardised copy; a JAX array is copied to the host for the float64 part.
    labels: int [n], 0 … classes - 1: one softmax. Or float [n, F] of 1, 0 and NaN: F findings, each a sigmoid of its own;
        NaN is unknown and has no weight for that finding.
    penalties: float [S], λ > 0. Scikit-learn's C is 1 / (λ Σw), on the standardised features; for a softmax of two
        classes, which scikit-learn writes with one vector instead of two, it is 2 / (λ Σw).
    weights: float [B, n], how often each row counts in each problem: folds, bootstrap replicates, strata. None: [1, n]
        ones. A row without weight has no influence on that problem.
    classes: K. None: the highest label + 1.
    start: an earlier fit of the same features and outputs to start from; B and S as here or 1.
    tolerance: certified gap of the objective, relative, at which a problem has converged.
    max_iterations: of conjugate gradients, over all restarts.

    A feature that is constant over a problem's rows, up to float32's resolution, has coefficient 0 there.

    Raises UserError for a NaN or infinite feature; ValueError for shapes that do not agree, no rows, labels out of range,
    negative or NaN weights, penalties not above 0.
    """
    rows = _checked_features(features)
    n, d = rows.shape
    penalties = np.atleast_1d(np.asarray(penalties, np.float64))
    weights = np.ones((1, n), np.float32) if weights is None else np.asarray(weights, np.float32)
    labels = np.asarray(labels)
    independent = labels.ndim == 2
    if not n or not d:
        raise ValueError(f"features {rows.shape}: nothing to fit")
    if len(labels) != n or weights.ndim != 2 or weights.shape[1] != n:
        raise ValueError(f"labels {labels.shape} and weights {weights.shape} for features {rows.shape}")
    if not (np.isfinite(weights) & (weights >= 0)).all():
        raise ValueError("a weight is how often a row counts, and cannot be negative, NaN or infinite")
    if penalties.ndim != 1 or not (np.isfinite(penalties) & (penalties > 0)).all():
        raise ValueError(f"penalties must be above 0: {penalties}")
    if independent:
        if not (np.isnan(labels) | (labels == 0) | (labels == 1)).all():
            raise ValueError("findings are 1, 0 or NaN")
        outputs = labels.shape[1]
    else:
        if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
            raise ValueError(f"labels must be whole numbers [n] or findings [n, F], not {labels.dtype} {labels.shape}")
        outputs = int(labels.max()) + 1 if classes is None else classes
        if labels.min() < 0 or labels.max() >= outputs:
            raise ValueError(f"labels from {labels.min()} to {labels.max()} for {outputs} classes")
    if start is not None:
        b, s, *rest = start.coefficients.shape
        if rest != [outputs, d] or b not in (1, len(weights)) or s not in (1, len(penalties)):
            raise ValueError(f"start {start.coefficients.shape} for {(len(weights), len(penalties), outputs, d)}")
    data = _Data(features, rows, labels.T if independent else labels, weights, independent)
    # From the strongest penalty on; the solution of a group is where the next one starts.
    order = np.argsort(-penalties, kind="stable")
    group = _even(len(penalties), STRENGTHS)
    size = _even(len(weights), max(1, MAX_LOGITS // (n * outputs * group)))
    parts = []
    for first in range(0, len(weights), size):
        # Replicates without weight fill up the last block, so that one compiled program serves all of them.
        fill = max(0, first + size - len(weights))
        block, *moments = (
            np.pad(x[first : first + size], [(0, fill)] + [(0, 0)] * (x.ndim - 1)) for x in (weights, *data.moments)
        )
        path, begin = [], None
        for at in range(0, len(order), group):
            chosen = order[np.minimum(np.arange(at, at + group), len(order) - 1)]
            if start is not None:
                b = np.minimum(np.arange(first, first + size), len(start.coefficients) - 1)[:, None]
                s = np.minimum(chosen, start.coefficients.shape[1] - 1)
                begin = start.coefficients[b, s], start.intercepts[b, s]
            path.append(data.solve(block, moments, outputs, penalties[chosen], begin, tolerance, max_iterations))
            begin = path[-1]["coefficients"][:, -1:], path[-1]["intercepts"][:, -1:]
        back = np.argsort(order)
        parts.append({name: np.concatenate([part[name] for part in path], 1)[:, back] for name in path[0]})
    joined = {name: np.concatenate([part[name] for part in parts])[: len(weights)] for name in parts[0]}
    return Fit(penalties=penalties, independent=independent, centre=data.centre, **joined)


class _Data:
    """Features on the device, standardised by all weights together, and what every block of problems shares.

    This standardisation is for the numbers' sake: each problem's own comes on top of it, as m and s in its units.
    """

    def __init__(self, features, rows: np.ndarray, labels: np.ndarray, weights: np.ndarray, independent: bool):
        self.rows, self.labels, self.independent = rows, labels, independent
        n, d = rows.shape
        self.shift = np.asarray(rows[:EXACT_ROWS], np.float64).mean(0)
        known = ~np.isnan(labels) if independent else np.ones((1, n), bool)
        separate = (weights[:, None] * known).reshape(-1, n)
        total = separate.sum(1, dtype=np.float64)
        sums = self._moment_sums(separate)
        self.moments = [x.reshape(len(weights), len(known), 1, 1, d) for x in self._moments(total, sums)]
        mean, deviation, constant = (x[0] for x in self._moments(total.sum(keepdims=True), sums.sum(1, keepdims=True)))
        self.centre = mean.astype(np.float32)
        self.scale = np.where(constant, 1.0, deviation).astype(np.float32)
        held = features if isinstance(features, jax.Array) else rows
        self.x = _standardised(held, self.centre, self.scale)
        pooled = weights.sum(0)
        weighty = np.flatnonzero(pooled) if pooled.any() else np.arange(n)
        some = weighty[np.linspace(0, len(weighty) - 1, min(n, CORRELATION_ROWS * d)).astype(np.int64)]
        self.eigen = _eigen(self.x, some.astype(np.int32), pooled[some] / max(pooled[some].sum(), 1e-30))

    def _by_rows(self, array: np.ndarray) -> np.ndarray | jax.Array:
        """An array whose last axis is rows, split over devices as the features are."""
        sharding = self.x.sharding
        if not isinstance(sharding, NamedSharding) or not sharding.spec or sharding.spec[0] is None:
            return array
        spec = PartitionSpec(*[None] * (array.ndim - 1), sharding.spec[0])
        return jax.device_put(array, NamedSharding(sharding.mesh, spec))

    def _moment_sums(self, weights: np.ndarray) -> np.ndarray:
        """Σ w (x - shift) and Σ w (x - shift)², float64 [2, P, d]. weights: [P, n]."""
        chunk = max(1, MOMENT_CELLS // self.rows.shape[1])
        sums = np.zeros((2, len(weights), self.rows.shape[1]))
        with mesh.float64_on_host():
            for (_, block), weight in zip(_chunks(self.rows, chunk), _last_axis(weights, chunk), strict=True):
                sums = _add_moments(sums, block, self.shift, weight)
            sums = np.asarray(sums)
        if not np.isfinite(sums).all():  # also by a row without weight: 0 × NaN is NaN
            raise not_finite(self.rows, "features")
        return sums

    def _moments(self, total: np.ndarray, sums: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Weighted mean, deviation (float64) and whether the column is constant (bool), each [P, d]. total: [P]."""
        off, square = sums / np.where(total > 0, total, 1.0)[:, None]
        deviation = np.sqrt(np.maximum(square - off**2, 0))
        mean = self.shift + off
        return mean, deviation, deviation <= 1e-7 * np.maximum(np.abs(mean), np.abs(off))

    def solve(self, weights, moments, outputs, penalties, start, tolerance, max_iterations) -> dict[str, np.ndarray]:
        """Solves one block. Inside, arrays are [B, F, S, K, …]: F = 1 for a softmax, K = 1 for sigmoids.

        moments: mean, deviation, constant of each problem, [B, F, 1, 1, d].
        """
        B, S, d = len(weights), len(penalties), self.rows.shape[1]
        F, K = (outputs, 1) if self.independent else (1, outputs)
        if self.independent:
            known = ~np.isnan(self.labels)
            target = np.nan_to_num(self.labels).astype(np.float32)[None, :, None, None]
            w = (weights[:, None] * known)[:, :, None, None].astype(np.float32)
        else:
            target = (self.labels == np.arange(K)[:, None]).astype(np.float32)[None, None, None]
            w = weights[:, None, None, None]
        total = w.sum(-1, dtype=np.float64)[:, :, :, 0]  # [B, F, 1]
        positive = w[:, :, 0, 0].swapaxes(0, 1).astype(np.float64) @ target[0, :, 0].swapaxes(1, 2)
        share = positive.swapaxes(0, 1)[:, :, None] / np.where(total > 0, total, 1.0)[..., None]  # [B, F, 1, K]
        if self.independent:
            live = ((share > 0) & (share < 1)).all(-1)
            present = np.broadcast_to(live[..., None], share.shape)
            base = np.log(np.where(present, share, 0.5)) - np.log1p(-np.where(present, share, 0.5))
            curvature = np.where(present, share * (1 - share), 0)[..., None]
        else:
            live = (share > 0).sum(-1) > 1
            present = (share > 0) & live[..., None]
            base = np.log(np.where(present, share, 1.0))
            curvature = share[..., None] * (np.eye(K) - share[..., None, :])
        mean, deviation, constant = moments
        unread = constant | (deviation == 0) | ~live[..., None, None]
        inverse = np.where(unread, 0, 1 / np.where(unread, 1, deviation))

        shape = (B, F, S, K)
        W, c = np.zeros((*shape, d)), np.broadcast_to(base, shape)
        if start is not None:
            earlier, at = (np.broadcast_to(x, (B, S, *x.shape[2:])) for x in start)
            earlier, at = earlier.reshape(B, S, F, K, d).swapaxes(1, 2), at.reshape(B, S, F, K).swapaxes(1, 2)
            usable = np.isfinite(at) & present
            earlier = np.where(usable[..., None], np.where(np.isnan(earlier), 0, earlier), 0)
            W = np.where(inverse > 0, earlier * deviation, 0)
            c = np.where(usable, at + np.sum(earlier * mean, -1), base)

        problem = _Problem(
            *(self._by_rows(x) for x in (target, w)),
            *(
                np.asarray(x, np.float32)
                for x in (
                    penalties,
                    np.where(total > 0, total, 1.0),
                    (mean - self.centre) / self.scale,
                    inverse * self.scale,
                )
            ),
            present,
            *(x.astype(np.float32) for x in np.linalg.eigh(curvature)),
        )
        best: dict[str, np.ndarray] = {}
        waiting = np.broadcast_to(live, shape[:3])
        iterations = np.zeros(shape[:3], np.int32)
        exact_gradient = (np.full(W.shape, np.nan, np.float32), np.full(c.shape, np.nan, np.float32))
        for _ in range(RESTARTS):
            if waiting.any():
                left = np.int32(max_iterations - iterations.max())
                starts = W.astype(np.float32), c.astype(np.float32), exact_gradient
                moveW, movec, ran = mesh.to_host(
                    _solve(
                        self.x, problem, self.eigen, *starts, ~waiting, np.float32(tolerance), left,
                        independent=self.independent,
                    )
                )
                # A solution in float32 could not be near enough: what its last digit moves is seen in the gradient.
                W, c, iterations = W + moveW, c + movec, iterations + ran
            found = self._certify(W, c, mean, inverse, w, target, total, present, penalties)
            left_over = np.maximum(found["gap"], found["intercept_gradient"])
            found |= {"left_over": left_over, "converged": live & (left_over <= tolerance * found["objective"])}
            better = left_over < best["left_over"] if best else np.ones(shape[:3], bool)
            for name, value in found.items():
                over = better.reshape(better.shape + (1,) * (value.ndim - better.ndim))
                best[name] = np.where(over, value, best[name]) if name in best else value
            if not (live & ~best["converged"]).any():
                break
            W, c = best["W"], best["c"]
            exact_gradient = best["gradient_W"].astype(np.float32), best["gradient_c"].astype(np.float32)
            waiting = live & (best["gap"] > tolerance * best["objective"])
            # Where the intercepts alone are not there yet, Newton's step for them in float64.
            bend = np.where(live[..., None, None], best["curvature_c"], 0)
            newton = np.linalg.pinv(bend, rcond=1e-9, hermitian=True) @ best["gradient_c"][..., None]
            c = np.where((live & ~waiting & ~best["converged"])[..., None], c - newton[..., 0], c)

        raw = best["W"] * inverse
        intercepts = best["c"] - np.sum(raw * mean, -1)
        kept = np.broadcast_to(present, shape)
        raw, intercepts = np.where(kept[..., None], raw, np.nan), np.where(kept, intercepts, np.nan)
        of_problems = {name: best[name] for name in ("objective", "gap", "gradient", "intercept_gradient")}
        of_problems = {name: np.where(live, value, np.nan) for name, value in of_problems.items()}
        of_problems |= {"converged": best["converged"], "iterations": iterations}
        if not self.independent:
            of_problems = {name: value[:, 0] for name, value in of_problems.items()}
        else:
            of_problems = {name: value.swapaxes(1, 2) for name, value in of_problems.items()}
        return {
            "coefficients": raw.swapaxes(1, 2).reshape(B, S, outputs, d),
            "intercepts": intercepts.swapaxes(1, 2).reshape(B, S, outputs),
            **of_problems,
        }

    def _certify(self, W, c, mean, inverse, w, target, total, present, penalties) -> dict[str, np.ndarray]:
        """Objective and gradient in float64 at W, c (in each problem's standardised units), from features as given."""
        W = np.where(present[..., None], W, 0)
        effective = W * inverse
        at = np.where(present, c, 0) - np.sum(effective * (mean - self.shift), -1)
        K = W.shape[3]
        sums = [np.zeros(W.shape[:3]), np.zeros(W.shape[:4]), np.zeros(W.shape), np.zeros((*W.shape[:4], K))]
        shown = np.broadcast_to(present, W.shape[:4])
        with mesh.float64_on_host():
            chunks = zip(
                _chunks(self.rows, EXACT_ROWS), _last_axis(w, EXACT_ROWS), _last_axis(target, EXACT_ROWS), strict=True
            )
            for (_, block), weight, truth in chunks:
                parts = _exact(block, self.shift, effective, at, weight, truth, shown, self.independent)
                sums = [held + np.asarray(part) for held, part in zip(sums, parts, strict=True)]
        loss, residual, by_feature, curvature_c = sums
        total = np.where(total > 0, total, 1.0)
        gradient_c = residual / total[..., None]
        gradient_W = inverse * (by_feature / total[..., None, None] - (mean - self.shift) * gradient_c[..., None])
        gradient_W += penalties[:, None, None] * W
        norm = np.sqrt(np.sum(gradient_W**2, (-2, -1)))
        return {
            "W": W,
            "c": c,
            "gradient_W": gradient_W,
            "gradient_c": gradient_c,
            "curvature_c": curvature_c / total[..., None, None],
            "objective": loss / total + penalties / 2 * np.sum(W**2, (-2, -1)),
            "gap": norm**2 / (2 * penalties),
            "gradient": norm,
            "intercept_gradient": np.sqrt(np.sum(gradient_c**2, -1)),
        }


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Problem:
    """What one block minimises, float32; axes [B, F, S, K, …] with 1 where they do not matter.

    target: [1, F, 1, K, n]. weight: [B, F, 1, 1, n]. penalty: [S]. total: [B, F, 1], sum of weights.
    mean, inverse: [B, F, 1, 1, d], a problem's mean and 1 / deviation (0 for a constant), in units of the features held.
    present: bool [B, F, 1, K]. class_values: [B, F, 1, K] and class_vectors: [B, F, 1, K, K], eigensystem of A.
    """

    target: jax.Array
    weight: jax.Array
    penalty: jax.Array
    total: jax.Array
    mean: jax.Array
    inverse: jax.Array
    present: jax.Array
    class_values: jax.Array
    class_vectors: jax.Array


def _probabilities(z, present, independent):
    """Of logits [..., K, n]: a sigmoid of each, or a softmax over the classes that are present."""
    if independent:
        return jax.nn.sigmoid(z)
    return jax.nn.softmax(jnp.where(present[..., None], z, -jnp.inf), axis=-2)


def _losses(z, target, present, independent):
    """[..., n]."""
    if independent:
        return jnp.sum(jax.nn.softplus(z) - target * z, axis=-2)
    masked = jnp.where(present[..., None], z, -jnp.inf)
    return jax.nn.logsumexp(masked, axis=-2) - jnp.sum(target * z, axis=-2)


@functools.partial(jax.jit, static_argnames="independent")
def _solve(x, problem, eigen, startW, startc, exact_gradient, done, tolerance, max_iterations, independent):
    """Conjugate gradients from W [B, F, S, K, d] and c [B, F, S, K]. done: bool [B, F, S], problems to leave alone.

    exact_gradient: that at the start, of the shapes of W and c; NaN where unknown.
    Returns how far W and c are from the start, and iterations, int32 [B, F, S].
    """
    p, penalty, total = problem, problem.penalty[:, None, None], problem.total[..., None]
    values, vectors = eigen
    present = jnp.broadcast_to(p.present, startc.shape)

    def logits(W, c):
        effective = W * p.inverse
        flat = effective.reshape(-1, W.shape[-1])
        # XLA would write [problems, n] as a product that reads the features across; kept apart like this they are read
        # along their rows, 5 times as fast on a CPU.
        product = lax.optimization_barrier(_product("nd,dc->nc", x, lax.optimization_barrier(flat.T)))
        z = product.T.reshape(*c.shape, -1)
        return z + (c - jnp.sum(effective * p.mean, -1))[..., None]

    def residuals(z):
        return p.weight * (_probabilities(z, present, independent) - p.target)

    def gradient(W, residual):
        flat = (residual - origin).reshape(-1, residual.shape[-1])
        by_feature = _product("cn,nd->cd", flat, x).reshape(W.shape)
        in_total = _product("cn,n->c", flat, jnp.ones(flat.shape[1], flat.dtype)).reshape(W.shape[:-1])
        data = p.inverse * (by_feature - p.mean * in_total[..., None]) / total[..., None]
        return data + penalty * W + offsetW, in_total / total + offsetc

    def precondition(gW, gc):
        turned = _product("bfskd,de->bfske", gW, vectors)
        turned = _product("bftkj,bfskd->bfsjd", p.class_vectors, turned)
        turned = turned / (p.class_values[..., None] * values + penalty)
        turned = _product("bftkj,bfsjd->bfskd", p.class_vectors, turned)
        turned_c = _product("bftkj,bfsk->bfsj", p.class_vectors, gc)
        flat = p.class_values <= 1e-6  # the shift common to all classes, and absent ones: no gradient there
        turned_c = jnp.where(flat, 0, turned_c / jnp.where(flat, 1, p.class_values))
        return (
            _product("bfske,de->bfskd", turned, vectors),
            _product("bftkj,bfsj->bfsk", p.class_vectors, turned_c),
        )

    def dot(aW, ac, bW, bc):
        return jnp.sum(aW * bW, (-2, -1)) + jnp.sum(ac * bc, -1)

    def along(a, z, dz, residual):
        """Change of the loss's slope from 0 to step a, and its curvature there: two [B, F, S]."""
        probability = _probabilities(z + a[..., None, None] * dz, present, independent)
        change = jnp.sum((p.weight * (probability - p.target) - residual) * dz, (-2, -1))
        if independent:
            spread = jnp.sum(probability * (1 - probability) * dz * dz, -2)
        else:
            middle = jnp.sum(probability * dz, -2, keepdims=True)
            spread = jnp.sum(probability * (dz - middle) ** 2, -2)
        return change / p.total, jnp.sum(p.weight[..., 0, :] * spread, -1) / p.total

    def search(a, slope, squared, z, dz, residual, done):
        """The step at which the slope is 0, by Newton's method from a inside a bracket: [B, F, S]."""

        def step(state):
            a, low, high, ready, i = state
            change, bend = along(a, z, dz, residual)
            here = slope + change + a * squared
            bend = bend + squared
            ready = ready | (jnp.abs(here) <= SLOPE_LEFT * jnp.abs(slope))
            low, high = jnp.where(here < 0, a, low), jnp.where(here < 0, high, a)
            newton = a - here / jnp.where(bend > 0, bend, 1)
            inside = jnp.where(jnp.isinf(high), 10 * low, (low + high) / 2)
            good = (bend > 0) & (newton > low) & (newton < high)
            good = good & (newton <= 10 * a)
            return jnp.where(ready, a, jnp.where(good, newton, inside)), low, high, ready, i + 1

        begin = (a, jnp.zeros_like(slope), jnp.full_like(slope, jnp.inf), done, jnp.int32(0))
        return lax.while_loop(lambda s: ~s[3].all() & (s[4] < SEARCH_STEPS), step, begin)[0]

    def judge(W, gW, gc, z):
        """Gap, and whether both parts of the certificate are met."""
        losses = _losses(z, p.target, present, independent)
        objective = jnp.sum(p.weight[..., 0, :] * losses, -1) / p.total
        objective = objective + p.penalty / 2 * jnp.sum((startW + W) ** 2, (-2, -1))
        gap = jnp.sum(gW * gW, (-2, -1)) / (2 * p.penalty)
        # A quarter: float64 has the last word, and is not to find them just above.
        return gap, jnp.maximum(gap, jnp.sqrt(jnp.sum(gc * gc, -1))) <= tolerance / 4 * objective

    def step(state):
        W, c, z, residual, gW, gc, yW, yc, DW, Dc, a, done, lowest, since, ran, i = state
        dz = logits(DW, Dc)
        slope = dot(gW, gc, DW, Dc)
        squared = p.penalty * jnp.sum(DW * DW, (-2, -1))
        a = search(a, slope, squared, z, dz, residual, done)
        move = jnp.where(done, 0, a)[..., None]
        W, c, z = W + move[..., None] * DW, c + move * Dc, z + move[..., None] * dz
        residual = residuals(z)
        newW, newc = gradient(W, residual)
        nextW, nextc = precondition(newW, newc)
        was = dot(yW, yc, gW, gc)
        beta = dot(nextW, nextc, newW - gW, newc - gc) / jnp.where(was > 0, was, 1)
        beta = jnp.where(was > 0, jnp.maximum(beta, 0), 0)[..., None]
        DW, Dc = beta[..., None] * DW - nextW, beta * Dc - nextc
        uphill = (dot(newW, newc, DW, Dc) >= 0)[..., None]
        DW, Dc = jnp.where(uphill[..., None], -nextW, DW), jnp.where(uphill, -nextc, Dc)
        gap, met = judge(W, newW, newc, z)
        ran = jnp.where(done, ran, ran + 1)
        since = jnp.where(gap < 0.9 * lowest, 0, since + 1)
        done = done | met | (since >= PATIENCE)
        lowest = jnp.minimum(lowest, gap)
        return W, c, z, residual, newW, newc, nextW, nextc, DW, Dc, a, done, lowest, since, ran, i + 1

    z = logits(startW, startc)
    residual = residuals(z)
    # From a start whose gradient is known exactly, only the change of the residuals goes through float32 products.
    exactW, exactc = exact_gradient
    known = ~jnp.isnan(exactc)
    origin = jnp.where(known[..., None], residual, 0)
    offsetW = jnp.where(known[..., None], exactW, penalty * startW)
    offsetc = jnp.where(known, exactc, 0)
    W, c = jnp.zeros_like(startW), jnp.zeros_like(startc)
    gW, gc = gradient(W, residual)
    yW, yc = precondition(gW, gc)
    gap, met = judge(W, gW, gc, z)
    done = done | met
    zeros = jnp.zeros(done.shape, jnp.int32)
    state = (W, c, z, residual, gW, gc, yW, yc, -yW, -yc, jnp.ones_like(gap), done, gap, zeros, zeros, jnp.int32(0))
    state = lax.while_loop(lambda s: ~s[11].all() & (s[-1] < max_iterations), step, state)
    return state[0], state[1], state[14]


@jax.jit
def _standardised(x, centre, scale):
    return (x - centre) / scale


@jax.jit
def _eigen(x, rows, weight):
    """Eigenvalues [d] and vectors [d, d] of the correlations over some rows; weights sum to 1."""
    some = x[rows]
    values, vectors = jnp.linalg.eigh(_product("nd,ne->de", some * weight[:, None], some))
    return jnp.maximum(values, 0), vectors


@jax.jit
def _add_moments(sums, x, shift, weight):
    """`sums` [2, P, d] and those of some more rows. x: float32 [n, d]; weight: float32 [P, n]."""
    off, weight = x.astype(jnp.float64) - shift, weight.astype(jnp.float64)
    return sums + jnp.stack([weight @ off, weight @ (off * off)])


@functools.partial(jax.jit, static_argnames="independent")
def _exact(x, shift, W, c, weight, target, present, independent):
    """Sums over a chunk of rows: loss [B, F, S], residuals [B, F, S, K], residuals × (x - shift) [B, F, S, K, d].

    And the loss's second derivatives in the intercepts, [B, F, S, K, K].
    """
    off = x.astype(jnp.float64) - shift
    weight, target = weight.astype(jnp.float64), target.astype(jnp.float64)
    z = _product("nd,cd->cn", off, W.reshape(-1, W.shape[-1])).reshape(*c.shape, -1) + c[..., None]
    probability = _probabilities(z, present, independent)
    residual = weight * (probability - target)
    weighted = weight * probability
    if independent:
        curvature = jnp.sum(weighted * (1 - probability), -1)[..., None]
    else:
        curvature = jnp.sum(weighted, -1)[..., None] * jnp.eye(z.shape[-2])
        curvature = curvature - _product("bfskn,bfsjn->bfskj", weighted, probability)
    loss = jnp.sum(weight[..., 0, :] * _losses(z, target, present, independent), -1)
    by_feature = _product("cn,nd->cd", residual.reshape(-1, z.shape[-1]), off).reshape(W.shape)
    return loss, jnp.sum(residual, -1), by_feature, curvature


@functools.partial(jax.jit, static_argnames="independent")
def _scores(x, centre, W, c, known, independent):
    """Probabilities [B, S, n, O] of one chunk."""
    product = lax.optimization_barrier(_product("nd,dc->nc", x - centre, W.reshape(-1, W.shape[-1]).T))
    z = product.T.reshape(*c.shape, -1) + c[..., None]
    probability = jnp.where(known[..., None], _probabilities(z, known, independent), jnp.nan)
    return probability.swapaxes(-1, -2)


def _checked_features(features: np.ndarray | jax.Array, columns: int | None = None) -> np.ndarray:
    """Features on the host, float32 [n, d]."""
    rows = mesh.to_host(features) if isinstance(features, jax.Array) else features
    rows = np.asarray(rows, np.float32)
    if rows.ndim != 2 or (columns is not None and rows.shape[1] != columns):
        raise ValueError(f"features {rows.shape}: not [n, {'d' if columns is None else columns}]")
    return rows


def _even(count: int, most: int) -> int:
    """Size of the fewest blocks of at most `most` that hold `count`, all as large as the first."""
    return -(-count // -(-count // most))


def _chunks(rows: np.ndarray, size: int) -> Iterator[tuple[int, np.ndarray]]:
    """(first row, [size, d]) of each chunk, the last one filled up with zeros, or one of [n, d] where n is smaller."""
    size = min(size, max(len(rows), 1))
    for first in range(0, len(rows), size):
        block = np.asarray(rows[first : first + size])
        yield first, np.pad(block, ((0, size - len(block)), (0, 0))) if len(block) < size else block


def _last_axis(array: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """The same chunks of an array whose last axis is rows."""
    n = array.shape[-1]
    size = min(size, n)
    for first in range(0, n, size):
        block = array[..., first : first + size]
        yield np.pad(block, [(0, 0)] * (array.ndim - 1) + [(0, size - block.shape[-1])])
