"""What a gap would be if groups had the same mix of findings, ages, views: others weighted to be like the group.

A group may fare worse than all others since its patients are older, or seen from the front more often. Beside each gap
therefore stands the one to others *like the group*: each image of the others weighs

    w = images of the group in its stratum / images of the others in its stratum

so that the others have the group's own mix of strata, and the group stays as it is. It is direct standardisation with the
group as the standard (Rothman, Greenland and Lash, Modern Epidemiology, chapter 15). Drawing test sets of equal mix, patients
and all, gives the same figures on the average of many draws, but adds the luck of each draw; a test draws them.

A stratum is of the class's own label, of whether there is another finding (one whose label is unknown counts as absent), and of
the attributes of `audit.case_mix` in their order. Where fewer than `FEWEST` images of the others are in a stratum of the group, its
images are compared with those of a wider one, without the last attribute, and so on down to those with the same label: nobody of the
group is left out, and the mix is the more alike the more images have their like. What the wider strata leave of the mix stays in the
difference.

Intervals draw patients with these weights as they are. In samples of known truth they cover about as they should where most images
have others like them (94 %), and less (91 %) where few have, for what is left of the mix. What goes with the mix alone has no
interval: that the mix of another sample would be another is the better part of its error.

Of data that are not open the weights themselves could tell of few: a figure of others is the sum of its strata's, in the group's
shares. A stratum of the group is then used only if `least` of its patients are in it.

What remains is not shown to be the model's doing, nor what goes with the mix to be innocent: who is seen in which view, and when,
is itself how groups are treated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

FEWEST = 5  # images of others that may stand for a stratum of the group


class Alike(NamedTuple):
    """weight: float64 [n], of each image of the others, 0 of the rest; NaN all, where no label of theirs is the group's.
    whole: share of the group's images that have others like them in all; NaN of an empty group."""

    weight: np.ndarray
    whole: float


def alike(group: np.ndarray, others: np.ndarray, strata: Sequence[np.ndarray], patient: np.ndarray, least: int) -> Alike:
    """Weighs the others to be like the group.

    group, others: bool [n], which have no image in common. strata: int [n] each, the number of each image's stratum, from 0 on, the
    last one the widest; each is a part of the next. patient: int [n], from 0 on; least: how many patients of the group a stratum must
    have to be used, the widest apart.
    """
    weight, left, whole = np.zeros(len(group)), group.copy(), np.nan
    for depth, stratum in enumerate(strata):
        size = int(stratum.max(initial=0)) + 1
        mine, theirs = (np.bincount(stratum[mask], minlength=size) for mask in (left, others))
        used = (mine > 0) & (theirs >= (FEWEST if depth < len(strata) - 1 else 1))
        if least > 1 and depth < len(strata) - 1:
            pairs = np.unique(np.stack([stratum[left], patient[left]]), axis=1)
            used &= np.bincount(pairs[0], minlength=size) >= least
        each = np.where(used, mine / np.maximum(theirs, 1), 0.0)
        weight += np.where(others, each[stratum], 0.0)
        left &= ~used[stratum]
        if depth == 0 and group.any():
            whole = 1 - float(left.sum() / group.sum())
    return Alike(np.full(len(group), np.nan) if left.any() else weight, whole)


def nested(codes: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Strata by all of some labels, then by all but the last, …, then by the first alone: int64 [n] each. codes: int [n] each, at least one."""
    found, stratum = [], np.zeros(len(codes[0]), np.int64)
    for code in codes:
        stratum = np.unique(stratum * (int(code.max(initial=0)) + 1) + code, return_inverse=True)[1]
        found.insert(0, stratum)
    return found
