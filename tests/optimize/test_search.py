"""The search: as high as a dense grid, on cells as on reals, and never at a known point."""

from typing import Any

import numpy as np
import pytest

from bayesd.optimize import search
from bayesd.optimize.acquisition import Improvement, log_ei
from bayesd.optimize.encode import cube
from bayesd.optimize.kernel import Design
from bayesd.optimize.posterior import Posterior
from bayesd.optimize.streams import Stream
from bayesd_schemas.space import Space

REAL: dict[str, Any] = {"x": {"type": "float", "low": 0, "high": 1}, "y": {"type": "float", "low": 0, "high": 1}}
MIXED: dict[str, Any] = {"x": {"type": "float", "low": 0, "high": 1},
                         "k": {"type": "categorical", "choices": list("abcdefgh")}}


@pytest.mark.parametrize("parameters", [REAL, MIXED])
@pytest.mark.parametrize("seed", range(5))
def test_as_high_as_a_dense_grid(parameters: dict[str, Any], seed: int) -> None:
    design = Design(cube(Space.model_validate(parameters)))
    U = np.random.default_rng(seed).random((12, 2))
    z = np.sin(5 * U[:, 0]) + (2 * U[:, 1] - 1) ** 2
    theta = np.zeros(design.size)
    theta[:2], theta[3], theta[4] = np.log(0.3), np.log(1e-4), np.log(0.01)
    posterior = Posterior.of(design, tuple(theta.tolist()), design.features(U), z, np.zeros(12))
    best = float(posterior.predict(design.features(U))[0].min())
    axis = np.linspace(0, 1, 201)
    grid = np.array(np.meshgrid(axis, axis)).reshape(2, -1).T
    highest = float(log_ei(*posterior.predict(design.features(grid)), best).max())
    found = search.maximise(Improvement(posterior, best), Stream(seed, 1, "bayes"), U[np.argsort(z)[:5]], U)
    assert found.acquisition[0] > highest - 1e-3
    assert np.all(np.diff(found.acquisition) < 1e-5)
    # What is known is left out, and the next best stands first.
    again = search.maximise(Improvement(posterior, best), Stream(seed, 1, "bayes"), U[:5], np.vstack([U, found.U]))
    assert not {row.tobytes() for row in again.U} & {row.tobytes() for row in found.U}


def test_wide_rows_are_judged_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    space = Space.model_validate({"x": {"type": "float", "low": 0, "high": 1},
                                  "c": {"type": "categorical", "choices": ["a", "b", "c"]}})
    design = Design(cube(space))
    U = np.random.default_rng(0).random((9, 2))
    theta = tuple(design.prior[0].tolist())
    posterior = Posterior.of(design, theta, design.features(U), np.sin(7 * U[:, 0]), np.zeros(9))

    def best() -> search.Found:
        return search.maximise(Improvement(posterior, 0.0), Stream(1, 1, "test"), U[:2], U)

    whole = best()
    monkeypatch.setattr(search, "FEATURES_MAX", 7 * design.width)
    parts = best()
    assert np.array_equal(parts.U, whole.U)
    assert np.allclose(parts.acquisition, whole.acquisition, rtol=1e-9)
