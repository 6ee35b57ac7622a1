"""Who is in a group, and what may be shown of it.

A group of fewer than `min_patients` patients is suppressed, and with it as many others of its attribute as it takes for
it not to follow by subtraction (see `suppression`). That is decided on all rows of a split first and holds for every
target, since what one target shows another would hide in vain; a target hides more where labels are unknown. Numbers of
positive images are held to the same rule, in the table of groups by classes with its totals. Where a number of positives
is hidden, so is all from which it could be worked out; which metrics these are, `subgroups` says.

Intersections, the groups of several attributes at once, share their totals with the groups of each, and are settled
after these, in one system of sums. What a model says of people is not a recorded attribute, so cells of scores and of
called classes are not cells in this sense. Nothing here guards against subtracting two audits of almost the same people.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import pandas as pd

from cxr_jax.audit.intervals import distinct
from cxr_jax.audit.suppression import Ledger, withhold
from cxr_jax.tables import IDENTIFIERS, Predictions, Target, UserError

ALL, MISSING = "all", "missing"
REST, LIKE = "rest", "like"  # whom a group is compared with: all others; these, weighted to be like it (see `case_mix`)
TIMES = "*"  # between the attributes of an intersection; and, with blanks about it, between their groups


def some(patients: pd.Series, least: int) -> str:
    """`12 images` of the patients of these; `some images` of fewer than `least`."""
    return f"{len(patients):,} image{'s' * (len(patients) != 1)}" if patients.nunique() >= least else "some images"


def check_attributes(attributes: Sequence[str]) -> None:
    """Raises UserError for one that says which image or which patient, and so makes no groups."""
    for attribute in attributes:
        if attribute in IDENTIFIERS:
            raise UserError(f"config.audit.attributes: {attribute} says which image or patient, and makes no groups")


def age_band(age: np.ndarray, edges: Sequence[float]) -> np.ndarray:
    """Name of each age's band, object [n]: '20-39' is 20 and more and below 40, '80+' the last; None where unknown."""
    edges = list(edges)
    upper = [f"{high - 1:g}" if float(high).is_integer() else f"<{high:g}" for high in edges[1:]]
    names = [f"{low:g}-{high}" for low, high in zip(edges, upper)] + [f"{edges[-1]:g}+"]
    names = [f"below {edges[0]:g}", *names]
    age = np.asarray(age, np.float64)
    band = np.array(names, object)[np.searchsorted(edges, age, side="right")]
    band[np.isnan(age)] = None
    return band


def groups(
    table: pd.DataFrame, attribute: str, age_bands: Sequence[float], first: Sequence[str] = ()
) -> dict[str, np.ndarray]:
    """The groups of an attribute and who is in them, bool [n] each; {} where nothing at all is recorded.

    `age_band` is made from `age` where the table has no such column. A group is a value as recorded; an empty cell
    belongs to 'missing', which comes last. Those in `first` come first, in that order, then the others by name;
    bands by age. Raises UserError for a group called 'rest' or 'like', or as intersections are.
    """
    if attribute in table:
        recorded = table[attribute].to_numpy(object)
    elif attribute == "age_band" and "age" in table:
        recorded = age_band(table["age"].to_numpy(np.float64, na_value=np.nan), age_bands)
        first = list(dict.fromkeys(age_band(np.array([-np.inf, *age_bands]), age_bands)))
    else:
        return {}
    names = np.where(pd.isna(recorded), "", recorded).astype(str)
    empty = names == ""
    found = sorted(set(names[~empty].tolist()))
    if not found:
        return {}
    for name in found:
        if name in (REST, LIKE) or f" {TIMES} " in name:
            raise UserError(f"{attribute}: a group called {name!r} cannot be told from what the audit itself calls so; rename it")
    order = [name for name in first if name in found] + [name for name in found if name not in first]
    masks = {name: ~empty & (names == name) for name in order}
    if empty.any():
        masks[MISSING] = empty | masks.get(MISSING, False)
    return masks


def masks_of(predictions: Predictions, attribute: str, settings) -> dict[str, np.ndarray]:
    """`groups` of an attribute; where it is itself a target, in the order of its classes."""
    first = predictions.targets[attribute].classes if attribute in predictions.targets else ()
    return groups(predictions.table, attribute, tuple(settings.age_bands), first)


def hidden_groups(predictions: Predictions, settings, patient: np.ndarray) -> dict[str, set[str]]:
    """By attribute of `settings`, the groups that every target must hide, whatever labels it knows. patient: int [n]."""
    masks = {attribute: masks_of(predictions, attribute, settings) for attribute in settings.attributes}
    return {a: _too_few(masks[a], patient, settings, a in predictions.targets) for a in settings.attributes}


def _too_few(
    masks: Mapping[str, np.ndarray], patient: np.ndarray, settings, target: bool, hidden: Collection[str] = ()
) -> set[str]:
    """The groups to hide, of `masks` that share out some images, bool [n] each; `hidden` are, unless they are empty.

    target: the attribute is itself a target, and how many are 'missing' therefore known (all less the labelled):
        hiding them would protect nobody.
    """
    patients = {name: distinct(patient[mask]) for name, mask in masks.items()}
    gone = {name for name, who in patients.items() if len(who) and (name in hidden or len(who) < settings.min_patients)}
    secret = [name for name in masks if not (target and name == MISSING)]
    if secret:
        everyone = np.unique(np.concatenate([patients[name] for name in secret]))
        cells = [[patients[name]] for name in secret] + [[everyone]]
        already = np.array([[name in gone] for name in secret] + [[False]])
        total_is_known = np.append(np.zeros(len(secret), int), -1)[:, None]
        found = withhold(cells, settings.min_patients, already, total_is_known, rows_add_up=False)
        gone |= {name for name, is_hidden in zip(secret, found[:-1, 0]) if is_hidden}
    return gone


# --- one target on one split -----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Labels:
    """What is known of one target on one split.

    name, target: of the target. known, positive: bool [n, classes]; of classes that exclude one another all or none is
    known of an image. patient: int [n], from 0 on. least: patients below which a cell is withheld.
    """

    name: str
    target: Target
    known: np.ndarray
    positive: np.ndarray
    patient: np.ndarray
    least: int

    @property
    def few(self) -> str:
        return f"fewer than {self.least} patients"

    def patients(self, mask: np.ndarray) -> np.ndarray:
        """The distinct patients of some images, sorted. mask: bool [n]."""
        return distinct(self.patient[mask])

    def too_few_to_rank(self, mask: np.ndarray, c: int) -> str:
        """Which side of class c has too few patients among some images, or ''."""
        if len(self.patients(mask & self.known[:, c] & self.positive[:, c])) < self.least:
            return f"{self.few} have it"
        without = self.patients(mask & self.known[:, c] & ~self.positive[:, c])
        return f"{self.few} are without it" if len(without) < self.least else ""


@dataclasses.dataclass(frozen=True)
class Group:
    """A group and, for each class, whose label is known [n], and what may be shown of them."""

    attribute: str
    name: str
    mask: np.ndarray  # bool [n], who is in it
    known: np.ndarray  # bool [classes, n], of these
    suppressed: tuple[str, ...]  # by class: why, or ''
    any_suppressed: str  # the same for all images with any label
    hidden_positives: np.ndarray  # bool [classes]
    few: tuple[str, ...]  # by class: which side, of hidden ones, has too few patients to rank, or ''

    def rest(self, everyone: "Group", labels: Labels) -> "Group":
        """All others of the split, recorded or not: what of them is shown follows from this group and from everyone."""
        known = everyone.known & ~self.known
        hidden = self.hidden_positives | everyone.hidden_positives
        few = tuple(labels.too_few_to_rank(mask, c) for c, mask in enumerate(known))
        return dataclasses.replace(self, name=REST, mask=~self.mask, known=known, hidden_positives=hidden, few=few)


def protected(
    labels: Labels, attribute: str, masks: Mapping[str, np.ndarray], everyone: Group | None, settings,
    targets: Mapping[str, Target], hidden: Mapping[str, set[str]], crossed: Collection[tuple[str, str, str]],
) -> list[Group]:  # fmt: skip
    """The groups of one attribute with what must be hidden of them.

    masks: bool [n] each. everyone: their sum, or None for itself. targets: all of the predictions. hidden: as
    `hidden_groups` has it. crossed: (attribute, group, class) whose number of positive images is to be hidden.
    """
    minimum, known, positive, classes = labels.least, labels.known, labels.positive, labels.target.classes
    members = list(masks.values())

    def reasons(labelled: np.ndarray) -> list[str]:
        parts = {name: mask & labelled for name, mask in masks.items()}
        gone = _too_few(parts, labels.patient, settings, attribute in targets, hidden.get(attribute, ()))
        small = {name for name in gone if len(labels.patients(parts[name])) < minimum}
        return ["" if name not in gone else labels.few if name in small else _by_subtraction(labels) for name in masks]

    any_label = reasons(known.any(axis=1))
    by_class = [reasons(known[:, c]) for c in range(len(classes))]
    # A group that is hidden is hidden for every class: figures by class would otherwise add up to it.
    by_class = [[one or whole for one, whole in zip(column, any_label)] for column in by_class]
    gone = np.array([[bool(reason) for reason in column] for column in by_class]).T  # [groups, classes]

    def hidden_parts(
        parts: list[np.ndarray], gone: np.ndarray, of_everyone, crossed=False, empty_may_go=False
    ) -> np.ndarray:
        """bool [groups, parts]: which numbers of images to hide, where a group's parts add up to its n."""
        columns = [*parts, np.any(parts, axis=0)]
        rows = members if everyone is None else [*members, np.ones_like(columns[0])]
        found = np.zeros((len(rows), len(columns)), bool)
        found[: len(members)] = gone[:, None]
        found[: len(members), :-1] |= crossed
        found[-1, :-1] |= of_everyone
        reluctance = np.zeros(found.shape, int)
        reluctance[:, -1] = -1
        if everyone is not None:
            reluctance[-1] = -1
        cells = [[labels.patients(row & column) for column in columns] for row in rows]
        add_up = everyone is not None
        found = withhold(cells, minimum, found, reluctance, columns_add_up=add_up, empty_may_go=empty_may_go)
        return found[: len(members), :-1]

    if everyone is None:
        # The classes of an attribute that is the target are its groups, and hidden where these are.
        as_groups = [name in hidden.get(labels.name, ()) for name in classes]
        of_everyone = np.array(as_groups) & positive.any(axis=0)
    else:
        of_everyone = everyone.hidden_positives
    if labels.target.kind == "multiclass":
        # Classes exclude one another: the positives of all classes add up to the group.
        positives = [known[:, c] & positive[:, c] for c in range(len(classes))]
        cells = np.array([[(attribute, name, c) in crossed for c in classes] for name in masks])
        hides = hidden_parts(positives, gone.all(axis=1), of_everyone, cells)
    else:
        hides = np.zeros_like(gone)
        for c in range(len(classes)):
            both = [known[:, c] & positive[:, c], known[:, c] & ~positive[:, c]]
            # That none lacks it would tell how many have it.
            hides[:, c] = hidden_parts(both, gone[:, c], of_everyone[c], empty_may_go=True).any(axis=1)

    found = []
    for g, (name, mask) in enumerate(masks.items()):
        # A small side is hidden in any case, an empty one where saying so would give another group's away.
        sides = tuple(labels.too_few_to_rank(mask, c) if hides[g, c] else "" for c in range(len(classes)))
        suppressed = tuple(column[g] for column in by_class)
        found.append(Group(attribute, name, mask, (known & mask[:, None]).T, suppressed, any_label[g], hides[g], sides))
    return found


def _by_subtraction(labels: Labels) -> str:
    return f"hidden lest a group of {labels.few} be found by subtraction"


# --- intersections ---------------------------------------------------------------------------------------------------


def intersections(
    labels: Labels, everyone: Group, singles: Mapping[str, Sequence[Group]], names: Sequence[str],
    hidden: Collection[tuple[str, str]] = (),
) -> list[Group]:  # fmt: skip
    """The groups of several attributes at once, those in which there is anybody, with what must be hidden of them.

    everyone, singles: all, and the groups of each attribute, with what is settled of them. names: of attributes that
    `singles` has, joined by TIMES; no target is among them, unless it is the only one. hidden: (attribute, group) of
    intersections that another target hides.
    """
    everybody = (ALL, ALL)
    masks = {everybody: everyone.mask} | {(a, g.name): g.mask for a, groups in singles.items() for g in groups}
    within: dict[tuple[str, str], frozenset] = {}  # of each cell, the groups whose intersection it is
    for name in names:
        for groups in itertools.product(*(singles[attribute] for attribute in name.split(TIMES))):
            inside = np.logical_and.reduce([group.mask for group in groups])
            if inside.any():
                key = name, f" {TIMES} ".join(group.name for group in groups)
                within[key], masks[key] = frozenset((g.attribute, g.name) for g in groups), inside
    settled_before = {(a, g.name): g for a, groups in singles.items() for g in groups} | {everybody: everyone}
    sums = [(everybody, [(a, g.name) for g in groups]) for a, groups in singles.items()]
    for name in names:
        inside = {key: of for key, of in within.items() if key[0] == name}
        totals = {key: frozenset([key]) for key in settled_before} | {k: of for k, of in within.items() if k[0] != name}
        found = [(total, [key for key, groups in inside.items() if of < groups]) for total, of in totals.items()]
        sums += [(total, parts) for total, parts in found if parts]
    def settled(parts: Mapping[str, np.ndarray], hides) -> Ledger:
        """Sums of images over groups, and of the further parts, which share out the first, ''. hides: (group, part) -> bool."""
        ledger = Ledger(labels.least, empty_may_go=True)
        whole, *others = parts
        for part, images in parts.items():
            for key, mask in masks.items():
                group = settled_before.get(key)
                secret = key in hidden if group is None else bool(hides(group, part))
                ledger.cell((*key, part), labels.patients(images & mask), 0 if group is None else -1, secret)
            for total, of in sums:
                ledger.add_up([(*key, part) for key in of], (*total, part))
        for key in masks if others else ():
            ledger.add_up([(*key, part) for part in others], (*key, whole))
        return ledger

    known, positive, classes = labels.known, labels.positive, range(len(labels.target.classes))
    anyone = settled({"": known.any(axis=1)}, lambda group, _: group.any_suppressed)
    if labels.target.kind == "multiclass":
        # Classes share out the images: the negatives of one are the positives of the others.
        parts = {"": known.any(axis=1)} | {str(c): known[:, c] & positive[:, c] for c in classes}
        both = settled(parts, lambda group, part: all(group.suppressed) or (part and (group.suppressed[int(part)] or group.hidden_positives[int(part)])))
        ledgers, sides = [both for _ in classes], [(str(c),) for c in classes]
    else:
        ledgers = [
            settled(
                {"": known[:, c], "+": known[:, c] & positive[:, c], "-": known[:, c] & ~positive[:, c]},
                lambda group, part, c=c: group.suppressed[c] or (part and group.hidden_positives[c]),
            )
            for c in classes
        ]
        sides = [("+", "-") for _ in classes]
    found = []
    for key in within:
        inside = masks[key]

        def why(ledger: Ledger, known: np.ndarray) -> str:
            small = len(labels.patients(known & inside)) < labels.least
            return (labels.few if small else _by_subtraction(labels)) if ledger.hides((*key, "")) else ""

        whole = why(anyone, known.any(axis=1))
        suppressed = tuple(whole or why(ledger, known[:, c]) for c, ledger in enumerate(ledgers))
        gone = np.array([ledger.hides(*((*key, part) for part in sides[c])) for c, ledger in enumerate(ledgers)])
        few = tuple(labels.too_few_to_rank(inside, c) if gone[c] or labels.target.kind == "multiclass" else "" for c in classes)
        found.append(Group(*key, inside, (known & inside[:, None]).T, suppressed, whole, gone, few))
    return found
