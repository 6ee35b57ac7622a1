import numpy as np
import pytest
from scipy import optimize

from cxr_jax.audit.suppression import Ledger, null_space, withhold

LEAST = 11


def table(cells):
    """Patients of a table and its totals: [r + 1][c + 1], of whom no two cells share any."""
    cells = np.asarray(cells)
    ends = np.cumsum(cells).reshape(cells.shape)
    inner = [[np.arange(end - n, end) for n, end in zip(*line)] for line in zip(cells, ends)]
    rows = [[*line, np.concatenate(line)] for line in inner]
    return [*rows, [np.concatenate(column) for column in zip(*rows)]]


def sizes_of(patients):
    return np.array([[len(cell) for cell in row] for row in patients])


def totals_known(shape):
    """Totals of columns as the sizes of splits are: everybody knows them."""
    reluctance = np.zeros(shape, int)
    reluctance[-1] = -1
    return reluctance


def could_be(counts, hidden, cell):
    """The least and the most that a hidden cell can be, given all shown cells, with counts of 0 or more."""
    shown, unknown = ~hidden, np.flatnonzero(hidden)
    rows, columns = counts.shape
    equations, right = [], []
    for line in [np.s_[i, :] for i in range(rows)] + [np.s_[:, j] for j in range(columns)]:
        mask = np.zeros(counts.shape, bool)
        mask[line] = True
        sign = np.ones(counts.shape)
        sign[-1, :] *= -1
        sign[:, -1] *= -1
        equations.append((mask * sign).ravel()[unknown])
        right.append(-(mask * sign * shown * counts).sum())
    objective = (unknown == cell).astype(float)
    ends = [optimize.linprog(s * objective, A_eq=np.array(equations), b_eq=right, bounds=(0, None)) for s in (1, -1)]
    return [s * end.fun if end.status == 0 else np.inf for s, end in zip((1, -1), ends, strict=True)]


def test_nothing_is_withheld_where_no_cell_is_small():
    assert not withhold(table([[20, 30, 40], [0, 50, 60]]), LEAST).any()
    assert not withhold(table([[1]]), 1).any()


def test_a_small_cell_takes_a_second_in_its_row_and_column():
    patients = table([[100, 90, 80], [70, 5, 60], [50, 40, 30]])
    hidden = withhold(patients, LEAST, reluctance=totals_known((4, 4)))
    assert hidden[1, 1]
    assert hidden[1, :].sum() >= 2 and hidden[:, 1].sum() >= 2
    assert not hidden[-1].any()


def test_where_only_rows_add_up_columns_give_nothing_away():
    hidden = withhold(table([[100, 90, 80], [70, 5, 60]]), LEAST, columns_add_up=False)
    np.testing.assert_array_equal(np.argwhere(hidden), [[1, 1], [1, 2]])
    column = [[cell] for cell in (np.arange(50), np.arange(50, 90), np.arange(90, 95), np.arange(95))]
    np.testing.assert_array_equal(withhold(column, LEAST, rows_add_up=False)[:, 0], [False, True, True, False])


def test_small_cells_whose_sum_is_small_take_a_further_one():
    patients = table([[2, 3, 80, 90], [100, 100, 70, 60], [100, 100, 50, 40]])
    hidden = withhold(patients, LEAST, reluctance=totals_known((4, 5)))
    assert hidden[0, :2].all() and hidden[0].sum() >= 3


def test_the_same_patients_in_two_small_cells_are_not_counted_twice():
    few, more = np.arange(8), np.arange(5, 12)
    far, everyone = np.arange(20, 70), np.arange(70)
    assert withhold([[few, more, far, everyone]], LEAST, columns_add_up=False).tolist() == [[True, True, False, False]]
    assert withhold([[few, few, far, everyone]], LEAST, columns_add_up=False).tolist() == [[True, True, True, False]]


def test_the_reluctant_go_last():
    cells = [[300, 50, 100], [200, 30, 60], [80, 5, 20]]
    reluctance = totals_known((4, 4))
    assert withhold(table(cells), LEAST, reluctance=reluctance)[:, 2].any()  # 20 is the smallest beside 5
    reluctance[:-1, 2] = 1
    assert not withhold(table(cells), LEAST, reluctance=reluctance)[:, 2].any()


def test_what_was_hidden_before_does_not_come_out_either():
    patients = table([[300, 50], [200, 60]])
    hidden = np.zeros((3, 3), bool)
    hidden[0, 1] = True
    found = withhold(patients, LEAST, hidden, totals_known((3, 3)))
    assert found[0, 1] and found[0].sum() >= 2 and found[:, 1].sum() >= 2
    hidden[:, 1] = True
    found = withhold(patients, LEAST, hidden)
    assert found[:, 1].all() and (found.sum(axis=1) >= 2).all()  # nor by taking rows' other parts from their totals


def test_a_withheld_cell_that_can_be_worked_out_is_no_cover():
    """5 and 4 are few together; 12, withheld beside them, would follow from its own row if nothing went with it."""
    patients = table([[30, 40, 5], [35, 45, 12], [37, 38, 4]])
    hidden = withhold(patients, LEAST, reluctance=totals_known((4, 4)))
    assert hidden[:-1, 2].all() and hidden[1].sum() >= 2


def test_an_empty_cell_goes_only_where_it_may_and_nothing_else_would_do():
    patients = table([[50, 0], [4, 56]])
    known = totals_known((3, 3))
    known[:, -1] = -1
    assert not withhold(patients, LEAST, reluctance=known)[0, 1]
    assert withhold(patients, LEAST, reluctance=known, empty_may_go=True)[:2, :2].all()
    patients = table([[50, 0, 30], [4, 56, 20]])
    assert not withhold(patients, LEAST, reluctance=totals_known((3, 4)), empty_may_go=True)[0, 1]


@pytest.mark.parametrize("seed", range(40))
def test_no_small_count_can_be_worked_out(seed):
    rng = np.random.default_rng(seed)
    patients = table(rng.choice([0, 1, 4, 9, 12, 25, 80, 300], size=(rng.integers(1, 6), rng.integers(1, 5))))
    counts = sizes_of(patients)
    hidden = withhold(patients, LEAST, reluctance=totals_known(counts.shape))
    small = (counts > 0) & (counts < LEAST)
    assert hidden[small].all()
    assert not hidden[counts == 0].any()
    for cell in np.flatnonzero(small):
        row, column = np.unravel_index(cell, counts.shape)
        if (hidden | (counts == 0))[row].all() or (hidden | (counts == 0))[:-1, column].all():
            continue  # all that could be hidden is
        low, high = could_be(counts, hidden, cell)
        assert high - low > 1e-6, (counts, hidden, cell)


@pytest.mark.parametrize("seed", range(25))
def test_what_is_withheld_in_a_row_adds_up_to_enough(seed):
    """Of that, what can be worked out after all does not count, here by a rank where the code has a null space."""
    rng = np.random.default_rng(seed)
    patients = table(rng.choice([0, 3, 6, 15, 60], size=(4, 3)))
    counts, hidden = sizes_of(patients), withhold(patients, LEAST)
    lines = np.array([np.outer(np.eye(5)[i], [1, 1, 1, -1]).ravel() for i in range(5)]
                     + [np.outer([1, 1, 1, 1, -1], np.eye(4)[j]).ravel() for j in range(4)])  # fmt: skip
    open_ = np.zeros_like(hidden)
    for cell in np.flatnonzero(hidden):
        others = [other for other in np.flatnonzero(hidden) if other != cell]
        rank = np.linalg.matrix_rank
        open_.flat[cell] = rank(lines[:, hidden.ravel()]) == (rank(lines[:, others]) if others else 0)
    for row in range(4):
        if open_[row, -1] or (hidden | (counts == 0))[row, :-1].all():
            continue
        together = counts[row, :-1][open_[row, :-1]].sum()
        assert together == 0 or together >= LEAST


def ledger(**cells):
    """A ledger of cells with so many patients each, no two of which share any."""
    made, start = Ledger(LEAST), 0
    for key, n in cells.items():
        made.cell(key, np.arange(start, start + n))
        start += n
    return made


def test_two_tables_that_share_a_total_are_decided_together():
    """Either is safe alone; together, b + c is told by the one and b by the other."""
    book = ledger(a=100, b=50, c=5, d=60)
    book.cell("b and c", np.arange(100, 155))
    book.cell("all", np.arange(155))
    book.add_up(["a", "b and c"], "all")
    book.add_up(["b", "c"], "b and c")
    assert book.hides("c") and (book.hides("b") or book.hides("b and c"))
    assert not book.hides("d")
    if book.hides("b and c"):
        assert book.hides("a") or book.hides("all")


def test_patients_and_images_add_up_each_for_themselves():
    """Three of b are in a as well: of images a + b make up all, of patients they do not."""
    book = Ledger(LEAST)
    book.cell("a", np.arange(60))
    book.cell("b", np.arange(57, 100))
    book.cell("all", np.arange(100))
    book.cell("never a", np.arange(60, 100))
    book.add_up(["a", "b"], "all")
    book.add_up(["a", "never a"], "all", images=False)
    assert not book.hides("a", "b", "all", "never a")
    book.cell("never b", np.arange(8))
    book.cell("ever b", np.arange(8, 100))
    book.add_up(["never b", "ever b"], "all", images=False)
    assert book.hides("never b") and book.hides("ever b")


def test_what_is_not_published_is_no_cover_and_tells_nothing():
    book = ledger(a=5, b=70)
    book.cell("a and b", np.arange(75))
    book.cell("c", np.arange(75, 90), published=False)
    book.cell("all", np.arange(90))
    book.add_up(["a", "b"], "a and b")
    book.add_up(["a and b", "c"], "all")
    assert book.hides("a") and (book.hides("b") or (book.hides("a and b") and book.hides("c")))


def test_two_cells_of_one_name_are_refused():
    book = ledger(a=20)
    book.cell("a", np.arange(20))
    with pytest.raises(ValueError, match="two cells are called 'a'"):
        book.cell("a", np.arange(5, 25))


@pytest.mark.parametrize("seed", range(10))
def test_null_space_is_that_of_singular_values(seed):
    rng = np.random.default_rng(seed)
    matrix = rng.choice([-1.0, 0.0, 0.0, 1.0], size=(rng.integers(1, 12), rng.integers(1, 15)))
    found = null_space(matrix)
    assert found.shape == (matrix.shape[1], matrix.shape[1] - np.linalg.matrix_rank(matrix))
    np.testing.assert_allclose(matrix @ found, 0, atol=1e-9)
    assert np.linalg.matrix_rank(found) == found.shape[1]
