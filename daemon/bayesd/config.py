"""Settings of the daemon: flags over environment over file over defaults, and where things lie.

A secret is never a setting: it is named by a file or handed over as a credential.
"""

import contextlib
import json
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bayesd_schemas.names import Name
from bayesd_schemas.topics import Topics

ENVIRONMENT = "BAYESD_"
SYSTEM_FILE = Path("/etc/bayesd/bayesd.toml")


class ConfigError(Exception):
    """A setting is wrong; the text names it, where it came from, and what is right. Exit code 78."""

    exit_code = 78


class Config(BaseModel):
    """Everything that an operator may set. The same words are keys of the file, `BAYESD_...` in the
    environment, and flags of `bayesd serve`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    broker: str | None = Field(None, description="mqtt://HOST[:PORT] or mqtts://...; none: the embedded broker")
    broker_kind: str = Field("auto", pattern="^(auto|mosquitto|iotcore)$", description="Which embedded broker")
    port: int = Field(1883, ge=1, le=65535, description="Port of the embedded broker on 127.0.0.1")
    username: str | None = Field(None, description="Broker user; the client certificate's name does as well")
    password_file: Path | None = Field(None, description="File with the broker password; credential mqtt-password")
    ca_file: Path | None = Field(None, description="Certificates to trust; credential mqtt-ca")
    cert_file: Path | None = Field(None, description="Client certificate; credential mqtt-cert")
    key_file: Path | None = Field(None, description="Private key of that certificate; credential mqtt-key")
    log: Path | None = Field(None, description="The log file")
    key: Path | None = Field(None, description="The PRIVATE key that signs heads of the log; credential signing-key; "
                             "none: LOG.key, made at the first start")
    heads: Path | None = Field(None, description="Append each signed head to this file, best on another disk")
    note_events: int = Field(1000, ge=1, description="Sign the head after so many events")
    note_s: float = Field(60, gt=0, description="Sign the head after so many seconds with news")
    archive: Path | None = Field(None, description="Write segments of the log to this folder, as log archive does")
    archive_events: int = Field(1_000_000, ge=1, description="Write one whenever so many events are in none")
    root: str = Field("", description="Prefix of every topic: acme puts acme/ before bayesd/1")
    operators: list[Name] | None = Field(None, description="Who may change things; none: everyone on the broker")
    worker_keys: Path | None = Field(None, description="File with the keys of workers and operators that sign; "
                                     "credential worker-keys; read again at SIGHUP")
    require_signed: bool = Field(False, description="Take nothing that is not signed, but reads of operators")
    events: bool = Field(False, description="Publish committed events at study/{study}/events")
    listen: str | None = Field(None, description="Serve metrics and health at 127.0.0.1:9090 or unix:/PATH")
    listen_token_file: Path | None = Field(None, description="File with the token that readers send; credential "
                                           "listen-token; needed beyond loopback")
    log_level: str = Field("info", pattern="^(debug|info|warning|error)$")
    log_format: str = Field("text", pattern="^(text|json)$", description="Lines on stderr")
    allow_network_filesystem: bool = Field(False, description="Use a log on NFS or the like, against advice")


@dataclass(frozen=True, slots=True)
class Origin:
    """A setting's value and who said so."""

    value: Any
    said_by: str


def load(flags: Mapping[str, Any], file: Path | None = None,
         environment: Mapping[str, str] | None = None) -> tuple[Config, dict[str, Origin]]:
    """The settings, and where each came from. Raises ConfigError."""
    environment = os.environ if environment is None else environment
    found: dict[str, Origin] = {}
    for path in [file] if file is not None else _files():
        for key, value in _read(path).items():
            found[key] = Origin(value, str(path))
    for key in Config.model_fields:
        value = environment.get(ENVIRONMENT + key.upper())
        if value is not None and value != "":
            found[key] = Origin(_from_text(key, value), ENVIRONMENT + key.upper())
    for key, value in flags.items():
        if value is not None:
            found[key] = Origin(value, f"--{key.replace('_', '-')}")
    try:
        config = Config.model_validate({key: origin.value for key, origin in found.items()})
        Topics(config.root)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = str(first["loc"][0])
        origin = found.get(key)
        words = "is not a setting" if first["type"] == "extra_forbidden" else first["msg"]
        raise ConfigError(f"{key} (from {origin.said_by if origin else '?'}): {words}. Settings are "
                          f"{', '.join(Config.model_fields)}") from error
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return config, found


def _files() -> list[Path]:
    """Files that are read without being named, later ones win."""
    out = [SYSTEM_FILE] if SYSTEM_FILE.exists() else []
    folder = SYSTEM_FILE.parent / "conf.d"
    return out + sorted(folder.glob("*.toml")) if folder.is_dir() else out


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"the configuration {path} cannot be read ({error.strerror})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"the configuration {path} is not TOML: {error}") from error


def _from_text(key: str, value: str) -> Any:
    if key == "operators":
        return re.split(r"[,\s]+", value.strip())
    return value


def state_directory() -> Path:
    """Where the daemon keeps its log: systemd's state directory, else the user's."""
    given = os.environ.get("STATE_DIRECTORY")
    if given:
        return Path(given.split(":")[0])
    home = os.environ.get("XDG_STATE_HOME")
    return (Path(home) if home else Path.home() / ".local" / "state") / "bayesd"


def runtime_file() -> Path:
    """The note by which clients on this machine find a running daemon."""
    given = os.environ.get("XDG_RUNTIME_DIR")
    folder = Path(given) if given else Path(f"/tmp/bayesd-{os.getuid()}")  # noqa: S108  # private: made with 0700 and checked
    return folder / "bayesd" / "daemon.json"


@dataclass(frozen=True, slots=True)
class RuntimeNote:
    """The note that this process has left, and that of another living daemon which stood there before."""

    path: Path
    before: dict[str, Any] | None

    def say(self, facts: Mapping[str, Any]) -> None:
        """Put facts into the note while it is ours. Errors are for nobody: who reads it sees that it grows old."""
        found = read_runtime()
        if found is not None and found.get("pid") == os.getpid():
            with contextlib.suppress(OSError):
                _write_note(self.path, {**found, **facts})

    def take_back(self) -> None:
        """Remove the note if it is still ours. A daemon that was refused, or goes first, must not hide the other."""
        found = read_runtime()
        if found is None or found.get("pid") != os.getpid():
            return
        with contextlib.suppress(OSError):
            if self.before is not None and _lives(self.before):
                _write_note(self.path, self.before)
            else:
                self.path.unlink(missing_ok=True)


def write_runtime(broker: str, log: Path, root: str) -> RuntimeNote | None:
    """Leave the note; a machine where that is impossible has clients that name the broker."""
    path = runtime_file()
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if path.parent.stat().st_uid != os.getuid():
            return None
        before = read_runtime()
        _write_note(path, {"broker": broker, "pid": os.getpid(), "log": str(log.absolute()), "root": root})
    except OSError:
        return None
    return RuntimeNote(path, before)


def _write_note(path: Path, note: dict[str, Any]) -> None:
    draft = path.with_suffix(f".{os.getpid()}")
    draft.write_text(json.dumps(note))
    draft.replace(path)


def _lives(note: dict[str, Any]) -> bool:
    try:
        os.kill(int(note["pid"]), 0)
    except PermissionError:
        return True               # alive, and somebody else's
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return True


def read_runtime() -> dict[str, Any] | None:
    """The note of a daemon that lives, or None."""
    path = runtime_file()
    try:
        if path.parent.stat().st_uid != os.getuid():
            return None
        note = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return note if isinstance(note, dict) and isinstance(note.get("broker"), str) and _lives(note) else None
