"""The first warnings of a study, as lines beside what is shown of it. Where none can be had, none are shown: the page
itself is worth more than they are."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from bayesd.call import Client, NoDaemon, Refusal
from bayesd.cli import offline
from bayesd.cli.common import Reaching, at_args, need
from bayesd.warned import brief

if TYPE_CHECKING:
    from bayesd.cli.offline import Folded

TIMEOUT_S = 5.0

Line = tuple[str, str]


def of_daemon(reach: Reaching, name: str, at: str | None) -> list[Line]:
    """By the daemon, which asks its model beside its work."""
    async def go() -> Any:
        async with Client(reach()) as client:
            return await client.request("study.warnings", {"study": name, **at_args(at)}, timeout_s=TIMEOUT_S)
    with suppress(Refusal, NoDaemon):
        return _lines(name, asyncio.run(go())["warnings"])
    return []


def of_file(folded: "Folded", name: str) -> list[Line]:
    """By a log file."""
    asked, study = need("bayesd.importance.asked"), offline.study_of(folded, name)
    return _lines(name, asked.warned(asked.Known.of(study, offline.problem(folded, study)), {})["warnings"])


def _lines(name: str, found: Sequence[dict[str, Any]]) -> list[Line]:
    lines = list(brief(name, found))
    return [("warning", line) for line in lines[:-1]] + [("", line) for line in lines[-1:]]
