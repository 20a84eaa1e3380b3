#!/usr/bin/env python3
"""Is this the record that was written? Checks a log of bayesd offline, with none of bayesd's code.

    python3 bayesd-verify.py FILE [--key KEY] [--head NOTES]

FILE is a log (SQLite), an export of one (JSON lines) or an audit pack (zip); it is only read. The rules:
 1. An event is a line of JSON and its hash SHA-256(0x00 || line). `seq` counts 1, 2, 3, ... and `prev` is the
    hash of the event before it: who changes one event must change all that follow.
 2. A signed note says how many events there were and the root of the Merkle tree over their hashes (RFC 9162,
    section 2.1): who changes any event, and all that follow, has another root than a note kept elsewhere.
 3. An operator who put an old copy back gives up the heads behind it: event log.repaired says why, and the key of
    the log signs which. Such a head excuses nothing else, and nothing but the key from elsewhere proves it.
 4. In a pack, manifest.txt has the SHA-256 of each file and seal.txt, if there is one, signs manifest.txt. A pack
    may have events of other studies by hash alone: that they are of others is what the seal says, and nothing else.
    study.json has the spec that the events declare, and winners with the parameters and the value that they have.
Events may refer to free text by ref = SHA-256(salt || text); a text may be redacted, but not be another one.
Exit: 0 verified, 1 not verified, 2 could not be looked at.
"""
import argparse, base64, hashlib, json, os, re, sqlite3, sys, urllib.parse, zipfile, zlib
try:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
except ImportError:             # then everything but signatures is checked
    Ed25519PublicKey = None
NO_SEAL = "no seal: events of the study may have been left out; ask for a sealed pack, or one made with --whole"
HEAD = re.compile(r"bayesd/(.+)\n(0|[1-9][0-9]{0,15})\n([A-Za-z0-9+/=]+)(?:\nbranch ([1-9][0-9]{0,15}))?")

class Failed(Exception):
    pass

def need(holds, where, why):
    if not holds:
        raise Failed(f"FAILED at {where}: {why}")

def say(what, count, remark=""):
    print(f"{what:<14}{count:>8}  OK{remark and ', '}{remark}")

def sha(*parts):
    return hashlib.sha256(b"".join(parts)).digest()

def check_events(rows, given=None):
    """Rule 1 for rows of seq, line, hash and copies of parts of the line, of which all but the line may be missing.
    A pack gives the hashes of all events. Answers with the log's id, all hashes, keys, repairs, how many rows."""
    id, hashes, keys, repairs, count, seq = None, given or [], [], [], 0, 0
    try:
        for told, line, leaf, *beside in rows:
            where, last, before = f"seq {seq + 1}", len(given) if given else seq + 1, seq
            event = json.loads(line.decode("utf-8"), parse_constant=int)        # int refuses NaN: it is not JSON
            seq, prev, log, data, digest = event["seq"], event["prev"], event["log"], event["data"], sha(b"\0", line)
            need(type(seq) is int and before < seq <= last and told in (None, seq), where, "it is not in its place")
            where = f"seq {seq}"
            need(digest == (given[seq - 1] if given else leaf or digest), where, "its hash is not that of its line")
            need(prev == (hashes[seq - 2].hex() if seq > 1 else "0" * 64), where, "its prev is not the hash before it")
            need(log == (id or log), where, "it is of another log")
            need(not beside or beside == [event.get(key) for key in ("type", "study", "trial", "actor", "cmd")], where,
                 "what stands beside its line is not what the line says")
            id, count = log, count + 1
            if not given:
                hashes.append(digest)
            if event.get("type") == "daemon.started" and "key" in data:
                keys.append(data["key"])
            if event.get("type") == "log.repaired" and data.get("signature") is not None:
                repairs.append((seq, prev, data))
    except sqlite3.Error:
        need(False, f"seq {seq + 1}", "the file is damaged here")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        need(False, where, "it is not an event in JSON")
    need(count, "seq 1", "there is no event")
    say("events", count, "" if count == len(hashes) else f"of {len(hashes)}, the others by hash alone")
    return id, hashes, keys, repairs, count

def roots(hashes, sizes):
    """Size -> root of the Merkle tree over the first `size` hashes, in base64."""
    found, peaks = {"0": sha()}, []         # peaks: roots of the full subtrees so far, the largest first
    for size, leaf in enumerate(hashes, 1):
        carry = size - 1
        while carry & 1:
            leaf, carry = sha(b"\1", peaks.pop(), leaf), carry >> 1
        peaks.append(leaf)
        if str(size) in sizes:
            root = leaf
            for peak in reversed(peaks[:-1]):
                root = sha(b"\1", peak, root)
            found[str(size)] = root
    return {size: base64.b64encode(root).decode() for size, root in found.items()}

def is_signed(text, signatures, keys):
    """Ed25519 over the text of a note by a key, name+id+base64(1 || public key)."""
    for key in keys if Ed25519PublicKey else ():
        name, _, rest = key.partition("+")
        for line in signatures.split("\n"):
            try:
                raw, mark = base64.b64decode(rest[9:]), base64.b64decode(line.split(" ")[-1])
                if line.startswith(f"\u2014 {name} ") and mark[:4] == sha(name.encode(), b"\n", raw)[:4]:
                    Ed25519PublicKey.from_public_bytes(raw[1:]).verify(mark[4:], f"{text}\n".encode())
                    return True
            except Exception:               # whatever is wrong with it, it is no signature
                continue
    return False

def check_signature(text, signatures, keys, where):
    """1: signed. 0: there is no key, or no library."""
    signed = is_signed(text, signatures, keys)
    need(signed or not keys or not Ed25519PublicKey, where, "the key did not sign this note")
    return int(signed)

def read_head(text):
    """What a head says: log, size, root, and the repair behind which it was made, its branch. None: it is no head."""
    said = HEAD.fullmatch(text)
    return said and (said[1], int(said[2]), said[3], int(said[4] or 0))

def given_up(said, id, repairs, keys):
    """Rule 3. The repair that gave this head up, if the key signed it: that head itself, or one of a branch that
    ended there, behind what both histories have and not beyond the head that was given up."""
    ended = 0
    for seq, prev, data in repairs:
        head = str(data.get("accepted")).partition("\n\n")[0]
        accepted, shared = read_head(head), data.get("shared") or 0
        text = "\n".join([f"bayesd/{id}/repair", f"behind {prev}", *head.split("\n")[1:], f"shared {shared}",
                          f"fences from {data.get('fences_from') or 0}"])
        if accepted and accepted[0] == id and (said == accepted or (
                said[3] != repairs[-1][0] and said[3] in (ended, accepted[3]) and shared < said[1] <= accepted[1])) \
                and is_signed(text, f"\u2014 bayesd/{id} {data['signature']}", keys):
            return seq, str(data.get("reason"))
        ended = seq
    return None

def check_notes(what, text, id, hashes, keys, repairs, is_trusted):
    """Rule 2. Notes stand one after the other: text, empty line, signatures, empty line. How many are signed."""
    parts, good, signed, gone = [part for part in text.strip("\n").split("\n\n") if part], 0, 0, {}
    notes = [(f"{text}\n".split("\n")[1], text, signatures) for text, signatures in zip(parts[::2], [*parts[1::2], ""])]
    found = roots(hashes, {size for size, _, _ in notes})
    for size, text, signatures in sorted(notes, key=lambda note: (len(note[0]), note[0])):
        need(text.split("\n")[0] == f"bayesd/{id}", f"seq {size}", "a note of another log")
        is_ours, said = check_signature(text, signatures, keys, f"seq {size}"), read_head(text)
        need(said, f"seq {size}", "it is not a note of a head")
        if found.get(size) != said[2] and (repair := given_up(said, id, repairs, keys)):
            need(is_trusted, f"seq {size}", "this head was given up, says the log; only --key can tell if that is true")
            gone[repair] = gone.get(repair, 0) + 1
            continue
        need(size in found, f"seq {len(hashes) + 1}", f"it is missing: a note is about {size} events")
        need(said[2] == found[size], f"seq {size}",
             f"events {good + 1} to {size} are not all those that a note is about")
        good, signed = int(size), signed + is_ours
    say(what, len(notes), f"{signed} signed, the newest is about {good} of {len(hashes)} events" if notes else "")
    for (seq, why), count in gone.items():
        print(f"{count} of the {what} {'was' if count == 1 else 'were'} given up by a repair at seq {seq}: {why}")
    return signed

def check_texts(rows):
    for ref, salt, text in rows:
        need(sha(salt, text.encode()).hex() == ref, f"text {ref}", "it is not the one that was told")
    say("texts", len(rows))

def check_files(files, id, keys):
    """Rule 4. Is there a seal?"""
    listed = {line[66:]: line[:64] for line in files["manifest.txt"].decode().split("\n") if line}
    for name in sorted({*files, *listed} - {"manifest.txt", "seal.txt"}):
        need(sha(files.get(name, b"")).hex() == listed.get(name), name, "it is not the file that was packed")
    say("files", len(listed))
    if "seal.txt" not in files:
        return False
    text, _, signatures = files["seal.txt"].decode().partition("\n\n")
    signed = check_signature(text, signatures, keys, "seal.txt")
    need(text == f"bayesd/{id}/pack\n{sha(files['manifest.txt']).hex()}", "seal.txt", "it seals another pack")
    say("seal", 1, f"{signed} signed")
    return signed or not Ed25519PublicKey       # that none was checked is said

def keeps(spec, said):
    """Whether a trial keeps the limits of its study."""
    told = [(limit, said.get(limit.get("metric") or limit["name"])) for limit in spec.get("limits") or []]
    return all(found is not None and limit.get("at_least", found) <= found <= limit.get("at_most", found)
               for limit, found in told)

def check_study(files):
    """Rule 4. The spec and the winners of a pack, by the events in it."""
    def loads(data):        # with one kind of number, as JSON has it
        return json.loads(data.decode(), parse_int=float, parse_constant=int)
    def same(one, other):
        return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    about, spec, params, values = loads(files["study.json"]), None, {}, {}
    for event in (loads(line) for line in files["events.jsonl"].split(b"\n") if line):
        if event.get("study") != about["study"]:
            continue
        kind, trial, data = event["type"], event.get("trial"), event["data"]
        spec = data.get("spec", spec)
        if kind in ("trial.proposed", "trial.imported"):
            params.setdefault(trial, data.get("params"))
        if (kind == "trial.imported" and (trial not in values or data.get("result"))) or kind == "trial.completed":
            is_complete = kind == "trial.completed" or data.get("state", "complete") == "complete"
            values[trial] = data.get("values") if is_complete else None
        elif kind == "outcome.voided":
            values[trial] = None
    need(spec is not None and same(about["spec"], spec), "study.json", "its spec is not the one in the events")
    goal = (spec.get("objectives") or [{"name": spec.get("metric") or "value", "direction": spec.get("direction")}])[0]
    value = {trial: said[goal["name"]] for trial, said in values.items() if said and said.get(goal["name"]) is not None}
    def mean(trials):
        return sum(value[trial] for trial in trials) / len(trials)
    def near(one, other):
        return abs(one - other) <= 1e-9 * max(abs(one), abs(other))
    sign, points = -1 if goal.get("direction") == "maximize" else 1, {}
    for trial in value:         # trials at one point are one candidate, with their mean
        points.setdefault(json.dumps(params[trial], sort_keys=True), []).append(trial)
    fair = [same for same in points.values() if all(keeps(spec, values[trial]) for trial in same)]
    need(same(about["winner"], about["rules"].get(about["winner"]["rule"])), "study.json",
         "its winner is another by its rule")
    for rule, winner in about["rules"].items():
        trial, won = winner["trial"], winner.get("value")
        trials = winner.get("evaluations") or [trial]
        need((same(winner.get("params"), params[trial]) and near(won, mean(trials)) and
              all(same(params[each], params[trial]) for each in trials)) if {trial, *trials} <= value.keys()
             else not value, "study.json", "a winner is not a trial with that value in the events")
        need(rule != "best" or trial not in value or all(near(won, mean(each)) or sign * won < sign * mean(each)
                                                         for each in fair), "study.json", "another trial is better")
    say("study.json", 1, f"its spec and winners are those of {len(value)} complete trials")

def verify(path, keys, heads):
    if os.path.isdir(path):
        raise IsADirectoryError(f"{path} is a folder: give the .zip itself")
    with open(path, "rb") as file:
        start = file.read(16)
        data = start if start == b"SQLite format 3\0" else start + file.read()
    notes, files = "", {}
    if start == b"SQLite format 3\0":       # if a WAL is beside it, that has events, too; else nobody writes the file
        wal = os.path.exists(path + "-wal") and os.path.getsize(path + "-wal")
        db = sqlite3.connect("file:" + urllib.parse.quote(os.path.abspath(path))
                             + ("?mode=ro" if wal else "?mode=ro&immutable=1"), uri=True)
        id, hashes, named, repairs, count = check_events(db.execute(
            "SELECT seq, CAST(body AS BLOB), CAST(hash AS BLOB), type, study, trial, actor, cmd FROM event "
            "ORDER BY seq"))
        notes = "\n".join(note.decode() for note, in db.execute("SELECT CAST(note AS BLOB) FROM checkpoint"))
        if db.execute("SELECT 1 FROM sqlite_schema WHERE name = 'text'").fetchone():
            check_texts(db.execute("SELECT ref, salt, text FROM text").fetchall())
    elif start.startswith(b"PK"):
        with zipfile.ZipFile(path) as pack:
            need(len(pack.namelist()) == len(set(pack.namelist())), path, "two files have one name")
            files = {name: pack.read(name) for name in pack.namelist()}
        given, notes, named = (files[name].decode() for name in ("hashes.txt", "checkpoints.txt", "key.txt"))
        id, hashes, _, repairs, count = check_events(
            [(None, line, None) for line in files["events.jsonl"].split(b"\n") if line],
            [bytes.fromhex(line) for line in given.split()])
        named = named.split()
        texts = [json.loads(line) for line in files.get("texts.jsonl", b"").decode().split("\n") if line]
        check_texts([(each["ref"], bytes.fromhex(each["salt"]), each["text"]) for each in texts])
    else:
        id, hashes, named, repairs, count = check_events([(None, line, None) for line in data.split(b"\n") if line])
    signed = check_notes("notes", notes, id, hashes, keys or named, repairs, True)
    for head in heads:
        with open(head, encoding="utf-8") as file:
            signed += check_notes("outside notes", file.read(), id, hashes, keys or named, repairs, bool(keys))
    sealed = check_files(files, id, keys or named) if files else True
    if files:
        check_study(files)
    need(signed or not keys, "key", "it signed nothing here" if Ed25519PublicKey else "pip install cryptography")
    if not Ed25519PublicKey:
        print("Signatures were NOT checked: pip install cryptography")
    elif not signed and not heads:
        print("Nothing here is signed: the parts fit, but the whole could have been made anew")
    elif not signed:
        print("No key for the outside notes is known: they are worth what their source is")
    elif not keys and (files or not heads):
        print("The key is the file's own word; compare it with a copy from elsewhere:", *named)
    if count < len(hashes) and not sealed:
        need(not keys, "seal.txt", NO_SEAL)
        print("WARNING:", NO_SEAL)
    what = f"events 1 to {count}" if count == len(hashes) else f"{count} of {len(hashes)} events"
    print(f"VERIFIED: {what} of log {id}", "" if count == len(hashes) else " (the others by hash alone)",
          "" if sealed else "; no seal: NOBODY VOUCHES for report.html, study.json, texts and why/", sep="")

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", metavar="FILE")
    parser.add_argument("--key", action="append", default=[], help="a public key that you have from elsewhere")
    parser.add_argument("--head", action="append", default=[], help="a file of notes that you have from elsewhere")
    given = parser.parse_args()
    try:
        verify(given.file, given.key, given.head)
    except Failed as failed:
        sys.exit(print(failed) or 1)
    except (ValueError, TypeError, AttributeError, LookupError, EOFError, sqlite3.Error, zipfile.BadZipFile,
            zlib.error):
        sys.exit(print(f"FAILED at {given.file}: it is not whole") or 1)
    except OSError as error:
        sys.exit(print(error, file=sys.stderr) or 2)
