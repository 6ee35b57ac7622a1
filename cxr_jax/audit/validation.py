"""What validation says of a network while it is trained: its loss, its AUCs, how groups fare, and the one number by which an epoch is chosen.

No intervals: these figures choose a checkpoint, and are not what a model is judged by.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from cxr_jax.audit import metrics, thresholds
from cxr_jax.tables import Target, UserError


def measure(
    targets: Mapping[str, Target], labels: Mapping[str, np.ndarray], scores: Mapping[str, np.ndarray], patients: np.ndarray,
    group: np.ndarray | None = None, groups: int = 0, select: str = "auc", floor: float = 0.0,
) -> dict:  # fmt: skip
    """labels: by target, int32 [n] (-1 unknown) or float [n, findings] (NaN unknown). scores: float [n, classes]. patients: [n].

    group: int [n], number of each image's group, -1 unknown, or None. select, floor: as config.train.select and auc_floor.

    Returns loss, the mean one of labels whatever the objective; auc, {class: value}, and macro_auc, over the classes, of all heads, that can be judged; n_images, n_patients;
    score, the greater the better. With groups also worst_group_auc, the least of the groups' macro AUCs, and gap, the error gap: the
    mean over classes of the mean of two ranges over groups, of the rates of missed positives and of called negatives, at Youden's threshold for all. Both
    are over classes that can be judged in every group, and NaN where there is none; how many these are is judged_in_groups.
    """
    auc, of_groups, gaps, loss = {}, [], [], 0.0
    members = [group == g for g in range(groups)] if group is not None else []
    for name, target in targets.items():
        loss += log_loss(labels[name], scores[name])
        for k, class_name in enumerate(target.classes):
            truth, score = one_vs_rest(labels[name], k), scores[name][:, k]
            known = ~np.isnan(truth)
            positive = truth == 1
            auc[class_name] = metrics.auc(positive[known], score[known])
            each = [metrics.auc(positive[known & of], score[known & of]) for of in members]
            if each and not np.isnan(each).any():
                of_groups.append(each)
                called = score >= thresholds.choose(positive[known], score[known], "youden")
                missed, raised = ([called[known & of & (positive == side)].mean() for of in members] for side in (True, False))
                gaps.append((np.ptp(missed) + np.ptp(raised)) / 2)
    defined = [value for value in auc.values() if not np.isnan(value)]
    found = {
        "loss": loss,
        "macro_auc": float(np.mean(defined)) if defined else float("nan"),
        "auc": auc,
        "n_images": len(patients),
        "n_patients": len(np.unique(patients)),
    }
    if group is not None:
        found |= {
            "worst_group_auc": float(np.mean(of_groups, axis=0).min()) if of_groups else float("nan"),
            "gap": float(np.mean(gaps)) if gaps else float("nan"),
            "judged_in_groups": len(gaps),
        }
    return found | {"score": _score(found, select, floor)}


def _score(found: Mapping[str, float], select: str, floor: float) -> float:
    if select != "gap":
        return found["macro_auc" if select == "auc" else select]
    # Whoever is above the floor is before whoever is not, of whom the nearest to it is first.
    return 1 - found["gap"] if found["macro_auc"] >= floor else found["macro_auc"] - 1


def check_groups(targets: Mapping[str, Target], labels: Mapping[str, np.ndarray], group: np.ndarray, groups: Sequence[str], select: str) -> None:
    """Raises UserError where no class can be judged in every group of validation, so that no epoch could be told by `select`. Arguments: as for `measure`."""
    for name, target in targets.items():
        for k in range(len(target.classes)):
            truth = one_vs_rest(labels[name], k)
            if all({0.0, 1.0} <= set(truth[group == g]) for g in range(len(groups))):
                return
    raise UserError(
        f"config.train.select={select}: validation has no class with images that have it and images that lack it in every group"
        f" ({', '.join(groups)}), so that no epoch can be told by it; take auc, or a larger share of validation"
    )


def one_vs_rest(labels: np.ndarray, k: int) -> np.ndarray:
    """1, 0, NaN where unknown: float64 [n], of class k, from class numbers [n] or from a column of findings [n, F]."""
    if labels.ndim == 2:
        return labels[:, k].astype(np.float64)
    return np.where(labels < 0, np.nan, (labels == k).astype(np.float64))


def log_loss(labels: np.ndarray, scores: np.ndarray) -> float:
    """Mean negative logarithm of the probability given to what is so, over known labels; nats, NaN where there is none.

    labels: class numbers [n] (-1 unknown) with scores [n, classes], or findings [n, F] (NaN unknown) with scores [n, F].
    """
    if labels.ndim == 1:
        rows = np.flatnonzero(labels >= 0)
        given = scores[rows, labels[rows]]
    else:
        known = ~np.isnan(labels)
        given = np.where(labels == 1, scores, 1 - scores)[known]
    return float(-np.log(np.maximum(given.astype(np.float64), 1e-12)).mean()) if given.size else float("nan")


def wrong(targets: Mapping[str, Target], labels: Mapping[str, np.ndarray], scores: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Which labels scores get wrong, by target, bool in the shape of the labels; none that is unknown.

    Of classes that exclude one another the greatest score is what is called; a finding is called from Youden's threshold on these very images
    up, since of a rare one few scores reach .5, and what is wrong would be what is positive.
    """
    found = {}
    for name, target in targets.items():
        if target.kind == "multiclass":
            found[name] = (labels[name] >= 0) & (scores[name].argmax(axis=1) != labels[name])
            continue
        found[name] = np.zeros(labels[name].shape, bool)
        for k in range(len(target.classes)):
            known = ~np.isnan(labels[name][:, k])
            positive, score = labels[name][known, k] == 1, scores[name][known, k]
            found[name][known, k] = (score >= thresholds.choose(positive, score, "youden")) != positive
    return found
