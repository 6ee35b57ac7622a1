"""Last layers fitted anew on features as they are: deep feature reweighting.

Kirichenko, Izmailov and Wilson 2023, "Last layer re-training is sufficient for robustness to spurious correlations": what a network's features hold
is often enough for a finding in every group; it is the last layer that leans on what happens to go with it. So that is fitted again, on patients whom the network
was not trained on, among whom groups by label count alike. Published with subsets of equal size, drawn several times; here each image is weighed, which is
the limit of many such draws.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from cxr_jax.probes import logistic_regression
from cxr_jax.tables import Target, UserError


def refitted(
    targets: Mapping[str, Target], features: np.ndarray, labels: Mapping[str, np.ndarray], weights: Mapping[str, np.ndarray], penalty: float
) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """What new heads make of features, float32 [m, d]: probabilities by target, float32 [m, classes].

    features: float32 [n, d], whom they are fitted on. labels: int32 [n] (-1 unknown) or float32 [n, findings] (NaN unknown). weights: float, in the
    shape of the labels. penalty: of `logistic_regression.fit`, on standardised features. A finding that nobody here has, or everybody, cannot be fitted: NaN.
    Raises UserError for one of several classes that nobody has.
    """
    fits = {}
    for name, target in targets.items():
        if target.kind == "multiclass":
            known = labels[name] >= 0
            lacking = [c for k, c in enumerate(target.classes) if not (labels[name] == k).any()]
            if lacking:
                raise UserError(f"config.mitigate.method=dfr: none of {len(features):,} validation images is {lacking[0]!r}; take a larger validation split")
            parts = [(np.where(known, labels[name], 0).astype(np.int32), np.where(known, weights[name], 0.0), len(target.classes))]
        else:
            parts = [(labels[name][:, [k]], weights[name][:, k], None) for k in range(len(target.classes))]
        fits[name] = [logistic_regression.fit(features, of, np.array([penalty]), weight[None], classes=classes) for of, weight, classes in parts]

    def read(others: np.ndarray) -> dict[str, np.ndarray]:
        return {name: np.concatenate([fit.scores(others)[0, 0] for fit in several], axis=1) for name, several in fits.items()}

    return read
