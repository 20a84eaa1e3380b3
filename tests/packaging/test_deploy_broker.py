"""`bayesd deploy` and the broker's part of deploy/README.md: what is typed there, typed here."""

import asyncio
import datetime
import json
import os
import re
import shutil
import ssl
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.clients.test_javascript import FOLDER as JAVASCRIPT
from tests.clients.test_javascript import packages
from tests.edges.daemon import Daemon
from tests.edges.installed import Installation
from tests.edges.mosquitto import Mosquitto, binary, free_port, missing

from bayesd import call, certificates, mosquitto
from bayesd.bus import BusError
from bayesd.cli import run
from bayesd.doctor import examine, queue
from bayesd_client.certificate import common_name

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
IDENTITIES = {"bayesd": "daemon", "w1": "worker", "w2": "worker", "alice": "operator"}
ALL = ("--host", "broker.example", "--host", "192.0.2.7", "--daemon", "bayesd", "--worker", "w1", "--worker", "w2",
       "--operator", "alice")


def certs(folder: Path, *more: str) -> int:
    return run(["deploy", "certs", str(folder), *more])


# --- Certificates ----------------------------------------------------------------------------------------


def test_one_command_makes_an_authority_and_all_that_it_signs(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "certs"
    assert certs(folder, *ALL, "--days", "30", "-f", "json") == 0
    said = capsys.readouterr()
    rows = {row["name"]: row for row in json.loads(said.out)}
    assert {name: row["role"] for name, row in rows.items()} == {"ca": "ca", "broker": "broker", **IDENTITIES}
    assert rows["broker"]["hosts"] == ["broker.example", "192.0.2.7"]
    assert "ca.key stays here" in said.err
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {
        f"{name}.{kind}": mode for name in rows for kind, mode in (("crt", 0o644), ("key", 0o600))}
    for name in IDENTITIES:
        assert common_name(folder / f"{name}.crt") == name == certificates.read(folder / f"{name}.crt").name
        assert certificates.is_issued_by(folder / f"{name}.crt", folder / "ca.crt")
        left = certificates.read(folder / f"{name}.crt").ends - datetime.datetime.now(datetime.UTC)
        assert 29 <= left.days <= 30
        context = ssl.create_default_context(cafile=folder / "ca.crt")
        context.load_cert_chain(folder / f"{name}.crt", folder / f"{name}.key")
    if shutil.which("openssl") is not None:       # a second reader, as strict as it can be
        for name, purpose in [("broker", "sslserver"), *((name, "sslclient") for name in IDENTITIES)]:
            subprocess.run(["openssl", "verify", "-x509_strict", "-purpose", purpose, "-CAfile", folder / "ca.crt",
                            folder / f"{name}.crt"], check=True, capture_output=True)


def state(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_is_there_stays_and_a_renewal_makes_anew_what_is_near_its_end(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "certs"
    assert certs(folder, *ALL) == 0
    first = state(folder)
    assert certs(folder, *ALL, "--worker", "w3") == 0
    second = state(folder)
    assert {name: second[name] for name in first} == first
    assert set(second) - set(first) == {"w3.crt", "w3.key"}
    assert certs(folder, "--renew") == 0
    assert "nothing is near its end" in capsys.readouterr().err
    assert state(folder) == second
    now = datetime.datetime.now(datetime.UTC)
    monkeypatch.setattr(certificates, "_now", lambda: now + datetime.timedelta(days=61))
    assert certs(folder, *ALL) == 0
    assert state(folder) == second, "without --renew nothing is made anew"
    assert certs(folder, "--renew") == 0
    third = state(folder)
    assert {name for name in third if third[name] != second[name]} == {
        f"{name}.{kind}" for name in (*IDENTITIES, "w3") for kind in ("crt", "key")}
    assert certificates.read(folder / "w3.crt").role == "worker"
    assert certificates.is_issued_by(folder / "w3.crt", folder / "ca.crt")
    assert certs(folder, "--host", "new.example") == 2
    assert "add --renew" in capsys.readouterr().err
    assert certs(folder, "--host", "new.example", "--renew") == 0
    assert certificates.read(folder / "broker.crt").hosts == ("new.example",)
    (folder / "w1.key").write_bytes(third["w2.key"])      # a renewal that a crash cut in two
    assert certs(folder, "--renew") == 0
    ssl.create_default_context().load_cert_chain(folder / "w1.crt", folder / "w1.key")


@pytest.mark.parametrize(("arguments", "words"), [
    (("--worker", "W+"), "'W+' is not a name"), (("--worker", "w/1"), "is not a name"),
    (("--worker", "../w"), "is not a name"), (("--worker", "ca"), "cannot be named ca"),
    (("--operator", "broker"), "cannot be named broker"), (("--worker", "alice"), "alice is the name of an operator"),
    (("--worker", "x", "--operator", "x"), "x is named as worker and as operator"),
    (("--host", "mqtts://x"), "is not a host"), (("--host", "other.example"), "add --renew")])
def test_what_is_refused_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                         arguments: tuple[str, ...], words: str) -> None:
    assert certs(tmp_path / "certs", *ALL) == 0
    before = state(tmp_path / "certs")
    assert certs(tmp_path / "certs", *arguments) == 2
    assert words in capsys.readouterr().err
    assert state(tmp_path / "certs") == before


def test_an_authority_is_never_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                         capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "certs"
    assert certs(folder, "--worker", "w1") == 2
    assert "give --host" in capsys.readouterr().err
    assert not folder.exists()
    assert certs(folder, *ALL) == 0
    whole = state(folder)
    for gone, words in ((("ca.key",), "ca.key is missing"), (("ca.crt",), "ca.crt is missing"),
                        (("ca.crt", "ca.key"), "not the authority that made it")):
        for name in gone:
            (folder / name).unlink()
        left = state(folder)
        assert certs(folder, "--worker", "w9", "--renew") == 2
        assert words in capsys.readouterr().err
        assert state(folder) == left
        for name in gone:
            (folder / name).write_bytes(whole[name])
    now = datetime.datetime.now(datetime.UTC)
    monkeypatch.setattr(certificates, "_now", lambda: now + datetime.timedelta(days=3651))
    assert certs(folder, "--renew") == 2
    assert "begin with a new one in another folder" in capsys.readouterr().err


# --- The broker's files ----------------------------------------------------------------------------------


def test_the_files_of_the_folder_are_what_the_command_writes() -> None:
    said = {"bayesd.acl": mosquitto.access_list(IDENTITIES), "bayesd.conf": mosquitto.settings("passwords"),
            "bayesd-certificates.conf": mosquitto.settings("certificates"),
            "bayesd-dynamic.conf": mosquitto.settings("dynamic"),
            "bayesd-dynamic-security.json": mosquitto.dynamic_security(IDENTITIES)}
    assert {path.name: path.read_text() for path in (DEPLOY / "mosquitto").iterdir()} == said


def test_a_root_and_revoked_names_are_in_the_access_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "certs"
    assert run(["deploy", "mosquitto", str(folder)]) == 2
    assert "there is no daemon among the identities" in capsys.readouterr().err
    assert certs(folder, *ALL) == 0
    assert run(["deploy", "mosquitto", str(folder), "--root", "acme", "--revoked", "w2"]) == 0
    text = (folder / "bayesd.acl").read_text()
    assert "user w2\ntopic deny #\n" in text
    assert "pattern write acme/bayesd/1/from/%u/+\n" in text
    assert not re.search(r" bayesd/1", text)
    assert 'root      = "acme"' in (folder / "bayesd.toml").read_text()


@pytest.mark.mosquitto
def test_roles_of_the_dynamic_security_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    binary()
    if not Path(mosquitto.PLUGIN).exists():
        missing("mosquitto's Dynamic Security plugin", f"it is not at {mosquitto.PLUGIN}")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr(queue, "ASKS", 20)
    here = Installation(tmp_path, profile="dynamic")
    here.restart()
    try:
        with here.daemon:
            here.wait()
            found = asyncio.run(examine(here.reach("alice"), here.daemon.log, worker=here.reach("w1")))
    finally:
        here.broker.kill()
    assert [each for each in found if each.state == "bad"] == []
    assert [each.finding for each in found if each.check == "acting as another"] == [
        "w1 can write as itself only", "alice can write as itself only"]


# --- deploy/README.md ------------------------------------------------------------------------------------


def blocks(heading: str) -> list[str]:
    """The commands below a heading, up to the next of its rank."""
    text = (DEPLOY / "README.md").read_text()
    start = text.index(f"\n## {heading}")
    return re.findall(r"^```\n(.*?)^```", text[start:text.index("\n## ", start + 1)], re.MULTILINE | re.DOTALL)


def typed(commands: str, root: Path, port: int) -> None:
    """Type commands of the page with everything below `root`, in place of the machine's own folders and services."""
    programs = root / "bin"
    programs.mkdir(exist_ok=True)
    (programs / "bayesd").write_text(f'#!/bin/sh\nexec {sys.executable} -m bayesd.cli "$@"\n')
    (programs / "systemctl").write_text("#!/bin/sh\n")
    for program in programs.iterdir():
        program.chmod(0o755)
    (root / "etc/mosquitto/conf.d").mkdir(parents=True, exist_ok=True)      # mosquitto's package brings it
    commands = re.sub(r"(?<![\w.])/(etc|root)/", rf"{root}/\1/", commands).replace(" -o mosquitto -g mosquitto", "")
    here = f"--port {port} --bind 127.0.0.1 --place {root}/etc/mosquitto/bayesd"
    commands = re.sub(r"^(bayesd deploy mosquitto .*)$", rf"\1 {here}", commands,
                      flags=re.MULTILINE)
    subprocess.run(["sh", "-euc", commands], check=True, capture_output=True,
                   env={**os.environ, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"})


@dataclass(frozen=True)
class Site:
    root: Path
    port: int

    @property
    def url(self) -> str:
        return f"mqtts://localhost:{self.port}"

    def pair(self, name: str) -> dict[str, Any]:
        files = self.root / "root/bayesd"
        return {"ca_file": files / "ca.crt", "cert_file": files / f"{name}.crt", "key_file": files / f"{name}.key"}

    def ask(self, verb: str, **args: Any) -> Any:
        return asyncio.run(call.once(call.find(self.url, timeout_s=20.0, **self.pair("alice")), verb, args))

    def study(self, name: str) -> None:
        space = {"x": {"type": "float", "low": 0, "high": 1}}
        self.ask("study.create", spec={"name": name, "method": "random", "space": space, "budget": {"trials": 1}})

    def told(self, study: str) -> list[tuple[str, float]]:
        """Who told what; waits until the study is closed."""
        deadline_s = time.monotonic() + 30
        while self.ask("study.show", study=study)["state"] != "closed":
            assert time.monotonic() < deadline_s, f"{study} does not close"
        shown = self.ask("trial.show", study=study, trial=1)
        return [(shown["worker"], next(iter(shown["values"].values())))]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Sections 2 and 3 of the page, with a mosquitto whose main file is Debian's, and systemd's credentials by hand."""
    binary()
    root, port = tmp_path_factory.mktemp("site"), free_port()
    typed(blocks("2. ")[0], root, port)
    broker = Mosquitto(root, port=port)
    (root / "var").mkdir()
    broker.config.write_text(f"user root\npersistence true\npersistence_location {root}/var/\nlog_dest none\n"
                             f"include_dir {root}/etc/mosquitto/conf.d\n")
    credentials = root / "credentials"
    credentials.mkdir()
    drop_in = (root / "etc/systemd/system/bayesd.service.d/certificates.conf").read_text()
    for name, file in re.findall(r"^LoadCredential=([\w-]+):(/etc/.*)$", drop_in, re.MULTILINE):
        shutil.copy(f"{root}{file}", credentials / name)
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("BAYESD_")]:
            patch.delenv(name)
        patch.setenv("CREDENTIALS_DIRECTORY", str(credentials))
        patch.setenv("XDG_RUNTIME_DIR", str(root))
        daemon = Daemon(root, f"mqtts://localhost:{port}", "--config", str(root / "etc/bayesd/bayesd.toml"))
    assert f'broker    = "mqtts://localhost:{port}"' in (root / "etc/bayesd/bayesd.toml").read_text()
    with broker, daemon:
        yield Site(root, port)


@pytest.mark.mosquitto
def test_a_program_works_over_tls_under_the_name_in_its_certificate(site: Site) -> None:
    site.study("program")
    pair = site.pair("w1")
    done = subprocess.run(
        [sys.executable, "-m", "bayesd.cli", "worker", "run", "--broker", site.url, "--ca-file", pair["ca_file"],
         "--cert-file", pair["cert_file"], "--key-file", pair["key_file"], "--study", "program", "--spool",
         site.root / "spool", "--", "sh", "-c", "echo 0.25"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert site.told("program") == [("w1", 0.25)]


@pytest.mark.mosquitto
def test_the_shell_worker_works_over_tls(site: Site) -> None:
    for tool in ("mosquitto_pub", "mosquitto_sub", "jq", "flock", "setsid"):
        if shutil.which(tool) is None:
            missing(tool, "the shell worker needs it")
    site.study("shell")
    pair = site.pair("w2")
    options = site.root / "config"
    options.mkdir()
    for tool in ("mosquitto_pub", "mosquitto_sub"):
        (options / tool).write_text(f"--cafile {pair['ca_file']}\n--cert {pair['cert_file']}\n--key "
                                    f"{pair['key_file']}\n")
    done = subprocess.run(
        [ROOT / "clients/shell/bayesd-worker.sh", "w2", "shell", "echo 0.5"], capture_output=True, text=True,
        timeout=60,
        env={**os.environ, "XDG_CONFIG_HOME": str(options), "XDG_STATE_HOME": str(site.root), "BAYESD_TICK_S": "0.2",
             "BAYESD_BROKER_HOST": "localhost", "BAYESD_BROKER_PORT": str(site.port)})
    assert done.returncode == 0, done.stderr
    assert site.told("shell") == [("w2", 0.5)]


@pytest.mark.mosquitto
@pytest.mark.usefixtures("packages")
def test_the_javascript_worker_works_over_tls(site: Site) -> None:
    site.study("javascript")
    pair = site.pair("w1")
    program = f"""
import fs from 'node:fs'
import {{ run }} from '{(JAVASCRIPT / "bayesd-worker.mjs").as_uri()}'
const read = file => fs.readFileSync(file)
const connect = {{ ca: read('{pair["ca_file"]}'), cert: read('{pair["cert_file"]}'), key: read('{pair["key_file"]}') }}
const options = {{ broker: '{site.url}', name: 'w1', study: 'javascript', spool: '{site.root}/js', connect }}
await run(options, async () => 0.75)
process.exit(0)
"""
    done = subprocess.run(["node", "--input-type=module", "--eval", program], capture_output=True, text=True,
                          timeout=60)
    assert done.returncode == 0, done.stderr
    assert site.told("javascript") == [("w1", 0.75)]


@pytest.mark.mosquitto
def test_the_doctor_of_the_page_finds_it_well(site: Site, monkeypatch: pytest.MonkeyPatch,
                                              capsys: pytest.CaptureFixture[str]) -> None:
    """The first line of the page; the probe that fills queues is small here."""
    monkeypatch.setattr(queue, "ASKS", 50)
    (line, *_) = next(block for block in blocks("2. ") if block.startswith("bayesd doctor")).splitlines()
    line = line.replace("broker.example", f"localhost:{site.port}").replace(" /root/", f" {site.root}/root/")
    words = line.split()[1:]
    code = run([*words, "--log", str(site.root / "log.db"), "-f", "json"])
    found = json.loads(capsys.readouterr().out)
    assert code == 0
    assert [row for row in found if row["state"] == "bad"] == []
    assert [row["finding"] for row in found if row["check"] == "acting as another"] == [
        "w1 can write as itself only", "alice can write as itself only"]


@pytest.mark.mosquitto
def test_the_passwords_of_the_page_let_their_owners_in_and_nobody_else(tmp_path: Path) -> None:
    binary()
    port = free_port()
    (commands,) = [block for block in blocks("2. ") if "--profile passwords" in block]
    typed(commands, tmp_path, port)
    files = tmp_path / "root/bayesd"
    first = (files / "w1.password").read_text()
    typed(commands, tmp_path, port)
    assert (files / "w1.password").read_text() == first, "a password that is in use was made anew"
    assert (tmp_path / "etc/bayesd/mqtt-password").read_text() == (files / "bayesd.password").read_text()
    broker = Mosquitto(tmp_path, port=port)
    broker.config.write_text(f"user root\nlog_dest none\npersistence_location {tmp_path}/\n"
                             f"include_dir {tmp_path}/etc/mosquitto/conf.d\n")

    async def enters(name: str, secret: str) -> bool:
        try:
            async with call.find(broker.url, username=name, password_file=files / f"{secret}.password").caller():
                return True
        except BusError:
            return False

    with broker:
        entered = {(name, secret): asyncio.run(enters(name, secret)) for name in IDENTITIES for secret in IDENTITIES}
    assert entered == {(name, secret): name == secret for name in IDENTITIES for secret in IDENTITIES}


__all__ = ["packages"]
