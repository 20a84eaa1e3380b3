"""One daemon process: put log, bus, broker and clock together, and live until told to stop."""

import asyncio
import contextlib
import json
import logging
import os
import secrets
import signal
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bayesd import __version__, collector, health, systemd, web
from bayesd.archiver import Archiver
from bayesd.broker import EmbeddedBroker
from bayesd.bus import BrokerAddress, MqttBus, Will
from bayesd.config import Config, ConfigError, RuntimeNote, state_directory, write_runtime
from bayesd.fingerprint import fingerprint
from bayesd.heads import RolledBack
from bayesd.log import SqliteLog
from bayesd.metrics import CONTENT_TYPE, Exposition
from bayesd.outside import HeadFiles, signer_of
from bayesd.seals import Seals, load_keys
from bayesd.service import Outside, Service, Settings
from bayesd.study.fold import refuse_newer
from bayesd_schemas.topics import Topics

logger = logging.getLogger("bayesd")

SWITCH_S = 0.0005


class SystemClock:
    """The machine's clocks."""

    now = staticmethod(time.monotonic)

    @staticmethod
    def time() -> str:
        return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def new_log_id() -> str:
    """A fresh identity for a log."""
    return secrets.token_hex(8)


def new_salt() -> bytes:
    """What makes a redacted text unguessable."""
    return secrets.token_bytes(16)


def log_path(config: Config) -> Path:
    return config.log or state_directory() / "log.db"


async def serve(config: Config, *, reload: Callable[[], Config] | None = None,
                on_ready: Callable[[Service, str], None] | None = None, accept_rollback: str | None = None) -> None:
    """Run until SIGTERM or SIGINT. Raises LogError, BusError, BrokerError, CannotListen or ConfigError."""
    async with contextlib.AsyncExitStack() as stack:
        view = Shown(config)
        if config.listen is not None:
            await stack.enter_async_context(web.Web(*listening(config), pages=view.pages))
        await _serve(config, view, reload, on_ready, accept_rollback)


async def _serve(config: Config, view: "Shown", reload: Callable[[], Config] | None,
                 on_ready: Callable[[Service, str], None] | None, accept_rollback: str | None) -> None:
    path = log_path(config)
    files = HeadFiles(path, config.heads)
    # Until the settings can be read again, a wish to do so must not end the process.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    systemd.notify(STATUS=f"verifying {path}")
    with _extending_timeout() as progress:
        log = await SqliteLog.open(path, allow_network=config.allow_network_filesystem, on_progress=progress,
                                   look=refuse_newer)
    try:
        log_id = await _log_id(log)
        signer, save_key = await signer_of(log, log_id, path, config.key, systemd.credential("signing-key"))
        outside = Outside(files.read(), accept_rollback, files.keep, files.forget, save_key)
        async with contextlib.AsyncExitStack() as stack:
            broker, qos, settle_s = config.broker, 1, 0.5
            if broker is None:
                embedded = await stack.enter_async_context(
                    EmbeddedBroker(config.port, kind=config.broker_kind))  # type: ignore[arg-type]  # checked by Config
                broker, qos, settle_s = embedded.url, 0, 0.0
            address = _address(config, broker)
            address.check()
            topics = Topics(config.root)
            service: Service
            bus = MqttBus(
                address, client_id=f"bayesd-daemon-{secrets.token_hex(4)}",
                filters=[*topics.inbound(), *topics.retained()],
                will=lambda: Will(topics.daemon, service.presence("offline")), qos=qos)
            service = Service(log, bus, SystemClock(), settings=_settings(config, settle_s), version=__version__,
                              new_log=lambda: log_id, new_salt=new_salt,
                              fingerprint=await asyncio.to_thread(fingerprint, __version__),
                              signer=signer, outside=outside,
                              seals=Seals(_keys(config), required=config.require_signed))
            await asyncio.to_thread(service.counters.tally.read, log.path, log.head()[0])
            await service.open()
            view.show(service)
            if config.operators is None:
                logger.warning("no list of operators is set: whoever may publish on %s may change studies", address.url)
            note = write_runtime(address.url, path, config.root)
            try:
                await _live(service, config, reload, on_ready, address.url, note)
            finally:
                if note is not None:
                    note.take_back()
    except RolledBack as refused:
        files.remember(refused.conflict.note)
        raise
    finally:
        # Always: the log's thread would keep a dying process alive.
        await log.close()


async def _log_id(log: SqliteLog) -> str:
    """The identity of a log; a new one for an empty log."""
    async for rows in log.read(0, 1):
        return str(json.loads(rows[0].body)["log"])
    return new_log_id()


async def _live(service: Service, config: Config, reload: Callable[[], Config] | None,
                on_ready: Callable[[Service, str], None] | None, url: str, note: RuntimeNote | None) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _stop, service)
    if reload is not None:
        loop.add_signal_handler(signal.SIGHUP, _reload, service, reload)
    collector.set_aside()
    # The log's thread waits for the interpreter at each commit; 5 ms, the default, is ten commits long.
    sys.setswitchinterval(SWITCH_S)
    state = service.desk.state
    logger.info("ready: %d events replayed, %d studies, epoch %d", service.replayed, len(state.studies), state.epoch,
                extra={"seq": state.seq})
    systemd.notify(READY=1, STATUS=f"serving {len(state.studies)} studies at {url}")
    if on_ready is not None:
        on_ready(service, url)
    beats = [asyncio.create_task(_watchdog(service), name="watchdog"),
             asyncio.create_task(_say_health(service, note), name="health"),
             asyncio.create_task(collector.keep_off(lambda: service.desk.state.seq), name="collector")]
    archiving = asyncio.create_task(_archive(service, config), name="archiver")
    try:
        await service.run()
    finally:
        for beat in beats:
            beat.cancel()
        archiving.cancel()
        await asyncio.wait({archiving})         # its process goes first
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.remove_signal_handler(number)


def _stop(service: Service) -> None:
    logger.info("stopping: committing what is decided")
    systemd.notify(STOPPING=1)
    service.stop()


def _reload(service: Service, reload: Callable[[], Config]) -> None:
    """Take over what may change while running; the bus reads certificates and passwords at each connect."""
    systemd.notify(RELOADING=1, MONOTONIC_USEC=time.monotonic_ns() // 1000)
    try:
        config = reload()
        keys = _keys(config)
    except ConfigError as error:
        logger.error("the settings stay as they were: %s", error)
    else:
        service.reload(_settings(config, service.settings.settle_s))
        service.seals.replace(keys, required=config.require_signed)
        logging.getLogger().setLevel(config.log_level.upper())
        logger.info("settings read again")
    systemd.notify(READY=1)


def _settings(config: Config, settle_s: float) -> Settings:
    operators = None if config.operators is None else frozenset(config.operators)
    return Settings(root=config.root, operators=operators, events=config.events, settle_s=settle_s,
                    note_events=config.note_events, note_s=config.note_s)


def _keys(config: Config) -> dict[str, bytes]:
    """The keys of those that sign. Raises ConfigError."""
    handed = systemd.credential("worker-keys")
    path = config.worker_keys or (Path(handed) if handed is not None else None)
    return load_keys(path) if path is not None else {}


def _address(config: Config, broker: str) -> BrokerAddress:
    return BrokerAddress.parse(
        broker, username=config.username,
        password_file=config.password_file or systemd.credential("mqtt-password"),
        ca_file=config.ca_file or systemd.credential("mqtt-ca"),
        cert_file=config.cert_file or systemd.credential("mqtt-cert"),
        key_file=config.key_file or systemd.credential("mqtt-key"))


async def _watchdog(service: Service) -> None:
    """Tell the manager that we live, as long as the writer does: a commit that hangs is no life."""
    every_s = systemd.watchdog_s()
    while every_s is not None:
        await asyncio.sleep(every_s / 3)
        if service.is_healthy(within_s=every_s):
            systemd.notify(WATCHDOG=1)


async def _say_health(service: Service, note: RuntimeNote | None) -> None:
    """Leave word for `bayesd health`, which has no other way to us when the broker is away."""
    while note is not None:
        await asyncio.to_thread(note.say, {"health": health.word(health.of(service))})
        await asyncio.sleep(health.BEAT_S)


class Shown:
    """The pages of `web`, also while there is no service yet."""

    def __init__(self, config: Config) -> None:
        self._service: Service | None = None
        self._exposition: Exposition | None = None
        self._certificates = {name: Path(path) for name, path in (
            ("cert", config.cert_file or systemd.credential("mqtt-cert")),
            ("ca", config.ca_file or systemd.credential("mqtt-ca"))) if path is not None}
        self.pages: dict[str, web.Page] = {"/metrics": self._metrics, "/healthz": self._live, "/readyz": self._ready}

    def show(self, service: Service) -> None:
        """From now on the pages are about this service, which also answers the verb `metrics`."""
        self._service = service
        self._exposition = Exposition(service, self._certificates)
        service.reads["metrics"] = self._exposition.answer

    async def _metrics(self) -> web.Answer:
        if self._exposition is None:
            return self._of(False)
        return web.Answer(await self._exposition.text(), CONTENT_TYPE)

    async def _live(self) -> web.Answer:
        return self._of(health.of(self._service).live)

    async def _ready(self) -> web.Answer:
        return self._of(health.of(self._service).ready)

    def _of(self, good: bool) -> web.Answer:
        return web.Answer(json.dumps(health.of(self._service).body()) + "\n", status=200 if good else 503)


def listening(config: Config) -> tuple[web.Address, web.Token]:
    """Where to serve pages, and the token that they cost. Raises CannotListen."""
    assert config.listen is not None
    file = config.listen_token_file or systemd.credential("listen-token")
    address, token = web.Address.parse(config.listen), None if file is None else web.read_token(Path(file))
    web.check(address, token)
    return address, token


async def _archive(service: Service, config: Config) -> None:
    if config.archive is not None:
        archiver = Archiver(log_path(config), config.archive, config.archive_events)
        await archiver.run(service.desk.state.log, lambda: service.log.head()[0])


@contextlib.contextmanager
def _extending_timeout() -> Any:
    """A long verification asks the manager for patience, and shows people that it goes on."""
    began = last = time.monotonic()

    def progress(events: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= 1.0:
            last = now
            systemd.notify(EXTEND_TIMEOUT_USEC=30_000_000, STATUS=f"verified {events} events")
            if now - began >= 2.0 and sys.stderr.isatty():
                print(f"\rverified {events:,} events", end="", file=sys.stderr, flush=True)

    yield progress
    if last > began + 2.0 and sys.stderr.isatty():
        print(file=sys.stderr)


ABOUT = ("study", "trial", "worker", "fence", "seq")
"""What a line may be about: given as `extra`, shown as fields."""


def _about(record: logging.LogRecord) -> dict[str, Any]:
    return {name: value for name in ABOUT if (value := getattr(record, name, None)) is not None}


class JsonLines(logging.Formatter):
    """A log line as one JSON object."""

    def format(self, record: logging.LogRecord) -> str:
        out = {"time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds"),
               "level": record.levelname.lower(), "message": record.getMessage(), "logger": record.name,
               **_about(record)}
        if record.exc_info:
            out["exception"] = self.formatException(record.exc_info)
        return json.dumps(out, default=str)


class TextLines(logging.Formatter):
    """A log line for people; under systemd with the priority that the journal reads."""

    PRIORITY = {"DEBUG": "<7>", "INFO": "<6>", "WARNING": "<4>", "ERROR": "<3>", "CRITICAL": "<2>"}  # noqa: RUF012

    def format(self, record: logging.LogRecord) -> str:
        text = f"{record.levelname.lower()}: {record.getMessage()}"
        about = _about(record)
        if about:
            text += f"  [{' '.join(f'{name}={value}' for name, value in about.items())}]"
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        if os.environ.get("JOURNAL_STREAM"):
            return self.PRIORITY.get(record.levelname, "<6>") + text
        return f"{datetime.fromtimestamp(record.created).strftime('%H:%M:%S')} {text}"


def set_up_logging(config: Config) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if config.log_format == "json" else TextLines())
    logging.basicConfig(level=config.log_level.upper(), handlers=[handler], force=True)
    if config.log_format == "json":        # what would be written bare otherwise
        logging.captureWarnings(True)
        sys.unraisablehook = lambda what: logger.error(
            "%s in %r", what.err_msg or "an exception that nobody could take", what.object,
            exc_info=what.exc_value or True)
        threading.excepthook = lambda what: logger.error(
            "a thread ended with an exception", exc_info=what.exc_value or True)
