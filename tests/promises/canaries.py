"""Secrets that are told from everything else, in a deployment that is badly treated: none comes out anywhere.

A round has its own secrets, made of characters that mean something to a URL, a shell or a parser, around letters that
are found again in base64, in hex or quoted. First they stand in some hundred addresses that people might write, all of
which are refused. Then a daemon, a worker, an operator and a witness that may hear all meet troubles by lot: a wrong
secret, a broker that is killed, a daemon that is killed, a password in an address or in a file of settings, a password
file in place of a key, a key that is damaged. Afterwards every output, message, log, file of state, argument and
environment is searched (tests/security/test_secrets.py has the stage, the forms of a secret and the fixed ways).
"""

import contextlib
import json
import os
import random
import shutil
import string
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

from tests.edges.daemon import SPACE, Daemon
from tests.edges.mosquitto import free_port
from tests.promises.book import Fault, Proof, Round
from tests.security.test_secrets import RUN_S, Stage, hits

from bayesd.bus import BrokerAddress, BusError
from bayesd_client.errors import BadAddress
from bayesd_client.link import address

ADDRESSES = 200
TROUBLES = 2
START_S = 120.0     # a daemon on a machine that has much else to do
CORE_LETTERS = 14
MEANINGS = "/+=?&#%:@'\"\\ $`{}<>;|*~^![](),.é€"
PROGRAM = str(Path(__file__).with_name("launch.py"))


def secret(rng: random.Random) -> tuple[str, str]:
    """A password, and the letters in it that nobody else says."""
    core = "".join(rng.choices(string.ascii_letters + string.digits, k=CORE_LETTERS))
    around = ["".join(rng.choices(MEANINGS, k=rng.randint(0, 5))) for _ in range(2)]
    return f"p{around[0]}{core}{around[1]}p", core


def in_addresses(rng: random.Random) -> list[str]:
    """Which addresses with a password were taken, or repeated it."""
    wrong = []
    for _ in range(ADDRESSES):
        word, core = secret(rng)
        url = (f"{rng.choice(('mqtt://', 'mqtts://', 'tcp://', 'mqtt:', 'MQTT://', '//', '', ' mqtt://', 'mqtt//'))}"
               f"{rng.choice(('alice', 'a.b', 'a%40b', ''))}:{word}@{rng.choice(('h', '[h', 'h:1', 'h:port', ''))}")
        for read, refusal in ((BrokerAddress.parse, BusError), (address, BadAddress)):
            try:
                read(url)
            except refusal as error:
                if core in str(error):
                    wrong.append(f"{url!r} is repeated: {error}")
            else:
                wrong.append(f"{url!r} is taken for an address")
    return wrong


class Deployment:
    """A stage with secrets of its own, whose programs may have a fault."""

    def __init__(self, rng: random.Random, profile: str, folder: Path, program: tuple[str, ...]) -> None:
        self.rng, self.folder, self._program = rng, folder, program
        self.stage = Stage(profile, folder)
        self.guard = self.stage.guard
        self.cores: dict[str, bytes] = {}
        if profile == "password":
            for name in self.guard.people:
                self.guard.passwords[name], core = secret(rng)
                self.cores[f"the password of {name}"] = core.encode()
            self.guard._settings()          # which writes the password file
        self.daemon = Daemon(folder, self.guard.url, *self.guard.flags("bayesd"), "--log-level", "debug", "--operators",
                             "alice", program=program)

    def bayesd(self, *words: str, **environment: str) -> int:
        """One command, whose every word is kept."""
        done = subprocess.run([sys.executable, *self._program, *words], check=False, capture_output=True,
                              env=self.stage.environment | environment, timeout=RUN_S, cwd=self.folder)
        self.stage.outputs.append((" ".join(words)[:80], done.stdout + done.stderr))
        return done.returncode

    @property
    def reach(self) -> list[str]:
        """How alice reaches the broker."""
        return ["--broker", self.guard.url, *self.guard.flags("alice")]

    # ------------------------------------------------------------ troubles

    def somebody_elses_secret(self) -> None:
        mixed = [*self.guard.flags("alice")[:-1], self.guard.flags("bob")[-1]]      # the last word is the file
        self.bayesd("--debug", "study", "list", "--broker", self.guard.url, *mixed, "--timeout", "2")

    def the_daemon_is_refused(self) -> None:
        file = Path(self.guard.flags("bayesd")[-1])
        true = file.read_bytes()
        file.write_bytes(Path(self.guard.flags("bob")[-1]).read_bytes())
        assert self.daemon.process is not None
        self.daemon.kill()
        self.daemon.start()
        self.bayesd("doctor", *self.reach, "--timeout", "1")
        self.daemon.kill()
        file.write_bytes(true)
        self.daemon.start()

    def the_broker_is_killed(self) -> None:
        self.guard.broker.kill()
        self.bayesd("study", "list", *self.reach, "--timeout", "1")
        self.guard.broker.start()

    def the_daemon_is_killed(self) -> None:
        self.daemon.kill()
        self.daemon.start()

    def a_password_in_an_address(self) -> None:
        word, core = secret(self.rng)
        self.cores["a password in an address"] = core.encode()
        for words in (("--debug", "study", "list"), ("config", "show", "--origin"), ("config", "check")):
            self.bayesd(*words, BAYESD_BROKER=f"mqtt://alice:{word}@127.0.0.1:{free_port()}")

    def a_password_in_the_settings(self) -> None:
        word, core = secret(self.rng)
        self.cores["a password in a file of settings"] = core.encode()
        file = self.folder / "settings.toml"
        line = self.rng.choice((f"broker = {json.dumps(f'mqtt://a:{word}@h:port')}", f"broker = 'mqtt://a:{core}@h",
                                f"password = {json.dumps(word)}", f"password = {core}"))
        file.write_text(f"{line}\n", encoding="utf-8")
        self.bayesd("--debug", "config", "check", "--config", str(file))

    def a_password_file_for_a_key(self) -> None:
        file = self.folder / "mistaken.pem"
        word, core = secret(self.rng)
        self.cores["a password in place of a key"] = core.encode()
        file.write_text(f"{word}\n", encoding="utf-8")
        self.bayesd("--debug", "study", "list", "--broker", f"mqtts://127.0.0.1:{free_port()}", "--timeout", "1",
                    *(flag for each in ("ca", "cert", "key") for flag in (f"--{each}-file", str(file))))

    def the_signing_key_is_damaged(self) -> None:
        self.daemon.kill()
        key = Path(f"{self.daemon.log}.key")
        shutil.copyfile(key, kept := self.folder / "kept.key")
        text = key.read_text(encoding="ascii")
        at = self.rng.randrange(len(text))
        key.write_text(self.rng.choice((text[:at], text[:at] + "!" + text[at + 1:], text + text, text[at:])))
        assert self.daemon.start().process is not None
        self.bayesd("log", "verify", str(self.daemon.log))
        self.daemon.kill()
        shutil.copyfile(kept, key)
        kept.unlink()
        self.daemon.start()

    # ------------------------------------------------------------ the whole

    def round(self) -> Round:
        with self.guard, self.guard.actor("witness") as first, contextlib.ExitStack() as stack:
            heard = first.came

            def online(least: int) -> None:
                """Until the daemon has begun so many lives and said so."""
                witness.until(lambda: sum(topic.endswith("/daemon") and b'"online"' in body for topic, body in heard)
                              >= least, "the daemon is online", START_S)
            witness = first
            witness.subscribe("#")
            stack.enter_context(self.daemon)
            online(1)
            assert self.daemon.process is not None
            self.stage.keep_process(self.daemon.process)
            study = self.folder / "s1.json"
            study.write_text(json.dumps({"name": "s1", "method": "random", "space": SPACE, "budget": {"trials": 1}}))
            assert self.bayesd("study", "create", str(study), *self.reach) == 0
            troubles = [self.somebody_elses_secret, self.the_daemon_is_refused, self.the_broker_is_killed,
                        self.the_daemon_is_killed, self.a_password_in_an_address, self.a_password_in_the_settings,
                        self.a_password_file_for_a_key, self.the_signing_key_is_damaged]
            for trouble in self.rng.sample(troubles, TROUBLES):
                trouble()
            with self.guard.actor("witness") as witness:        # a broker that was killed has lost the first one
                witness.subscribe("#")
                heard = witness.came
                online(1)
                assert self.daemon.process is not None
                self.stage.keep_process(self.daemon.process)
                self.worker()
                self.stage.keep_files("daemon.json")
            self.stage.outputs += [(f"message at {topic}", body) for topic, body in (*first.came, *witness.came)]
            self.daemon.stop()
        self.bayesd("log", "export", str(self.daemon.log))
        self.stage.keep_files("log.db", "daemon.stderr", "child.txt", "spool/**/*")
        found = hits(self.stage.canaries | self.cores, self.stage.outputs)
        counts = {"commands, files and messages searched": len(self.stage.outputs),
                  "bytes": sum(len(said) for _, said in self.stage.outputs), "troubles": TROUBLES}
        return Round(counts, tuple(found))

    def worker(self) -> None:
        """A program that looks at what it was handed, under a worker whose process is looked at, too."""
        url, flags = self.guard.url, self.guard.flags("w1")
        if "--username" in flags:
            url, flags = url.replace("//", "//w1@"), flags[2:]
        show = ("import pathlib\n"
                "pathlib.Path('child.txt').write_bytes(pathlib.Path('/proc/self/environ').read_bytes())\nprint(1)")
        self.bayesd("worker", "run", "--study", "s1", "--name", "w1", "--broker", url, *flags, "--spool",
                    str(self.folder / "spool"), "--", sys.executable, "-c", show)


def badly_treated(seed: int, folder: Path, program: tuple[str, ...]) -> Round:
    rng = random.Random(seed)  # a seeded test
    wrong = in_addresses(rng)
    if wrong:
        return Round({"addresses": ADDRESSES}, tuple(wrong))
    seen = Deployment(rng, "certificate" if seed % 3 == 2 else "password", folder, program).round()
    return Round({"addresses": ADDRESSES, **seen.counts}, seen.broken)


@contextlib.contextmanager
def _lab(folder: Path, fault: Fault | None = None) -> Iterator[Callable[[int], Round]]:
    program: tuple[str, ...] = ("-m", "bayesd.cli")
    if fault is not None:
        planted = folder / "fault.json"
        planted.write_text(json.dumps(asdict(fault)), encoding="utf-8")
        program = PROGRAM, "--planted", str(planted)

    def round_of(seed: int) -> Round:
        work = folder / str(seed)
        work.mkdir()
        try:
            return badly_treated(seed, work, program)
        finally:
            if os.environ.get("BAYESD_KEEP") is None:
                shutil.rmtree(work)
    yield round_of


LINK = "bayesd.link"
PROOFS = [Proof("canaries", ("P31",), "badly treated deployments", _lab, quick=1, release=200, within=8,
                needs=("mosquitto",), faulty=lambda fault, folder: _lab(folder, fault), faults=(
    Fault("a debugging line has the password", LINK, "        will = self._will\n        client = self._client",
          '        __import__("logging").getLogger("bayesd").debug("%r", password)\n'
          "        will = self._will\n        client = self._client"),
    Fault("an address with a password is repeated", LINK, '                "The broker address holds a password, which',
          '                f"The broker address {url} holds a password, which'),
    Fault("a refusal says with what", LINK, 'how = f"user {address.username!r}" if',
          'how = f"user {address.username!r} with {address.password()!r}" if'),
))]
