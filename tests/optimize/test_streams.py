"""Random streams: the same for ever, whatever is drawn around them."""

import numpy as np

from bayesd.optimize import streams


def test_the_numbers_are_fixed_for_all_time() -> None:
    drawn = streams.across(7, "random", 3, 1, 2)[0].tolist() + streams.Stream(7, 3, "bayes").uniform(2).tolist()
    assert drawn == GOLDEN


def test_a_trial_has_its_numbers_whatever_the_batch_or_the_width() -> None:
    wide = streams.across(1, "random", 5, 20, 11)
    assert np.array_equal(wide[3:5, :6], streams.across(1, "random", 8, 2, 6))


def test_uniforms_are_uniform() -> None:
    for u in (streams.across(0, "random", 1, 5000, 4), streams.Stream(0, 1, "bayes").uniform(5000, 4)):
        assert u.min() >= 0
        assert u.max() < 1
        assert np.allclose(u.mean(axis=0), 0.5, atol=0.02)
        assert np.allclose(np.corrcoef(u.T) - np.eye(4), 0, atol=0.05)
        assert np.allclose(np.corrcoef(u[1:, 0], u[:-1, 0])[0, 1], 0, atol=0.05)


def test_seed_number_and_purpose_each_matter() -> None:
    streams_ = [streams.Stream(*key).uniform(3) for key in ((1, 1, "a"), (2, 1, "a"), (1, 2, "a"), (1, 1, "b"))]
    assert len({u.tobytes() for u in streams_}) == 4


def test_whole_numbers_below_anything() -> None:
    for below in (1, 6, 10**12, 10**60):
        drawn = [streams.Stream(0, t, "pick").integer(below) for t in range(200)]
        assert all(0 <= number < below for number in drawn)
        assert max(drawn) >= below * 0.9 - 1


GOLDEN = [0.17637184175352594, 0.7403671977248338, 0.7402760402736077, 0.6927616475063044]
