"""What is counted while a daemon works: durations in buckets, and facts of the log by study.

For people and for metrics, never for a decision. Durations are of this life. A `Tally` counts events, so it outlives
the daemon: it is read from the file at the start and goes on with each commit. The state would not do: a failure that
is replaced, or a void, takes counts back there, and a counter that falls looks to Prometheus like a restart.
"""

import json
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

from bayesd.logfile import reading, translated
from bayesd.study.row import Row

QUICK_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper ends of buckets, in seconds: from a commit on a fast disk to a model of thousands of trials."""

OUTCOMES = {"trial.completed": "complete", "trial.failed": "fail", "trial.pruned": "pruned", "trial.paused": "paused",
            "outcome.voided": "voided", "outcome.late": "late", "trial.imported": "imported"}
"""Events that say what became of a trial. An attempt that failed and is tried again is `retried`."""

# Bodies are canonical JSON, in which a quotation mark inside a text has a backslash before it: so these are never
# found in what a worker wrote.
_RETRY = b'"retry":true'
_REASON = b'"reason":"'
_SILENT = b'"reason":"expired"'


class Durations:
    """How long something took, as a histogram."""

    __slots__ = ("_counts", "sum_s")

    def __init__(self) -> None:
        self._counts = [0] * (len(QUICK_S) + 1)
        self.sum_s = 0.0

    def add(self, seconds: float) -> None:
        self._counts[bisect_left(QUICK_S, seconds)] += 1
        self.sum_s += seconds

    @property
    def count(self) -> int:
        return sum(self._counts)

    @property
    def buckets(self) -> list[tuple[str, float]]:
        """(upper end, how many up to it), as Prometheus wants them."""
        ends = [*map(str, QUICK_S), "+Inf"]
        return list(zip(ends, map(float, accumulate(self._counts)), strict=True))


class Tally:
    """How many events there are of the kinds that an operator looks at."""

    def __init__(self) -> None:
        self.outcomes: dict[tuple[str, str], int] = {}
        """(study, state) -> outcomes recorded."""
        self.expired = 0
        """Leases that ended because their worker was silent."""
        self.last: bytes | None = None
        """The body of the newest event."""

    def read(self, path: Path, until: int) -> None:
        """Count what a log file has up to an event. For a thread. Raises LogError."""
        with translated(until), reading(path) as db:
            rows: list[tuple[str | None, str, int, int]] = db.execute("""
                SELECT study, type, CASE type WHEN 'trial.failed' THEN instr(body, ?1) > 0
                    WHEN 'lease.expired' THEN instr(body, ?2) > 0 OR instr(body, ?3) = 0 ELSE 0 END AS flag, count(*)
                FROM event WHERE seq <= ?4 AND type IN (SELECT value FROM json_each(?5)) GROUP BY 1, 2, 3
                """, (_RETRY, _SILENT, _REASON, until, json.dumps([*OUTCOMES, "lease.expired"]))).fetchall()
            last = db.execute("SELECT body FROM event WHERE seq = ?", (until,)).fetchone()
        for study, type, flag, count in rows:
            self._note(study, type, bool(flag), count)
        self.last = last[0] if last is not None else None

    def add(self, rows: Sequence[Row]) -> None:
        """Count what was committed."""
        for row in rows:
            flag = ((row.type == "trial.failed" and _RETRY in row.body)
                    or (row.type == "lease.expired" and (_SILENT in row.body or _REASON not in row.body)))
            self._note(row.study, row.type, flag, 1)
        self.last = rows[-1].body

    def _note(self, study: str | None, type: str, flag: bool, count: int) -> None:
        if type == "lease.expired":
            self.expired += flag * count
        elif study is not None and type in OUTCOMES:
            key = study, "retried" if flag else OUTCOMES[type]
            self.outcomes[key] = self.outcomes.get(key, 0) + count

