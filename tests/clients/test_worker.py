"""The whole client against a scripted daemon, over a real broker on loopback."""

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiomqtt
import pytest

import bayesd_client as bayesd
from bayesd import certificates
from bayesd_client.certificate import ended

pytestmark = pytest.mark.mosquitto
Start = Callable[..., Any]
StartPython = Callable[..., "subprocess.Popen[str]"]
Until = Callable[..., None]


def points(count: int) -> list[dict[str, Any]]:
    return [{"x": number, "depth": 3, "kernel": "rbf"} for number in range(count)]


def test_a_study_from_its_first_trial_to_its_close(broker: Any, start_daemon: Start, tmp_path: Path) -> None:
    daemon = start_daemon(points(6))

    @bayesd.worker(broker.url, study="s", name="w1", spool=tmp_path)
    def objective(trial: bayesd.Trial) -> float:
        assert type(trial.params["x"]) is float          # JSON wrote 3, the space says float
        return trial.suggest_float("x", 0, 10) ** 2

    summary = objective.run(slots=3)
    assert (summary.name, summary.reason, summary.told) == ("w1", "closed", 6)
    assert {trial: tell["value"] for (trial, _), tell in daemon.told.items()} == {n + 1: n * n for n in range(6)}
    assert [kind for _, kind, _ in daemon.heard][:2] == ["presence", "beat"]
    presence = daemon.of("presence")
    assert (presence[0]["state"], presence[0]["slots"]) == ("online", 3)
    assert not list(tmp_path.rglob("*.json"))


def test_the_presence_is_emptied_on_a_clean_exit(broker: Any, start_daemon: Start, tmp_path: Path,
                                                 until: Until) -> None:
    daemon = start_daemon([])
    bayesd.worker(broker.url, study="s", name="w1", spool=tmp_path)(lambda trial: 1.0).run()
    until(lambda: daemon.of("presence")[-1] == {}, "the presence is emptied")


def test_slots_train_at_the_same_time(broker: Any, start_daemon: Start, tmp_path: Path) -> None:
    start_daemon(points(6))
    together = threading.Barrier(3, timeout=10)

    @bayesd.worker(broker.url, study="s", name="w1", spool=tmp_path)
    def objective(trial: bayesd.Trial) -> float:
        together.wait()
        return 1.0
    assert objective.run(slots=3).told == 6


def test_async_objectives_run_as_tasks(broker: Any, start_daemon: Start, tmp_path: Path) -> None:
    daemon = start_daemon(points(6))
    daemon.prune_at = 1

    async def main() -> Any:
        barrier: set[int] = set()

        @bayesd.worker(broker.url, study="s", name="w1", spool=tmp_path)
        async def objective(trial: bayesd.Trial) -> float:
            barrier.add(trial.number)
            while len(barrier) < 3:
                await asyncio.sleep(0.01)
            trial.report(0.5, step=0)
            assert not await trial.ashould_prune()
            if trial.number % 2:
                return 1.0
            trial.report(0.5, step=1)
            await trial.ashould_prune()
            await asyncio.sleep(60)      # a stop cancels the task
            return 2.0
        return await objective.arun(slots=3)
    assert asyncio.run(main()).told == 6
    assert sorted(tell.get("state", "complete") for tell in daemon.told.values()) == ["complete"] * 3 + ["pruned"] * 3


def test_a_pruned_trial_and_every_kind_of_end(broker: Any, start_daemon: Start, tmp_path: Path) -> None:
    daemon = start_daemon(points(6))
    daemon.prune_at = 2

    @bayesd.worker(broker.url, study="s", name="w1", spool=tmp_path)
    def objective(trial: bayesd.Trial) -> Any:
        if trial.number == 1:
            for step in range(5):
                trial.report(0.1 * step, step=step)
                if trial.should_prune():
                    assert step == 2
                    raise bayesd.TrialPruned
        if trial.number == 2:
            raise ValueError("no convergence")
        trial.cost = 2.5
        return {3: float("nan"), 4: bayesd.Folds([0.5, 1.0]), 5: {"acc": 0.9}, 6: "high"}[trial.number]

    objective.run()
    told = {trial: tell for (trial, _), tell in daemon.told.items()}
    assert told[1]["state"] == "pruned"
    assert (told[2]["state"], told[2]["class"]) == ("fail", "crash")
    assert "no convergence" in told[2]["error"]
    assert told[3]["value"] == "nan"
    assert told[3]["cost"] == 2.5
    assert told[4]["folds"] == [0.5, 1.0]
    assert told[5]["values"] == {"acc": 0.9}
    assert (told[6]["state"], told[6]["class"]) == ("fail", "other")
    assert all(tell["seconds"] >= 0 for tell in told.values())


def test_should_prune_says_no_when_no_receipt_comes(broker: Any, start_daemon: Start, tmp_path: Path) -> None:
    daemon = start_daemon(points(1))
    daemon.deaf_to = {"report"}
    waited: list[float] = []

    @bayesd.worker(broker.url, study="s", name="w1", spool=tmp_path)
    def objective(trial: bayesd.Trial) -> float:
        trial.report(1.0, step=0)
        began_s = time.monotonic()
        assert not trial.should_prune()
        waited.append(time.monotonic() - began_s)
        return 1.0
    objective.run()
    assert 0.9 < waited[0] < 5


def test_an_undeclared_parameter_gives_the_trial_back_and_ends_the_worker(broker: Any, start_daemon: Start,
                                                                          tmp_path: Path) -> None:
    daemon = start_daemon(points(4))

    @bayesd.worker(broker.url, study="s", name="w1", spool=tmp_path)
    def objective(trial: bayesd.Trial) -> float:
        return trial.suggest_float("gamma", 0, 1)
    with pytest.raises(bayesd.SpaceMismatch, match="gamma"):
        objective.run()
    assert {tell["state"] for tell in daemon.told.values()} == {"released"}


def test_a_broker_that_dies_costs_nothing(broker: Any, start_daemon: Start, tmp_path: Path,
                                          monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bayesd_client.link.PAUSE_FIRST_S", 0.05)
    daemon = start_daemon(points(3))

    @bayesd.worker(broker.url, study="s", name="w1", spool=tmp_path)
    def objective(trial: bayesd.Trial) -> float:
        if trial.number == 2:
            broker.stop()
            time.sleep(0.3)
            threading.Timer(0.3, broker.start).start()
        return float(trial.number)
    assert objective.run().reason == "closed"
    assert {trial: tell["value"] for (trial, _), tell in daemon.told.items()} == {1: 1.0, 2: 2.0, 3: 3.0}


def test_a_worker_that_waits_does_not_turn_in_place(broker: Any, start_daemon: Start, tmp_path: Path) -> None:
    daemon = start_daemon(points(1))
    daemon.closing = False               # then asks wait

    async def main() -> float:
        @bayesd.worker(broker.url, study="s", name="w1", spool=tmp_path)
        async def objective(trial: bayesd.Trial) -> float:
            return 1.0
        work = asyncio.create_task(objective.arun())
        await asyncio.sleep(1)
        before_s = time.process_time()
        await asyncio.sleep(1)
        broker.stop()
        await asyncio.sleep(1)
        used_s = time.process_time() - before_s
        os.kill(os.getpid(), signal.SIGTERM)
        assert (await work).reason == "stopped"
        return used_s
    assert asyncio.run(main()) < 0.5


def test_a_tell_that_is_lost_is_sent_again(broker: Any, start_daemon: Start, tmp_path: Path) -> None:
    daemon = start_daemon(points(1))
    daemon.deaf_to = {"tell"}

    @bayesd.worker(broker.url, study="s", name="w1", spool=tmp_path)
    def objective(trial: bayesd.Trial) -> float:
        return 1.0
    threading.Timer(0.5, daemon.deaf_to.clear).start()
    objective.run()
    tells = daemon.of("tell")
    assert len(tells) >= 2
    assert "ask" in tells[0]
    assert all("ask" not in tell for tell in tells[1:])


def test_two_workers_of_one_name_on_one_machine(broker: Any, start_daemon: Start, tmp_path: Path) -> None:
    start_daemon(points(1))

    @bayesd.worker(broker.url, study="s", name="w1", spool=tmp_path)
    def objective(trial: bayesd.Trial) -> float:
        with pytest.raises(bayesd.NameInUse):
            bayesd.worker(broker.url, study="s", name="w1", spool=tmp_path)(lambda trial: 1.0).run()
        return 1.0
    assert objective.run().told == 1


def test_name_in_use_elsewhere(broker: Any, start_daemon: Start, tmp_path: Path) -> None:
    daemon = start_daemon(points(2))

    @bayesd.worker(broker.url, study="s", name="w1", spool=tmp_path)
    def objective(trial: bayesd.Trial) -> float:
        run = daemon.of("beat")[0]["run"]
        daemon.send("w1", "receipt", {"id": run, "run": run, "status": "rejected", "reason": "name-in-use"})
        for _ in range(500):
            time.sleep(0.01)
            if trial.should_prune():
                break
        return 1.0
    with pytest.raises(bayesd.NameInUse):
        objective.run()
    assert daemon.told == {}


def test_a_stop_reaches_a_thread(broker: Any, start_daemon: Start, tmp_path: Path) -> None:
    daemon = start_daemon(points(1))

    @bayesd.worker(broker.url, study="s", name="w1", spool=tmp_path)
    def objective(trial: bayesd.Trial) -> float:
        daemon.send("w1", "stop", {"study": "s", "trial": 1, "fence": 1, "reason": "cancelled"})
        for step in range(1000):
            time.sleep(0.01)
            trial.report(1.0, step=step)
        raise AssertionError("the stop did not come")
    objective.run()
    assert daemon.told == {}


def test_the_socket_does_not_wait_for_acknowledgements(broker: Any, start_daemon: Start, tmp_path: Path,
                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    start_daemon(points(1))
    found: list[int] = []
    enter = aiomqtt.Client.__aenter__

    async def spying(self: Any) -> Any:
        client = await enter(self)
        found.append(self._client.socket().getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        return client
    monkeypatch.setattr(aiomqtt.Client, "__aenter__", spying)
    bayesd.worker(broker.url, study="s", name="w1", spool=tmp_path)(lambda trial: 1.0).run()
    assert found == [1]


def test_the_readme(broker: Any, start_daemon: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its Python runs as it stands, but for where the broker is."""
    daemon = start_daemon(points(2), study="digits-svm")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    readme = (Path(__file__).parents[2] / "clients/python/README.md").read_text()
    code = [part.removeprefix("python").partition("```")[0] for part in readme.split("```")
            if part.startswith("python")]
    assert len(code) == 2, "the blocks that are run"
    for block in code:
        exec(block.replace("mqtt://localhost", broker.url), {})      # the second finds the study closed
    assert len(daemon.told) == 2


# The command, as its own process.

RUN = "from bayesd_client.cli import worker_run; worker_run()"


def command(broker: Any, tmp_path: Path, *arguments: str) -> list[str]:
    return ["-c", RUN, "--broker", broker.url, "--study", "s", "--name", "w1", "--spool", str(tmp_path), *arguments]


def test_a_program_as_a_worker(broker: Any, start_daemon: Start, tmp_path: Path, start_python: StartPython) -> None:
    daemon = start_daemon(points(3))
    child = start_python(*command(broker, tmp_path, "--slots", "2", "--", sys.executable, "-c",
                                  "import sys; print('bayesd: step=1 value=9'); print('talk'); print(sys.argv[1])",
                                  "{x}", "--degree", "{degree}"))
    out, errors = child.communicate(timeout=30)
    assert child.returncode == 0, errors
    assert sorted(tell["value"] for tell in daemon.told.values()) == [0.0, 1.0, 2.0]
    assert out.count("talk") == 3
    assert "s trial 1 starts: x=0" in errors
    assert "is closed (budget)" in errors
    assert [report["value"] for report in daemon.of("report")] == [9.0] * 3


def test_sigterm_gives_back_and_ends_with_0(broker: Any, start_daemon: Start, tmp_path: Path,
                                            start_python: StartPython, until: Until) -> None:
    daemon = start_daemon(points(2))
    pid_file = tmp_path / "pid"
    child = start_python(*command(broker, tmp_path, "--", "sh", "-c", f"echo $$ > {pid_file}; sleep 600"))
    until(pid_file.exists, "the program runs")
    until(lambda: len(daemon.granted) == 2, "one trial is queued")
    child.send_signal(signal.SIGTERM)
    _, errors = child.communicate(timeout=30)
    assert child.returncode == 0, errors
    assert [tell["state"] for tell in daemon.told.values()] == ["released", "released"]
    assert not Path(f"/proc/{pid_file.read_text().strip()}").exists()
    assert not list((tmp_path / "w1").rglob("*.json"))


def test_a_killed_worker_trains_its_trial_again_once(broker: Any, start_daemon: Start, tmp_path: Path,
                                                     start_python: StartPython, until: Until) -> None:
    daemon = start_daemon(points(1))
    marks = tmp_path / "marks"
    arguments = command(broker, tmp_path, "--prefetch", "0", "--", "sh", "-c", f"echo x >> {marks}; sleep 600")
    for starts in (1, 2):
        child = start_python(*arguments)
        until(lambda starts=starts: marks.exists() and len(marks.read_text().split()) == starts, "it trains")
        child.kill()
        child.wait()
    until(lambda: len(daemon.of("beat")) >= 2, "the second run has said what it holds")
    beats = daemon.of("beat")
    assert beats[0]["leases"] == []
    assert next(beat for beat in beats if beat["run"] != beats[0]["run"])["leases"] == [["s", 1, 1]]
    child = start_python(*arguments)
    child.communicate(timeout=30)
    assert child.returncode == 0
    assert len(marks.read_text().split()) == 2           # not a third time
    assert (daemon.told[1, 1]["state"], daemon.told[1, 1]["class"]) == ("fail", "crash")


def test_an_unknown_placeholder_ends_with_2(broker: Any, start_daemon: Start, tmp_path: Path,
                                            start_python: StartPython) -> None:
    daemon = start_daemon(points(3))
    child = start_python(*command(broker, tmp_path, "--", "echo", "{rate}"))
    _, errors = child.communicate(timeout=30)
    assert child.returncode == 2, errors
    assert "{rate} in the command is no parameter of study s" in errors
    assert {tell["state"] for tell in daemon.told.values()} == {"released"}


def test_a_refused_tell_ends_with_1(broker: Any, start_daemon: Start, tmp_path: Path, start_python: StartPython,
                                    monkeypatch: pytest.MonkeyPatch) -> None:
    daemon = start_daemon(points(1))

    def refuse(worker: str, tell: dict[str, Any]) -> None:
        daemon.send(worker, "receipt", {"id": tell["id"], "status": "rejected", "reason": "unknown-trial"})
        daemon._on_ask(worker, tell["ask"])
    monkeypatch.setattr(daemon, "_on_tell", refuse)
    child = start_python(*command(broker, tmp_path, "--prefetch", "0", "--", "echo", "1"))
    _, errors = child.communicate(timeout=30)
    assert child.returncode == 1
    assert "1 results were refused" in errors
    assert "w1" in errors
    assert json.loads((tmp_path / "w1/rejected/s.1.1.json").read_text())["receipt"]["reason"] == "unknown-trial"


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificates")
def test_tls_with_a_clients_certificate(broker: Any, start_daemon: Start, tmp_path: Path) -> None:
    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True, cwd=tmp_path)
    openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=ca",
            "-days", "2")
    (tmp_path / "names").write_text("subjectAltName=IP:127.0.0.1")
    for name in ("server", "w1"):
        openssl("req", "-newkey", "rsa:2048", "-nodes", "-keyout", f"{name}.key", "-out", f"{name}.csr",
                "-subj", f"/CN={name}")
        openssl("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
                "-out", f"{name}.pem", "-days", "2", "-extfile", "names")
    broker.stop()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with broker.config.open("a") as config:
        config.write(f"listener {port} 127.0.0.1\ncafile {tmp_path}/ca.pem\ncertfile {tmp_path}/server.pem\n"
                     f"keyfile {tmp_path}/server.key\nrequire_certificate true\n{broker.as_us}")
    broker.start()
    start_daemon(points(2))
    decorate = bayesd.worker(f"mqtts://127.0.0.1:{port}", study="s", name="w1", spool=tmp_path / "spool",
                             ca_file=f"{tmp_path}/ca.pem", cert_file=f"{tmp_path}/w1.pem",
                             key_file=f"{tmp_path}/w1.key")
    assert decorate(lambda trial: 1.0).run().told == 2


def test_a_certificate_that_has_ended_is_named_before_the_broker_hangs_up(
        tmp_path: Path, start_python: StartPython, broker: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    certificates.issue(tmp_path, ["localhost"], {"new": "worker"})
    made = datetime.now(UTC) - timedelta(days=certificates.CLIENT_DAYS + 1)
    monkeypatch.setattr(certificates, "_now", lambda: made)
    certificates.issue(tmp_path, (), {"old": "worker"})
    end = ended(tmp_path / "old.crt")
    assert (end is not None, ended(tmp_path / "new.crt")) == (True, None)
    child = start_python("-c", RUN, "--broker", f"mqtts://127.0.0.1:{broker.port}", "--study", "s", "--spool",
                         str(tmp_path / "spool"), "--cert-file", str(tmp_path / "old.crt"), "--key-file",
                         str(tmp_path / "old.key"), "--", "true")
    assert child.stderr is not None
    lines = [child.stderr.readline(), child.stderr.readline()]
    assert f"old.crt ended on {end:%Y-%m-%d}" in lines[1], lines
    child.send_signal(signal.SIGTERM)
    child.communicate(timeout=20)


def test_a_name_that_is_not_the_logins_is_named(tmp_path: Path, start_python: StartPython, broker: Any) -> None:
    child = start_python("-c", RUN, "--broker", f"mqtt://w1@127.0.0.1:{broker.port}", "--name", "w2", "--study", "s",
                         "--spool", str(tmp_path / "spool"), "--", "true")
    assert child.stderr is not None
    lines = [child.stderr.readline(), child.stderr.readline()]
    assert "our name is w2, and the broker knows us as w1" in lines[1], lines
    child.send_signal(signal.SIGTERM)
    child.communicate(timeout=20)


def test_a_wrong_password_says_so_and_tries_on(tmp_path: Path, start_python: StartPython, broker: Any,
                                               until: Until) -> None:
    broker.stop()
    passwords = tmp_path / "passwords"
    passwords.write_text("")
    broker.config.write_text(f"listener {broker.port} 127.0.0.1\nallow_anonymous false\n"
                              f"password_file {passwords}\n{broker.as_us}")
    broker.start()
    child = start_python("-c", RUN, "--broker", f"mqtt://w1@127.0.0.1:{broker.port}", "--study", "s",
                         "--spool", str(tmp_path / "spool"), "--", "true")
    assert child.stderr is not None
    lines = [child.stderr.readline(), child.stderr.readline()]
    assert "refused user w1" in lines[1], lines
    assert "--password-file" in lines[1], lines
    child.send_signal(signal.SIGTERM)
    child.communicate(timeout=20)
    assert child.returncode == 0                         # nothing was held, so nothing is lost
    assert os.path.isdir(tmp_path / "spool" / "w1")      # the broker's user is the name
