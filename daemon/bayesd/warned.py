"""The first warnings of a study in short, one line each, for pages that are about something else.

All of them, with their numbers and what to do: `bayesd study warnings`.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

MOST = 3


def brief(study: str, found: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The first of them, those about the winner before others, and where the rest is."""
    for each in found[:MOST]:
        yield str(each["text"])
    if found:
        left = len(found) - MOST
        yield f"more{f' ({left})' if left > 0 else ''}: bayesd study warnings {study}"
