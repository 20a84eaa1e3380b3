"""`bayesd doctor` in a real installation: all is well, and each planted fault is named with its remedy."""

import asyncio
import datetime
import importlib.metadata
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.edges.installed import HOST, Installation, installation
from tests.edges.mosquitto import Mosquitto, binary, free_port

from bayesd import call, certificates, logfile, mosquitto
from bayesd.cli import run
from bayesd.doctor import Finding, examine, machine, queue, ways
from bayesd.doctor.broker import of_version
from bayesd.doctor.settings import examine as examine_settings

pytestmark = pytest.mark.mosquitto

FEW = 20            # asks of the probe that fills queues, where queues are not what is asked
HERE = ("python", "packages", "clock")      # depends on the machine that runs the tests


@pytest.fixture(scope="module")
def standing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    binary()
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("BAYESD_")]:
            patch.delenv(name)
        patch.setenv("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("run")))
        with installation(tmp_path_factory.mktemp("installed")) as made:
            space = {"x": {"type": "float", "low": 0, "high": 1}}
            made.answered("study.create", "alice", {"spec": {"name": "s1", "method": "random", "space": space}})
            yield made


@pytest.fixture
def here(standing: Installation) -> Installation:
    """The installation as it was generated, whatever the test before has changed."""
    if standing.is_changed:
        standing.restart()
        standing.wait()
    return standing


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "ASKS", FEW)


def look(here: Installation, name: str = "alice", worker: str | None = "w1", *, log: Path | None = None,
         settings: Path | None = None, **more: Any) -> list[Finding]:
    return asyncio.run(examine(here.reach(name, **more), log or here.daemon.log, broker_settings=settings,
                               worker=here.reach(worker) if worker is not None else None))


def named(found: list[Finding], check: str, words: str, remedy: str) -> None:
    """A check is not well, says these words and this remedy, and nothing else is bad."""
    wrong = [each for each in found if each.state != "ok" and each.check not in HERE]
    fits = [each for each in wrong if each.check == check]
    assert fits, f"{check} is not among {wrong}"
    assert words in fits[0].finding, fits[0]
    assert remedy in fits[0].advice, fits[0]


def test_all_is_well_and_nothing_is_changed(here: Installation, capsys: pytest.CaptureFixture[str]) -> None:
    """With the words of the command line; the log is the same before and after."""
    before = here.daemon.events()
    found = look(here, settings=here.broker.config)
    assert [each for each in found if each.state != "ok" and each.check not in HERE] == []
    assert {"our certificate", "broker", "latency", "broker version", "broker's certificate", "anonymous access",
            "daemon", "signed head", "way of a worker", "way of an operator", "daemon's clock", "public states",
            "one daemon", "large messages", "waiting messages", "acting as another", "broker's settings"} <= {
                each.check for each in found}
    worker = here.pair("w1")
    run(["doctor", "--broker", here.url, *here.flags("alice"), "--worker-cert-file", str(worker["cert_file"]),
         "--worker-key-file", str(worker["key_file"]), "--log", str(here.daemon.log), "-f", "value"])
    said = capsys.readouterr().out.splitlines()
    assert not [line for line in said if line.startswith("BAD")]
    assert "ok\tacting as another\tw1 can write as itself only" in said
    assert here.daemon.events() == before


# --- The access list ------------------------------------------------------------------------------------

OWN_WRITE, OWN_READ = "pattern write bayesd/1/from/%u/+\n", "pattern read bayesd/1/to/%u/+\n"
ONLY_ALICE = (("user alice\n", "user alice\ntopic read bayesd/1/to/alice/#\ntopic write bayesd/1/from/alice/#\n"),)


@dataclass(frozen=True)
class Fault:
    """A change of the access list, and what is said of it."""

    old: str
    new: str
    check: str
    words: str
    remedy: str
    more: tuple[tuple[str, str], ...] = ()


FAULTS = {
    "a worker may not write": Fault(
        OWN_WRITE, "", "way of a worker", "w1 may not write bayesd/1/from/w1/ask", "w1 to write bayesd/1/from/w1/+",
        ONLY_ALICE),
    "a worker may not read": Fault(
        OWN_READ, "", "way of a worker", "w1 may not read bayesd/1/to/w1/+", "w1 to read bayesd/1/to/w1/+", ONLY_ALICE),
    "a worker may write as everybody": Fault(
        "user w1\n", "user w1\ntopic write bayesd/1/from/#\n", "acting as another", "w1 may write as doctor-",
        "pattern write bayesd/1/from/%u/+"),
    "a worker may write as one other": Fault(
        "user w1\n", "user w1\ntopic write bayesd/1/from/alice/#\n", "acting as another", "w1 may write as alice",
        "no wider right for w1"),
    "an operator may write as a worker": Fault(
        "user alice\n", "user alice\ntopic write bayesd/1/from/w1/#\n", "acting as another", "alice may write as w1",
        "no wider right for alice"),
    "an operator may not ask": Fault(
        "topic write bayesd/1/admin/alice/request\n", "", "way of an operator", "access list may not let alice write",
        "alice to write bayesd/1/admin/alice/request"),
    "the daemon may not read tells": Fault(
        "topic read bayesd/1/from/#\n", "", "way of a worker", "gets no answer", "the daemon to read bayesd/1/from/#"),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=list(FAULTS))
def test_a_fault_of_the_access_list(standing: Installation, fault: Fault) -> None:
    if standing.is_changed:
        standing.grant(())
    standing.grant(((fault.old, fault.new), *fault.more))
    named(look(standing), fault.check, fault.words, fault.remedy)


def test_a_revoked_identity_may_do_nothing(standing: Installation) -> None:
    left = {"bayesd": "daemon", "w1": "worker", "alice": "operator"}
    standing.grant(((standing.rights, mosquitto.access_list(left, revoked=["w2"])),))
    named(look(standing, worker="w2"), "way of a worker", "w2 may not write bayesd/1/from/w2/ask", "w2")


@pytest.mark.parametrize(("topic", "check"), [
    ("daemon", "daemon"), ("head", "signed head"), ("study/#", "public states")])
def test_a_daemon_that_may_not_announce(standing: Installation, topic: str, check: str) -> None:
    standing.restart(rights=((f"topic readwrite bayesd/1/{topic}\n", f"topic read bayesd/1/{topic}\n"),))
    standing.wait(announced_too=False)
    named(look(standing), check, f"can be read at bayesd/1/{topic.split('/')[0]}", "grant the daemon to read and write")


def test_without_a_second_identity_it_says_what_was_not_looked_at(here: Installation) -> None:
    (other,) = [each for each in look(here, worker=None) if each.check == "another identity"]
    assert "--worker-cert-file" in other.finding


# --- The broker's settings ------------------------------------------------------------------------------


@pytest.mark.parametrize(("changes", "check", "words", "remedy"), [
    ((("set_tcp_nodelay true", ""),), "latency", "ms a turn", "set_tcp_nodelay true"),
    ((("max_packet_size 131072", "max_packet_size 65536"),), "large messages", "64 KiB does not come through",
     "max_packet_size 131072"),
    ((("max_queued_messages 100000", ""),), "waiting messages", "the broker dropped", "max_queued_messages 100000"),
    ((("require_certificate true", ""), ("use_identity_as_username true", ""), ("acl_file", "#"),
      ("allow_anonymous false", "allow_anonymous true")), "anonymous access",
     "takes everybody", "require_certificate true"),
    ((("persistence true", ""),), "broker's settings", "persistence is off", "persistence true"),
], ids=["nagle", "packet", "queue", "anonymous", "persistence"])
def test_a_fault_of_the_settings(standing: Installation, monkeypatch: pytest.MonkeyPatch,
                                 changes: tuple[tuple[str, str], ...], check: str, words: str, remedy: str) -> None:
    if check == "waiting messages":
        monkeypatch.undo()
    standing.restart(changes)
    standing.wait()
    found = look(standing, settings=standing.broker.config if check == "broker's settings" else None)
    named(found, check, words, remedy)


def test_each_setting_that_is_not_as_it_should_be_is_named(tmp_path: Path) -> None:
    file = tmp_path / "mosquitto.conf"
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d" / "b.conf").write_text("max_queued_messages 50\nmax_packet_size 65536\npersistence true\n")
    file.write_text(f"# nothing\nlistener 1883\nallow_anonymous true\nrequire_certificate true\n"
                    f"include_dir {tmp_path / 'conf.d'}\n")
    advice = " ".join(each.advice for each in examine_settings(file))
    for setting in ("set_tcp_nodelay true", "max_queued_messages 100000", "max_packet_size 131072",
                    "autosave_interval 1", "allow_anonymous false", "use_identity_as_username true"):
        assert setting in advice
    file.write_text("listener 1883 127.0.0.1\nallow_anonymous false\n")
    assert any("acl_file" in each.advice for each in examine_settings(file))
    assert examine_settings(tmp_path / "none")[0].state == "bad"


def test_what_nothing_runs_with_is_not_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer of the benchmarks is nobody's install; a package of the daemon is."""
    there, gone = importlib.metadata.version, {"optuna"}

    def version(name: str) -> str:
        if name in gone:
            raise importlib.metadata.PackageNotFoundError(name)
        return there(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert [(each.state, "are there" in each.finding) for each in machine._packages()] == [("ok", True)]
    gone.add("h11")
    (found,) = machine._packages()
    assert (found.state, "h11" in found.finding, "optuna" in found.finding) == ("warn", True, False)


def test_an_old_broker() -> None:
    assert of_version("mosquitto version 1.6.9").state == "bad"
    assert "2.0.21" in of_version("mosquitto version 2.0.11").finding
    assert [of_version(text).state for text in ("mosquitto version 2.0.22", "other 7", None)] == ["ok"] * 3


# --- Certificates and logins ----------------------------------------------------------------------------


def aged(here: Installation, monkeypatch: pytest.MonkeyPatch, name: str, days: int) -> str:
    """Who has a certificate for 90 days, made by the right authority so many days ago."""
    made = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=days)
    with monkeypatch.context() as patch:
        patch.setattr(certificates, "_now", lambda: made)
        certificates.issue(here.files, (), {name: "worker"})
    return name


@pytest.mark.parametrize(("days", "words"), [(91, "ended on"), (80, "9 days")])
def test_our_certificate_ends(here: Installation, monkeypatch: pytest.MonkeyPatch, days: int, words: str) -> None:
    name = aged(here, monkeypatch, f"old-{days}", days)
    found = asyncio.run(examine(here.reach(name), here.daemon.log))
    named(found, "our certificate", words, "bayesd deploy certs FOLDER --renew")
    if days > 90:
        named(found, "broker", here.url, "what to do stands at `our certificate` above")


def test_a_broker_with_an_old_certificate(here: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    made = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=400)
    old = here.folder / "old"
    shutil.copytree(here.files, old)
    for file in ("broker.crt", "broker.key"):
        (old / file).unlink()
    for days, check, remedy in ((397, "broker", "the broker's certificate has ended"), (410, "broker's certificate",
                                                                                      "--renew")):
        with monkeypatch.context() as patch:
            patch.setattr(certificates, "_now", lambda: made)
            certificates.issue(old, [HOST], {}, broker_days=days)
        here.restart(((f"{here.files}/broker.", f"{old}/broker."),))
        named(look(here), check, "", remedy)
        for file in ("broker.crt", "broker.key"):
            (old / file).unlink()


def test_a_broker_of_another_authority_or_name(here: Installation, tmp_path: Path) -> None:
    other = tmp_path / "other"
    certificates.issue(other, [HOST], {"alice": "operator"})
    named(look(here, ca_file=other / "ca.crt"), "broker", "is not to be trusted", "give the ca.crt")
    named(look(here, broker=f"mqtts://localhost:{here.port}"), "broker", "is not to be trusted",
          "localhost is not a name in the broker's certificate")
    named(look(here, cert_file=other / "alice.crt", key_file=other / "alice.key"), "broker", here.url,
          "the broker refuses our certificate")
    named(look(here, cert_file=None, key_file=None), "broker", here.url, "give --cert-file")
    named(look(here, key_file=here.files / "w1.key"), "our certificate", "belong together", "copy the pair again")
    named(look(here, client="bob"), "our certificate", "is alice's, but we call ourselves bob", "leave --client")
    named(look(here, broker=f"mqtt://{HOST}:{here.port}", ca_file=None, cert_file=None, key_file=None, worker=None),
          "broker", "closed the connection", "mqtts://")


def test_a_wrong_password_and_nobody_there(tmp_path: Path) -> None:
    files = tmp_path / "broker"
    port = free_port()
    assert run(["deploy", "mosquitto", str(files), "--profile", "passwords", "--daemon", "bayesd", "--worker", "w1",
                "--operator", "alice", "--place", str(files), "--port", str(port)]) == 0
    broker = Mosquitto(tmp_path, port=port)
    broker.config.write_text(f"user root\npersistence_location {tmp_path}/\n{(files / 'bayesd.conf').read_text()}")

    def looked(secret: str) -> list[Finding]:
        return asyncio.run(examine(call.find(broker.url, username="alice", password_file=files / f"{secret}.password"),
                                   tmp_path / "log.db"))
    with broker:
        assert "broker" in {each.check for each in looked("alice") if each.state == "ok"}
        named(looked("w1"), "broker", "refused our login as user 'alice'", "mosquitto_passwd FILE alice")
    named(looked("alice"), "broker", "Nothing listens", "systemctl status mosquitto")


# --- The daemon and its machine --------------------------------------------------------------------------


def test_a_daemon_whose_operators_we_are_not_among(here: Installation) -> None:
    assert here.daemon.process is not None
    settings = here.toml.read_text()

    def reload(text: str, allowed: bool) -> None:
        here.toml.write_text(text)
        assert here.daemon.process is not None
        here.daemon.process.send_signal(signal.SIGHUP)
        for _ in range(200):
            try:
                here.answered("study.pause", "alice", {"study": "nobody"})
            except call.Refusal as refused:
                if (refused.code != "not-allowed") == allowed:
                    return
        raise AssertionError(here.daemon.said())
    reload(settings.replace("alice", "bob"), False)
    try:
        named(look(here), "way of an operator", "alice is not in the list of operators", "add alice to operators")
    finally:
        reload(settings, True)


def test_a_clock_that_is_apart(here: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    class Ahead(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> "Ahead":
            return cls.fromtimestamp(super().now(tz).timestamp() + 3600, tz)
    monkeypatch.setattr(ways, "datetime", Ahead)
    named(look(here), "daemon's clock", "1:00:00 behind the one here", "run a time service")


def test_a_full_disk_and_one_of_another_machine(here: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=5_000_000))
    monkeypatch.setattr(logfile, "filesystem", lambda path, mounts: "nfs4")
    found = machine.examine(here.daemon.log)
    named(found, "disk", "4.77 MiB free", "make room")
    named(found, "file system", "nfs4, whose locks do not hold", "--log")


def test_two_daemons_another_log_and_none(here: Installation) -> None:
    """The second one does not see the first, because the access list hides it."""
    second = here.another("log-2.db", "second")
    here.restart(rights=(("topic readwrite bayesd/1/daemon\n", "topic write bayesd/1/daemon\n"),))
    here.wait()
    with second:
        until_events(second.events)
        named(until_two(here), "one daemon", "2 daemons answer", "stop all but the one whose log is the newest")
    here.restart()
    here.wait()
    named(look(here, log=second.log), "log of the root", "but the daemon at", "two daemons want one root")
    here.daemon.kill()
    found = look(here)
    named(found, "daemon", "offline; it was version", "systemctl start bayesd")
    here.daemon.start()
    here.wait()


def until_two(here: Installation) -> list[Finding]:
    """The second daemon has begun its log, but may not have connected yet."""
    deadline_s = time.monotonic() + 20
    while True:
        found = asyncio.run(ways._one_daemon(here.reach("w1")))
        if found.state == "bad" or time.monotonic() > deadline_s:
            return [found]


def until_events(events: Callable[[], list[Any]]) -> None:
    deadline_s = time.monotonic() + 20
    while not events():
        assert time.monotonic() < deadline_s, "the second daemon began no log"


def test_a_light_install_can_look_as_well(here: Installation) -> None:
    """As if nothing of the daemon's were there, cryptography included."""
    hide = ("import sys\nfor name in ('numpy', 'scipy', 'sklearn', 'orjson', 'aiosqlite', 'cryptography', 'iotcore'):\n"
            "    sys.modules[name] = None\nfrom bayesd.doctor import queue\nqueue.ASKS = 20\n"
            "from bayesd.cli import main\nmain()\n")
    done = subprocess.run([sys.executable, "-c", hide, "doctor", "--broker", here.url, *here.flags("w1"), "-f",
                           "value"], capture_output=True, text=True, timeout=60)
    assert "cryptography is not installed" in done.stdout
    assert "ok\tway of a worker\tasks of w1 are answered" in done.stdout, done.stderr
