"""Where the broker is, when nobody says."""

import json
import os
from pathlib import Path
from typing import Any

DEFAULT_BROKER = "mqtt://127.0.0.1:1883"


def find_broker(url: str | None = None) -> str:
    """`url`, else BAYESD_BROKER, else the daemon running on this machine, else mqtt://127.0.0.1:1883."""
    return url or os.environ.get("BAYESD_BROKER") or _running_here() or DEFAULT_BROKER


def _running_here() -> str | None:
    """The broker of a daemon that wrote `daemon.json` and still lives."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if not runtime:
        return None
    try:
        said: Any = json.loads((Path(runtime) / "bayesd" / "daemon.json").read_bytes())
    except (OSError, ValueError):
        return None
    if not isinstance(said, dict) or not isinstance(said.get("broker"), str) or type(said.get("pid")) is not int:
        return None
    return said["broker"] if _lives(said["pid"]) else None


def _lives(pid: int) -> bool:
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
