"""The audit pack: one study of a log in one sealed file, which a stranger can read and check offline.

It holds the bytes of the study's events as they were hashed, the hashes of all events of the log, the
signed notes of its heads, and pages for people: a report, and why each trial was tried. The bytes are
the record; the pages are made of it and can be made again. Nothing in a pack depends on when or where
it was packed: the same log and key give the same file.
"""

import json
import os
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import orjson

from bayesd import guide, notes, report, winner
from bayesd.importance.asked import Known, warned
from bayesd.logfile import AnyPath, read_events, reading, true_name
from bayesd.replay import Replay, event_of
from bayesd.study.desk import Desk
from bayesd.study.limits import Reading
from bayesd.study.merkle import root_of
from bayesd.study.state import State, Study
from bayesd.study.texts import Words
from bayesd.why import words
from bayesd.why.pages import of
from bayesd.why.witness import Witness, moments_for

MANIFEST, SEAL = "manifest.txt", "seal.txt"
LONG_AGO = (1980, 1, 1, 0, 0, 0)        # the earliest time that a zip can say
PAGES_AT_ONCE = 100     # each holds what was known at its moment
LEFT_OUT = "(left out)"
VERIFIERS = ("bayesd-verify.py", "bayesd-verify.mjs")

Event = dict[str, Any]
Phrase = Callable[[Event], str]


class NoStudy(Exception):
    """The log has no such study."""


@dataclass(frozen=True, slots=True)
class Record:
    """What a log says of one study, and what proves it."""

    study: Study
    state: State
    bodies: tuple[bytes, ...]
    """The events that concern it, as they were hashed."""
    events: tuple[Event, ...]
    """The same for people: read, with free text in its place, each with its `hash`."""
    texts: tuple[dict[str, str], ...]
    """Free text that the events refer to: ref, salt and text."""
    said: Mapping[str, str]
    """Reference of a free text -> what people read in its place: itself, or that it was left out."""
    hashes: tuple[bytes, ...]
    """Of all events of the log."""
    notes: tuple[str, ...]
    keys: tuple[str, ...]
    """Public keys, the newest last."""
    head: Event
    winner: dict[str, Any]
    rules: dict[str, dict[str, Any]]
    """What each rule would take."""
    warnings: tuple[dict[str, Any], ...]
    """What to be wary of, as `bayesd study warnings` has it."""

    @property
    def whole(self) -> bool:
        return len(self.bodies) == len(self.hashes)

    @property
    def texts_left_out(self) -> int:
        return len(self.said) - len(self.texts)

    def of_trial(self, number: int) -> list[Event]:
        return [event for event in self.events
                if event.get("study") == self.study.name and event.get("trial") == number]

    @property
    def fingerprints(self) -> dict[str, Any]:
        """Fingerprint -> what it stands for: the machines and versions that computed suggestions."""
        return {event["data"]["fingerprint"]: event["data"]["engine"] for event in self.events
                if event["type"] == "engine.fingerprint"}


# --- What goes in ------------------------------------------------------------------------------------


def collect(path: AnyPath, name: str, *, whole: bool = False, with_texts: bool = True,
            on_progress: Callable[[int], None] | None = None) -> Record:
    """Read a log, checking each event, and keep what concerns a study; `whole` keeps everything.

    Without texts, people read that there was one: its reference stays in the event, and proves nothing about it.

    Raises logfile.Damaged: a damaged log is no evidence, so there is no pack of it.
    """
    replay, hashes, last = Replay(), [], b""
    for seq, body, hash in read_events(path):
        replay.take(seq, body, hash)
        hashes.append(hash)
        last = body
        if on_progress is not None and seq % 1000 == 0:
            on_progress(seq)
    state = replay.state
    if name not in state.studies:
        raise NoStudy(f"this log has no study {name!r}; it has {', '.join(state.studies) or 'none'}")
    study = state.studies[name]
    bodies, events = [], []
    wanted, texts = _lineage(state, name), _texts(path)
    said = Words({ref: text["text"] if with_texts else LEFT_OUT for ref, text in texts.items()})
    told: dict[str, str] = {}
    for seq, body, hash in read_events(path, until=len(hashes)):
        event = orjson.loads(body)
        if whole or "study" not in event or seq <= wanted.get(event["study"], 0):
            bodies.append(body)
            refs = [ref for key, ref in event["data"].items() if key.endswith("_ref")]
            told |= {ref: said.there[ref] for ref in refs if ref in texts}
            said.note(event["type"], event["data"])
            events.append({**event, "hash": hash.hex()})
    # Only now is it known which texts were redacted: that comes after what it redacts.
    events = [{**event, "data": said.of(event["data"])} for event in events]
    problem = Desk(state).problem(study)[0]
    limited = Reading.of(study)
    rules = {rule: limited.beside(chosen) for rule, chosen in winner.all_of(study, problem).items()}
    keys = dict.fromkeys(event["data"]["key"] for event in events
                         if event["type"] == "daemon.started" and event["data"].get("key"))
    return Record(study, state, tuple(bodies), tuple(events), tuple(texts[ref] for ref in told) if with_texts else (),
                  told, tuple(hashes), _notes(path, len(hashes)), tuple(keys), orjson.loads(last),
                  rules[winner.default(study)], rules, tuple(warned(Known.of(study, problem), {})["warnings"]))


def _texts(path: AnyPath) -> dict[str, dict[str, str]]:
    """Free text beside the events, by its reference; logs of early releases have it in their events."""
    with reading(true_name(path)) as db:
        if db.execute("SELECT 1 FROM sqlite_schema WHERE name = 'text'").fetchone() is None:
            return {}
        return {ref: {"ref": ref, "salt": bytes(salt).hex(), "text": text}
                for ref, salt, text in db.execute("SELECT ref, salt, text FROM text")}


def _lineage(state: State, name: str) -> dict[str, int]:
    """Study -> up to which event it concerns this one: all of itself, what it was forked from until then, and all of
    the earlier ones that help it, since what is voided there is gone here."""
    found, until = {name: state.seq}, state.seq
    origin = getattr(state.studies[name], "origin", None)
    while origin is not None and origin.study in state.studies and origin.study not in found:
        until = found[origin.study] = min(until, origin.at)
        origin = getattr(state.studies[origin.study], "origin", None)
    for source in state.studies[name].sources:
        if source.study is not None:
            found[source.name] = state.seq
    return found


def _notes(path: AnyPath, seq: int) -> tuple[str, ...]:
    with reading(true_name(path)) as db:
        found = db.execute("SELECT note FROM checkpoint WHERE seq <= ? ORDER BY seq", (seq,)).fetchall()
    return tuple(bytes(note).decode() for note, in found)


# --- The files ---------------------------------------------------------------------------------------


def files(record: Record, pages: Mapping[int, str], phrase: Phrase,
          signer: notes.Signer | None = None) -> dict[str, bytes]:
    """Every file of the pack by name. `pages` are the reasons for each trial, as text."""
    study, log = record.study, record.state.log
    signed, keys = list(record.notes), list(record.keys)
    if signer is not None:
        fresh = signer.sign(len(record.hashes), root_of(record.hashes))
        signed += [fresh] if fresh not in signed else []
        keys = [key for key in keys if key != signer.vkey] + [signer.vkey]
    head = {"seq": len(record.hashes), "hash": record.hashes[-1].hex()}
    about = {"study": study.name, "log": log, "spec": study.spec.model_dump(mode="json", exclude_unset=True),
             "state": study.status, "closed_by": study.closed_by, "trials": {**study.counts, "total": study.used},
             "head": head, "fingerprint": record.fingerprints, "winner": record.winner, "rules": record.rules}
    out = {f"why/{number}.txt": f"{text.rstrip()}\n\n{_on_record(record, number, phrase)}".encode()
           for number, text in pages.items()}
    out |= {
        "events.jsonl": b"".join(body + b"\n" for body in record.bodies),
        "hashes.txt": "".join(f"{hash.hex()}\n" for hash in record.hashes).encode(),
        "checkpoints.txt": notes.join(signed).encode(),
        "key.txt": "".join(f"{key}\n" for key in keys).encode(),
        "study.json": (json.dumps(about, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode(),
        "report.html": report.page(record, signed, keys, phrase, why=set(pages)).encode(),
        **{f"verify/{path.name}": path.read_bytes() for path in verifiers()}}
    if record.texts:
        out["texts.jsonl"] = b"".join(orjson.dumps(text) + b"\n" for text in record.texts)
    out["README.txt"] = guide.readme(record, signed, keys, sealed=signer is not None,
                                     verifiers=bool(verifiers())).encode()
    out[MANIFEST] = "".join(f"{sha256(out[name]).hexdigest()}  {name}\n" for name in sorted(out)).encode()
    if signer is not None:
        out[SEAL] = signer.sign_text(f"{notes.PREFIX}{log}/pack\n{sha256(out[MANIFEST]).hexdigest()}\n").encode()
    return out


def verifiers() -> list[Path]:
    """The verifiers of this release: beside the package, or in its source tree."""
    here = Path(__file__).parent
    for folder in (here / "verify", here.parents[1] / "deploy" / "verify"):
        if folder.is_dir():
            return [folder / name for name in VERIFIERS if (folder / name).is_file()]
    return []


def write(path: Path, content: Mapping[str, bytes]) -> None:
    """Write the pack, whole or not at all."""
    new = path.with_name(f".{path.name}.new")
    try:
        with zipfile.ZipFile(new, "w", zipfile.ZIP_DEFLATED) as pack:
            for name in sorted(content):
                info = zipfile.ZipInfo(name, LONG_AGO)
                info.compress_type = zipfile.ZIP_DEFLATED
                info.create_system, info.external_attr = 3, 0o644 << 16
                pack.writestr(info, content[name])
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)


# --- Pages -------------------------------------------------------------------------------------------


def pages(record: Record, on_progress: Callable[[int], None] | None = None) -> dict[int, str]:
    """Trial -> why it was tried: as recorded, and with what the model says again."""
    made = {event["trial"]: event["data"] for event in record.events
            if event["type"] == "trial.proposed" and event["study"] == record.study.name}
    out: dict[int, str] = {}
    for some in _batches([trial.number for trial in record.study.trials], PAGES_AT_ONCE):
        suggested = [number for number in some if number in made]       # the others are a fork's: they need no moment
        moments = moments_for([made[number] for number in suggested],
                              [record.study.trials[number - 1].outcome_seq for number in suggested])
        beside = {each.name for each in record.study.sources if each.study is not None}
        seen = Witness(record.study.name, moments, set(some), beside)
        for said, body in zip(record.events, record.bodies, strict=True):
            seen.see(event_of(body, bytes.fromhex(said["hash"])), body)
        seen.end()
        seen.words.there = record.said
        for number in some:
            out[number] = words.of(of(seen, number))
            if on_progress is not None:
                on_progress(len(out))
    return out


def _batches(numbers: list[int], size: int) -> Iterable[list[int]]:
    return (numbers[i:i + size] for i in range(0, len(numbers), size))


def plain_page(record: Record, number: int) -> str:
    """What was recorded when a trial was proposed, without computing anything again."""
    trial = record.study.trials[number - 1]
    made = next(event for event in record.of_trial(number) if event["type"] in ("trial.proposed", "trial.imported"))
    lines = [f"Trial {number} of {record.study.name}", "", "  params"]
    lines += [f"    {name} = {json.dumps(value, ensure_ascii=False)}" for name, value in trial.params.items()]
    lines += ["", f"  as recorded at event {made['seq']} when it was proposed"]
    lines += [f"    {key} = {json.dumps(value, ensure_ascii=False)}" for key, value in made["data"].items()
              if key != "params"]
    return "\n".join(lines)


def _on_record(record: Record, number: int, phrase: Phrase) -> str:
    """The events behind a page: where each stands in events.jsonl, and the hash that proves it."""
    lines = [f"The events of trial {number}, in events.jsonl; the hash of event N is line N of hashes.txt", ""]
    lines += [f"  event {event['seq']:>6}  {event['time'][:19].replace('T', ' ')}  {event['hash'][:16]}…  "
              f"{event['type']}: {phrase(event)}" for event in record.of_trial(number)]
    return "\n".join(lines) + "\n"
