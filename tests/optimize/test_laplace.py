"""Hyperparameters beside the fitted ones: as far apart as the data leave them open."""

from typing import Any

import numpy as np
import pytest
from scipy.special import ndtri

from bayesd.optimize import laplace, sobol, streams
from bayesd.optimize.encode import cube
from bayesd.optimize.kernel import Design
from bayesd.optimize.posterior import fit, negative_log_posterior
from bayesd.optimize.streams import Floats
from bayesd_schemas.space import Space

SPACE: dict[str, Any] = {name: {"type": "float", "low": 0, "high": 1} for name in ("a", "b")}


def drawn(count: int, draws: int = 200) -> tuple[Design, Floats, Floats]:
    """The design, the fit, and draws (k, size) of theta of a wave along the first axis, seen so often."""
    design = Design(cube(Space.model_validate(SPACE)))
    X = design.features(sobol.points(1, 0, count, 2))
    z = np.sin(12 * X[:, 0])
    data = X, z - z.mean(), np.zeros(count)
    theta = fit(design, *data, None)
    normal = ndtri(streams.Stream(1, 1, "test").uniform(draws, design.size))
    found = laplace.draws(design, theta, *data, normal)
    assert found == laplace.draws(design, theta, *data, normal)
    worth = [negative_log_posterior(design, np.array(each), *data)[0] for each in (theta, *found)]
    excess = np.array(worth[1:]) - worth[0] - 0.5 * np.sum(normal**2, axis=1)
    assert np.max(excess) <= laplace.SLACK + 0.05
    return design, np.array(theta), np.array(found)


def test_data_narrow_what_they_speak_of() -> None:
    """The wave says how long the first length scale is, the more of it the better; of the second axis little."""
    _, few, at_few = drawn(8)
    design, many, at_many = drawn(60)
    prior = design.prior[1]
    assert at_many[:, 0].std() < 0.5 * prior[0]
    assert at_many[:, 0].std() < at_few[:, 0].std()
    assert abs(at_many[:, 0].mean() - many[0]) < 2 * at_many[:, 0].std()
    assert np.all(at_many[:, [6, 8]].std(axis=0) > 0.9 * prior[[6, 8]])       # the warp of an axis without effect
    low, high = design.prior[2:]
    for found in (at_few, at_many):
        assert np.all((found >= low - 0.005) & (found <= high + 0.005))
    assert len(few) == design.size


def test_draws_are_rounded_as_fits_are() -> None:
    _, _, found = drawn(20, 5)
    assert found == pytest.approx(np.round(found, 2), abs=1e-12)
