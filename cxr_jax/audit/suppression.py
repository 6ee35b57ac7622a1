"""Which cells of a table of counts to withhold, so that nobody learns a count of a few patients.

A small cell that is withheld alone is no secret: the row's total less the others gives it. So further cells go with it.
Whether a withheld cell can still be worked out is a question of linear algebra. The sums of rows and columns are
equations in the withheld cells; a cell has one possible value if, and only if, the null space of these equations is zero
there (Gusfield, SIAM Journal on Computing 17, 1988, has the same criterion for two-way tables in the words of graphs).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


def withhold(
    patients: Sequence[Sequence[np.ndarray]],
    least: int,
    hidden: np.ndarray | None = None,
    reluctance: np.ndarray | None = None,
    rows_add_up: bool = True,
    columns_add_up: bool = True,
    empty_may_go: bool = False,
) -> np.ndarray:
    """The cells that must not be shown: bool [r, c].

    patients: [r][c], the distinct patients of each cell, integers. Where `rows_add_up`, the last column is the sum of
        those before it; where `columns_add_up`, the last row is. Sums are of images or of whatever else is shown of
        these patients; a patient may be in several cells.
    least: patients that a cell must have to be shown. An empty cell is nobody's, and always shown unless it may go.
    empty_may_go: whether an empty cell may be withheld for the sake of others, where no other would do.
    hidden: bool [r, c], cells that are withheld already, which must not come out either.
    reluctance: int [r, c]. Of cells that would do, those of the lowest number go first, the smallest of them before the
        others; a negative number says that the cell is known anyway, so that withholding it would not help.

    Afterwards no cell of 1 to `least` - 1 patients, and none of `hidden`, follows from what is shown; nor do cells that
    have fewer than `least` patients together, which a sum known to all would tell of. Where that cannot be had, all is
    withheld that could help.
    """
    sizes = np.array([[len(cell) for cell in row] for row in patients])
    secret = (sizes > 0) & (sizes < least)
    if hidden is not None:
        secret |= hidden
    reluctance = np.zeros(sizes.shape, int) if reluctance is None else reluctance
    free = ((sizes > 0) | empty_may_go) & (reluctance >= 0)
    flat = [cell for row in patients for cell in row]
    sums = _sums(*sizes.shape, rows_add_up, columns_add_up)

    withheld = secret.copy()
    while True:
        _, beside = _known(flat, sums, least, secret, withheld)
        choice = np.flatnonzero(beside & free & ~withheld)
        if not len(choice):
            break
        cost = [(sizes.flat[cell] == 0, reluctance.flat[cell], sizes.flat[cell], cell) for cell in choice]
        withheld.flat[min(cost)[-1]] = True
    # One at a time, cells may have gone that others, gone later, made needless: show those again, largest first.
    hopeless, _ = _known(flat, sums, least, secret, withheld)
    for cell in sorted(np.flatnonzero(withheld & ~secret), key=lambda cell: -sizes.flat[cell]):
        withheld.flat[cell] = False
        if (_known(flat, sums, least, secret, withheld)[0] & ~hopeless).any():
            withheld.flat[cell] = True
    return withheld


class _Sum(NamedTuple):
    """bool [r, c] each: the one cell that is the sum of the others."""

    total: np.ndarray
    parts: np.ndarray


def _sums(rows: int, columns: int, rows_add_up: bool, columns_add_up: bool) -> list[_Sum]:
    lines = [np.s_[i, :] for i in range(rows) if rows_add_up] + [np.s_[:, j] for j in range(columns) if columns_add_up]
    sums = []
    for line in lines:
        parts = np.zeros((rows, columns), bool)
        parts[line] = True
        total = np.zeros_like(parts)
        total.flat[np.flatnonzero(parts)[-1]] = True
        sums.append(_Sum(total, parts & ~total))
    return sums


def _known(
    patients: list[np.ndarray], sums: list[_Sum], least: int, secret: np.ndarray, withheld: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """bool [r, c] twice: secret cells that can be worked out after all, and the cells of which another must go."""
    known, beside, single = np.zeros_like(secret), np.zeros_like(secret), np.zeros_like(secret)
    cells = np.flatnonzero(withheld)
    if len(cells) and sums:
        equations = np.stack([(line.parts.astype(float) - line.total).flat[cells] for line in sums])
        _, singular, right = np.linalg.svd(equations)
        null_space = right[int((singular > 1e-9).sum()) :]
        single.flat[cells[np.abs(null_space).sum(axis=0) < 1e-9]] = True
    if (single & secret).any():
        known |= single & secret
        beside |= _lines_of(single, sums)  # a cell may be known by way of others: another must go beside any of these
    for line in sums:
        inside = line.parts & withheld & ~single
        if inside.any() and not (line.total & withheld & ~single).any():
            together = len(np.unique(np.concatenate([patients[cell] for cell in np.flatnonzero(inside)])))
            if 0 < together < least:
                known |= inside
                beside |= line.parts | line.total | _lines_of(line.parts & single, sums)
    return known, beside


def _lines_of(cells: np.ndarray, sums: list[_Sum]) -> np.ndarray:
    """bool [r, c]: the cells that are in a sum with any of these."""
    lines = [line.total | line.parts for line in sums]
    return np.any([line for line in lines if (line & cells).any()], axis=0) | np.zeros_like(cells)
