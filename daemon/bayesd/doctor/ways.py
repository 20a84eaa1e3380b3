"""The ways through the broker's access list to the daemon and back, each gone once.

A worker's way is an ask that nobody made, withdrawn: it is answered and nothing is recorded. An
operator's way is a write to a study that does not exist.
"""

import asyncio
import contextlib
import json
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bayesd import show
from bayesd.bus import BusError, Caller
from bayesd.call import Client, Reach, Refusal, read
from bayesd.config import read_runtime
from bayesd.doctor import queue
from bayesd.doctor.denied import Answer, may_publish
from bayesd.doctor.finding import WAIT_S, Finding
from bayesd.doctor.machine import log_id_of

SECOND_S = 0.4               # a second daemon on the root answers as fast as the first
STATES_S = 2.0               # public states come at most one a second
STUDIES_MAX = 1000
LARGE_BYTES = 64 * 1024      # the largest message that the daemon reads; with its topic the packet is larger
SKEW_WARN_S, SKEW_BAD_S = 5.0, 300.0

Said = dict[str, Any] | None


async def examine(reach: Reach, worker: Reach | None, daemon: Said, head: Said, log: Path | None) -> list[Finding]:
    """What the daemon announces, and each way. `worker` is a second identity."""
    offline = daemon is not None and daemon.get("state") != "online"
    first = _as_worker_of(worker or reach)
    replies = await _guarded("way of an operator", lambda: _operator(reach, offline))
    way = await _guarded("way of a worker", lambda: _worker(first, offline, reach if replies.answered else None))
    answered = replies.answered or way.answered
    found = [_daemon(reach, daemon, answered), *_log_of(reach, daemon, log)]
    if answered and not offline:
        found.append(_head(reach, head))
    operator = replies.finding
    if way.answered and operator.state == "bad":
        operator = replace(operator, state="warn", advice=f"{operator.advice}; a worker does not need it")
    found += [way.finding, operator]
    if replies.answered:
        found += await _told(reach)
    if not way.answered:
        return found
    checks = [_guarded_finding("one daemon", lambda: _one_daemon(first)),
              _guarded_finding("large messages", lambda: _large(first))]
    if first.known_as is not None:
        checks.append(_guarded_finding("acting as another", lambda: _forgery(first, reach if worker else None)))
    if worker is not None:
        checks.append(_guarded_finding("acting as another", lambda: _forgery(_as_worker_of(reach), first)))
    found += await asyncio.gather(*checks)
    found.append(await _guarded_finding("waiting messages", lambda: queue.examine(first)))
    if worker is None and reach.known_as is not None:
        found.append(Finding("another identity", "ok", "not looked at: what a worker may do is seen with its own "
                                                       "login; --worker-user NAME --worker-password-file FILE, or "
                                                       "--worker-cert-file and --worker-key-file"))
    return found


@dataclass(frozen=True, slots=True)
class _Way:
    finding: Finding
    answered: bool


async def _guarded(check: str, act: Callable[[], Awaitable[_Way]]) -> _Way:
    """A broker that hangs up when it is not allowed something has answered, too."""
    try:
        return await act()
    except BusError as error:
        return _Way(Finding(check, "bad", str(error), "look at the broker's access list"), False)


async def _guarded_finding(check: str, act: Callable[[], Awaitable[Finding]]) -> Finding:
    try:
        return await act()
    except BusError as error:
        return Finding(check, "bad", str(error), "look at the broker's log")


# --- What the daemon keeps on the broker ---------------------------------------------------------------


def _daemon(reach: Reach, said: Said, answered: bool) -> Finding:
    if said is None and answered:
        return Finding("daemon", "bad", f"one answers, but nothing can be read at {reach.topics.daemon}",
                       f"let the broker's access list grant the daemon to read and write {reach.topics.daemon}, and "
                       f"{reach.client} to read it")
    if said is None:
        return Finding("daemon", "bad", f"none has ever been at {reach.address.url} under {reach.topics.prefix}",
                       f"bayesd serve --broker {reach.address.url}, or check --broker and --root")
    words = f"version {said.get('version')}, log {said.get('log')}, epoch {said.get('epoch')}"
    if said.get("state") == "online":
        return Finding("daemon", "ok", f"online, {words}")
    return Finding("daemon", "bad", f"offline; it was {words}", "start it again (systemctl start bayesd); workers keep "
                                                                "their results meanwhile")


def _log_of(reach: Reach, said: Said, log: Path | None) -> list[Finding]:
    """Whether the daemon at the broker is the one of the log here."""
    note = read_runtime()
    if log is None and note is not None and note["broker"] == reach.address.url and note.get("root", "") == reach.root:
        log = Path(str(note.get("log")))
    here = log_id_of(log) if log is not None else None
    if here is None or said is None or here == said.get("log"):
        return []
    return [Finding("log of the root", "bad", f"{log} is log {here}, but the daemon at {reach.address.url} under "
                    f"{reach.topics.prefix} has log {said.get('log')}", "two daemons want one root: stop one, or give "
                                                                        "it another --root; or name the right file "
                                                                        "with --log")]


def _head(reach: Reach, said: Said) -> Finding:
    """Whether the signed head can be read: workers keep it, so that a log that went back is noticed."""
    if said is None:
        return Finding("signed head", "warn", f"nothing can be read at {reach.topics.head}", "let the broker's access "
                       "list grant the daemon to read and write it, and everybody else to read it")
    size = str(said.get("note", "")).split("\n")[1:2]
    return Finding("signed head", "ok", f"{size[0] if size else '?'} events, by the key {said.get('key')}")


# --- A worker's way ------------------------------------------------------------------------------------


def _as_worker_of(reach: Reach) -> Reach:
    """Under a login, its name is the only one that the access list knows; without, one that nobody has."""
    return reach if reach.known_as is not None else replace(reach, client=f"doctor-{secrets.token_hex(4)}")


def _withdrawal(**more: Any) -> tuple[str, bytes]:
    id = f"doctor.{secrets.token_hex(6)}"
    return id, json.dumps({"id": id, "run": "doctor", "n": 0, **more}).encode()


async def _receipts(caller: Caller, id: str, wait_s: float, then_s: float = 0.0) -> int:
    """How many receipts come for an id: the first within `wait_s`, others within `then_s` after it."""
    loop = asyncio.get_running_loop()
    end_s, count = loop.time() + wait_s, 0
    while (left_s := end_s - loop.time()) > 0:
        with contextlib.suppress(TimeoutError):
            said = read(await caller.receive(left_s))
            if said is not None and said.get("id") == id:
                count += 1
                end_s = loop.time() + then_s
    return count


async def _asked(reach: Reach, wait_s: float = WAIT_S, then_s: float = 0.0, **more: Any) -> int:
    """How many answers an ask gets."""
    id, payload = _withdrawal(**more)
    async with reach.caller(reach.topics.to(reach.client, "receipt"), name=reach.client) as caller:
        await caller.publish(reach.topics.sent(reach.client, "ask"), payload)
        return await _receipts(caller, id, wait_s, then_s)


async def _worker(reach: Reach, offline: bool, operator: Reach | None) -> _Way:
    """`operator` is who got replies, and so can hear the daemon: its asks tell whose silence it is."""
    name, topics = reach.client, reach.topics
    if await _asked(reach, 0.5 if offline else WAIT_S):
        return _Way(Finding("way of a worker", "ok", f"asks of {name} are answered"), True)
    if offline:
        return _Way(Finding("way of a worker", "warn", "not known while no daemon is online"), False)
    write, inbox = f"{topics.prefix}/from/{name}/+", f"{topics.prefix}/to/{name}/+"
    may = await _may_ask(reach)
    words, advice = f"no answer to {topics.sent(name, 'ask')}", (
        f"let the broker's access list grant {name} to write {write} and to read {inbox}")
    if may == "denied":
        words, advice = (f"{name} may not write {topics.sent(name, 'ask')}",
                         f"let the broker's access list grant {name} to write {write}; the broker's user is the name")
    elif may == "unheard":
        words, advice = (f"{name} may write {topics.sent(name, 'ask')}, but nobody reads it",
                         f"start the daemon, or let the access list grant it to read {topics.prefix}/from/#")
    elif may == "taken":
        words = f"{name} may write {topics.sent(name, 'ask')} and gets no answer"
        if operator is None:
            advice = (f"let the broker's access list grant {name} to read {inbox}, the daemon to read "
                      f"{topics.prefix}/from/# and to write {topics.prefix}/to/#")
        elif operator.client != name and (await _asked(operator) or await _may_ask(operator) == "denied"):
            words, advice = (f"{words}: {name} may not read {inbox}",
                             f"let the broker's access list grant {name} to read {inbox}")
        else:
            words, advice = (f"{words}, though {operator.client} gets replies: the daemon may not read "
                             f"{topics.prefix}/from/#",
                             f"let the broker's access list grant the daemon to read {topics.prefix}/from/#")
    return _Way(Finding("way of a worker", "bad", words, advice), False)


async def _may_ask(reach: Reach) -> Answer | None:
    return await may_publish(reach.address, f"bayesd-{reach.client}-{secrets.token_hex(4)}",
                             reach.topics.sent(reach.client, "ask"), _withdrawal()[1])


async def _one_daemon(reach: Reach) -> Finding:
    topics = reach.topics
    count = await _asked(reach, WAIT_S, SECOND_S)
    if count > 1:
        return Finding("one daemon", "bad", f"{count} daemons answer under {topics.prefix}: trials are given out twice",
                       "stop all but the one whose log is the newest; give another log another --root; let the access "
                       f"list grant each daemon to read {topics.daemon}, where it sees the other")
    return Finding("one daemon", "ok", "each message has one answer")


async def _large(reach: Reach) -> Finding:
    """The largest message that the daemon reads. A broker that takes less hangs up, and its sender sends it again."""
    pad = "x" * (LARGE_BYTES - len(_withdrawal(pad="")[1]))
    bad = Finding("large messages", "bad", f"a message of {show.size(LARGE_BYTES)} does not come through: a client "
                                           f"that has "
                  "one sends it again for ever", "max_packet_size 131072 in mosquitto.conf, then restart it")
    try:
        came = await _asked(reach, pad=pad)
    except BusError:
        return bad
    return Finding("large messages", "ok", f"{show.size(LARGE_BYTES)} come through") if came else bad


async def _forgery(reach: Reach, other: Reach | None) -> Finding:
    """Whether we may write in another's name: in one that nobody has, and in that of a second identity."""
    topics = reach.topics
    names = [f"doctor-{secrets.token_hex(4)}", *([other.client] if other is not None else [])]
    wide, open_question = [], False
    for name in names:
        id, payload = _withdrawal()
        topic = topics.sent(name, "ask")
        ear = other if other is not None and name == other.client else reach
        with contextlib.suppress(BusError):         # a broker that says so when a subscription is denied
            async with reach.caller(name=reach.client) as mouth, ear.caller(
                    topics.to(name, "receipt"), name=ear.client) as caller:
                await mouth.publish(topic, payload)
                if await _receipts(caller, id, SECOND_S):
                    wide.append(name)
                    continue
        if ear is other:
            continue            # its ear is known to hear, so silence is a no
        may = await may_publish(reach.address, f"bayesd-{reach.client}-{secrets.token_hex(4)}", topic, payload)
        if may is None:
            open_question = True
        elif may != "denied":
            wide.append(name)
    if wide:
        return Finding("acting as another", "bad", f"{reach.client} may write as {' and as '.join(wide)}: it may tell "
                       "results in every worker's name", f"pattern write {topics.prefix}/from/%u/+ in the broker's "
                                                         f"access list, and no wider right for {reach.client}")
    if open_question:
        return Finding("acting as another", "ok", f"not known for {reach.client}: this broker does not say what it "
                                                  f"denies")
    return Finding("acting as another", "ok", f"{reach.client} can write as itself only")


# --- An operator's way ---------------------------------------------------------------------------------


async def _operator(reach: Reach, offline: bool) -> _Way:
    """A write to a study that does not exist: refused for that reason, or because we may not write at all."""
    check = "way of an operator"
    if offline:
        return _Way(Finding(check, "warn", "not known while no daemon is online"), False)
    try:
        async with Client(replace(reach, timeout_s=WAIT_S)) as client:
            await client.request("study.pause", {"study": f"doctor-{secrets.token_hex(6)}"})
    except Refusal as refused:
        if refused.code == "not-allowed":
            return _Way(Finding(check, "warn", str(refused), f"reads work; to change studies, add {reach.client} to "
                                "operators in bayesd.toml and `systemctl reload bayesd`"), True)
        if refused.code == "name-in-use":
            return _Way(Finding(check, "warn", str(refused), "use another user, or --client"), True)
        return _Way(Finding(check, "ok", f"requests of {reach.client} are answered, and may change studies"), True)
    except BusError as error:
        topic = reach.topics.request(reach.client)
        may = await may_publish(reach.address, f"bayesd-{reach.client}-{secrets.token_hex(4)}", topic,
                                json.dumps({"id": secrets.token_hex(8), "verb": "worker.list", "args": {}}).encode())
        advice = f"let the broker's access list grant {reach.client} to write {topic}"
        if may == "taken":
            advice = f"let the broker's access list grant {reach.client} to read {reach.topics.to(reach.client, '#')}"
        elif may == "unheard":
            advice = f"start the daemon, or let the access list grant it to read {reach.topics.prefix}/admin/#"
        return _Way(Finding(check, "bad", str(error), advice), False)
    raise AssertionError("a study that does not exist was paused")


async def _told(reach: Reach) -> list[Finding]:
    """What replies tell: the daemon's clock beside ours, and the studies whose public states must be readable."""
    try:
        async with Client(replace(reach, timeout_s=WAIT_S)) as client:
            began = datetime.now(UTC)
            workers = await client.request("worker.list", {"limit": 1})
            ended = datetime.now(UTC)
            studies = [row["study"] for row in (await client.request("study.list", {"limit": STUDIES_MAX}))["studies"]]
    except (Refusal, BusError):
        return []
    return [*_clocks(workers.get("time"), began, ended), *await _states(reach, set(studies))]


def _clocks(said: Any, began: datetime, ended: datetime) -> list[Finding]:
    """The daemon read its clock between the two moments of ours."""
    if not isinstance(said, str):
        return []
    theirs = datetime.fromisoformat(said)
    ahead_s = max((theirs - ended).total_seconds(), 0.0) or min((theirs - began).total_seconds(), 0.0)
    if abs(ahead_s) < SKEW_WARN_S:
        return [Finding("daemon's clock", "ok", "as here, within the time that an answer takes")]
    words = f"{show.duration(abs(ahead_s))} {'ahead of' if ahead_s > 0 else 'behind'} the one here"
    return [Finding("daemon's clock", "bad" if abs(ahead_s) >= SKEW_BAD_S else "warn", words,
                    "run a time service (systemd-timesyncd, chrony) on both machines; leases are not affected, "
                    "certificates and the times in the log are")]


async def _states(reach: Reach, studies: set[str]) -> list[Finding]:
    if not studies:
        return []
    topics, missing = reach.topics, set(studies)
    try:
        async with reach.caller(topics.study("+")) as caller:
            async for message in caller.messages(STATES_S):
                missing.discard(topics.study_of(message.topic) or "")
                if not missing:
                    break
    except BusError as error:
        return [Finding("public states", "warn", str(error), f"grant {reach.client} to read {topics.study('+')}")]
    if missing:
        return [Finding("public states", "bad", f"nothing can be read at {topics.study(min(missing))}"
                        + (f" and of {len(missing) - 1} more studies" if len(missing) > 1 else ""),
                        f"let the broker's access list grant the daemon to read and write {topics.study('#')}, and "
                        f"{reach.client} to read {topics.study('+')}")]
    return [Finding("public states", "ok", f"of {len(studies)} studies")]
