"""`bayesd ask` and `bayesd tell`: a person as a worker, one trial at a time."""

import asyncio
import contextlib
import json
import math
import secrets
import shlex
import time
from collections.abc import AsyncIterator
from typing import Any

import click

from bayesd import show
from bayesd.bus import Caller
from bayesd.call import NoDaemon, Reach, Voice, clean, hand_name
from bayesd.cli.common import NO, USAGE, Reaching, Trouble, Verb, reaching, study_argument
from bayesd_schemas.names import is_name
from bayesd_schemas.study import seconds

AGAIN_S = 2.0


def register(top: click.Group) -> None:
    top.add_command(ask)
    top.add_command(tell)


def _lease(text: str) -> float:
    """90, 90s, 1h30m."""
    with contextlib.suppress(ValueError):
        return float(text)
    try:
        return float(seconds(text))
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def _name(given: str | None, reach: Reach) -> str:
    """Whose hand it is: with broker users, theirs, because the access list knows no other."""
    name = given or (clean(reach.known_as) if reach.known_as else hand_name())
    if not is_name(name):
        raise Trouble(f"{name!r} is not a worker's name: up to 64 of a-z, 0-9, dot, dash and underscore", USAGE)
    return name


# --- Ask -------------------------------------------------------------------------------------------


@click.command("ask", cls=Verb, example="bayesd ask digits-svm\nbayesd ask digits-svm --lease 2h | jq .params")
@study_argument(required=False)
@click.option("--name", help="Work under this worker's name; default hand-USER-HOST.")
@click.option("--lease", type=_lease, default=3600.0, metavar="TIME",
              help="How long the trial is ours; afterwards others may get it. Default 1h.")
@reaching
def ask(study: str | None, name: str | None, lease: float, reach: Reaching) -> None:
    """Get one trial by hand.

    Prints the grant as JSON, and the command that tells its result. Without STUDY: of any open study. Ends
    with 1 when there is nothing to try, or not now.
    """
    where = reach()
    hand = _name(name, where)
    answer = asyncio.run(_ask(where, hand, study, lease))
    click.echo(json.dumps(answer, ensure_ascii=False))
    if "params" not in answer:
        words = {"closed": f"{study} is closed", "waiting": "there is nothing to try now"}
        reason = answer.get("detail") or answer.get("reason") or ""
        raise Trouble(f"{words.get(answer['status'], answer['status'])}" + (f" ({reason})" if reason else ""))
    show.talk(f"try    {show.params(answer['params'])}")
    show.talk(f"tell   {tell_command(answer, hand, where, name)}")


def tell_command(grant: dict[str, Any], hand: str, reach: Reach, name: str | None) -> str:
    """What to type when the result is known; it works from another terminal, too."""
    words = ["bayesd", "tell", grant["study"], str(grant["trial"]), "VALUE", "--fence", str(grant["fence"])]
    if name is not None:
        words += ["--name", hand]
    if reach.root:
        words += ["--root", reach.root]
    words += ["--broker", reach.address.url]
    if reach.address.username is not None:
        words += ["--username", reach.address.username]
    for option in ("password_file", "ca_file", "cert_file", "key_file"):
        if (file := getattr(reach.address, option)) is not None:
            words += [f"--{option.replace('_', '-')}", str(file)]
    return shlex.join(words)


async def _ask(reach: Reach, hand: str, study: str | None, lease_s: float) -> dict[str, Any]:
    topics, id = reach.topics, f"ask.{secrets.token_hex(6)}"
    message: dict[str, Any] = {"id": id, "run": f"hand.{secrets.token_hex(4)}", "lease_s": lease_s,
                               **({"study": study} if study is not None else {})}
    async with reach.caller(topics.to(hand, "grant"), topics.to(hand, "receipt"), topics.daemon, name=hand) as caller:
        voice = Voice(reach)
        async for said in _answers(caller, topics.sent(hand, "ask"), message, reach, voice):
            if said.get("ask") == id and "params" in said:
                return said
            if said.get("id") == id:
                if said["status"] != "waiting":
                    return said
                return await _withdraw(caller, reach, hand, message, said, voice)
    raise NoDaemon(_silence(reach, voice))


async def _withdraw(caller: Caller, reach: Reach, hand: str, message: dict[str, Any],
                    waiting: dict[str, Any], voice: Voice) -> dict[str, Any]:
    """Nobody will wait here, so the ask may not stand: a trial that is granted to it would be lost for its lease."""
    taken_back = {**message, "n": 0}
    async for said in _answers(caller, reach.topics.sent(hand, "ask"), taken_back, reach, voice):
        if said.get("ask") == message["id"] and "params" in said:
            return said
        if said.get("id") == message["id"] and said["status"] != "waiting":
            break
    return waiting


async def _answers(caller: Caller, topic: str, message: dict[str, Any], reach: Reach,
                   voice: Voice) -> AsyncIterator[dict[str, Any]]:
    """Send a message again and again until the time is up; yield whatever comes and is believed."""
    until = time.monotonic() + reach.timeout_s
    while (left_s := until - time.monotonic()) > 0:
        payload = voice.put(topic, message)
        if payload is not None:
            await caller.publish(topic, payload)
        async for heard in caller.messages(min(AGAIN_S, left_s)):
            said = voice.take(heard)
            if said is not None:
                yield said
            if payload is None and voice.daemon is not None:
                break                                # now it can be signed


def _silence(reach: Reach, voice: Voice) -> str:
    if voice.complaint is not None:
        return f"No answer within {reach.timeout_s:g} s can be believed. {voice.complaint}"
    return (f"The broker at {reach.address.url} answers, but no daemon replied within {reach.timeout_s:g} s: start one"
            f" with `bayesd serve --broker {reach.address.url}`, or check --broker and --root.")


# --- Tell ------------------------------------------------------------------------------------------


@click.command("tell", cls=Verb, context_settings={"ignore_unknown_options": True},
               example="bayesd tell digits-svm 7 0.94 --fence 1\n"
                       "bayesd tell digits-svm 7 accuracy=0.94 size=12 --fence 1\n"
                       "bayesd tell digits-svm 7 --state fail --error \"out of memory\" --class oom")
@study_argument()
@click.argument("trial", type=click.IntRange(min=1))
@click.argument("values", nargs=-1, metavar="[VALUE | METRIC=VALUE ...]")
@click.option("--fence", type=click.IntRange(min=1), default=1, show_default=True,
              help="The number of the lease; `bayesd ask` printed it.")
@click.option("--state", type=click.Choice(["complete", "fail", "pruned", "released"]), default="complete",
              show_default=True, help="released gives the trial back.")
@click.option("--folds", is_flag=True, help="The values are the folds of a cross-validation.")
@click.option("--class", "class_", type=click.Choice(["crash", "timeout", "oom", "nonfinite", "other"]),
              help="What kind of failure.")
@click.option("--error", help="What went wrong.")
@click.option("--seconds", type=click.FloatRange(min=0), help="How long the training took.")
@click.option("--cost", type=click.FloatRange(min=0), help="What it cost.")
@click.option("--name", help="The worker's name that asked; default hand-USER-HOST.")
@reaching
def tell(study: str, trial: int, values: tuple[str, ...], fence: int, state: str, folds: bool, class_: str | None,
         error: str | None, seconds: float | None, cost: float | None, name: str | None, reach: Reaching) -> None:
    """Tell the result of a trial by hand.

    Waits until it is on the daemon's disk. The same result may be told again: it is recorded once. Ends with
    1 when it is rejected.
    """
    where = reach()
    hand = _name(name, where)
    message = {"id": f"t.{study}.{trial}.{fence}", "study": study, "trial": trial, "fence": fence, "state": state,
               **_outcome(values, state, folds),
               **{key: value for key, value in (("class", class_), ("error", error), ("seconds", seconds),
                                                ("cost", cost)) if value is not None}}
    receipt = asyncio.run(_tell(where, hand, message))
    click.echo(json.dumps(receipt, ensure_ascii=False))
    status = receipt["status"]
    if status == "rejected":
        raise Trouble(f"rejected: {receipt.get('detail') or receipt.get('reason')}", NO)
    show.talk({"recorded": f"recorded as event {receipt.get('seq')}",
               "duplicate": f"recorded already, as event {receipt.get('seq')}",
               "late": f"late: {receipt.get('detail') or 'another result of this trial counts'}",
               }.get(status, status))


def _outcome(values: tuple[str, ...], state: str, folds: bool) -> dict[str, Any]:
    """The outcome in one of its three ways: value, values or folds."""
    if not values:
        if state == "complete":
            raise Trouble("a value is missing, for example: bayesd tell digits-svm 7 0.94", USAGE)
        return {}
    if any("=" in word for word in values):
        pairs = [word.partition("=") for word in values]
        return {"values": {key: _number(text) for key, _, text in pairs}}
    if folds:
        return {"folds": [_number(text) for text in values]}
    if len(values) > 1:
        raise Trouble("several values need names (accuracy=0.94 size=12), or --folds", USAGE)
    return {"value": _number(values[0])}


def _number(text: str) -> Any:
    """A measurement. JSON has no word for nan and infinity, so they go as text."""
    try:
        number = float(text)
    except ValueError as error:
        raise Trouble(f"{text!r} is not a number, for example 0.94", USAGE) from error
    return number if math.isfinite(number) else text


async def _tell(reach: Reach, hand: str, message: dict[str, Any]) -> dict[str, Any]:
    topics = reach.topics
    if reach.key is not None:
        message = {**message, "id": f"{message['id']}:{secrets.token_hex(4)}"}     # an old receipt is none for this one
    async with reach.caller(topics.to(hand, "receipt"), topics.daemon, name=hand) as caller:
        voice = Voice(reach)
        last: dict[str, Any] | None = None
        async for said in _answers(caller, topics.sent(hand, "tell"), message, reach, voice):
            if said.get("id") == message["id"]:
                last = said
                if "retry_after_s" not in said:      # with it the result is not on disk yet: it is sent again
                    return said
    if last is not None:
        return last
    raise NoDaemon(_silence(reach, voice))


