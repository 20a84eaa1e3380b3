"""A moment of a log, as people name it: the seq of an event, or a time.

A time names the last event, in the order of the log, that happened at it or before. Times in a log
are for people and a clock may jump, so the order of the log decides and not that of the times.
"""

import datetime
from collections.abc import Iterable

EXAMPLE = "for example 120 or 2026-11-23T09:00:00Z"


class NoMoment(ValueError):
    """What was given names no moment of this log; the text says why."""


def parse(text: str) -> int | datetime.datetime:
    """A seq or a time; without a zone it is UTC, like all times in a log."""
    if text.isascii() and text.isdigit():
        if int(text) < 1:
            raise NoMoment("a log begins with event 1: there is nothing before it")
        return int(text)
    try:
        found = datetime.datetime.fromisoformat(text)
    except ValueError as error:
        raise NoMoment(f"{text!r} is neither a seq nor a time, {EXAMPLE}") from error
    return found if found.tzinfo is not None else found.replace(tzinfo=datetime.UTC)


def last_until(wanted: datetime.datetime, events: Iterable[tuple[int, str]], found: int = 0) -> int:
    """The seq of the last of (seq, time) that is not after `wanted`, else `found`."""
    for seq, time in events:
        if datetime.datetime.fromisoformat(time) <= wanted:
            found = seq
    return found
