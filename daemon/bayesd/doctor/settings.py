"""What stands in mosquitto's settings: the part that no round trip can show, such as what a restart loses."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from bayesd.doctor.finding import LOOPBACK, Finding

QUEUE_MIN, PACKET_MIN, AUTOSAVE_MAX_S = 10_000, 131_072, 60
WRITES = "`bayesd deploy mosquitto` writes a whole file"


def examine(file: Path) -> list[Finding]:
    """One finding for each setting that is not as bayesd wants it; one that all are well."""
    try:
        found = dict(_lines(file))
    except (OSError, UnicodeDecodeError) as error:
        return [Finding("broker's settings", "bad", f"{file} cannot be read ({error})", "name mosquitto's file, and be "
                                                                                        "one who may read it")]
    wrong = [Finding("broker's settings", "warn", f"{file}: {words}", f"{advice}, then restart mosquitto; {WRITES}")
             for words, advice in _wrong(found)]
    return wrong or [Finding("broker's settings", "ok", f"{file} is as bayesd wants it")]


def _lines(file: Path) -> Iterator[tuple[str, list[str]]]:
    """Every value of each setting, in the order of the file; of an included folder as well."""
    values: dict[str, list[str]] = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        key, _, value = line.strip().partition(" ")
        if key and not key.startswith("#"):
            values.setdefault(key, []).append(value.strip())
    for folder in values.get("include_dir", []):
        for each in sorted(Path(folder).glob("*.conf")):
            for key, more in _lines(each):
                values.setdefault(key, []).extend(more)
    yield from values.items()


def _wrong(found: Mapping[str, list[str]]) -> Iterator[tuple[str, str]]:
    """(what is wrong, what to write)"""
    def last(key: str, default: str) -> str:
        return found.get(key, [default])[-1]
    if last("set_tcp_nodelay", "false") != "true":
        yield "set_tcp_nodelay is off, so each turn waits 48 ms", "set_tcp_nodelay true"
    if 0 < _number(last("max_queued_messages", "1000")) < QUEUE_MIN:
        yield ("beyond max_queued_messages, which is 1,000 unless it is set, it drops what it has acknowledged",
               "max_queued_messages 100000")
    if 0 < _number(last("max_packet_size", "0")) < PACKET_MIN:
        yield "max_packet_size is below what bayesd needs", f"max_packet_size {PACKET_MIN}"
    if last("persistence", "false") != "true":
        yield ("persistence is off, so a restart of the broker forgets what is retained and queued; results are safe, "
               "since they are sent until their receipt comes", "persistence true")
    elif _number(last("autosave_interval", "1800")) > AUTOSAVE_MAX_S:
        yield ("it saves every half hour unless told otherwise, so a crash forgets what came since",
               "autosave_interval 1")
    addresses = [value.split()[1] if len(value.split()) > 1 else "every address" for value in found.get("listener", [])]
    if last("allow_anonymous", "false") == "true" and any(each not in LOOPBACK for each in addresses):
        yield "it takes everybody on a listener that others reach", "allow_anonymous false"
    if last("allow_anonymous", "false") != "true" and not {"acl_file", "plugin", "auth_plugin"} & set(found):
        yield "there is no access list, so everybody may write in everybody's name", "acl_file FILE"
    if last("require_certificate", "false") == "true" and last("use_identity_as_username", "false") != "true":
        yield ("it wants certificates, but does not take their names for users", "use_identity_as_username true")


def _number(text: str) -> int:
    return int(text) if re.fullmatch(r"\d+", text) else 0
