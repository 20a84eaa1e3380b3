"""The curve rule: stop a trial whose learning curve hardly leads to a better end than the best trial has.

What is looked at is the end, not the step: a curve that begins badly and still falls goes on where those of others came
good. At each report the trial is held against the complete trials that stood nearest to it at this very step. Of each
it is known how far it still went, d = end - value at the step, and how far the shape of its curve up to there had said
that it would go, x = guess - value (extrapolate.py). From these

    d = m + l x + e,    l between 0 and 1, by least squares

says how far shapes are to be believed in this study at this step, not at all where l is 0, and how wrong that is. The
trial's end is then its value plus m + l x of its own shape, with the error of a prediction from so many trials, an
extrapolation beyond what they had included, as a Student's t with n - 2 degrees of freedom (Draper and Smith, Applied
Regression Analysis, 3rd edition, 1998, section 3.1). It is stopped when the chance to end better than the best is below
`chance`. That holds for one look; there is one at every report.

Adriaensen et al. ("Efficient Bayesian learning curve extrapolation using prior-data fitted networks", 2023) and Swersky
et al. ("Freeze-thaw Bayesian optimization", 2014) take what curves have in common from a prior; here it is taken from
the study's own. Those that were stopped are not among them: what they would have come to, nobody measured.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.special import stdtr, stdtrit

from bayesd.study.board import board_of
from bayesd.study.curves import Curve, Curves, scaled, unscaled
from bayesd.study.pruning.verdict import Verdict
from bayesd.study.state import Study, Trial
from bayesd_schemas.study import Prune

KNOWN_MIN = 3       # complete trials: of fewer there is no error left
BEYOND_MAX = 1e12  # how far a shape is beyond those of others counts up to here
DIGITS = 6          # of what decides and is recorded: further ones are another machine's


@dataclass(frozen=True, slots=True)
class Forecast:
    """Where a curve ends: a Student's t on the scale on which changes are counted."""

    centre: float
    scale: float
    freedom: int
    compared: int
    ratios: bool
    side: int

    def chance(self, value: float) -> float:
        """That it ends better than a signed value."""
        ahead = scaled(value, self.ratios) - self.centre
        if self.scale == 0.0:
            return 0.5 if ahead == 0.0 else float(ahead > 0)
        return rounded(float(stdtr(self.freedom, ahead / self.scale)))

    def end(self, chance: float) -> float:
        """The signed value that it ends below with this chance."""
        return unscaled(self.centre + self.scale * float(stdtrit(self.freedom, chance)), self.ratios, self.side)


def forecast(curves: Curves, own: Curve, step: int, startup: int) -> Forecast | None:
    """Where a curve ends whose newest point is at `step`; None where too few trials say so, or it is there."""
    horizon = curves.horizon
    if horizon is None or step >= horizon or len(curves.at.get(step, ())) < max(startup, KNOWN_MIN):
        return None
    others = curves.nearest(step, own.values[-1])
    ratios = curves.by_ratios(own)
    here = [scaled(other.values[other.steps.index(step)], ratios) for other in others]
    went = [scaled(other.end, ratios) - at for other, at in zip(others, here, strict=True) if other.end is not None]
    said = [other.guess(step, horizon, ratios) - at for other, at in zip(others, here, strict=True)]
    at = scaled(own.values[-1], ratios)
    moved, scale, freedom = _line(said, went, own.guess(step, horizon, ratios) - at)
    return Forecast(at + moved, scale, freedom, len(others), ratios, own.side)


def _line(x: Sequence[float], d: Sequence[float], new: float) -> tuple[float, float, int]:
    """d at a new x by a line through points, slope between 0 and 1: (prediction, its scale, degrees of freedom)."""
    n = len(x)
    x_mean, d_mean = math.fsum(x) / n, math.fsum(d) / n
    spread = math.fsum((each - x_mean) * (each - x_mean) for each in x)
    both = math.fsum((each - x_mean) * (other - d_mean) for each, other in zip(x, d, strict=True))
    slope = min(1.0, max(0.0, both / spread)) if spread > 0 else 0.0
    errors = [other - d_mean - slope * (each - x_mean) for each, other in zip(x, d, strict=True)]
    left = math.fsum(each * each for each in errors)
    far = (new - x_mean) * (new - x_mean)
    if spread == 0.0 and far > 0.0:     # no other curve had a shape to be wrong about: its own is no less doubtful
        left, far, spread = left + far, 0.0, 1.0
    beyond = min(far / spread, BEYOND_MAX) if spread > 0 else 0.0
    return d_mean + slope * (new - x_mean), math.sqrt(left / (n - 2) * (1.0 + 1.0 / n + beyond)), n - 2


def judge(study: Study, trial: Trial, step: int, prune: Prune) -> Verdict | None:
    """Stop when the chance to end better than the best is below the bound. A report that is no number has none."""
    curves = board_of(study).curves[0]
    if not curves.leaders or len(curves.at.get(step, ())) < prune.needed:
        return None
    best, against = curves.leaders[0]
    numbers = {"metric": curves.metric, "threshold": curves.sign * best + 0.0, "against": against,
               "bound": prune.least_chance}
    own = curves.of(trial)
    if not own.steps or own.steps[-1] != step:
        return Verdict(step, prune.rule, {**numbers, "value": None, "compared": len(curves.at[step]), "chance": 0.0})
    found = forecast(curves, own, step, prune.needed)
    if found is None:
        return None
    chance = found.chance(best)
    if chance >= prune.least_chance:
        return None
    ends = sorted(rounded(curves.sign * found.end(each) + 0.0) for each in (0.05, 0.95))
    return Verdict(step, prune.rule, {
        **numbers, "value": curves.sign * own.values[-1] + 0.0, "compared": found.compared, "chance": chance,
        "expected": rounded(curves.sign * found.end(0.5) + 0.0), "low": ends[0], "high": ends[1],
        "horizon": curves.horizon})


def rounded(value: float) -> float:
    """A number as it decides and is recorded."""
    return float(f"{value:.{DIGITS}g}")
