"""An installation from `bayesd deploy`: certificates, mosquitto with the generated files, a daemon over TLS.

    with installation(folder) as here:
        here.wait()
        reach = here.reach("alice")
"""

import asyncio
import contextlib
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.edges.daemon import Daemon
from tests.edges.mosquitto import Mosquitto, free_port

from bayesd import call
from bayesd.call import Reach
from bayesd.cli import run
from bayesd.doctor.broker import announced

HOST = "127.0.0.1"          # and not localhost, which is thus a wrong name


class Installation:
    """The files, the broker and the daemon. Settings and access list can be changed while it stands."""

    def __init__(self, folder: Path, workers: Sequence[str] = ("w1", "w2"), profile: str = "certificates") -> None:
        self.folder = folder
        self.files = folder / "certs"
        self.port = free_port()
        names = [word for name in workers for word in ("--worker", name)]
        self.do("certs", "--host", HOST, "--daemon", "bayesd", *names, "--operator", "alice")
        self.do("mosquitto", "--profile", profile, "--place", str(self.files), "--state", str(self.files),
                "--port", str(self.port), "--bind", HOST)
        self.settings = (self.files / "bayesd.conf").read_text()
        self.rights = (self.files / "bayesd.acl").read_text() if profile == "certificates" else ""
        self.broker = Mosquitto(folder, port=self.port)
        self.is_changed = False
        self.toml = folder / "bayesd.toml"
        self.toml.write_text(f'broker = "{self.url}"\noperators = ["alice"]\n')
        self.daemon = self.another("log.db", "daemon")

    @property
    def url(self) -> str:
        return f"mqtts://{HOST}:{self.port}"

    def do(self, verb: str, *arguments: str) -> None:
        """`bayesd deploy VERB` in the folder of the certificates."""
        assert run(["deploy", verb, str(self.files), *arguments]) == 0

    def pair(self, name: str, files: Path | None = None) -> dict[str, Path]:
        """The three files of an identity, as flags and functions call them."""
        files = files or self.files
        return {"ca_file": self.files / "ca.crt", "cert_file": files / f"{name}.crt", "key_file": files / f"{name}.key"}

    def flags(self, name: str) -> list[str]:
        return [word for key, file in self.pair(name).items() for word in (f"--{key.replace('_', '-')}", str(file))]

    def reach(self, name: str, **more: Any) -> Reach:
        return call.find(**{"broker": self.url, **self.pair(name), **more})

    def another(self, log: str, name: str) -> Daemon:
        """A daemon with the same certificate and another log."""
        return Daemon(self.folder, self.url, "--config", str(self.toml), *self.flags("bayesd"), log=log, name=name)

    def write(self, settings: Sequence[tuple[str, str]] = (), rights: Sequence[tuple[str, str]] = ()) -> None:
        """The generated files with changes; each must find its place."""
        texts = {"settings": self.settings, "rights": self.rights}
        for key, changes in (("settings", settings), ("rights", rights)):
            for old, new in changes:
                assert old in texts[key], f"{old!r} is not in the generated {key}"
                texts[key] = texts[key].replace(old, new)
        self.broker.config.write_text(
            f"user root\nlog_dest none\npersistence_location {self.folder}/\n{texts['settings']}")
        (self.files / "bayesd.acl").write_text(texts["rights"])

    def restart(self, settings: Sequence[tuple[str, str]] = (), rights: Sequence[tuple[str, str]] = ()) -> None:
        """The broker again, with nothing retained, on changed files."""
        if self.broker._process is not None:
            self.broker.kill()
        (self.folder / "mosquitto.db").unlink(missing_ok=True)
        self.write(settings, rights)
        self.broker.start()
        self.is_changed = (tuple(settings), tuple(rights)) != ((), ())

    def grant(self, rights: Sequence[tuple[str, str]]) -> None:
        """Another access list, while everybody stays connected."""
        self.write((), rights)
        self.is_changed = bool(rights)
        assert self.broker._process is not None
        self.broker._process.send_signal(signal.SIGHUP)
        asyncio.run(self._connect("w2"))       # takes several turns of the broker, which reads the list in the first

    async def _connect(self, name: str) -> None:
        async with self.reach(name).caller():
            pass

    def answered(self, verb: str, name: str, args: dict[str, Any] | None = None) -> Any:
        """The result of a request, however long the daemon needs to come back."""
        return asyncio.run(call.once(self.reach(name, timeout_s=20.0), verb, args))

    def wait(self, *, announced_too: bool = True) -> None:
        """Until the daemon answers, and has announced itself."""
        self.answered("study.list", "alice")
        deadline_s = time.monotonic() + 20
        while announced_too and not asyncio.run(self._is_online()):
            assert time.monotonic() < deadline_s, self.daemon.said()

    async def _is_online(self) -> bool:
        reach = self.reach("alice")
        async with reach.caller(reach.topics.daemon, reach.topics.head) as caller:
            said = await announced(caller, reach.topics.daemon, reach.topics.head)
        daemon = said.get(reach.topics.daemon)
        return len(said) == 2 and daemon is not None and daemon["state"] == "online"


@contextlib.contextmanager
def installation(folder: Path, profile: str = "certificates",
                 settings: Sequence[tuple[str, str]] = ()) -> Iterator[Installation]:
    """One that stands and answers."""
    here = Installation(folder, profile=profile)
    try:
        here.restart(settings)
        with here.daemon:
            here.wait()
            yield here
    finally:
        if here.broker._process is not None:
            here.broker.kill()


__all__ = ["HOST", "Installation", "installation"]
