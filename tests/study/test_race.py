"""Racing: it stops what is clearly behind, and what would have won no more often than it says."""

from collections.abc import Callable

import numpy as np
import pytest
from scipy.special import ndtri
from tests.study.races import Races
from tests.study.story import Story

from bayesd.study.paired import moderation
from bayesd.study.race import decide
from bayesd.study.spending import boundaries

FOLDS = 10
ERROR = 0.05
Noise = Callable[[np.random.Generator], np.ndarray]


def rivals(rng: np.random.Generator, noise: Noise, gap: float) -> np.ndarray:
    """Scores (trials, folds) of a study: folds of unequal difficulty, trials whose spread is unequal, too."""
    levels = rng.normal(0.0, gap, size=12)
    spreads = 0.02 * np.sqrt(rng.chisquare(6, size=12) / 6)
    return np.array(levels[:, None] + rng.normal(0, 0.05, FOLDS) + np.array([
        spread * noise(rng) for spread in spreads]))


def wrongly_stopped(noise: Noise, gap: float, studies: int, min_folds: int) -> tuple[int, int, float]:
    """(would-be winners stopped, would-be winners, share of fold evaluations saved)."""
    wrong = winners = used = 0
    for seed in range(studies):
        rng = np.random.default_rng(seed)
        races = Races(FOLDS, ERROR, min_folds)
        for scores in rivals(rng, noise, gap):
            best = races.study.best
            wins = best is not None and best.values is not None and scores.mean() > best.values[0]
            came_through = races.run(scores.tolist())
            winners += wins
            wrong += wins and not came_through
        used += races.evaluations
    return wrong, winners, 1 - used / (studies * 12 * FOLDS)


@pytest.mark.parametrize("min_folds", [1, 2])
@pytest.mark.parametrize("gap", [0.0, 0.01, 0.05])
@pytest.mark.parametrize("noise", [lambda rng: rng.normal(size=FOLDS), lambda rng: rng.standard_t(4, size=FOLDS),
                                   lambda rng: rng.exponential(size=FOLDS) - 1], ids=["normal", "t4", "skewed"])
def test_the_stated_error_holds(noise: Noise, gap: float, min_folds: int) -> None:
    wrong, winners, _ = wrongly_stopped(noise, gap, 40, min_folds)
    assert winners >= 40
    assert wrong <= ERROR * winners + 2 * np.sqrt(ERROR * winners)


def test_what_is_clearly_behind_is_stopped_early() -> None:
    _, _, saved = wrongly_stopped(lambda rng: rng.normal(size=FOLDS), 0.2, 20, 1)
    assert saved > 0.5


def test_what_cannot_win_any_more_is_stopped_without_a_doubt() -> None:
    races = Races(4, 1e-9, 1, (0.0, 1.0))
    races.run([1.0, 0.9, 1.0, 1.0])
    assert not races.run([0.875, 1.0, 1.0, 1.0])        # one error more than the incumbent, and no room for less
    assert races.evaluations == 5
    assert races.run([0.95, 0.96, 1.0, 1.0])            # it could have had 1 everywhere else
    assert Races(4, 1e-9, 1, (0.0, None)).run([0.5] * 4)


def test_a_tie_to_come_is_stopped_too_and_rounding_stops_no_winner() -> None:
    races = Races(10, 1e-9, 1, (0.0, 1.0))
    races.run([0.7] + [1.0] * 9)
    assert not races.run([0.7] + [1.0] * 9)
    assert races.run([0.7 + 2 ** -45] + [1.0] * 9)


@pytest.mark.parametrize(("count", "min_folds"), [(5, 1), (10, 1), (10, 3), (40, 2)])
def test_a_trial_that_ties_in_the_end_is_stopped_as_often_as_is_stated(count: int, min_folds: int) -> None:
    sums = np.cumsum(np.random.default_rng(0).normal(size=(40_000, count)), axis=1)
    folds = np.arange(1, count + 1)
    sums -= folds / count * sums[:, -1:]
    limits = boundaries(count, min_folds, ERROR)
    assert min(limits) == min_folds
    crossed = np.zeros(len(sums), dtype=bool)
    for k, chance in limits.items():
        crossed |= sums[:, k - 1] / np.sqrt(k * (1 - k / count)) > -ndtri(chance)
    assert crossed.mean() == pytest.approx(ERROR, abs=0.004)


def test_two_equal_differences_by_luck_are_no_proof() -> None:
    races = Races(4, ERROR, 2)
    races.run([0.5, 0.7, 0.6, 0.8])
    races.run([0.55, 0.6, 0.65, 0.7])
    assert races.run([0.49, 0.69, 0.59, 0.79])          # always 0.01 worse; but usually differences vary by 0.08


def test_a_point_that_is_measured_again_is_never_stopped() -> None:
    races = Races(4, ERROR, 1)
    for scores in ([0.5, 0.7, 0.6, 0.8], [0.48, 0.69, 0.57, 0.8], [0.49, 0.7, 0.58, 0.79]):
        races.run(scores)
    assert not races.run([0.1, 0.3, 0.2, 0.4])
    trial = races.study.trials[-1]
    assert decide(trial, ERROR, 1) is not None
    trial.of = 1
    assert decide(trial, ERROR, 1) is None


def test_variances_that_vary_little_weigh_much() -> None:
    rng = np.random.default_rng(0)
    same = [(float(each), 4) for each in rng.chisquare(4, 200) / 4]
    other = [(float(each), 4) for each in rng.chisquare(4, 200) / 4 * 6 / rng.chisquare(6, 200)]
    scale, weight = moderation(same)
    assert scale == pytest.approx(1, rel=0.2)
    assert weight > 30
    assert moderation(other)[1] == pytest.approx(6, rel=0.5)


@pytest.mark.parametrize("size", [1e155, 1e300, -1e300])
def test_folds_whose_squares_are_beyond_all_numbers_hurt_nobody(size: float) -> None:
    """A worker can tell them, so a rule has to take them."""
    story = Story(folds={"count": 3}, prune={"rule": "race", "startup": 1, "error": 0.4})
    for number, scores in enumerate(([1.0, 2.0, 3.0], [size, -size, 1.0], [-size, size], [1.5, size], [2.0, 2.5]),
                                    start=1):
        story.ask("w1", id=f"a{number}")
        for step, score in enumerate(scores):
            facts, _ = story.report("w1", number, step, score)
            assert facts[0][0] == "trial.reported"
        story.tell("w1", number, state="complete" if len(scores) == 3 else "pruned")
    story.check()


def test_an_error_of_next_to_nothing_stops_nobody() -> None:
    """It cannot be shared out any more: the boundaries were 1, below which everybody is stopped."""
    assert {*boundaries(1000, 1, 5e-324).values()} == {0.0}
    assert all(0 < bound < 1e-8 for bound in boundaries(10, 1, 1e-9).values())
