"""A name or a value from a message never becomes a path, a statement, a shell line or a piece of a topic.

About 600 nasty strings go through every field that takes text: of each kind of message into the real service, of
study files, of the command line, of the constraint language, of grants to a worker. Each message is answered, counted
or served, nobody crashes, and no file appears.
"""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from tests.edges.daemon import SPACE, serving
from tests.security.nasty import STRINGS

from bayesd.cli import run as command
from bayesd.files import BadFile, read_study
from bayesd.log import MemoryDisk
from bayesd.service import Service, Settings
from bayesd.testing import Daemon, MemoryBroker, run
from bayesd_client.spool import clean
from bayesd_schemas import constraints
from bayesd_schemas.constraints import parse
from bayesd_schemas.messages import Grant
from bayesd_schemas.names import is_id, is_name
from bayesd_schemas.space import Space
from bayesd_schemas.topics import Topics

LEASE = {"study": "s", "trial": 1, "fence": 1}


def test_there_are_enough_of_them() -> None:
    assert len(STRINGS) >= 500
    assert all(each not in ("w1", "s1") or is_name(each) for each in STRINGS)


# --- Messages --------------------------------------------------------------------------------------


def messages(text: str, number: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every kind of message with `text` in each of its fields, one at a time; the rest is right."""
    id = f"n{number}"
    ask, tell = {"id": id, "run": "r", "study": "s", "n": 0}, {"id": id, **LEASE, "value": 1}
    for field in ("id", "run", "study", "n", "lease_s", "seen"):
        yield "ask", {**ask, field: text}
    yield "ask", {**ask, "tags": [text]}
    yield "ask", {**ask, text: text}
    for leases in ([[text, 1, 1]], [["s", text, 1]], [["s", 1, text]]):
        yield "beat", {"run": "r", "leases": leases, "asks": []}
    yield "beat", {"run": text, "leases": [], "asks": []}
    yield "beat", {"run": "r", "leases": [], "asks": [text]}
    for field in ("id", "study", "trial", "fence", "step", "value"):
        yield "report", {"id": id, **LEASE, "step": 0, "value": 1, field: text}
    yield "report", {"id": id, **LEASE, "step": 0, "values": {text: 1}}
    for field in ("id", "study", "trial", "fence", "state", "value", "seconds", "cost", "class", "folds"):
        yield "tell", {**tell, field: text}
    yield "tell", {"id": id, **LEASE, "values": {text: 1}}
    yield "tell", {**tell, "trial": number + 10, "state": "fail", "error": text}
    yield "tell", {**tell, "ask": {**ask, "id": text}}
    yield "tell", {**tell, "ask": text}
    for verb, args in (
            ("study.show", {"study": text}), ("study.pause", {"study": text}), ("study.amend", {"study": text}),
            ("study.amend", {"study": "s", "changes": {text: text}}),
            ("study.enqueue", {"study": "s", "points": [{text: text}]}), ("study.best", {"study": "s", "rule": text}),
            ("study.fork", {"study": "s", "as": text}), ("study.close", {"study": "none", "running": text}),
            ("study.create", {"spec": text}), ("study.create", {"spec": {"name": text, "space": SPACE, text: text}}),
            ("study.create", {"spec": {"name": f"bad{number}", "space": {text: {"type": text}}}}),
            ("study.create", {"spec": {"name": f"bad{number}", "space": SPACE, "constraints": [text]}}),
            ("study.create", {"spec": {"name": f"bad{number}", "space": SPACE, "metric": 1, "method": text}}),
            ("trial.show", {"study": "s", "trial": text}), ("trial.void", {"study": "s", "trial": 1, "reason": text}),
            ("trial.cancel", {"study": text, "trial": 1}), ("worker.revoke", {"worker": text, "reason": text}),
            ("worker.list", {"after": text, "limit": text}), ("events", {"study": text, "after": 0, "limit": 1}),
            ("study.show", {"study": "s", "at": text}), ("text.redact", {"refs": [text], "reason": text}),
            ("why", {"study": text, "trial": text})):
        yield "request", {"id": f"{id}.{verb}", "verb": verb, "args": args}
    yield "request", {"id": text, "verb": "study.list", "args": {}}
    yield "request", {"id": id, "verb": text, "args": {}}


def through_the_service(strings: Sequence[str]) -> tuple[Service, MemoryDisk, list[str], set[str]]:
    """The service afterwards, its log, the messages to which nothing happened, and the topics that were written."""
    said: list[str] = []

    async def story() -> tuple[Service, MemoryDisk, list[str]]:
        broker, disk = MemoryBroker(), MemoryDisk()
        broker.watchers.append(lambda client, topic, payload: said.append(topic))
        daemon = Daemon(broker, disk, settings=Settings(settle_s=0.0, rate_per_s=1e9, rate_burst=1e9))
        service = await daemon.start()
        await asyncio.sleep(1.0)
        silent = []

        def say(topic: str, body: dict[str, Any]) -> None:
            service.on_message(topic, json.dumps(body).encode(), lambda: None)

        say("bayesd/1/admin/op/request", {"id": "c", "verb": "study.create", "args": {
            "spec": {"name": "s", "method": "random", "space": SPACE, "metric": "loss"}}})
        say("bayesd/1/from/w1/beat", {"run": "r"})
        for number, text in enumerate(strings):
            for kind, body in messages(text, number):
                before = sum(service.counters.rejected.values()), service.desk.letters, service.desk.state.seq
                topic = service.topics.request("op") if kind == "request" else service.topics.sent("w1", kind)
                say(topic, body)
                after = sum(service.counters.rejected.values()), service.desk.letters, service.desk.state.seq
                if after == before and kind != "beat" and not service._slow:
                    silent.append(f"{kind} {json.dumps(body)[:120]}")
            # As a name in the topic, which some brokers let pass.
            for topic in (f"bayesd/1/from/{text}/tell", f"bayesd/1/admin/{text}/request", f"bayesd/1/from/w1/{text}",
                          f"bayesd/1/study/{text}", text):
                service.on_message(topic, b'{"id":"x","verb":"study.list","args":{}}', lambda: None)
            await asyncio.sleep(0.3)
            assert daemon.service is service, daemon.ended
        await asyncio.sleep(3.0)
        assert daemon.service is service, daemon.ended
        await daemon.stop()
        return service, disk, silent

    service, disk, silent = run(story())
    return service, disk, silent, set(said)


def is_ours(topic: str) -> bool:
    """Whether a daemon may write there: the right form, and names of the contract in it."""
    words = topic.removeprefix("bayesd/1/").split("/")
    return topic in (Topics().daemon, Topics().head) or (
        words[0] == "to" and len(words) == 3 and is_name(words[1]) is not None
        and words[2] in ("grant", "receipt", "stop", "reply")) or (
        words[0] == "study" and len(words) == 2 and is_name(words[1]) is not None)


def test_every_message_is_answered_counted_or_served_and_nothing_ends_the_service(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    service, disk, silent, said = through_the_service(STRINGS)
    assert silent == []
    assert sum(service.counters.rejected.values()) > 5 * len(STRINGS)
    assert [topic for topic in said if not is_ours(topic)] == []
    for row in disk.rows:
        event = json.loads(row.body)
        assert event.get("study") is None or is_name(event["study"])
        assert event.get("cmd") is None or is_id(event["cmd"])
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_nobody_checks_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fault that the test above is for, planted: the service takes any name that stands in a topic."""
    monkeypatch.setattr("bayesd.service.is_name", lambda name: True)
    _, _, _, said = through_the_service(["w1/+", "../w2", "\u202ew1"])
    assert "bayesd/1/to/\u202ew1/reply" in {topic for topic in said if not is_ours(topic)}


def test_a_message_that_is_dropped_without_a_word_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Service, "_refuse", lambda *_: None)
    _, _, silent, _ = through_the_service(["'"])
    assert silent != []


@pytest.mark.mosquitto
def test_a_real_daemon_makes_no_file_and_its_log_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same with SQLite, threads and a broker, for the fields that name something."""
    here = tmp_path / "a" / "b" / "c"
    here.mkdir(parents=True)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(here)
    with serving(home) as (daemon, wire):
        wire.create("s")
        w1 = wire.worker("w1")
        w1.beat()
        for number, text in enumerate(STRINGS):
            grant = {"study": text, "trial": 1, "fence": 1}
            w1.say("tell", {"id": f"t{number}", **grant, "state": "fail", "error": text})
            w1.say("ask", {"id": f"a{number}", "run": "r1", "study": text, "n": 1})
            wire.say("admin/op/request", {"id": f"e{number}", "verb": "events", "args": {"study": text, "limit": 1}})
            wire.say("admin/op/request", {"id": f"s{number}", "verb": "study.create", "args": {
                "spec": {"name": text, "space": SPACE, "method": "random"}}})
        assert wire.request("study.list")["status"] == "ok"
        # What is there is the log's own.
        found = {path.relative_to(tmp_path).parts[0:2] for path in tmp_path.rglob("*") if path.is_file()}
        assert all(parts[0] == "home" for parts in found), found
        assert not list(tmp_path.rglob("*pwned*"))
        assert daemon.stop() == 0
        done = subprocess.run([sys.executable, "-m", "bayesd.cli", "log", "verify", str(daemon.log)], check=False,
                              capture_output=True, timeout=60)
        assert done.returncode == 0, done.stderr


# --- Study files and constraints -------------------------------------------------------------------


def test_a_study_file_is_read_or_refused_in_words(tmp_path: Path) -> None:
    """As text of the file, as each value, as a key; in three notations."""
    base = {"name": "s", "metric": "loss", "method": "random", "space": SPACE}
    for number, text in enumerate(STRINGS):
        variants: list[tuple[str, str]] = [(kind, text) for kind in ("toml", "json", "yaml")]
        for data in ({**base, "name": text}, {**base, "metric": text}, {**base, "method": text}, {**base, text: text},
                     {**base, "space": {text: {"type": "float", "low": 0, "high": 1}}},
                     {**base, "space": {"x": {"type": "categorical", "choices": [text, "b"]}}},
                     {**base, "budget": {"wall": text}}, {**base, "constraints": [text]}):
            variants.append(("json", json.dumps(data)))     # noqa: PERF401  # a comprehension over this would be worse
        # All three notations as they are, and two of the eight places in turn.
        for kind, content in (*variants[:3], *variants[3 + number % 4::4]):
            path = tmp_path / f"study.{kind}"
            path.write_bytes(content.encode("utf-8", "surrogatepass"))
            try:
                study = read_study(str(path))
            except BadFile:
                continue
            else:
                assert is_name(study.spec.name)
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith("study.")] == []


CODE = ["__import__('os').system('touch pwned')", "open('pwned', 'w')", "x.__class__ == 1", "(lambda: 1)() == 1",
        "[x for x in (1,)] == 1", "x if 1 else 2", "exec('1') == 1", "eval('1') == 1", "x[0] == 1", "f'{x}' == 1",
        "(x := 1) == 1", "print(1) == 1", "getattr(x, 'a') == 1", "x == 1; import os", "globals() == 1",
        "max.__self__ == 1",
        "x == 1 #", "x == '\\x41'", "9**9**9**9 > x", "x ** 1e9 > 1", "(" * 1000 + "x" + ")" * 1000 + " > 1",
        "-" * 2000 + "x > 1", "x > 1 and " * 500 + "x > 1", "x" + " + x" * 2000 + " > 1"]


def test_a_constraint_is_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parser is its own: what is not the little language is refused in words, and nothing is run."""
    monkeypatch.chdir(tmp_path)
    space = Space.model_validate({"x": {"type": "float", "low": 0, "high": 1},
                                  "k": {"type": "categorical", "choices": ["a", "b"]}})
    for name in ("eval", "exec", "compile", "__import__"):
        assert name not in vars(constraints)
    taken: list[constraints.Constraint] = []
    for text in (*STRINGS, *CODE, *(f"x < {each}" for each in STRINGS), *(f"k == '{each}'" for each in STRINGS),
                 *(f"`{each}` < 1" for each in STRINGS)):
        try:
            taken += parse([text], space)
        except ValueError:          # of ours: it says where and what
            continue
    assert taken, "some of them are right"
    for each in taken:
        constraints.broken([each], {"x": 0.5, "k": "a"})
    assert list(tmp_path.iterdir()) == []


# --- The worker's side -----------------------------------------------------------------------------


def test_a_worker_takes_no_path_from_a_grant() -> None:
    """The spool's files are named by study, trial and fence, so these are checked before."""
    good = {"ask": "a", "run": "r", **LEASE, "params": {}, "lease_s": 1, "at": "2026-01-01T00:00:00Z", "epoch": 1,
            "space_rev": 1}
    Grant.model_validate(good)
    for text in STRINGS:
        for field in ("study", "trial", "fence", "ask", "run"):
            try:
                taken = Grant.model_validate({**good, field: text})
            except ValidationError:
                continue
            name = f"{taken.study}.{taken.trial}.{taken.fence}.json"
            assert os.path.basename(name) == name
            assert is_name(taken.study)
        assert is_name(clean(text)) or clean(text) == "", text


def test_a_parameter_is_an_argument_and_never_a_shell_line(tmp_path: Path) -> None:
    """What the ready-made worker hands to a program is what was suggested, to the byte."""
    from bayesd_client.program import arguments
    from bayesd_client.trial import Trial
    for text in STRINGS:
        trial = Trial.__new__(Trial)
        trial.params, trial._space = {"x": text}, None
        trial.fidelity = None
        assert arguments(["prog", "{x}", "--x={x}", "{{x}}"], trial) == ["prog", text, f"--x={text}", "{x}"]
    argv = [sys.executable, "-c", "import json, sys; print(json.dumps(sys.argv[1:]))"]
    some = [text for text in STRINGS if "\0" not in text and len(text) < 2000 and text.isprintable()]
    done = subprocess.run([*argv, *some], check=True, capture_output=True, cwd=tmp_path, timeout=60)
    assert json.loads(done.stdout) == some
    assert list(tmp_path.iterdir()) == []


# --- The command line ------------------------------------------------------------------------------

NAMED = {65: "damaged, or no log", 2: "usage", 3: "not reachable", 1: "no", 0: "done", 78: "bad configuration"}


FILE, NOBODY = ["--log", "log.db"], ["--broker", "mqtt://127.0.0.1:1"]


@pytest.mark.parametrize("words", [
    ["study", "show", "{}", *FILE], ["study", "create", "{}"], ["trial", "show", "{}", "1", *FILE],
    ["why", "{}", *FILE],
    ["study", "best", "s", "--rule", "{}"], ["log", "verify", "{}"], ["log", "show", "{}"],
    ["log", "redact", "log.db", "{}", "--reason", "x"], ["study", "show", "s", "--at", "{}", *FILE],
    ["study", "list", "--broker", "{}"], ["study", "list", "--client", "{}", *NOBODY],
    ["study", "list", "--root", "{}", *NOBODY], ["config", "check", "--config", "{}"], ["{}"]],
    ids=lambda words: " ".join(words[:4]))
def test_an_argument_is_answered_in_words(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                          capfd: pytest.CaptureFixture[str]) -> None:
    """No traceback, no exit code but those that are documented, no file. Every eighth string of them each."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "none"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "none"))
    bad = []
    for text in STRINGS[sum(map(len, words)) % 8::8]:
        if "\0" in text or text in ("-h", "--help"):      # no program can be handed a NUL
            continue
        code = command([word.replace("{}", text) for word in words])
        if code not in NAMED:
            bad.append((text[:60], code, capfd.readouterr().err[-200:]))
    assert bad == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["\x1b]52;c;aWQ=\x07", "\x9b2J", "a\rb", "a\bb", "\u202ereversed", "\x1b[2Jgone",
                                  "\x00", "\x7f"])
def test_a_workers_words_give_a_terminal_no_orders(
        text: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """An error text is a worker's, and an operator reads it in a terminal."""
    from bayesd import Study
    log = tmp_path / "log.db"
    with Study(SPACE, name="s", seed=0, log=str(log)) as study:
        study.tell(study.ask(), state="fail", error=f"before {text} after")
    orders = set(text) - set("abcdefghijklmnopqrstuvwxyz0123456789;=[]JQWgoneWvrsd")
    for words in (["trial", "show", "s", "1", "--log", str(log)], ["log", "show", str(log)],
                  ["why", "s", "1", "--log", str(log)],
                  ["study", "show", "s", "--log", str(log)], ["trial", "list", "s", "--log", str(log)]):
        for format in ("table", "json", "yaml", "value"):
            command([*words, "-f", format])
            said = capfd.readouterr()
            assert not orders & set(said.out + said.err), (words, format, said)
