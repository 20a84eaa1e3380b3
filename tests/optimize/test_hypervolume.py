"""Fronts and hypervolumes against what counting says, ties included."""

import itertools

import numpy as np
import pytest

from bayesd.optimize import hypervolume as hv
from bayesd.optimize.streams import Floats

SIZE = 6


def grid_points(k: int, n: int, seed: int) -> Floats:
    return np.random.default_rng(seed).integers(0, SIZE + 2, (n, k)).astype(float)


def counted(F: Floats, r: Floats) -> int:
    """Unit cells that some point dominates."""
    cells = np.array(list(itertools.product(range(SIZE), repeat=F.shape[1])))
    return int((np.any(np.all(cells[:, None, :] >= F, axis=2), axis=1) & np.all(cells < r, axis=1)).sum())


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_volume_is_what_counting_cells_says(k: int) -> None:
    r = np.full(k, float(SIZE))
    for seed in range(40):
        F = grid_points(k, 1 + seed % 9, seed)
        assert hv.hypervolume(F, r) == counted(F, r)


@pytest.mark.parametrize("k", [2, 3, 4])
def test_open_boxes_are_disjoint_and_are_all_that_is_not_dominated(k: int) -> None:
    r = np.full(k, float(SIZE))
    cells: Floats = np.array(list(itertools.product(range(-1, SIZE), repeat=k)), dtype=np.float64) + 0.5
    for seed in range(40):
        F = grid_points(k, seed % 9, seed)
        low, high = hv.open_boxes(F, r)
        inside = ((cells[:, None, :] > low) & (cells[:, None, :] < high)).all(axis=2).sum(axis=1)
        taken = np.any(np.all(cells[:, None, :] >= F, axis=2), axis=1)
        assert (inside == ~taken).all()


def test_front_keeps_the_first_of_equals_and_knows_directions() -> None:
    values = [(1.0, 5.0), (2.0, 7.0), (1.0, 5.0), (0.5, 5.0), (3.0, 6.0)]
    assert hv.front(values, ("minimize", "maximize")) == (1, 3)
    assert hv.front(values, ("minimize", "minimize")) == (3,)
    assert hv.front([], ("minimize", "minimize")) == ()
    for seed in range(30):
        F = grid_points(3, 12, seed)
        expected = [not any((G <= P).all() and ((G < P).any() or j < i) for j, G in enumerate(F) if j != i)
                    for i, P in enumerate(F)]
        assert hv.nondominated(F).tolist() == expected


def test_contributions_and_growth() -> None:
    r = np.array([4.0, 4.0])
    F = np.array([[1.0, 3.0], [2.0, 2.0], [3.0, 1.0], [3.0, 3.0]])
    assert hv.contributions(F, r).tolist() == [1, 1, 1, 0]
    grown = hv.over_time([(-1.0, 3.0), (-3.0, 3.0), (-2.0, 2.0), (-9.0, 0.0)], ("maximize", "minimize"), (-4.0, 4.0))
    assert grown == (3.0, 3.0, 5.0, 5.0)
    grown = hv.over_time(F.tolist(), ("minimize", "minimize"), (4.0, 4.0))
    assert grown == (3.0, 5.0, 6.0, 6.0)


def test_reference_lies_a_tenth_beyond_the_front() -> None:
    F = np.array([[0.0, 2.0], [1.0, 0.0], [9.0, 9.0]])
    assert hv.reference(F).tolist() == [1.1, 2.2]
    assert hv.reference(np.array([[0.0, 0.0], [2.0, 4.0]])).tolist() == pytest.approx([0.2, 0.4])
