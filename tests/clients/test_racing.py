"""A scikit-learn worker races over a real broker: hopeless trials end after a fold, and a repeat sees other folds."""

import subprocess
import sys
from pathlib import Path

import pytest
from tests.edges.daemon import serving

PROGRAM = """
import sys
import bayesd_client as bayesd
from sklearn.datasets import load_iris
from sklearn.naive_bayes import GaussianNB

X, y = load_iris(return_X_y=True)

@bayesd.worker(sys.argv[1], study="iris", name="w1", spool=sys.argv[2])
def objective(trial):
    return bayesd.cross_validate(trial, GaussianNB(var_smoothing=10 ** (12 * trial.params["x"] - 9)), X, y, cv=5)

objective.run()
"""


@pytest.mark.mosquitto
def test_a_scikit_learn_worker_is_raced_and_measures_again(tmp_path: Path) -> None:
    with serving(tmp_path) as (daemon, wire):
        wire.create("iris", direction="maximize", metric="accuracy", bounds=[0, 1], folds={"count": 5},
                    prune={"rule": "race"}, enqueue=[{"x": x} for x in (0.0, 0.7, 1.0, 0.95, 0.9)])
        (tmp_path / "worker.py").write_text(PROGRAM)
        worker = subprocess.Popen([sys.executable, str(tmp_path / "worker.py"), f"mqtt://{wire.host}:{wire.port}",
                                   str(tmp_path / "spool")])
        try:
            def ended() -> int:
                return sum((wire.study("iris") or {"trials": {}})["trials"].get(state, 0)
                           for state in ("complete", "pruned"))

            wire.until(lambda: ended() >= 5, "five trials have ended", 60)
            wire.ok("study.enqueue", {"study": "iris", "again": 1})
            repeats = {"trials": 0}

            def measured() -> bool:
                events = daemon.events()
                again = {event["trial"] for event in events if event["data"].get("sampler") == "again"}
                repeats["trials"] = next((event["trial"] for event in events if event["type"] == "trial.completed"
                                          and event["trial"] in again), 0)
                return bool(repeats["trials"])

            wire.until(measured, "the first point was measured again", 60)
        finally:
            worker.terminate()
            worker.wait(30)
        events = daemon.events()
        stopped = [event for event in events if event["type"] == "trial.stopped"]
        assert {event["data"]["rule"] for event in stopped} == {"race"}
        assert {3, 4, 5} <= {event["trial"] for event in stopped}
        folds = {event["trial"]: sum(other["type"] == "trial.reported" and other.get("trial") == event["trial"]
                                     for other in events) for event in stopped}
        assert all(folds[trial] < 5 for trial in (3, 4, 5))
        told = {event["trial"]: event["data"]["folds"] for event in events if event["type"] == "trial.completed"}
        assert len(told[1]) == len(told[repeats["trials"]]) == 5
        assert told[1] != told[repeats["trials"]]            # the same point on folds that were drawn anew
