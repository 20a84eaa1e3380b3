"""Sobol points: even, scrambled by the seed, any of them by its index."""

import numpy as np
import pytest

from bayesd.optimize import sobol


def test_every_prefix_of_a_power_of_two_is_a_net() -> None:
    for seed in (0, 1):
        u = sobol.points(seed, 0, 64, 6)
        assert 0 < u.min() < u.max() < 1
        for column in np.floor(u * 64).astype(int).T:
            assert sorted(column) == list(range(64))     # one point in each of 64 slices
        quarter = np.floor(u[:, :2] * 8).astype(int)
        assert len({tuple(row) for row in quarter}) == 64


def test_any_point_by_its_index() -> None:
    u = sobol.points(5, 0, 300, 3)
    for first, count in ((0, 1), (1, 1), (7, 13), (255, 45)):
        assert np.array_equal(sobol.points(5, first, count, 3), u[first:first + count])


def test_the_seed_moves_every_coordinate_of_the_first_point() -> None:
    first = np.array([sobol.points(seed, 0, 1, 4)[0] for seed in range(200)])
    assert np.allclose(first.mean(axis=0), 0.5, atol=0.1)
    assert np.allclose(first.std(axis=0), 12**-0.5, atol=0.05)


def test_the_numbers_are_fixed_for_all_time() -> None:
    assert sobol.points(7, 4, 1, 3)[0].tolist() == pytest.approx(GOLDEN, abs=1e-9)


@pytest.mark.parametrize("first", [sobol.PERIOD - 1, sobol.PERIOD, 2**30, 2**53])
def test_far_along_and_past_the_end(first: int) -> None:
    u = sobol.points(1, first, 3, 2)
    assert u.shape == (3, 2)
    assert 0 < u.min() < u.max() < 1
    assert np.array_equal(u[1:], sobol.points(1, first + 1, 2, 2))


GOLDEN = [0.8146588258, 0.6251449767, 0.2560982662]
