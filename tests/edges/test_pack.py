"""An audit pack: complete, sealed, the same each time, safe to open, and enough for a stranger."""

import contextlib
import html
import json
import re
import shutil
import sqlite3
import subprocess
import sys
import zipfile
from dataclasses import replace
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from tests.edges.test_cli import Shell
from tests.edges.test_cli_log import spoil
from tests.packaging.test_verifiers import (
    AT,
    OWNER,
    golden,
    javascript,
    pack_files,
    python,
    reseal,
    signed,
    write_log,
    write_pack,
)

from bayesd import Study, logfile, notes, pack, verdict
from bayesd.cli import phrases
from bayesd.pictures import Axis, Mark, chart

SPACE: dict[str, dict[str, Any]] = {
    "x": {"type": "float", "low": 1e-3, "high": 1e3, "scale": "log"},
    "k": {"type": "categorical", "choices": ["a", "<b>"]},
    "p": {"type": "float", "low": 0, "high": 4, "scale": "power", "exponent": 2}}
NASTY = "Traceback\n</table><script>alert(1)</script><img src=x onerror=alert(2)>&amp;"


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log with a study of 20 trials, two of which failed, another study, and its key beside it."""
    path = tmp_path_factory.mktemp("kept") / "log.db"
    with Study(SPACE, direction="minimize", metric="loss", seed=1, budget=20, name="tuned", log=path) as study:
        for i in range(20):
            trial = study.ask()
            if i in (4, 9):
                study.tell(trial, state="fail", failure="oom", error=NASTY)
            else:
                study.tell(trial, [trial.params["p"] + 0.1 * j for j in range(3)], seconds=i)
    with Study({"y": {"type": "int", "low": 1, "high": 3}}, method="grid", budget=3, name="other", log=path) as study:
        study.tell(study.ask(), 1.0)
    (_, body, _), *_ = logfile.read_events(path)
    notes.Signer(json.loads(body)["log"], bytes(range(32))).save(f"{path}.key")
    return path


@pytest.fixture
def sh(capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(capsys)


@pytest.fixture(scope="module")
def unpacked(kept: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from bayesd.cli import run
    folder = tmp_path_factory.mktemp("unpacked")
    assert run(["study", "audit-pack", "tuned", "--log", str(kept), "-o", str(folder / "pack.zip")]) == 0
    with zipfile.ZipFile(folder / "pack.zip") as packed:
        packed.extractall(folder)
    return folder


# --- The file -----------------------------------------------------------------------------------------


def test_it_holds_the_study_whole_and_sealed_and_verifies(kept: Path, unpacked: Path) -> None:
    names = {str(path.relative_to(unpacked)) for path in unpacked.rglob("*") if path.is_file()} - {"pack.zip"}
    assert names == {
        "README.txt", "checkpoints.txt", "events.jsonl", "hashes.txt", "key.txt", "manifest.txt", "report.html",
        "seal.txt", "study.json", "texts.jsonl", "verify/bayesd-verify.mjs", "verify/bayesd-verify.py",
        *(f"why/{n}.txt" for n in range(1, 21))}
    every = list(logfile.read_events(kept))
    ours = [body for _, body, _ in every if json.loads(body).get("study", "tuned") == "tuned"]
    assert (unpacked / "events.jsonl").read_bytes().splitlines() == ours
    assert (unpacked / "hashes.txt").read_text().split() == [hash.hex() for _, _, hash in every]
    about = json.loads((unpacked / "study.json").read_text())
    assert about["head"] == {"seq": len(every), "hash": every[-1][2].hex()}
    assert about["spec"]["space"].keys() == SPACE.keys()
    assert about["winner"]["trial"] in range(1, 21)
    key = (unpacked / "key.txt").read_text().strip()
    checkpoint = notes.open_note((unpacked / "checkpoints.txt").read_text().removesuffix("\n"), key)
    assert checkpoint.size == len(every)
    code, said = python(unpacked / "pack.zip", "--key", key)
    assert code == 0
    assert f"{len(ours)}  OK, of {len(every)}, the others by hash alone" in said
    assert "seal                 1  OK, 1 signed" in said
    assert f"VERIFIED: {len(ours)} of {len(every)} events" in said


def test_the_same_log_and_key_make_the_same_pack(kept: Path, unpacked: Path, tmp_path: Path, sh: Shell) -> None:
    sh(f"study audit-pack tuned --log {kept} -o {tmp_path / 'again.zip'}")
    assert (tmp_path / "again.zip").read_bytes() == (unpacked / "pack.zip").read_bytes()


def test_whole_recorded_and_unsealed(kept: Path, tmp_path: Path, sh: Shell) -> None:
    log = tmp_path / "log.db"
    for part in kept.parent.glob("log.db*"):
        shutil.copy(part, tmp_path / part.name)
    Path(f"{log}.key").unlink()
    said = sh(f"study audit-pack tuned --log {log} --whole --recorded -o {tmp_path / 'whole.zip'} -f json")
    assert (said.json["events"], said.json["sealed"], said.json["notes"]) == (said.json["of"], False, 0)
    assert "not sealed" in said.err
    assert "made anew" in python(tmp_path / "whole.zip")[1]
    assert "no seal: NOBODY VOUCHES for report.html" in python(tmp_path / "whole.zip")[1]
    with zipfile.ZipFile(tmp_path / "whole.zip") as packed:
        assert "seal.txt" not in packed.namelist()
        assert "by hash alone" not in packed.read("README.txt").decode()
        page = packed.read("why/17.txt").decode()
        assert "sampler = " in page
        assert "as_of = " in page
    sealed = sh(f"study audit-pack tuned --log {log} --recorded --key-file {kept}.key -o {tmp_path / 's.zip'} -f value")
    assert sealed.out.strip() == str(tmp_path / "s.zip")


def test_what_cannot_be_packed(kept: Path, tmp_path: Path, sh: Shell) -> None:
    out = tmp_path / "pack.zip"
    assert "no study 'none'; it has tuned, other" in sh(f"study audit-pack none --log {kept} -o {out}", code=1).err
    assert "No such file" in sh(f"study audit-pack tuned --log {tmp_path}/no.db -o {out}", code=78).err
    assert "key" in sh(f"study audit-pack tuned --log {kept} -o {out} --key-file {tmp_path}/no.key", code=2).err
    for part in kept.parent.glob("log.db*"):
        shutil.copy(part, tmp_path / part.name)
    spoil(tmp_path / "log.db", 30, b'"actor"', b'"actxr"')
    assert "damaged at event 30" in sh(f"study audit-pack tuned --log {tmp_path / 'log.db'} -o {out}", code=65).err
    assert not list(tmp_path.glob("*.zip*"))


def test_the_log_of_this_machine_is_the_default(kept: Path, tmp_path: Path, sh: Shell,
                                                monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("STATE_DIRECTORY", str(kept.parent))
    sh(f"study audit-pack tuned --recorded -o {tmp_path / 'pack.zip'}")
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "none"))
    assert "there is no log at" in sh(f"study audit-pack tuned -o {tmp_path / 'pack.zip'}", code=2).err


# --- For a stranger -------------------------------------------------------------------------------------


def test_what_the_guide_tells_to_type_works(unpacked: Path, tmp_path: Path) -> None:
    """Every indented line of README.txt that is a command, as it stands, in a folder made of the zip beside it."""
    shutil.copy(unpacked / "pack.zip", tmp_path / "PACK.zip")
    with zipfile.ZipFile(tmp_path / "PACK.zip") as packed:
        packed.extractall(tmp_path / "PACK")
    guide = (unpacked / "README.txt").read_text()
    assert max(map(len, guide.splitlines())) < 110
    typed = [re.split(r"  +\(", line.strip())[0] for line in guide.splitlines() if line.startswith("    ")]
    commands = [line for line in typed if line.startswith(("sha256sum", "(printf", "sed", "python3", "node"))]
    assert len(commands) == 5
    if not shutil.which("node"):
        commands = [line for line in commands if not line.startswith("node")]

    def shell(command: str) -> str:
        command = command.replace("python3 ", f"{sys.executable} ")     # which has the library for signatures
        done = subprocess.run(["sh", "-c", command], cwd=tmp_path / "PACK", timeout=60,
                              capture_output=True, text=True, check=True)
        return done.stdout
    said = {command.split()[0]: shell(command) for command in commands}
    assert said["sha256sum"] == ""
    assert said["(printf"].split()[0] == said["sed"].strip()
    for command in said.keys() & {"python3", "node"}:
        assert "VERIFIED" in said[command]


def test_the_guide_of_an_unsigned_log_does_not_promise_what_only_a_key_can_give(tmp_path: Path) -> None:
    def guide(signer: notes.Signer | None) -> str:
        files = pack_files(replace(golden(), notes=[]), tmp_path, signer)
        assert ("--key 'KEY'" in files["report.html"].decode()) == (signer is not None)
        return " ".join(files["README.txt"].decode().split())
    bare, sealed = guide(None), guide(OWNER)
    assert "impossible here: this log was written without a key" in bare
    assert "fit together, and no more than that" in bare
    for promise in ("--key", "step 3 shows", "cannot pass"):
        assert (promise in bare, promise in sealed) == (False, True), promise
    assert "impossible" not in sealed
    assert "so give --key" in sealed


def test_the_guide_of_an_unsealed_pack_says_that_a_key_will_not_be_satisfied(tmp_path: Path) -> None:
    bodies = reseal(golden().bodies, 2, lambda event: event["data"].update(key=OWNER.vkey))
    said = " ".join(pack_files(signed(bodies), tmp_path, None)["README.txt"].decode().split())
    assert "with --key the verifier says FAILED here" in said


def test_texts_are_counted_and_can_stay_at_home(kept: Path, unpacked: Path, tmp_path: Path, sh: Shell) -> None:
    """What a worker's traceback says is not for everybody; that there was one, and its proof, stays."""
    texts = len((unpacked / "texts.jsonl").read_text().splitlines())
    assert texts == 2
    assert "free texts: 2 errors" in (unpacked / "README.txt").read_text()
    said = sh(f"study audit-pack tuned --log {kept} --no-texts -o {tmp_path / 'less.zip'} -f json")
    assert (said.json["texts"], "--no-texts" in said.err) == (0, False)
    with_them = sh(f"study audit-pack tuned --log {kept} --recorded -o {tmp_path / 'all.zip'} -f json")
    assert (with_them.json["texts"], "free texts inside" in with_them.err) == (2, True)
    with zipfile.ZipFile(tmp_path / "less.zip") as packed:
        names = packed.namelist()
        everything = {name: packed.read(name).decode() for name in names}
    assert "texts.jsonl" not in names
    assert not [name for name, text in everything.items() if "Traceback" in text or "onerror" in text]
    assert "free texts: 2 errors of workers and reasons of people were not packed" in " ".join(
        everything["README.txt"].split())
    assert "(left out)" in everything["report.html"]
    assert "(left out)" in everything["why/5.txt"]
    assert everything["events.jsonl"] == (unpacked / "events.jsonl").read_text()
    assert both(tmp_path / "less.zip") == 0


def test_an_auditor_finds_why_trial_17_was_proposed(unpacked: Path) -> None:
    assert "why/17.txt" in (unpacked / "README.txt").read_text()
    page = (unpacked / "why" / "17.txt").read_text()
    assert page.startswith("Why trial 17 of tuned?")
    (seq,) = re.findall(r"event +(\d+) .*trial.proposed", page)
    (line,) = [line for line in (unpacked / "events.jsonl").read_text().splitlines() if f'","seq":{seq},' in line]
    assert json.loads(line)["trial"] == 17
    assert sha256(b"\0" + line.encode()).hexdigest()[:16] in page


class Tags(HTMLParser):
    """The tags and links of a page, and whether they close as they open."""

    VOID = frozenset(("meta", "br", "img", "link"))

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.links: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attrs:
            assert not name.startswith("on"), f"<{tag} {name}>"
            if name in ("href", "src"):
                self.links.append(value or "")
            if name == "id":
                self.ids.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def read_page(text: str) -> Tags:
    tags = Tags()
    tags.feed(text)
    tags.close()
    assert tags.open == []
    return tags


def test_the_report_is_self_contained_and_nothing_in_it_runs(unpacked: Path) -> None:
    text = (unpacked / "report.html").read_text()
    tags = read_page(text)
    assert not tags.seen & {"script", "img", "link", "iframe", "object", "form"}
    assert all(link.startswith(("#", "why/")) for link in tags.links)
    assert {link[1:] for link in tags.links if link.startswith("#")} <= set(tags.ids)
    assert all((unpacked / link).is_file() for link in tags.links if link.startswith("why/"))
    assert len(tags.ids) == len(set(tags.ids))
    assert "&lt;/table&gt;&lt;script&gt;alert(1)" in text
    assert "&lt;b&gt;" in text
    assert "url(" not in text
    assert "@import" not in text
    assert text.count("<svg") == 1 + len(SPACE) + 1
    assert "prefers-color-scheme:dark" in text


def test_the_report_says_of_the_winner_what_the_rules_say(kept: Path, unpacked: Path, sh: Shell) -> None:
    """In the words of `study best`: rule, reason, probability, expected loss, what other rules take, and a warning."""
    chosen = json.loads(sh(f"study best tuned --log {kept} -f json").out)
    section = (unpacked / "report.html").read_text().split("<section id=winner>")[1].split("</section>")[0]
    told = " ".join(re.sub(r"<[^>]*>", " ", section).replace("&nbsp;", " ").split())
    assert f"trial {chosen['trial']}" in told
    assert f"By rule {chosen['rule']}: {chosen['reason']}." in html.unescape(told)
    assert str(verdict.believed(chosen)) in html.unescape(told)
    assert (verdict.doubt(chosen, "tuned") is None) == ("But it is more likely than not" not in told)
    for rule, other in chosen["others"].items():
        if other["trial"] != chosen["trial"]:
            assert re.search(rf"{rule} trial {other['trial']} \S+ {other['probability']:.0%} ", told), rule


def test_the_report_tells_what_people_did_and_why(tmp_path: Path) -> None:
    """The golden story has an operator who amends, cancels, voids, revokes and closes."""
    text = pack_files(golden(), tmp_path, OWNER)["report.html"].decode()
    read_page(text)
    told = " ".join(re.sub(r"<[^>]*>", " ", text).split())
    for words in ("the sensor was unplugged", "it lies", "enough", "space.n.high 5 → 9", "alice", "study.paused",
                  "closed by rule operator", "amended once"):
        assert words in told, words
    assert 'class="voided"' in text   # in the pictures
    assert "bayesd study warnings" in told


def test_free_text_beside_the_events_is_packed_and_checked(tmp_path: Path) -> None:
    """A log may keep texts outside the hashed bytes, so that one can be redacted; the pack has those that are there."""
    def refer(event: dict[str, Any]) -> None:
        event["data"]["error_ref"] = (there if event["seq"] == AT else gone).pop("ref")
    salt, said = bytes(range(16)), "CUDA <out> of memory"
    there: dict[str, str] = {"ref": sha256(salt + said.encode()).hexdigest()}
    gone: dict[str, str] = {"ref": "0" * 64}
    ref = there["ref"]
    record = signed(reseal(reseal(golden().bodies, AT, refer), 40, refer))
    write_log(record, tmp_path / "log.db")
    with contextlib.closing(sqlite3.connect(tmp_path / "log.db")) as db:
        db.execute("CREATE TABLE IF NOT EXISTS text (ref TEXT PRIMARY KEY, salt BLOB NOT NULL, text TEXT NOT NULL)")
        db.executemany("INSERT INTO text VALUES (?, ?, ?)", [
            (ref, salt, said), (sha256(b"of another study").hexdigest(), b"", "of another study")])
        db.commit()
    code, told = python(tmp_path / "log.db")
    assert (code, "texts                2  OK" in told) == (0, True), told
    found = pack.collect(tmp_path / "log.db", "s")
    events = {event["seq"]: event["data"] for event in found.events}
    assert (events[AT]["error"], events[40]["error"]) == (said, "(missing)")
    files = pack.files(found, {}, phrases.of, OWNER)
    assert json.loads(files["texts.jsonl"]) == {"ref": ref, "salt": salt.hex(), "text": said}
    assert "texts.jsonl" in files["README.txt"].decode()
    pack.write(tmp_path / "pack.zip", files)
    assert both(tmp_path / "pack.zip") == 0
    changed = {**files, "texts.jsonl": files["texts.jsonl"].replace(b"memory", b"melody")}
    write_pack(changed, tmp_path / "pack.zip")
    assert both(tmp_path / "pack.zip", f"FAILED at text {ref}: it is not the one that was told") == 1


def both(file: Path, wanted: str = "VERIFIED") -> int:
    code, told = python(file)
    if shutil.which("node"):
        assert javascript(file) == (code, told)
    assert told.splitlines()[-1].startswith(wanted), told
    return code


def test_an_amendment_is_told_key_by_key() -> None:
    from bayesd.report import _changes
    before = {"budget": {"trials": 5}, "space": {"x": {"low": 1}}}
    after = {"budget": {"trials": 9}, "space": {"x": {"low": 1}, "y": {"low": 2}}}
    assert list(_changes(before, after)) == [("budget.trials", "5", "9"), ("space.y", "none", '{"low": 2}')]


# --- Pictures ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [
    Axis(0, 1), Axis(1e-6, 1e6, log=True), Axis(2, 3, log=True), Axis(5, 5), Axis(-8e307, 8e307),
    Axis(0, 3, names={0.0: "a", 3.0: "b"}), Axis(1e-300, 1.0, log=True)])
def test_ticks_lie_on_their_axis(axis: Axis) -> None:
    ticks = axis.ticks()
    assert 1 <= len(ticks) <= 12
    assert all(axis.low <= value <= axis.high * (1 + 1e-9) for value, _ in ticks)
    assert axis.share(axis.low) <= axis.share(axis.high)
    assert axis.share(axis.high + 1) <= 1
    assert axis.share(axis.low - 1) >= 0


def test_a_picture_escapes_what_it_is_given() -> None:
    drawn = chart([Mark(0.5, 0.5, "done", "<&\">", "#<")], Axis(0, 1), Axis(0, 1), "x<", "y&", line=[(0, 0), (1, 1)])
    read_page(drawn)
    assert "<&" not in drawn
    assert 'href="#&lt;"' in drawn
