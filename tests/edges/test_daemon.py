"""The daemon process and its manager: readiness, watchdog, reload, credentials."""

import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.edges.mosquitto import free_port

from bayesd import systemd
from bayesd.config import ConfigError, load


class Manager:
    """What systemd would hear."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "notify"
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(self.path))
        self.socket.settimeout(30)
        self.heard: list[str] = []

    def until(self, fact: str) -> None:
        while not any(fact in each for each in self.heard):
            self.heard.append(self.socket.recv(4096).decode())


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    manager = Manager(tmp_path)
    yield manager
    manager.socket.close()


def test_the_manager_hears_ready_signs_of_life_reload_and_stop(tmp_path: Path, manager: Manager) -> None:
    config = tmp_path / "bayesd.toml"
    config.write_text(f'log_level = "info"\nport = {free_port()}\nlog = "{tmp_path}/log.db"\n')
    environment = {key: value for key, value in os.environ.items() if not key.startswith("BAYESD_")} | {
        "NOTIFY_SOCKET": str(manager.path), "WATCHDOG_USEC": "900000", "XDG_RUNTIME_DIR": str(tmp_path / "run"),
        "XDG_STATE_HOME": str(tmp_path / "state")}
    environment.pop("WATCHDOG_PID", None)
    with (tmp_path / "err").open("wb") as err:
        daemon = subprocess.Popen([sys.executable, "-m", "bayesd.cli", "serve", "--config", str(config)],
                                  env=environment, stderr=err)
    try:
        manager.until("READY=1")
        manager.until("WATCHDOG=1")
        manager.heard.clear()
        config.write_text(config.read_text() + 'operators = ["alice"]\n')
        daemon.send_signal(signal.SIGHUP)
        manager.until("RELOADING=1")
        manager.until("READY=1")
        config.write_text("operators = 7")
        manager.heard.clear()
        daemon.send_signal(signal.SIGHUP)
        manager.until("READY=1")               # a wrong file changes nothing and ends nobody
        began = time.monotonic()
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(20) == 0
        assert time.monotonic() - began < 10
        manager.until("STOPPING=1")
    finally:
        if daemon.poll() is None:
            daemon.kill()
            daemon.wait()
    said = (tmp_path / "err").read_text()
    assert "settings read again" in said
    assert "the settings stay as they were: operators" in said
    assert stat.S_IMODE((tmp_path / "log.db").stat().st_mode) == 0o600


def test_without_a_manager_nothing_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    systemd.notify(READY=1)
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    systemd.notify(READY=1)                    # a manager that is gone must not end the daemon
    monkeypatch.setenv("WATCHDOG_USEC", "many")
    assert systemd.watchdog_s() is None
    monkeypatch.setenv("WATCHDOG_USEC", "2000000")
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert systemd.watchdog_s() is None        # meant for another process
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    assert systemd.watchdog_s() == 2.0


def test_a_credential_is_a_path_or_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert systemd.credential("mqtt-password") is None
    (tmp_path / "mqtt-password").write_text("secret")
    assert systemd.credential("mqtt-password") == str(tmp_path / "mqtt-password")


def test_flags_win_over_environment_over_file_over_defaults(tmp_path: Path) -> None:
    file = tmp_path / "bayesd.toml"
    file.write_text('port = 1\nroot = "file"\nlog_level = "error"\n')
    config, origin = load({"port": 3}, file, {"BAYESD_PORT": "2", "BAYESD_ROOT": "environment",
                                             "BAYESD_OPERATORS": "alice, bob"})
    assert (config.port, config.root, config.log_level, config.log_format) == (3, "environment", "error", "text")
    assert config.operators == ["alice", "bob"]
    assert (origin["port"].said_by, origin["root"].said_by) == ("--port", "BAYESD_ROOT")
    assert origin["log_level"].said_by == str(file)


@pytest.mark.parametrize(("text", "named"), [
    ("prot = 1\n", "prot"), ("port = 70000\n", "port"), ('root = "a/+"\n', "root"), ("port = \n", "TOML"),
    ('log_level = "loud"\n', "log_level"), ('operators = ["UPPER"]\n', "operators")])
def test_a_wrong_setting_is_named_with_its_origin(tmp_path: Path, text: str, named: str) -> None:
    file = tmp_path / "bayesd.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=named):
        load({}, file, {})
    with pytest.raises(ConfigError, match="cannot be read"):
        load({}, tmp_path / "nowhere.toml", {})
