"""Where the broker is, when nobody says."""

import json
import os
from pathlib import Path
from typing import Any

DEFAULT_BROKER = "mqtt://127.0.0.1:1883"


def find_broker(url: str | None = None, root: str = "") -> tuple[str, str]:
    """(broker, root): `url`, else BAYESD_BROKER, else the daemon running on this machine with the root that
    it serves, else mqtt://127.0.0.1:1883. A `root` that is given stays."""
    said = url or os.environ.get("BAYESD_BROKER")
    if said:
        return said, root
    note = _running_here()
    return (note["broker"], root or note.get("root") or "") if note is not None else (DEFAULT_BROKER, root)


def _running_here() -> dict[str, Any] | None:
    """The note of a daemon of this user that still lives."""
    runtime = os.environ.get("XDG_RUNTIME_DIR") or f"/tmp/bayesd-{os.getuid()}"  # noqa: S108  # its owner is checked
    path = Path(runtime) / "bayesd" / "daemon.json"
    try:
        said: Any = json.loads(path.read_bytes()) if path.parent.stat().st_uid == os.getuid() else None
    except (OSError, ValueError):
        return None
    if not isinstance(said, dict) or not isinstance(said.get("broker"), str) or type(said.get("pid")) is not int:
        return None
    return said if _lives(said["pid"]) else None


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
