"""A study that earlier ones help: what is taken over, that voids follow, and that an audit derives it all again."""

from pathlib import Path
from typing import Any

import pytest
from tests.edges.test_cli import Shell, daemon

from bayesd import Study
from bayesd.audit import Plan, Verdict, judge, moments
from bayesd.files import read_study
from bayesd.fingerprint import fingerprint
from bayesd.inprocess import StudyError
from bayesd.log import read_events
from bayesd.replay import event_of
from bayesd.study import snapshot, warm
from bayesd.study.desk import engine_id
from bayesd.study.fold import replay
from bayesd.study.state import Event, State
from bayesd_schemas.events import StudyWarmed

ENGINE = engine_id(fingerprint("0"))
SPACE = '{ x = { type = "float", low = -5, high = 5 }, y = { type = "float", low = -5, high = 5 } }'


def file(folder: Path, name: str, more: str = "", space: str = SPACE) -> Path:
    path = folder / f"{name}.toml"
    path.write_text(f'name = "{name}"\nseed = 3\nspace = {space}\n{more}\n')
    return path


def measure(study: Study, trials: int, off: float = 0.0) -> None:
    for _ in range(trials):
        trial = study.ask()
        study.tell(trial, sum((float(value) - 1 - off) ** 2 for value in trial.params.values()))


def begin(folder: Path, more: str = "", trials: int = 12) -> tuple[Path, Path]:
    """A log with an earlier study, and the file of one that it is to help."""
    log = folder / "log.db"
    with Study.from_file(file(folder, "earlier"), log=log) as study:
        measure(study, trials)
    return log, file(folder, "later", f'[[warm_start]]\nstudy = "earlier"\n{more}')


def events_of(log: Path) -> list[Event]:
    return [event_of(body, hash) for _, body, hash in read_events(log)]


def audited(events: list[Event]) -> list[Verdict]:
    plan = Plan()
    for event in events:
        plan.note(event)
    return [judge(moment, ENGINE) for moment in moments(events, plan.cases)]


def state_of(log: Path) -> State:
    return replay(events_of(log))


def test_the_best_earlier_point_comes_first_and_the_log_says_what_was_taken(tmp_path: Path) -> None:
    log, later = begin(tmp_path)
    with Study.from_file(later, log=log) as study:
        measure(study, 10, off=0.5)
    events = events_of(log)
    warmed = next(event for event in events if event.type == "study.warmed")
    before = next(event for event in events if event.seq == warmed.data["at"])
    assert warmed.data == {"source": "earlier", "at": before.seq, "hash": before.hash.hex(), "n": 12}
    state = replay(events)
    best = state.studies["earlier"].best
    assert best is not None
    proposed = [event.data for event in events if event.type == "trial.proposed" and event.study == "later"]
    assert proposed[0]["params"] == best.params
    assert proposed[0]["sources"] == {"earlier": 1}
    modelled = [data for data in proposed if data["sampler"] == "bayes"]
    assert modelled
    assert not any("fallback" in data for data in proposed)
    assert all(0 < data["sources"]["earlier"] <= 2 for data in modelled)      # it is a bowl of the same form


def test_an_audit_derives_a_helped_study_with_a_prior_again(tmp_path: Path) -> None:
    log, later = begin(tmp_path, '[prior.x]\ncentre = 1.0\nconfidence = "high"\n')
    with Study.from_file(later, log=log) as study:
        measure(study, 4, off=0.5)
        study._request("study.amend", {"study": "later", "changes": {"prior": {"y": {"centre": 2.0}}}})
        measure(study, 4, off=0.5)
        study._request("trial.void", {"study": "earlier", "trial": 1, "reason": "the sensor was unplugged"})
        measure(study, 4, off=0.5)
    events = events_of(log)
    verdicts = audited(events)
    assert [verdict for verdict in verdicts if verdict.outcome != "same"] == []
    assert sum(verdict.what == "warm" for verdict in verdicts) == 1
    said = [event.data for event in events if event.type == "trial.proposed" and event.study == "later"]
    assert sum("prior" in data for data in said) > 4


@pytest.mark.parametrize(("name", "value"), [("at", 5), ("hash", "0" * 64), ("n", 11)])
def test_an_audit_finds_another_claim_of_what_was_taken(tmp_path: Path, name: str, value: Any) -> None:
    log, later = begin(tmp_path, trials=6)
    Study.from_file(later, log=log).close()
    events = [event._replace(data={**event.data, name: value}) if event.type == "study.warmed" else event
              for event in events_of(log)]
    bad = [verdict for verdict in audited(events) if verdict.outcome == "diverged"]
    assert [verdict.what for verdict in bad] == ["warm"]
    assert bad[0].evidence is not None
    assert bad[0].evidence["differs"] == [name]


def test_what_is_void_in_the_source_is_gone(tmp_path: Path) -> None:
    log, later = begin(tmp_path)
    with Study.from_file(later, log=log) as study:
        measure(study, 8)
        best = study._desk.state.studies["earlier"].best
        assert best is not None
        held = study._desk.state.studies["later"]
        knew = held.fit is not None, held.version
        study._request("trial.void", {"study": "earlier", "trial": best.number, "reason": "a typo"})
        assert (knew, held.fit is None, held.version) == ((True, knew[1]), True, knew[1] + 1)
        rows = study.problem.sources[0].rows
        assert len(rows) == 11
        assert best.params not in [params for params, _ in rows]
        digest = snapshot.digest(study._desk.state)
    state = state_of(log)
    assert snapshot.digest(state) == digest
    again = snapshot.load(*snapshot.dump(state))
    assert again is not None
    assert snapshot.digest(again) == digest
    assert warm.sources_of(again.studies["later"])[0].rows == rows


def test_what_is_told_later_does_not_count(tmp_path: Path) -> None:
    log, later = begin(tmp_path, trials=5)
    Study.from_file(later, log=log).close()
    with Study.from_file(tmp_path / "earlier.toml", log=log) as study:
        measure(study, 3)
    assert len(warm.sources_of(state_of(log).studies["later"])[0].rows) == 5


def test_a_fork_keeps_the_sources_of_its_study(tmp_path: Path) -> None:
    log, later = begin(tmp_path)
    with Study.from_file(later, log=log) as study:
        measure(study, 8)
        fork = study.fork("fork")
        assert fork.problem.sources == study.problem.sources
        measure(fork, 2)
    assert {verdict.outcome for verdict in audited(events_of(log))} == {"same"}


def test_a_page_says_what_was_known_before_and_what_it_weighed(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sh = Shell(capsys)
    log, later = begin(tmp_path, '[prior.x]\ncentre = 1.0\nconfidence = "high"\n')
    with Study.from_file(later, log=log) as study:
        measure(study, 10, off=0.5)
    said = [" ".join(sh(f"why later {trial} --log {log}").out.split()) for trial in range(1, 11)]
    assert "It was one of the best of study earlier" in said[0]
    assert any("The prior on x gets a part of the start design" in page for page in said)
    proposed = [event.data for event in events_of(log) if event.type == "trial.proposed" and event.study == "later"]
    weights = [(data.get("prior"), data["sources"]["earlier"], page)
               for data, page in zip(proposed, said, strict=True) if data["sampler"] == "bayes"]
    assert weights
    for prior, weight, page in weights:
        assert f"what it expects counts {weight:.3g} times" in page
        assert (f"{prior:.3g} times the logarithm" if prior is not None else "The prior on x had no say") in page
    assert "earlier is to help, with 12 results" in sh(f"log show {log}").out


def test_a_study_of_another_log_helps_by_value(tmp_path: Path) -> None:
    """Its results lie in the log, life and replay have the same state, and forks and audits know them."""
    log, _ = begin(tmp_path)
    old = state_of(log)
    path = file(tmp_path, "later")
    spec = read_study(str(path)).spec
    said = warm.carried(old, old.studies["earlier"], spec, 40_000)
    few = warm.carried(old, old.studies["earlier"], spec, 400)
    assert (len(said["rows"]), 1 <= len(few["rows"]) < 12) == (12, True)
    best = min(row["cost"] for row in said["rows"])
    assert min(row["cost"] for row in few["rows"]) == best
    new = tmp_path / "new.db"
    with Study.from_file(file(tmp_path, "other"), log=new) as study:
        study._request("study.create", {"spec": {**spec.model_dump(mode="json", exclude_unset=True)}, "warm": said})
        digest = snapshot.digest(study._desk.state)
    assert snapshot.digest(state_of(new)) == digest
    with Study.from_file(path, log=new) as study:
        measure(study, 8, off=0.5)
        assert study.trials[0].params == next(row["params"] for row in said["rows"] if row["cost"] == best)
        measure(study.fork("fork"), 2)
        digest, rows = snapshot.digest(study._desk.state), study.problem.sources[0].rows
    state = state_of(new)
    assert (snapshot.digest(state), warm.sources_of(state.studies["fork"])[0].rows) == (digest, rows)
    again = snapshot.load(*snapshot.dump(state))
    assert again is not None
    assert snapshot.digest(again) == digest
    assert [verdict for verdict in audited(events_of(new)) if verdict.outcome != "same"] == []
    assert validated(new) == 2


def test_a_log_file_is_named_at_the_command_line(
        tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    sh = Shell(capsys)
    log, _ = begin(tmp_path, trials=6)
    path, other = file(tmp_path, "later"), file(tmp_path, "other", 'metric = "loss"')
    (tmp_path / "home").mkdir()
    with daemon(tmp_path / "home") as home:
        for name in ("XDG_RUNTIME_DIR", "XDG_STATE_HOME", "USER"):
            monkeypatch.setenv(name, home.environment[name])
        assert "LOG:STUDY" in sh(f"study create {path} --warm-from {log}", code=2).err
        assert "no study 'nobody'" in sh(f"study create {path} --warm-from {log}:nobody", code=1).err
        assert "measured no loss" in sh(f"study create {other} --warm-from {log}:earlier", code=1).err
        sh(f"study create {path} --warm-from {log}:earlier")
        assert "earlier is to help, with 6 results" in sh(f"log show {home.log}").out
        assert "exists already" in sh(f"study create {path} --warm-from {log}:earlier").err


def validated(log: Path) -> int:
    """Hold every `study.warmed` against its schema; how many there are."""
    said = [event.data for event in events_of(log) if event.type == "study.warmed"]
    for data in said:
        StudyWarmed.model_validate(data)
    return len(said)


def test_another_space_takes_what_it_has_a_place_for(tmp_path: Path) -> None:
    log, _ = begin(tmp_path)
    space = '{ x = { type = "float", low = 0, high = 9 }, z = { type = "int", low = 0, high = 3 } }'
    words = '[[warm_start]]\nstudy = "earlier"\n'
    with Study.from_file(file(tmp_path, "silent", words, space), log=log) as study:
        source = study.problem.sources[0]
        kept = [trial for trial in state_of(log).studies["earlier"].trials if float(str(trial.params["x"])) >= 0]
        assert source.silent == {"z"}
        assert [params for params, _ in source.rows] == [{"x": trial.params["x"]} for trial in kept]
        measure(study, 8)
    with Study.from_file(file(tmp_path, "assumed", words + "assume = { z = 2 }\n", space), log=log) as study:
        assert all(params["z"] == 2 for params, _ in study.problem.sources[0].rows)
        assert study.ask().params["z"] == 2
    assert {verdict.outcome for verdict in audited(events_of(log))} == {"same"}


@pytest.mark.parametrize(("more", "words"), [
    ('[[warm_start]]\nstudy = "nobody"', "this log has no study nobody; it has earlier"),
    ('metric = "accuracy"\n[[warm_start]]\nstudy = "earlier"', "earlier measured no accuracy; it measured value"),
    ('[[warm_start]]\nstudy = "earlier"\nassume = { x = 50 }', "assume x = 50 is not in the space"),
    ('[[warm_start]]\nstudy = "earlier"\n[[warm_start]]\nstudy = "earlier"', "names a study twice")])
def test_what_cannot_help_is_refused(tmp_path: Path, more: str, words: str) -> None:
    log, _ = begin(tmp_path, trials=2)
    with pytest.raises(StudyError, match=words):
        Study.from_file(file(tmp_path, "later", more), log=log)
    assert list(state_of(log).studies) == ["earlier"]
