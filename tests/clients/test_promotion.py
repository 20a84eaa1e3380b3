"""A worker climbs the rungs of a study with a real daemon: it trains on from its own checkpoints, over a kill."""

import threading
from pathlib import Path

import pytest
from tests.edges.daemon import serving

import bayesd_client as bayesd
from bayesd_client import Summary


@pytest.mark.mosquitto
def test_a_worker_trains_on_from_its_checkpoints(tmp_path: Path) -> None:
    trained: list[tuple[int, int, str | None]] = []
    with serving(tmp_path) as (daemon, wire):
        wire.create("climb", budget={"trials": 9}, prune={"rule": "asha", "resume": True},
                    fidelity={"name": "epochs", "max": 9, "reduction": 3})

        @bayesd.worker(f"mqtt://{wire.host}:{wire.port}", study="climb", name="w1", spool=tmp_path / "spool")
        def objective(trial: bayesd.Trial) -> float:
            assert trial.fidelity is not None
            trained.append((trial.number, int(trial.fidelity.value), trial.resume_from))
            trial.checkpoint = f"{trial.number}.{int(trial.fidelity.value)}"
            return float(trial.params["x"]) + 1.0 / trial.fidelity.value

        ended: list[Summary] = []
        working = threading.Thread(target=lambda: ended.append(objective.run()))
        working.start()
        wire.until(lambda: len(trained) > 4, "some trials are trained")
        daemon.kill()
        daemon.start().ready(wire)
        working.join(60.0)
        assert [summary.reason for summary in ended] == ["closed"]
        events = daemon.events()
    leased = [(event["trial"], event["data"].get("fidelity", 9)) for event in events if event["type"] == "trial.leased"]
    assert sorted((number, value) for number, value, _ in trained) == sorted(leased)
    assert [start for _, _, start in trained] == [
        {1: None, 3: f"{number}.1", 9: f"{number}.3"}[value] for number, value, _ in trained]
    values = [value for _, value in leased]
    assert values.count(1) == 9
    assert values.count(3) >= 3                  # an early one may be overtaken later
    assert values.count(9) >= 1
    types = [event["type"] for event in events]
    assert types.count("trial.completed") == values.count(9)
    assert types.count("trial.pruned") == 9 - values.count(9)
