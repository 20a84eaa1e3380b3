"""Strings that nobody has thought of, put where names and values go: none becomes a path, a statement, a command, a
topic.

A round makes up a dozen strings out of those that have broken other programs (tests/security/nasty.py): grown
together, with a right name in them, cut, folded, or with a letter changed. Each goes through every field of every
message into the real service, whose answers and topics are looked at; what the service wrote, and trials that fail with
the string for their reason, go into SQLite files and must come out as they were, in the tables of a log; each is a
study file and a value, a key and a constraint; each is the name under which a worker claims its spool and stands in a
grant that it saves; and all of them are handed to a program, which must see them as they are. Afterwards no file lies
where nobody put one.
"""

import asyncio
import contextlib
import io
import json
import os
import random
import sqlite3
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from pydantic import ValidationError
from tests.edges.daemon import SPACE
from tests.promises.book import Fault, Proof, Round
from tests.security.nasty import STRINGS
from tests.security.test_nasty import is_ours, through_the_service

from bayesd import Study
from bayesd.files import BadFile, read_study
from bayesd.log import MemoryDisk, SqliteLog, verify
from bayesd.logfile import create
from bayesd_client.agent import Lease
from bayesd_client.errors import BadAddress
from bayesd_client.kept import SavedGrant, SavedTell
from bayesd_client.program import Program
from bayesd_client.spool import claim
from bayesd_client.trial import Trial
from bayesd_schemas.constraints import broken, parse
from bayesd_schemas.messages import ERROR_MAX, Grant, cut
from bayesd_schemas.names import is_id, is_name
from bayesd_schemas.space import Space

WORDS = 12
LETTERS_MAX = 4000
RIGHT = ("w1", "s", "study-1", "gpu.7", "x", "loss")
LOGS = ("log.db", "failures.db")
TABLES = {"event", "snapshot", "checkpoint", "text", "writer"}
GRANT = {"ask": "a", "run": "r", "study": "s", "trial": 1, "fence": 1, "params": {}, "lease_s": 1.0,
         "at": "2026-01-01T00:00:00Z", "epoch": 1, "space_rev": 1}
ECHO = """import json, os, sys
print(json.dumps([sys.argv[1:], json.loads(os.environ["BAYESD_PARAMS"])]))
"""


def word(rng: random.Random) -> str:
    """A string that is in no list, out of those that are."""
    out = rng.choice(STRINGS)[:LETTERS_MAX]
    for _ in range(rng.randint(1, 4)):
        at, other = rng.randint(0, len(out)), rng.choice(STRINGS)[:200]
        letter = chr(rng.choice((rng.randrange(256), rng.randrange(0xd800))))
        out = rng.choice((
            out[:at] + other + out[at:], other + out, rng.choice(RIGHT) + out, out + rng.choice(RIGHT),
            out[:at] + letter + out[at + 1:], out[at:] + out[:at], out[:at], out * 3, out.swapcase(), out[::-1],
        ))[:LETTERS_MAX]
    return out


def in_the_service(words: Sequence[str]) -> tuple[MemoryDisk, int, list[str]]:
    """What was written, to how many topics, and what was wrong."""
    _, disk, silent, topics = through_the_service(words)
    wrong = [f"nobody answers {each}" for each in silent]
    wrong += [f"said to {topic!r}" for topic in topics if not is_ours(topic)]
    for row in disk.rows:
        wrong += [f"an event with the {what} {name!r}" for what, name, is_right in (
            ("study", row.study, is_name), ("command", row.cmd, is_id)) if name is not None and not is_right(name)]
    return disk, len(topics), wrong


def in_a_file(disk: MemoryDisk, path: Path, words: Sequence[str]) -> list[str]:
    """The same events on SQLite, and a study in which trial after trial fails with a word for its error."""
    create(path)
    found = asyncio.run(_written(disk, path, words))
    wrong = [f"a word finds texts: {found}"] if found else []
    wrong += _unlike(path, [row.body for row in disk.rows], disk.texts.values())
    failures = path.with_name("failures.db")
    with Study(SPACE, name="s", seed=0, log=str(failures), noise="learn", method="random") as study:
        for text in words:
            study.tell(study.ask(), state="fail", error=text)
    return wrong + _unlike(failures, None, [cut(text, ERROR_MAX) for text in words])


async def _written(disk: MemoryDisk, path: Path, words: Sequence[str]) -> dict[str, str]:
    """What every word finds, as the reference of a text that somebody looks up."""
    log = await SqliteLog.open(path)
    try:
        await log.append(disk.rows)
        return await log.texts(words)
    finally:
        await log.close()


def _unlike(path: Path, bodies: Sequence[bytes] | None, texts: Iterable[str]) -> list[str]:
    """What is not in a log as it was said."""
    report = verify(path)
    wrong = [f"the log is damaged: {report.damage}"] if report.damage is not None else []
    with contextlib.closing(sqlite3.connect(path)) as db:
        tables = {name for name, in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
        if tables != TABLES:
            wrong.append(f"the log has the tables {sorted(tables)}")
        if bodies is not None and bodies != [body for body, in db.execute("SELECT body FROM event ORDER BY seq")]:
            wrong.append("an event was changed on its way")
        there = sorted(text for text, in db.execute("SELECT text FROM text"))
        if there != sorted(texts):
            wrong.append(f"{len(there)} texts are there, and not those that were said")
    return wrong


def in_study_files(words: Sequence[str], folder: Path) -> tuple[int, list[str]]:
    """How many files were tried, and what was wrong: a file is read or refused in words."""
    tried, wrong = 0, []
    for text in words:
        base = {"name": "s", "metric": "loss", "method": "random", "space": SPACE}
        changed = ({**base, "name": text}, {**base, "metric": text}, {**base, text: text},
                   {**base, "space": {text: {"type": text}}}, {**base, "constraints": [text]},
                   {**base, "space": {"x": {"type": "categorical", "choices": [text, "b"]}}})
        for number, content in enumerate((text, text, text, *map(json.dumps, changed))):
            path = folder / f"study.{('toml', 'yaml', 'json')[min(number, 2)]}"
            path.write_bytes(content.encode("utf-8", "surrogatepass"))
            tried += 1
            try:
                spec = read_study(str(path)).spec
            except BadFile:
                continue
            if not is_name(spec.name):
                wrong.append(f"a study file names its study {spec.name!r}")
    return tried, wrong


def in_constraints(words: Sequence[str]) -> int:
    """How many constraints were tried; one that is no constraint is refused in words, or this raises."""
    space = Space.model_validate({"x": {"type": "float", "low": 0, "high": 1},
                                  "k": {"type": "categorical", "choices": ["a", "b"]}})
    texts = [form.format(text) for text in words for form in ("{}", "x < {}", "k == '{}'", "`{}` < 1", "x < 1 and {}")]
    for text in texts:
        with contextlib.suppress(ValueError):       # of ours: it says where and what
            broken(parse([text], space), {"x": 0.5, "k": "a"})
    return len(texts)


def in_a_spool(words: Sequence[str], base: Path) -> list[str]:
    """Every word as the name of a worker and of what it is granted."""
    wrong = []
    for text in words:
        try:
            name, spool = claim(text, None, base)
        except BadAddress:
            name, spool = claim("w1", None, base)
        except (OSError, ValueError) as error:      # a system call that a bad name has come to
            wrong.append(f"a worker {text[:60]!r} claims a spool: {error}")
            continue
        with spool:
            if name != "w1" and not is_name(name):
                wrong.append(f"a worker is called {name[:60]!r}")
            for field in ("study", "trial", "fence", "ask", "run"):
                try:
                    grant = Grant.model_validate({**GRANT, field: text})
                except ValidationError:
                    continue
                key = grant.study, grant.trial, grant.fence
                spool.save_grant(key, SavedGrant(grant.model_dump(mode="json"), 0))
                spool.save_tell(key, SavedTell({"error": text}))
                spool.reject_tell(key, {"detail": text})
    return wrong


def in_a_program(words: Sequence[str], folder: Path) -> list[str]:
    """All of them as values of parameters, of a program that says what it was handed."""
    echo, out = folder / "echo.py", io.BytesIO()
    echo.write_text(ECHO)
    params = {f"p{number}": text for number, text in enumerate(words) if "\0" not in text}
    forms = [form.replace("p", name) for name in params for form in ("{p}", "--x={p}", "{p}{p}")]
    trial = Trial(Lease("s", 1, 1, params, 1.0), None, lambda *_: None)
    Program((sys.executable, str(echo), *forms), out=out).train(trial)
    wanted = [said for text in params.values() for said in (text, f"--x={text}", text + text)]
    try:
        argv, environment = json.loads(out.getvalue())
    except ValueError:
        return [f"the program says {out.getvalue()[:200]!r}"]
    return [f"the program was handed another {what}" for what, is_so in (
        ("argument", argv == wanted), ("environment", environment == params)) if not is_so]


def put(words: Sequence[str], folder: Path) -> Round:
    here, base = folder / "a" / "b" / "here", folder / "a" / "b" / "spools"
    here.mkdir(parents=True)
    before = Path.cwd()
    os.chdir(here)                  # where a relative path would lead
    try:
        disk, topics, wrong = in_the_service(words)
        wrong += in_a_file(disk, folder / "log.db", words)
        files = folder / "files"
        files.mkdir()
        tried, bad = in_study_files(words, files)
        constraints = in_constraints(words)
        wrong += [*bad, *in_a_spool(words, base), *in_a_program(words, files)]
    finally:
        os.chdir(before)
    for path in (each for each in folder.rglob("*") if each.is_file()):
        place = path.relative_to(folder).parts
        is_spool = place[:3] == ("a", "b", "spools") and is_name(place[3]) and (
            place[4:] == ("lock",) or (len(place) == 6 and place[4] in ("grants", "tells", "rejected")))
        if not is_spool and place[0] != "files" and place[0].removesuffix(".lock") not in LOGS:
            wrong.append(f"a file {'/'.join(place)!r}")
    return Round({"words": len(words), "events": len(disk.rows), "topics": topics, "study files": tried,
                  "constraints": constraints}, tuple(wrong))


@contextlib.contextmanager
def _lab(folder: Path) -> Iterator[Callable[[int], Round]]:
    def round_of(seed: int) -> Round:
        rng, work = random.Random(seed), folder / str(seed)  # a seeded test
        work.mkdir()
        return put([word(rng) for _ in range(WORDS)], work)
    yield round_of


PROOFS = [Proof("nasty words", ("P30",), "rounds of nasty words", _lab, quick=3, release=500, within=5, faults=(
    Fault("any name in a topic is answered", "bayesd.service", "if not is_name(origin.who):", "if False:"),
    Fault("a worker has a spool under any name", "bayesd_client.spool", "if is_name(given) is None:", "if False:"),
    Fault("a text is put into a statement", "bayesd.log",
          '"INSERT OR IGNORE INTO text (ref, salt, text) VALUES (?, ?, ?)", kept)',
          'f"INSERT OR IGNORE INTO text (ref, salt, text) VALUES (?, ?, \'{kept[0].text}\')",\n'
          '                                           [text[:2] for text in kept])'),
    Fault("a value falls apart on the way to a program", "bayesd_client.program",
          "argv, stdin=subprocess.DEVNULL", '" ".join(argv).split(" "), stdin=subprocess.DEVNULL'),
    Fault("a value is looked at for placeholders", "bayesd_client.program",
          "return as_text(values[found[1]]) if", "return as_text(values[found[1]]).format() if"),
))]
