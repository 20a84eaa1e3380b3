"""The quality bench itself: its problems are what they claim, its worlds are fair, its tables add up."""

import io
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.bench.quality import curves, mixed, optimisers, reference, report, run, runs, simulator
from tests.bench.quality import functions as f
from tests.bench.quality.optimisers import OPTIMISERS, Own
from tests.bench.quality.progress import Progress
from tests.bench.quality.reference import Reference
from tests.bench.quality.task import Instance, Task
from tests.bench.quality.tasks import FAMILIES, pick, tasks

from bayesd import optimize
from bayesd.optimize.encode import cube
from bayesd.study.problem import Problem, Suggestion
from bayesd_schemas.space import CategoricalParameter, Space

KNOWN = [task for task in tasks().values() if task.family in ("functions", "mixed")]
LIVE = [task for task in tasks().values() if task.family == "live"]


def named(some: list[Task]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("task", some, ids=lambda task: task.name)


# Tasks ------------------------------------------------------------------------------------------


@named(KNOWN)
def test_the_optimum_is_where_it_is_said_to_be_and_nothing_is_below_it(task: Task) -> None:
    for seed in range(3):
        instance = task.make(seed)
        best, at = instance.best, instance.best_at
        assert best is not None
        assert at is not None
        assert instance.space.check(at) == at
        assert instance.value(at) == pytest.approx(best, abs=1e-9)
        of, random = cube(instance.space), np.random.default_rng(seed)
        here = of.encode([at])
        # Around it at every scale, and everywhere.
        near = here + random.normal(size=(150, of.p)) * 10.0 ** random.uniform(-6, -0.5, (150, 1))
        found = reference.values(instance, np.vstack([np.clip(near, 0, 1), random.random((150, of.p))]))
        assert np.nanmin(found) >= best - 1e-9
        assert np.nanmedian(found) > best + 1e-3


@named(KNOWN)
def test_each_seed_is_another_instance_and_the_same_seed_the_same(task: Task) -> None:
    made = [task.make(seed) for seed in (0, 0, 1)]
    points = cube(made[0].space).decode(np.random.default_rng(0).random((20, len(made[0].space))))
    values = [[instance.value(params) for params in points] for instance in made]
    assert values[0] == pytest.approx(values[1], abs=0, nan_ok=True)
    assert values[0] != pytest.approx(values[2], nan_ok=True)
    assert made[0].best_at == made[1].best_at != made[2].best_at


def test_published_values() -> None:
    """Values that the literature prints, at the points that it prints."""
    assert f.branin(np.array([-math.pi, 12.275])) == pytest.approx(0.397887, abs=1e-6)
    assert f.branin(np.array([9.42478, 2.475])) == pytest.approx(0.397887, abs=1e-6)
    assert f.hartmann(np.array([0.114614, 0.555649, 0.852547])) == pytest.approx(-3.86278, abs=1e-5)
    assert f.hartmann(np.array([0.20169, 0.150011, 0.476874, 0.275332, 0.311652, 0.6573])) == pytest.approx(
        -3.32237, abs=1e-5)
    assert f.rosenbrock(np.array([-1.2, 1.0])) == pytest.approx(24.2)
    assert f.rastrigin(np.array([0.5, 0.0])) == pytest.approx(20.25)
    assert f.ackley(np.array([1.0, 1.0])) == pytest.approx(20 - 20 * math.exp(-0.2))
    assert f.griewank(np.array([2 * math.pi])) == pytest.approx(math.pi**2 / 1000)
    assert mixed.camel(np.array([0.0898, -0.7126])) == pytest.approx(0, abs=1e-6)
    assert mixed.camel(np.array([1.7036, -0.7961])) == pytest.approx(-0.2154638 + 1.0316285, abs=1e-5)
    assert f.levy(np.array([1.0, 5.0])) == pytest.approx(1.0)
    assert f.steps(np.array([0.49, -0.51])) == 1.0
    assert f.ellipsoid(np.array([1.0, 1.0])) == pytest.approx(1_000_001)


def test_a_noisy_task_has_the_instances_of_the_one_without_noise() -> None:
    plain, noisy = tasks()["levy-4"], tasks()["noisy-levy-4"]
    assert (plain.noise, noisy.noise) == (0.0, 0.05)
    assert plain.make(3).best_at == noisy.make(3).best_at
    assert reference.known(plain, plain.make(3), 3) == reference.known(noisy, noisy.make(3), 3)
    assert len(pick(["functions"], [])) == len(pick(["noisy"], []))


@named(list(tasks().values()))
def test_a_space_survives_json_and_has_only_what_every_peer_knows(task: Task) -> None:
    space = task.make(0).space
    assert Space.model_validate_json(space.model_dump_json(exclude_unset=True)) == space
    for parameter in map(space.__getitem__, space):
        if isinstance(parameter, CategoricalParameter):
            assert all(isinstance(choice, str) for choice in parameter.choices)
        else:
            assert parameter.type in ("float", "int")
            assert parameter.scale in ("linear", "log")
            assert parameter.step is None


@named(LIVE)
def test_a_live_task_has_a_value_in_the_middle_and_a_stored_reference(task: Task) -> None:
    instance = task.make(0)
    params = cube(instance.space).decode(np.full((1, len(instance.space)), 0.5))[0]
    of = reference.stored()[task.name]
    value = instance.value(params)
    assert value == task.make(1).value(params)
    assert of.best < of.median
    assert of.best - of.range < value      # of the same sign and size as what is stored


def test_a_model_that_scikit_learn_refuses_has_failed() -> None:
    from sklearn.svm import SVC
    from tests.bench.quality.live import data, loss
    assert math.isnan(loss(SVC(C=-1.0), *data("iris"), "accuracy"))


def test_tasks_are_picked_by_family_and_by_the_beginning_of_the_name() -> None:
    assert {task.family for task in pick(list(FAMILIES), [])} == set(FAMILIES)
    assert [task.name for task in pick(["functions"], ["sphere", "noisy"])] == ["sphere-5", "sphere-20"]
    with pytest.raises(ValueError, match="no task begins with 'sphree'"):
        pick(list(FAMILIES), ["sphree"])
    with pytest.raises(ValueError, match="no family 'function'"):
        pick(["function"], [])


# Simulator --------------------------------------------------------------------------------------


LINE = Space.model_validate({"x": {"type": "float", "low": 0, "high": 9}})


class Script:
    """Proposes what it is given, and keeps what it is told."""

    def __init__(self, points: list[float]) -> None:
        self.points, self.told = points, list[Any]()
        self.asked = 0

    def ask(self) -> tuple[int, dict[str, Any]]:
        self.asked += 1
        return self.asked - 1, {"x": self.points[self.asked - 1]}

    def tell(self, key: int, value: float | None) -> None:
        self.told.append((key, value, self.asked))


def test_outcomes_come_in_the_order_of_the_virtual_clock() -> None:
    script = Script([5, 4, 3, 3])
    trace = simulator.simulate(script, Instance(LINE, lambda params: float(str(params["x"]))), 2, 4,
                               np.array([3.0, 1.0, 2.5, 1.0]), np.zeros(4))
    # Trial 1 ends at 1 and 2 begins, 0 ends at 3 and 3 begins, 2 ends at 3.5 and 3 at 4; two are always out.
    assert script.told == [(1, 4.0, 2), (0, 5.0, 3), (2, 3.0, 4), (3, 3.0, 4)]
    assert trace.order == [1, 0, 2, 3]
    assert trace.incumbent == [4.0, 4.0, 3.0, 3.0]
    assert (trace.failed, trace.repeated) == (0, 1)
    assert len(trace.cpu_s) == 4


def test_the_incumbent_is_chosen_by_what_is_observed_and_scored_without_noise() -> None:
    script = Script([5, 4, 3, 2])
    trace = simulator.simulate(script, Instance(LINE, lambda params: float(str(params["x"]))), 1, 4,
                               np.ones(4), np.array([0.0, -3.0, 0.0, 0.0]))
    assert [value for _, value, _ in script.told] == [5.0, 1.0, 3.0, 2.0]
    assert trace.incumbent == [5.0, 4.0, 4.0, 4.0]


def test_a_failed_trial_is_told_as_one() -> None:
    script = Script([1, 2, 3])
    instance = Instance(LINE, lambda params: math.nan if params["x"] == 1 else float(str(params["x"])))
    trace = simulator.simulate(script, instance, 1, 3, np.ones(3), np.zeros(3))
    assert [value for _, value, _ in script.told] == [None, 2.0, 3.0]
    assert trace.incumbent == [None, 2.0, 2.0]
    assert trace.failed == 1


def test_a_point_outside_the_space_is_an_error() -> None:
    with pytest.raises(ValueError, match="not in the space"):
        simulator.simulate(Script([11]), Instance(LINE, lambda params: 0.0), 1, 1, np.ones(1), np.zeros(1))


def test_times_and_noise_depend_on_task_seed_and_number_of_the_trial_alone() -> None:
    for of in (simulator.durations, simulator.noise):
        assert of("a", 1, 50)[:20].tolist() == of("a", 1, 20).tolist()
        assert of("a", 1, 20).tolist() != of("a", 2, 20).tolist()
        assert of("a", 1, 20).tolist() != of("b", 1, 20).tolist()
    assert np.median(simulator.durations("a", 1, 5000)) == pytest.approx(1, rel=0.05)


def job(optimiser: str, task: str = "branin-2", seed: int = 0, workers: int = 1, budget: int = 12) -> run.Job:
    return run.Job(optimiser, optimiser, tasks()[task], seed, workers, budget)


@pytest.mark.parametrize("optimiser", ["bayesd", "random", "sobol"])
@pytest.mark.parametrize("workers", [1, 3])
def test_a_run_is_the_same_again(optimiser: str, workers: int) -> None:
    first, second = (run.made(job(optimiser, "failing-disc", workers=workers)) for _ in range(2))
    assert first.error is None
    assert replace(first, cpu_s=[]) == replace(second, cpu_s=[])
    assert len(first.incumbent) == len(first.cpu_s) == 12


def test_bayesd_is_asked_as_the_daemon_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the history, the trials that are out and the last fit; and no plainer sampler stands in."""
    asked: list[Problem] = []

    def suggest(problem: Problem) -> Suggestion:
        asked.append(problem)
        return optimize.suggest(problem)

    monkeypatch.setattr(optimisers, "suggest", suggest)
    instance = tasks()["conditional-tree"].make(0)
    own = Own(instance.space, 1)
    simulator.simulate(own, instance, 2, 14, np.ones(14), np.zeros(14))
    assert [(len(problem.history), len(problem.pending)) for problem in asked] == [
        (0, 0), (0, 1), *((n, 1) for n in range(1, 13))]
    assert [problem.number for problem in asked] == list(range(1, 15))
    assert asked[-1].fit is not None
    assert own.fallbacks == []
    assert own.pending == {}
    assert [observation.trial for observation in own.history] == list(range(1, 15))


def test_the_noise_of_a_task_is_told_and_not_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    instance = tasks()["branin-2"].make(0)
    own = Own(instance.space, 1, "random")
    monkeypatch.setitem(OPTIMISERS, "random", replace(OPTIMISERS["random"], make=lambda *_: own))
    found = run.made(job("random", "noisy-branin-2"))
    assert found.best == instance.best
    assert found.median is not None
    assert found.best is not None
    unit = 0.05 * (found.median - found.best)
    true = np.array([instance.value(observation.params) for observation in own.history])
    told = np.array([observation.values for observation in own.history], dtype=np.float64)[:, 0]
    assert told == pytest.approx(true + unit * simulator.noise("noisy-branin-2", 0, 12))
    assert found.incumbent[-1] == true[np.argmin(told)]


@pytest.mark.parametrize("name", ["optuna-tpe"])      # the others need more than the extra bench brings
def test_a_peer_takes_conditions_and_failures(name: str) -> None:
    if OPTIMISERS[name].missing():
        pytest.skip(f"{', '.join(OPTIMISERS[name].missing())} not installed")
    for task in ("conditional-model", "failing-disc"):
        assert run.made(job(name, task, workers=2, budget=6)).error is None


# Runner -----------------------------------------------------------------------------------------


def small(key: run.Job) -> runs.Run:
    return runs.Run(key.label, key.task.name, key.task.family, key.seed, key.workers, key.budget, "1", [2.0], [0.1],
                    0.0, 4.0)


def test_runs_that_are_there_are_not_run_again(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    out, made = tmp_path / "new" / "runs.jsonl", list[tuple[Any, ...]]()

    def make(key: run.Job) -> runs.Run:
        made.append(key.key)
        return small(key)

    monkeypatch.setattr(run, "made", make)
    command = ["--optimisers", "random,sobol", "--tasks", "sphere-5,branin", "--families", "functions", "--budget", "1",
               "--out", str(out), "--seeds"]
    run.main([*command, "0"])
    first = list(made)
    assert len(first) == 4
    run.main([*command, "0-1"])
    assert [key[2] for key in made[4:]] == [1, 1, 1, 1]
    assert "4 of 8 runs are in" in capsys.readouterr().err
    # A line that a kill has cut off is run again; the next line does not stick to it.
    lines = out.read_text().splitlines(keepends=True)
    out.write_text("".join(lines[:-1]) + lines[-1][:40])
    run.main([*command, "0-1"])
    assert made[8:] == [made[7]]
    assert [each.key for each in runs.read(out)] == made[:8]


def test_the_time_is_looked_at_before_every_run(tmp_path: Path) -> None:
    out = tmp_path / "runs.jsonl"
    assert not run.run_all([job("random")], out, Progress(1, io.StringIO()), -1.0, small)
    assert not out.exists()
    assert run.run_all([job("random")], out, Progress(1, io.StringIO()), 100.0, small)


def test_an_optimiser_that_raises_has_a_run_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OPTIMISERS, "random", replace(OPTIMISERS["random"], make=lambda *_: Script([])))
    found = run.made(job("random"))
    assert found.error == "IndexError: list index out of range"
    assert found.incumbent == []


def test_a_missing_peer_is_left_out_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OPTIMISERS, "smac", replace(OPTIMISERS["smac"], modules=("no_such_module",)))
    said: list[str] = []
    assert run.installed(["random", "smac"], said.append) == ["random"]
    assert said == ["smac is left out, no_such_module not installed; remedy: pip install no_such_module"]
    with pytest.raises(SystemExit, match="no optimiser 'rnd'"):
        run.installed(["rnd"], said.append)


def test_progress_is_lines_in_a_file_and_one_line_on_a_terminal() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for stream, lines in ((io.StringIO(), 2), (Terminal(), 0)):
        progress = Progress(2, stream)
        progress.now("a")
        progress.step("a")
        progress.step("b")
        progress.close()
        assert stream.getvalue().count("\n") == lines
        assert "2/2" in stream.getvalue()


def test_numbers_of_a_command_line() -> None:
    assert run.numbers("0-2,7") == [0, 1, 2, 7]


# Report -----------------------------------------------------------------------------------------


def stored(optimiser: str, task: str, seed: int, values: list[float | None], **changes: Any) -> runs.Run:
    """A run of two trials on a problem with optimum 0 and median 10."""
    return runs.Run(optimiser, task, "functions", seed, 1, len(values), "1", values, [0.01] * len(values), 0.0,
                    10.0).but(**changes)


RUNS = [
    stored("bayesd", "a", 0, [5.0, 1.0]), stored("peer", "a", 0, [5.0, 2.0]),
    stored("bayesd", "a", 1, [5.0, 0.0]), stored("peer", "a", 1, [5.0, 0.0]),
    stored("bayesd", "b", 0, [5.0, 4.0], family="mixed"), stored("peer", "b", 0, [5.0, 3.0], family="mixed"),
    stored("bayesd", "b", 1, [None, None], family="mixed"),     # the peer has not run here
]


def test_the_tables_of_a_small_file(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    for each in RUNS:
        runs.append(path, each)
    assert runs.read(path) == RUNS
    text = report.report(runs.read(path), {})
    assert "### q = 1, n = 2" in text
    assert "on 3 cells of 2 tasks" in text
    # bayesd: .1, 0 and .4; the peer: .2, 0 and .3; the cell that only bayesd has is in no mean.
    assert "| optimiser | functions (2) | mixed (1) | all | CPU ms |" in text
    assert "| bayesd | .050 | .400 | .167 | 10.0 |" in text
    assert "| peer | .100 | .300 | .167 | 10.0 |" in text
    # Differences -.1, 0 and +.1. One task alone has the mean -.05, the other +.1: those are the ends.
    logs = [math.log10(0.1001 / 0.2001), 0.0, math.log10(0.4001 / 0.3001)]
    ends = (logs[0] + logs[1]) / 2, logs[2]
    assert (f"| peer | 3 | 1-1-1 | +0.000 [-0.050, +0.100] | {sum(logs) / 3:+.2f} [{ends[0]:+.2f}, {ends[1]:+.2f}] |"
            ) in text


def test_tasks_are_resampled_whole() -> None:
    """Ten seeds of one task are one piece of evidence: nothing to draw from, so an interval of no width."""
    values = np.arange(10.0)
    assert report.interval(values, ["a"] * 10) == (4.5, 4.5)
    low, high = report.interval(values, list("abcdefghij"))
    assert low < 3.5 < 5.5 < high


def test_regret_is_clipped_and_a_run_without_success_has_all_of_it() -> None:
    of = Reference(best=1.0, median=3.0)
    assert [of.regret(value) for value in (1.0, 2.0, 3.0, 7.0, 0.5, None)] == [0.0, 0.5, 1.0, 1.0, 0.0, 1.0]


def test_the_best_of_an_unknown_optimum_is_the_best_that_anybody_saw() -> None:
    some = [stored(name, "live", seed, [value], best=None, median=None, family="live")
            for name, seed, value in (("bayesd", 0, 4.0), ("peer", 0, 2.0), ("peer", 1, 1.0))]
    known = report.references(some, {"live": Reference(3.0, 5.0)})
    assert known["live", 0] == Reference(1.0, 5.0)
    text = report.report([*some, *RUNS], {})
    assert "Left out, since nothing says what is good there: live." in text


def test_each_n_takes_the_run_that_was_made_for_it() -> None:
    both = [stored("bayesd", "a", 0, [1.0] * 50), stored("bayesd", "a", 0, [2.0] * 25)]
    known = report.references(both, {})
    assert report.counts(both, 1) == [25, 50]
    for n, regret in ((25, 0.2), (50, 0.1)):
        assert report.scored(both, known, 1, n).regrets("bayesd", [("a", 0)]).tolist() == [regret]


def test_errors_and_fallbacks_are_told() -> None:
    text = report.report([*RUNS, stored("peer", "c", 0, [], error="ValueError: no"),
                          stored("bayesd", "c", 0, [1.0, 1.0], fallbacks=3)], {})
    assert "peer: 1 runs ended in an error and are left out; the first: ValueError: no" in text
    assert "bayesd: a plainer sampler answered 3 times" in text


def test_a_report_of_stored_runs_runs_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "runs.jsonl"
    runs.append(path, stored("bayesd", "branin-2", 0, [2.0]))
    runs.append(path, stored("sobol", "branin-2", 0, [3.0]))
    run.main(["--report", str(path), "--optimisers", "bayesd"])
    said = capsys.readouterr()
    assert "| bayesd | .200 | .200 |" in said.out
    assert "sobol" not in said.out
    assert said.err == ""
    with pytest.raises(SystemExit, match="there is no file"):
        run.main(["--report", str(tmp_path / "none.jsonl")])


def test_curves_need_matplotlib_and_say_so_before_any_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curves, "available", lambda: False)
    with pytest.raises(SystemExit, match="pip install"):
        run.main(["--out", str(tmp_path / "runs.jsonl"), "--curves", str(tmp_path / "curves.svg")])
    assert list(tmp_path.iterdir()) == []


def test_quartiles_of_a_curve() -> None:
    some = [stored("bayesd", task, 0, [10.0, value]) for task, value in zip("abc", (0.0, 2.0, 4.0), strict=True)]
    at = report.scored(some, report.references(some, {}), 1, 2)
    assert curves.quartiles(at, "bayesd", at.shared(["bayesd"])).tolist() == pytest.approx(
        np.array([[1.0, 0.10005], [1.0, 0.2], [1.0, 0.3]]))


@pytest.mark.skipif(not curves.available(), reason="matplotlib is not installed")
@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_curves_are_drawn(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"curves.{suffix}"
    curves.draw(path, RUNS, {})
    assert path.stat().st_size > 5000


# References -------------------------------------------------------------------------------------


def test_a_search_finds_more_than_the_median_and_is_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "SEARCH_RANDOM", 30)
    monkeypatch.setattr(reference, "SEARCH_LOCAL", 60)
    task = tasks()["branin-2"]
    found = reference.searched(task, lambda words: None)
    best = task.make(0).best
    assert best is not None
    assert best < found.best < best + 5 < found.median
    assert reference.searched(task, lambda words: None) == found
    path = tmp_path / "references.json"
    reference.store({"branin-2": found}, path)
    assert reference.stored(path) == {"branin-2": found}
    assert set(json.loads(path.read_text())) == {"scikit-learn", "tasks"}


def test_every_live_task_has_a_reference() -> None:
    assert set(reference.stored()) == {task.name for task in LIVE}
