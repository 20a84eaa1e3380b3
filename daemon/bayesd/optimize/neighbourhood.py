"""The worst that a model expects near a point: what is left of a value when it is not set quite as meant.

Implementation errors after Bertsimas, Nohadani and Teo, "Robust optimization for unconstrained
simulation-based problems", 2010: the worst case over a neighbourhood of the decision, here over the
posterior mean as in Beland and Nair, "Bayesian optimization under uncertainty", 2017. The
neighbourhood is a box of the same share of every numeric range on its scale. A fixed design fills it:
its centre, the ends of its axes and Sobol points. Whole numbers and ordered choices move by one step at
least; a category, which nobody sets by mistake to another, stays; and so does an inactive parameter.
"""

import numpy as np

from bayesd.optimize.arms import of_objective
from bayesd.optimize.encode import Cube
from bayesd.optimize.sobol import net
from bayesd.optimize.streams import Floats
from bayesd.optimize.surrogate import surrogate
from bayesd.optimize.threads import one_blas_thread
from bayesd.study.problem import Problem
from bayesd_schemas.constraints import broken
from bayesd_schemas.space import Params

INNER = 64          # Sobol points in a box


def worst_nearby(problem: Problem, points: list[Params], radius: float) -> list[float] | None:
    """The worst posterior mean of the first objective in the box around each point, in metric units; None where no
    model can be made. Points that the constraints forbid are no part of a box."""
    if not points:
        return []
    try:
        with one_blas_thread():
            base = surrogate(of_objective(problem, 0), np.ones(1))
            of, out = base.design.of, []
            for u in of.encode(points):
                V = box(of, u, radius)
                if problem.constraints:
                    allowed = [broken(problem.constraints, params) is None for params in of.decode(V)]
                    allowed[0] = True       # the point itself was tried
                    V = V[allowed]
                out.append(float(np.max(base.posterior.predict(base.design.features(V))[0])))
            return [float(value) for value in base.outcomes.metric(np.array(out))]
    except Exception:       # an answer is owed even when the numbers fail
        return None


def box(of: Cube, u: Floats, radius: float) -> Floats:
    """(b, p) unit coordinates around u (p,), which comes first."""
    p = of.p
    numeric = np.array([axis.kind != "choice" for axis in of.axes]) & of.active(u[None])[0]
    # Half a cell of an axis of few cells is wider than the radius: then the box reaches the next cell.
    reach = np.array([max(radius, 1.0 / axis.cells) if axis.kind == "cells" else radius for axis in of.axes])
    inner = u + (2 * net(p, INNER) - 1) * np.where(numeric, reach, 0.0)
    ends = np.vstack([u + sign * reach[j] * np.eye(p)[j] for j in np.flatnonzero(numeric) for sign in (-1, 1)]
                     or [u[None]])
    V = np.clip(np.vstack([u[None], ends, inner]), 0.0, 1.0)
    for j in np.flatnonzero(numeric):
        axis = of.axes[j]
        if axis.kind == "cells":
            V[:, j] = axis.centre(axis.cell(V[:, j]))
    return np.asarray(V)
