"""What one check says."""

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warn", "bad"]

WAIT_S = 2.5                 # a daemon answers within 2 s
LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check saw, and what to do if it is not well."""

    check: str
    state: State
    finding: str
    advice: str = ""
