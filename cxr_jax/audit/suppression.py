"""Which numbers to withhold, so that nobody learns a count of a few patients.

A small count that is withheld alone is no secret: a total less its other parts gives it. So further ones go with it.
Whether a withheld number can still be worked out is a question of linear algebra. Whatever adds up is an equation in the
withheld numbers; one of them has one possible value if, and only if, the null space of these equations is zero there
(Gusfield, SIAM Journal on Computing 17, 1988, has the same criterion for two-way tables in the words of graphs).

`Ledger` takes numbers and sums of any shape, and so several tables that share some of their totals; `withhold` is a
ledger of one table.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Sequence

import numpy as np


class Ledger:
    """Cells that are to be shown, how they add up, and, once `settle` has been called, which of them must not be.

    A cell is a set of images, and stands for every number about it: of images, of patients, a share. It is withheld
    where it has 1 to `least` - 1 patients, or is said to be secret; an empty one is nobody's, and shown. After `settle`
    no such cell follows from what is shown by adding and subtracting; nor do withheld parts of a known total that have
    fewer than `least` patients together. Where that cannot be had, all is withheld that could help.

    Numbers of images and numbers of patients add up each for themselves, and a cell must follow from neither.
    """

    def __init__(self, least: int, empty_may_go: bool = False):
        """empty_may_go: whether an empty cell may be withheld for the sake of others, where no other would do."""
        self._least, self._empty_may_go = least, empty_may_go
        self._number: dict[Hashable, int] = {}
        self._patients: list[np.ndarray] = []
        self._reluctance: list[int] = []
        self._secret: list[bool] = []
        self._published: list[bool] = []
        self._sums: dict[str, dict[tuple[int, tuple[int, ...]], None]] = {"images": {}, "patients": {}}
        self._only_patients = False
        self._withheld: np.ndarray | None = None

    def cell(
        self, key: Hashable, patients: np.ndarray, reluctance: int = 0, secret: bool = False, published: bool = True
    ) -> None:
        """Adds a cell; one of the same key is the same cell, and is secret, or shown, if either is.

        Raises ValueError where the patients of that are others.

        patients: distinct patients, integers. reluctance: of cells that would do, those of the lowest number go first,
        the smallest of them before the others; a negative number says that the cell is known anyway, so that
        withholding it would not help. published: False for what nobody means to show, but sums have among their parts.
        """
        at = self._number.setdefault(key, len(self._number))
        if at == len(self._patients):
            self._patients.append(patients)
            self._reluctance.append(reluctance)
            self._secret.append(0 < len(patients) < self._least)
            self._published.append(False)
        if not np.array_equal(self._patients[at], patients):
            raise ValueError(f"two cells are called {key!r}")
        self._secret[at] |= secret and len(patients) > 0
        self._published[at] |= published
        self._withheld = None

    def add_up(
        self, parts: Iterable[Hashable], total: Hashable, images: bool = True, patients: bool | None = None
    ) -> None:
        """Says that the images of cells, all of which are there, or the patients make up those of another.

        patients: None for where the numbers say so; with patients in several of the parts it is not so.
        """
        whole, of = self._number[total], tuple(self._number[part] for part in parts)
        if images:
            self._sums["images"][whole, of] = None
        adds_up = sum(len(self._patients[part]) for part in of) == len(self._patients[whole])
        if patients or (patients is None and adds_up):
            self._sums["patients"][whole, of] = None
            self._only_patients |= not images
        self._withheld = None

    def hides(self, *keys: Hashable) -> bool:
        """Whether any of these cells must not be shown."""
        if self._withheld is None:
            self.settle()
        return any(bool(self._withheld[self._number[key]]) for key in keys)

    def settle(self) -> None:
        """Decides what is withheld; `hides` does so by itself where it has to."""
        sizes = np.array([len(who) for who in self._patients], int)
        secret, reluctance = np.array(self._secret, bool), np.array(self._reluctance, int)
        unpublished = ~np.array(self._published, bool)
        free = ((sizes > 0) | self._empty_may_go) & (reluctance >= 0) & ~unpublished
        cost = [(n == 0, order, n, cell) for cell, (n, order) in enumerate(zip(sizes, reluctance, strict=True))]
        # What holds for images as well is looked at once.
        units = ["images", "patients"] if self._only_patients else ["images"]
        systems = [_Sums(list(self._sums[unit]), self._patients, self._least, secret) for unit in units]
        withheld = secret | unpublished
        while True:
            chosen: set[int] = set()
            for sums in systems:
                for line in (line for part in sums.parts(withheld) for line in part.lines):
                    choice = [cell for cell in sums.cells[line] if free[cell] and not withheld[cell]]
                    if choice and chosen.isdisjoint(sums.cells[line]):
                        chosen.add(min(choice, key=cost.__getitem__))
            if not chosen:
                break
            withheld[list(chosen)] = True
        # Some have gone that others, gone later, made needless: show those again, the most wanted first.
        part_of = [{cell: part for part in sums.parts(withheld) for cell in part.cells} for sums in systems]
        needless = np.flatnonzero(withheld & ~secret & ~unpublished)
        for cell in sorted(needless, key=lambda cell: (-reluctance[cell], -sizes[cell])):
            parts = [parts[cell] for parts in part_of]
            after = [part.without(cell) for part in parts]
            if all(state is not None for state in after):
                withheld[cell] = False
                for part, state in zip(parts, after, strict=True):
                    part.unknown, part.null_space = state
        self._withheld = withheld


class _Sums:
    """Equations, and what follows from them about withheld cells.

    cells: of each equation, its parts and last its total. of_cell: the equations that a cell is in.
    """

    def __init__(
        self, sums: Sequence[tuple[int, tuple[int, ...]]], patients: Sequence[np.ndarray], least: int, secret: np.ndarray
    ):
        self.cells = [(*parts, total) for total, parts in sums]
        self.patients, self.least, self.secret = patients, least, secret
        self.sizes = np.array([len(who) for who in patients], int)
        self.of_cell: list[list[int]] = [[] for _ in patients]
        for line, cells in enumerate(self.cells):
            for cell in cells:
                self.of_cell[cell].append(line)
        self._seen: dict[tuple[int, ...], _Part] = {}

    def parts(self, withheld: np.ndarray) -> list[_Part]:
        """The withheld cells, those together that equations join. A part that was there before is not made anew."""
        found, left = [], set(np.flatnonzero(withheld).tolist())
        while left:
            todo = [left.pop()]
            joined = set(todo)
            while todo:
                near = {cell for line in self.of_cell[todo.pop()] for cell in self.cells[line]} & left
                left -= near
                joined |= near
                todo += near
            cells = tuple(sorted(joined))
            if cells not in self._seen:
                self._seen[cells] = _Part(self, cells)
            found.append(self._seen[cells])
        return found

    def few_together(self, line: int, unknown: Collection[int]) -> list[int]:
        """Unknown parts of an equation whose sum is known, where they have too few patients together; [] elsewhere."""
        *parts, total = self.cells[line]
        inside = [cell for cell in parts if cell in unknown]
        if not inside or total in unknown or self.sizes[inside].max() >= self.least:
            return []
        together = len(np.unique(np.concatenate([self.patients[cell] for cell in inside])))
        return inside if 0 < together < self.least else []


class _Part:
    """Withheld cells that equations join, and what of them can be worked out.

    lines: equations in which a further cell must go, since a secret follows, or a sum of too few patients.
    """

    def __init__(self, sums: _Sums, cells: tuple[int, ...]):
        self.sums, self.cells = sums, cells
        self.unknown, self.null_space = self._solve()
        known = set(cells) - self.unknown
        found = {cell for cell in known if sums.secret[cell]}
        lines = set()
        for line in {line for cell in self.unknown for line in sums.of_cell[cell]}:
            few = sums.few_together(line, self.unknown)
            if few:
                found |= set(few)
                lines.add(line)
        if found:  # a cell may be known by way of others: another must go beside any of these
            lines |= {line for cell in known for line in sums.of_cell[cell]}
        self.lines, self._hopeless = sorted(lines), found

    def _solve(self) -> tuple[set[int], np.ndarray]:
        """Cells of more than one possible value, and in what ways they can change together: [cells of the part, k]."""
        sums, unknown = self.sums, set(self.cells)
        # Most follow one after the other, each the only unknown of an equation. That is quick to see.
        todo = {line for cell in self.cells for line in sums.of_cell[cell]}
        while todo:
            alone = [cell for cell in sums.cells[todo.pop()] if cell in unknown]
            if len(alone) == 1:
                unknown.remove(alone[0])
                todo |= set(sums.of_cell[alone[0]])
        rest = sorted(unknown)
        lines = sorted({line for cell in rest for line in sums.of_cell[cell]})
        matrix = np.zeros((len(lines), len(rest)))
        at = {cell: i for i, cell in enumerate(rest)}
        for row, line in zip(matrix, lines, strict=True):
            *parts, total = sums.cells[line]
            for cell in parts:
                if cell in at:
                    row[at[cell]] = 1
            if total in at:
                row[at[total]] = -1
        free = null_space(matrix)
        self._at = at
        moves = np.abs(free).max(axis=1, initial=0) > _ZERO
        return {cell for cell in rest if moves[at[cell]]}, free

    def without(self, cell: int) -> tuple[set[int], np.ndarray] | None:
        """`unknown` and `null_space` once a cell is shown; None where a secret would follow."""
        if cell not in self.unknown:
            return self.unknown, self.null_space  # it is known as it is
        # What can change with this cell alone is fixed once it is: the rows that are parallel to its own.
        row = self.null_space[self._at[cell]]
        squares = np.einsum("ij,ij->i", self.null_space, self.null_space)
        parallel = squares * (row @ row) - (self.null_space @ row) ** 2 < _ZERO * squares * (row @ row)
        fixed = {other for other in self.unknown if parallel[self._at[other]]}
        unknown = self.unknown - fixed
        found = {other for other in fixed if self.sums.secret[other]}
        for line in {line for other in fixed for line in self.sums.of_cell[other]}:
            found |= set(self.sums.few_together(line, unknown))
        if found - self._hopeless:
            return None
        column = int(np.abs(row).argmax())
        free = self.null_space - np.outer(self.null_space[:, column] / row[column], row)
        return unknown, np.delete(free, column, axis=1)


_ZERO = 1e-9


def null_space(matrix: np.ndarray) -> np.ndarray:
    """A basis of the solutions of matrix @ x = 0: float [c, k], of a matrix [r, c] of small whole numbers.

    By Gauss and Jordan's elimination: exact for what sums of counts give, several times as fast as singular values.
    """
    matrix = matrix.copy()
    rows, columns = matrix.shape
    pivots: list[int] = []
    for column in range(columns):
        done = len(pivots)
        if done == rows:
            break
        best = done + int(np.abs(matrix[done:, column]).argmax())
        if abs(matrix[best, column]) < _ZERO:
            continue
        matrix[[done, best]] = matrix[[best, done]]
        matrix[done] /= matrix[done, column]
        others = np.flatnonzero(np.abs(matrix[:, column]) > _ZERO)
        others = others[others != done]
        matrix[others] -= np.outer(matrix[others, column], matrix[done])
        pivots.append(column)
    free = np.setdiff1d(np.arange(columns), pivots)
    basis = np.zeros((columns, len(free)))
    basis[free, np.arange(len(free))] = 1
    basis[pivots] = -matrix[: len(pivots), free]
    return basis


def withhold(
    patients: Sequence[Sequence[np.ndarray]],
    least: int,
    hidden: np.ndarray | None = None,
    reluctance: np.ndarray | None = None,
    rows_add_up: bool = True,
    columns_add_up: bool = True,
    empty_may_go: bool = False,
) -> np.ndarray:
    """The cells of a table that must not be shown: bool [r, c].

    patients: [r][c], the distinct patients of each cell, integers. Where `rows_add_up`, the last column is the sum of
        those before it; where `columns_add_up`, the last row is.
    hidden: bool [r, c], cells that are withheld already, and secret. reluctance: int [r, c]. These, `least` and
        `empty_may_go`: see `Ledger`.
    """
    rows, columns = len(patients), len(patients[0])
    ledger = Ledger(least, empty_may_go)
    for i in range(rows):
        for j in range(columns):
            order = 0 if reluctance is None else int(reluctance[i, j])
            ledger.cell((i, j), patients[i][j], order, hidden is not None and bool(hidden[i, j]))
    for i in range(rows if rows_add_up else 0):
        ledger.add_up([(i, j) for j in range(columns - 1)], (i, columns - 1))
    for j in range(columns if columns_add_up else 0):
        ledger.add_up([(i, j) for i in range(rows - 1)], (rows - 1, j))
    return np.array([[ledger.hides((i, j)) for j in range(columns)] for i in range(rows)])
