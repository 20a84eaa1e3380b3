"""README.txt of an audit pack: for somebody who has never heard of bayesd and has ten minutes.

Whoever reads it may doubt us, so it says what each step shows and what it does not, and how to do
without our tools.
"""

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from bayesd import notes

if TYPE_CHECKING:
    from bayesd.pack import Record

WIDTH = 92
SAMPLE = 17     # the trial that examples are about

# A paragraph is folded anew when its sentences are put in; lines that are indented stay as they are.
TEXT = """\
AUDIT PACK OF STUDY {study}

This is the record of one study of bayesd, a program that tunes parameters: it proposes a trial, a
worker measures it, and every step is an event in a log to which events are only ever added. With
this pack you can see what was done and why, and check that nobody changed the record. You need no
bayesd and no network.

    log {log}, events 1 to {count}, {begin} to {end} UTC
    {trials} trials, the study is {state}


WHAT HAPPENED, AND WHY

    report.html      the whole study on one page; open it in a browser
    {page}    why trial {trial} was proposed, what was expected, what came of it;
                     there is such a page for every trial
    study.json       the study as it was declared, its winner, and what computed it
    events.jsonl     the record itself: an event a line, in the order of "seq"{texts}


DID NOBODY CHANGE IT? THREE STEPS

1. The files are the ones that were packed. Unpack, and in the folder:

    sha256sum --check --quiet manifest.txt       (macOS: shasum -a 256 --check manifest.txt)

It says nothing when all is well. {manifest}

2. The events are whole and in order, and the signed notes in checkpoints.txt are about them:

    python3 {folder}bayesd-verify.py ../PACK.zip    (with pip install cryptography)
    node {folder}bayesd-verify.mjs ../PACK.zip      (Node 20.15 or newer)

PACK.zip is the file that you unpacked, wherever it is: they read the zip itself, not the folder. Each
is one file that has nothing of bayesd in it and can be read in ten minutes. {verifiers}
The last line is VERIFIED, or FAILED with the number of the first event that does not fit. {missing}

{step_3}


WHAT THIS SHOWS, AND WHAT NOT

{notes} {shown} Nothing here shows that a worker measured well: the record says who told which
result, and when. report.html and why/ were made from the record when it was packed, and what they
call recomputed was computed then. {seal}


BY HAND

The hash of an event is SHA-256 over a zero byte and its line. For event {made}, which {did}, these
two say the same:

    (printf '\\0'; grep '","seq":{made},' events.jsonl | tr -d '\\n') | sha256sum
    sed -n {made}p hashes.txt

Each event carries the hash of the one before it as "prev". A note has the log, a number of events,
the root of the Merkle tree over so many first lines of hashes.txt (RFC 9162, section 2.1, in base64),
an empty line, and an Ed25519 signature over the lines before that (C2SP signed-note and
tlog-checkpoint).
"""

STEP_3 = """\
3. The notes are those of the machine that wrote the record. From somebody else than who gave you
this pack, get one of these:

    the log's public key, which the daemon has in its retained MQTT message on topic
    bayesd/1/head; the one in key.txt is
{keys}

    any signed note (three lines, an empty one, a signature) that has left that machine: that
    message, the file of its option --heads, or what a worker's ask carries as "seen"

and give it to the verifier, as --key 'KEY' or --head NOTE-FILE. A record in which anything older than
such a note was changed cannot pass, even if the whole of it, its key and this pack were made anew.
{left_out}"""

NO_STEP_3 = """\
3. To compare with what somebody else has is impossible here: this log was written without a key, so no
note of it ever left the machine, and nothing in this pack can be told from a forgery of all of it. You
have the word of whoever gave it to you, and that it hangs together. For more than that, the daemon must
sign: it does so when it has a key, and from then on."""


def readme(record: "Record", signed: Sequence[str], keys: Sequence[str], *, sealed: bool, verifiers: bool) -> str:
    """`signed` are the notes, `keys` the public keys; `verifiers` says that copies of them are in the pack."""
    study, count = record.study, len(record.hashes)
    trial = min(SAMPLE, len(study.trials))
    made = next((event["seq"] for event in record.of_trial(trial) if event["type"] == "trial.proposed"), 1)
    begin, end = (str(event["time"])[:19].replace("T", " ") for event in (record.events[0], record.head))
    said = {
        "study": study.name, "log": record.state.log, "count": count, "begin": begin, "end": end,
        "trials": len(study.trials), "trial": trial, "page": f"{f'why/{trial}.txt':13}", "made": made,
        "state": f"closed by rule {study.closed_by}" if study.closed_by else study.status,
        "did": f"proposed trial {trial}" if made > 1 else "began the log",
        "manifest": "seal.txt signs the manifest, and the next step checks that." if sealed else
                    "There is no seal.txt here, so this shows accidents, not intent.",
        "folder": "verify/" if verifiers else "",
        "verifiers": "Copies are in verify/; who trusts nothing in here takes them from a release of bayesd, where "
                     "they are in deploy/verify/." if verifiers else "They are in deploy/verify/ of a release.",
        "missing": "" if record.whole else
                   f"{count - len(record.bodies)} of the {count} events are about other studies, so the packer says, "
                   "and here by hash alone; to be sure that none is about this one, ask for a pack made with --whole.",
        "texts": _texts(record),
        "keys": "\n".join(f"        {key}" for key in keys) or "        (none)",
        "notes": _about(signed), "seal": "seal.txt is the word of the log's key for them." if sealed else
                                         "Nothing signs them."}
    said["left_out"] = "" if record.whole else (
        "That the events here by hash alone are of other studies is what seal.txt says, so give --key." if sealed else
        "But with --key the verifier says FAILED here: without a seal, events of the study may have been left out.")
    said["shown"] = ("Steps 1 and 2 alone show that the parts fit together; step 3 shows that the whole is not a "
                     "forgery." if keys else "Steps 1 and 2 show that the parts fit together, and no more than that.")
    text = TEXT.replace("{step_3}", STEP_3 if keys else NO_STEP_3)
    return "\n\n".join(_folded(part.format(**said)) for part in text.split("\n\n"))


def _texts(record: "Record") -> str:
    """What is said of free text, which may hold what is not for everybody."""
    row = "\n    {:16} {}\n                     {}".format
    if record.texts:
        return row("texts.jsonl", f"free texts: {len(record.texts)} errors of workers and reasons of people, which",
                   "events refer to by hash; look what they say before you pass them on")
    if many := record.texts_left_out:
        return row("(no texts)", f"free texts: {many} errors of workers and reasons of people were not",
                   'packed; in their place it says "(left out)"')
    return ""


def _about(signed: Sequence[str]) -> str:
    if not signed:
        return "There are no signed notes: this log was written without a key."
    last = max(notes.read(note).size for note in signed)
    many = "is one signed note" if len(signed) == 1 else f"are {len(signed)} signed notes"
    return f"There {many}; the newest is about events 1 to {last} and fixes every byte of them."


def _folded(part: str) -> str:
    if part.lstrip("\n").startswith("    ") or not part.strip():
        return part
    blank = "\n" * (len(part) - len(part.lstrip("\n")))
    end = "\n" if part.endswith("\n") else ""
    return blank + textwrap.fill(" ".join(part.split()), WIDTH, break_long_words=False, break_on_hyphens=False) + end
