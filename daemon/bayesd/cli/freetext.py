"""The free text of a log file, for verbs that show an error or a reason."""

import sqlite3
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from bayesd.cli.common import need

if TYPE_CHECKING:
    from bayesd.study.texts import Words


def words_of(file: Path) -> "Words":
    """What is there, and what was redacted: at whatever moment, since a text that is gone is gone for every one."""
    logfile, words = need("bayesd.logfile"), need("bayesd.study.texts").Words()
    logs = need("bayesd.log")
    with suppress(sqlite3.Error, UnicodeDecodeError, logs.LogError):      # what is wrong with the file, its fold says
        words.there = logfile.read_texts(file)
        with logfile.reading(logfile.true_name(file)) as db:
            for (body,) in db.execute("SELECT body FROM event WHERE type = 'text.redacted'"):
                with suppress(ValueError, KeyError, TypeError, AttributeError):
                    words.note("text.redacted", need("orjson").loads(body)["data"])
    return words  # type: ignore[no-any-return]  # imported late
