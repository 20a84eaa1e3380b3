"""The rules: what each message and each passing moment means.

A rule looks at the newest state, uncommitted facts included, and records events, writes letters,
or both. It survives every message arriving twice, late, never, or in any order; where it matters
which, its docstring says so. The numbers in brackets are the rules of the wire contract.

A module holds one kind of message, or what several of them lead to; they stand on each other in this order: answers,
serving, ends, suggestions, and then those that begin with a message or a tick.

Nothing here reads a clock: `desk.now` is given, and only differences of it are used.
"""

from bayesd.study.rules.answers import digest_of, reject
from bayesd.study.rules.asks import STANDING_MAX, on_ask
from bayesd.study.rules.beats import on_beat
from bayesd.study.rules.ends import close, end_lease, settle
from bayesd.study.rules.reports import on_report
from bayesd.study.rules.serving import reason_of, serve
from bayesd.study.rules.suggestions import orders, overdue, supply, supply_fallback
from bayesd.study.rules.tells import on_tell
from bayesd.study.rules.time import on_stop, on_tick

__all__ = [
    "STANDING_MAX", "close", "digest_of", "end_lease", "on_ask", "on_beat", "on_report", "on_stop", "on_tell",
    "on_tick", "orders", "overdue", "reason_of", "reject", "serve", "settle", "supply", "supply_fallback"]
