"""What Prometheus reads: the names, and where each number comes from. The only file that knows its library.

Nothing is registered for the process as a whole: each reading asks the service, on its loop and in slices, and what
needs the disk is looked at in a thread. Labels are words of the protocol, or one of at most `STUDIES_MAX` studies;
never a trial, a worker or a parameter. The rest of the studies are one, `_other`.
"""

import asyncio
import math
import os
import platform
import resource
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, get_args

import orjson
from cryptography import x509
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from bayesd.bus import MqttBus
from bayesd.log import SqliteLog
from bayesd.service import Service
from bayesd.study import admin, rules
from bayesd.study.desk import PATIENCE_S
from bayesd.study.state import Study
from bayesd.tally import Durations
from bayesd_schemas.messages import Reason, Request

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
STUDIES_MAX = 50        # studies with a name of their own: open ones first, the newest first
OTHER = "_other"        # no study's name: names begin with a letter or a digit
COMMON = ("complete", "fail", "pruned", "retried")     # states of outcomes that every study may have
SLICE = 500             # studies, or asks, that are looked at before others have the loop again
FRESH_S = 1.0           # readers within so long get the same text


class Exposition:
    """The numbers of one service, as text."""

    def __init__(self, service: Service, certificates: Mapping[str, Path] | None = None) -> None:
        self._service = service
        self._certificates = dict(certificates or {})
        self._started = time.time() - time.process_time()
        self._reading: asyncio.Task[dict[str, str]] | None = None
        self._read_at = float("-inf")

    async def text(self) -> str:
        """Everything, in the text format of Prometheus."""
        return "".join((await self._families()).values())

    async def answer(self, request: Request) -> Any:
        """The verb `metrics`: the same in pages, a metric with its lines in a row. Raises admin.Refused."""
        return admin.page(request, sorted((await self._families()).items()), "metrics")

    async def _families(self) -> dict[str, str]:
        """Name -> text. Who comes while it is read, or soon after, gets what the one before got."""
        now = time.monotonic()
        if self._reading is None or (self._reading.done() and now - self._read_at >= FRESH_S):
            self._read_at = now
            self._reading = asyncio.create_task(self._read(), name="metrics")
        return await asyncio.shield(self._reading)

    async def _read(self) -> dict[str, str]:
        families = [*_of_service(self._service), *await _of_studies(self._service)]
        return await asyncio.to_thread(self._render, families)

    def _render(self, families: list[Metric]) -> dict[str, str]:
        log = self._service.log
        families += [*_of_process(self._started), *_of_files(self._certificates)]
        if isinstance(log, SqliteLog):
            families += _of_disk(log)
        return {family.name: generate_latest(_One(family)).decode() for family in families}


class _One(CollectorRegistry):
    """A registry of one metric, for as long as it is written down."""

    def __init__(self, family: Metric) -> None:
        super().__init__(auto_describe=False)
        self._family = family

    def collect(self) -> Iterator[Metric]:
        yield self._family


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"bayesd_{name}", text, value=value)


def _count(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(f"bayesd_{name}", text, value=value)


def _labelled(kind: Callable[..., Any], name: str, text: str, labels: tuple[str, ...],
              values: Mapping[tuple[str, ...], float]) -> Metric:
    family = kind(f"bayesd_{name}", text, labels=labels)
    for key, value in sorted(values.items()):
        family.add_metric(key, value)
    made: Metric = family
    return made


def _histogram(name: str, text: str, took: Durations) -> Metric:
    return HistogramMetricFamily(f"bayesd_{name}_duration_seconds", text, buckets=took.buckets, sum_value=took.sum_s)


# ---------------------------------------------------------------- the service


def _of_service(service: Service) -> Iterator[Metric]:
    """What is at hand: nothing here grows with studies, trials or workers."""
    desk, state, counters, bus = service.desk, service.desk.state, service.counters, service.bus
    yield _labelled(GaugeMetricFamily, "build_info", "The version, and the log that is served; always 1",
                    ("version", "python", "log"),
                    {(service.version, platform.python_version(), state.log): 1})
    yield _gauge("epoch", "How many daemons have opened this log to write", service.log.epoch)
    yield _gauge("event_log_events", "Events in the log, all of them on disk", service.committed)
    if counters.tally.last is not None:
        said = datetime.fromisoformat(orjson.loads(counters.tally.last)["time"])
        yield _gauge("last_event_timestamp_seconds", "When the newest event was recorded", said.timestamp())
    yield _gauge("replay_duration_seconds", "How long the last replay of the log took", counters.replay_s)
    yield _gauge("replay_events", "Events that it folded; a snapshot spares the rest", service.replayed)
    yield _gauge("log_repairs", "Rollbacks of the log that an operator has accepted, ever", len(state.repairs))
    yield _gauge("disk_full", "1 while the log's disk is full and nothing is granted", desk.disk_full)
    yield _gauge("writer_busy_seconds", "How long the commit that is under way has taken; 0: none is",
                 service.committing_s)

    yield _count("leases_expired", "Leases that ended because their worker was silent", counters.tally.expired)
    yield _count("messages_received", "Messages that came in", counters.received)
    yield _labelled(CounterMetricFamily, "messages_rejected", "Messages that are not of the protocol", ("reason",),
                    {**{(reason,): 0.0 for reason in get_args(Reason)},
                     **{(reason,): count for reason, count in counters.rejected.items()}})
    yield _count("messages_shed", "Messages dropped unread, since their sender sent too many", counters.shed)
    yield _count("messages_undeliverable", "Answers given up, since the queue to the broker was full",
                 counters.undeliverable)
    yield _labelled(CounterMetricFamily, "letters", "What was sent: grants, stops, replies; receipts below",
                    ("kind",), {**{(kind,): 0.0 for kind in ("grant", "stop", "reply")}, **_summed(
                        counters.letters, lambda key: (key[0],) if key[0] != "receipt" else None)})
    yield _labelled(CounterMetricFamily, "receipts", "Receipts sent", ("status", "reason"),
                    {**{("rejected", reason): 0.0 for reason in get_args(Reason)},
                     **_summed(counters.letters, lambda key: key[1:] if key[0] == "receipt" else None)})
    yield _count("commits", "Transactions on the log", counters.commits)
    yield _count("suggestions", "Points that were suggested", counters.suggestions)
    yield _count("suggestion_fallbacks", "Points that a plainer sampler answered, for want of time or by a fault",
                 counters.fallbacks)
    yield _histogram("event_append", "From handing events to the log until they are on disk", counters.append_s)
    yield _histogram("suggest", "How long the optimiser took for an order, which may be of several points",
                     counters.suggest_s)
    yield _histogram("fit", "The same, of orders for which a model was fitted", counters.fit_s)
    yield HistogramMetricFamily("bayesd_loop_lag_seconds", "How late the event loop came back to its ticker",
                                buckets=counters.lag_s.buckets, sum_value=counters.lag_s.sum_s)

    yield _gauge("broker_connected", "1 while the broker is connected", bus.connected)
    if isinstance(bus, MqttBus):
        yield _count("broker_connects", "Connections to the broker that came about", bus.connects)
        yield _count("broker_messages_dropped", "Messages that did not get out to the broker", bus.dropped)
        yield _gauge("broker_queued_bytes", "What waits to get out", bus.queued_bytes)
    yield _gauge("letters_waiting", "Letters that wait for a commit", desk.letters)
    yield _gauge("slow_reads", "Reads of operators that are under way", service.slow_reads)
    heads = service.heads
    if heads is not None:
        yield _count("heads_signed", "Heads of the log that were signed", heads.signed)
        yield _gauge("head_events", "Events under the newest signed head", heads.size)
        yield _count("heads_ignored", "Heads shown to us that no key of this log has signed", heads.ignored)


def _summed(counts: Mapping[tuple[str, str, str], int],
            key_of: Callable[[tuple[str, str, str]], tuple[str, ...] | None]) -> dict[tuple[str, ...], float]:
    out: dict[tuple[str, ...], float] = {}
    for key, count in counts.items():
        new = key_of(key)
        if new is not None:
            out[new] = out.get(new, 0) + count
    return out


# ---------------------------------------------------------------- studies, asks, workers


async def _of_studies(service: Service) -> list[Metric]:
    desk, state = service.desk, service.desk.state
    names = named(state.studies)
    trials: dict[tuple[str, ...], float] = {}
    is_open: dict[tuple[str, ...], float] = {}
    best: dict[tuple[str, ...], float] = {}
    budget: dict[tuple[str, ...], float] = {}
    statuses: dict[tuple[str, ...], float] = dict.fromkeys((("open",), ("paused",), ("closed",)), 0.0)
    busy: set[str] = service.heard_within(PATIENCE_S)
    ages, ready, leases = [0.0], 0, 0
    for place, study in enumerate(list(state.studies.values())):
        if place % SLICE == SLICE - 1:
            await asyncio.sleep(0)
        statuses[study.status,] = statuses.get((study.status,), 0) + 1
        label = study.name if study.name in names else OTHER
        for status, count in study.counts.items():
            trials[label, status] = trials.get((label, status), 0) + count
        if study.name in names:
            is_open[study.name,] = study.status == "open"
            if study.spec.budget.trials is not None:
                budget[study.name,] = study.spec.budget.trials
            found = study.best
            if found is not None and found.values is not None and math.isfinite(found.values[0]):
                best[study.name,] = found.values[0]
        leases += len(study.running)
        busy.update(trial.leases[-1].worker for trial in study.running.values() if trial.leases)
        drawer = desk.drawers.get(study.name)
        if drawer is not None and drawer.candidates:
            ready += len(drawer.candidates)
            ages.append(desk.now - drawer.candidates[0].made)
    asks = await _asks(service, busy)
    # Those that are 0 are said, too, so that the first one counts as a rise.
    outcomes: dict[tuple[str, ...], float] = {(name, status): 0.0 for name in names for status in COMMON}
    for (name, status), count in service.counters.tally.outcomes.items():
        key = (name if name in names else OTHER), status
        outcomes[key] = outcomes.get(key, 0) + count
    return [
        _labelled(GaugeMetricFamily, "studies", "Studies in the log", ("state",), statuses),
        _labelled(GaugeMetricFamily, "study_open", "1 while a study is open, 0 when paused or closed", ("study",),
                  is_open),
        _labelled(GaugeMetricFamily, "study_budget_trials", "How many trials a study may have", ("study",), budget),
        _labelled(GaugeMetricFamily, "study_trials", "Trials as they stand", ("study", "state"), trials),
        _labelled(CounterMetricFamily, "trials", "Outcomes that the log has recorded, those replaced later too",
                  ("study", "state"), outcomes),
        _labelled(GaugeMetricFamily, "best_value", "The best value observed, of the first objective, as measured",
                  ("study",), best),
        _gauge("leases_open", "Trials in the hands of workers", leases),
        _gauge("workers_connected", f"Workers heard within {PATIENCE_S:g} s, or with an open lease or ask", len(busy)),
        _labelled(GaugeMetricFamily, "asks_waiting", "Asks not served yet; soon: a suggestion is on its way",
                  ("reason",), asks),
        _gauge("prefetch_age_seconds", "Age of the oldest suggestion that lies ready; 0: none does", max(ages)),
        _gauge("prefetch_candidates", "Suggestions that lie ready", ready),
    ]


async def _asks(service: Service, busy: set[str]) -> dict[tuple[str, ...], float]:
    """Standing asks by why they wait; who asks is busy. Asks for the same study with the same tags wait for the
    same reason."""
    desk = service.desk
    known: dict[Any, str] = {}
    out: dict[tuple[str, ...], float] = {}
    for place, standing in enumerate(list(desk.standing.values())):
        if place % SLICE == SLICE - 1:
            await asyncio.sleep(0)
        ask = standing.ask
        alike = ask.study, tuple(ask.tags)
        if alike not in known:
            status, reason = rules.reason_of(desk, ask)
            known[alike] = reason or status
        key = (known[alike],)
        out[key] = out.get(key, 0) + 1
        busy.add(standing.worker)
    return out


def named(studies: Mapping[str, Study]) -> frozenset[str]:
    """The studies that have labels of their own."""
    if len(studies) <= STUDIES_MAX:
        return frozenset(studies)
    order = sorted(studies.values(), key=lambda study: (study.status == "closed", -study.created_seq))
    return frozenset(study.name for study in order[:STUDIES_MAX])


# ---------------------------------------------------------------- the machine


def _of_disk(log: SqliteLog) -> list[Metric]:
    space = os.statvfs(log.path.parent)
    return [_gauge("disk_free_bytes", "Space left for the log", space.f_bavail * space.f_frsize),
            _gauge("disk_size_bytes", "Size of the disk that the log is on", space.f_blocks * space.f_frsize),
            _gauge("log_bytes", "Size of the log file", log.path.stat().st_size),
            _gauge("wal_bytes", "Size of the write-ahead log beside it", log.wal_bytes)]


def _of_process(started: float) -> list[Metric]:
    """The standard names. Read here, since the collector of the library is silent where /proc/stat is hidden."""
    out: list[Metric] = [
        GaugeMetricFamily("process_start_time_seconds", "Start of the process", value=started),
        CounterMetricFamily("process_cpu_seconds", "User and system CPU time", value=time.process_time()),
        GaugeMetricFamily("process_max_fds", "File descriptors that it may have",
                          value=resource.getrlimit(resource.RLIMIT_NOFILE)[0])]
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        out += [GaugeMetricFamily("process_resident_memory_bytes", "Resident memory", value=pages * os.sysconf(
                    "SC_PAGE_SIZE")),
                GaugeMetricFamily("process_open_fds", "Open file descriptors", value=len(os.listdir("/proc/self/fd")))]
    except OSError:
        pass            # no Linux
    return out


def _of_files(certificates: Mapping[str, Path]) -> list[Metric]:
    ends: dict[tuple[str, ...], float] = {}
    for what, path in certificates.items():
        try:
            found = x509.load_pem_x509_certificates(path.read_bytes())
        except (OSError, ValueError):
            continue    # the connection says what is wrong with it
        ends[what,] = min(each.not_valid_after_utc.timestamp() for each in found)
    return [_labelled(GaugeMetricFamily, "certificate_expiry_timestamp_seconds",
                      "When a certificate ends that the broker's connection needs: ours, or the first one trusted",
                      ("file",), ends)] if ends else []


__all__ = ["CONTENT_TYPE", "OTHER", "STUDIES_MAX", "Exposition", "named"]
