"""Metrics: true, few, and in a form that Prometheus reads."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.edges.daemon import Daemon as Process
from tests.edges.daemon import Wire, serving

from bayesd.log import MemoryDisk, SqliteLog
from bayesd.metrics import OTHER, STUDIES_MAX, Exposition
from bayesd.service import Settings
from bayesd.study.admin import READS
from bayesd.study.row import Row
from bayesd.tally import QUICK_S, Durations, Tally
from bayesd.testing import Daemon, MemoryBroker, run

SPACE = {"x": {"type": "float", "low": 0, "high": 1}}

PROMISED = {
    "bayesd_trials_total", "bayesd_workers_connected", "bayesd_leases_expired_total",
    "bayesd_suggest_duration_seconds", "bayesd_prefetch_age_seconds", "bayesd_event_append_duration_seconds",
    "bayesd_replay_duration_seconds", "bayesd_event_log_events", "bayesd_last_event_timestamp_seconds",
    "bayesd_best_value", "bayesd_build_info"}

LABELS = {"study", "state", "status", "reason", "kind", "file", "le", "version", "python", "log"}


class Numbers:
    """A text of Prometheus, read by its own parser."""

    def __init__(self, text: str) -> None:
        self.families = {family.name: family for family in text_string_to_metric_families(text)}
        self.names = {sample.name.removesuffix("_bucket").removesuffix("_sum").removesuffix("_count")
                      for family in self.families.values() for sample in family.samples}
        self.labels = {label for family in self.families.values() for sample in family.samples
                       for label in sample.labels}
        self._values = {(sample.name, frozenset(sample.labels.items())): sample.value
                        for family in self.families.values() for sample in family.samples}

    def __call__(self, name: str, **labels: str) -> float | None:
        return self._values.get((f"bayesd_{name}", frozenset(labels.items())))

    def of(self, name: str) -> dict[frozenset[tuple[str, str]], float]:
        return {labels: value for (each, labels), value in self._values.items() if each == f"bayesd_{name}"}


def numbers(wire: Wire) -> Numbers:
    """By the verb, page by page."""
    text, args = "", dict[str, Any]()
    while True:
        page = wire.ok("metrics", args)
        text += "".join(page["metrics"])
        if page.get("next") is None:
            return Numbers(text)
        args = {"after": page["next"]}


@pytest.mark.mosquitto
def test_the_numbers_are_true_and_outlive_the_daemon(tmp_path: Path) -> None:
    with serving(tmp_path) as (daemon, wire):
        wire.create("s1")
        w1 = wire.worker("w1")
        w1.beat()
        said: list[dict[str, Any]] = [{"value": 0.5}, {"value": 0.25}, {"state": "fail", "class": "oom"}]
        for number, fields in enumerate(said):
            assert w1.told(f"t{number}", w1.lease("s1", f"a{number}"), **fields)["status"] == "recorded"
        kept = w1.lease("s1", "a9")
        w1.say("tell", b"{")
        w1.tell("nobody", {**kept, "trial": 77}, value=1.0)
        assert w1.receipt("nobody")["reason"] == "unknown-trial"
        wire.worker("w2").ask("a1", study="elsewhere")
        wire.worker("w2").receipt("a1")
        found = numbers(wire)
        assert found.names >= PROMISED
        assert found.labels <= LABELS
        assert found("trials_total", study="s1", state="complete") == 2
        assert found("study_trials", study="s1", state="running") == 1
        assert found("best_value", study="s1") == 0.25
        assert found("event_log_events") == len(daemon.events())
        assert found("workers_connected") == 2
        assert found("asks_waiting", reason="unknown-study") == 1
        assert found("leases_open") == 1
        assert found("messages_rejected_total", reason="bad-json") == 1
        assert found("receipts_total", status="rejected", reason="unknown-trial") == 1
        assert found("receipts_total", status="recorded", reason="") == 3
        assert found("broker_connected") == 1
        assert found("disk_full") == 0
        assert found("epoch") == 1
        appended = found("event_append_duration_seconds_count")
        assert appended is not None
        assert appended == found("commits_total") == found("event_append_duration_seconds_bucket", le="+Inf")
        for name in ("disk_free_bytes", "log_bytes", "wal_bytes", "suggest_duration_seconds_count"):
            value = found(name)
            assert value is not None, name
            assert value > 0, name
        assert {"process_resident_memory_bytes", "process_open_fds", "process_start_time_seconds"} <= found.names

        wire.create("s2", lease={"default_s": 1}, budget={"trials": 1})
        silent = wire.worker("w3").lease("s2", "a1")
        offered = w1.lease("s2", "b1")          # when the lease of the silent one has run out
        assert offered["trial"] == silent["trial"]
        wire.ok("trial.cancel", {"study": "s2", "trial": silent["trial"]})
        assert numbers(wire)("leases_expired_total") == 1

        wire.ok("trial.void", {"study": "s1", "trial": 1, "reason": "a test"})
        daemon.kill()
        daemon.start().ready(wire)
        after = numbers(wire)
        assert after("trials_total", study="s1", state="complete") == 2      # it never falls
        assert after("trials_total", study="s1", state="voided") == 1
        assert after("study_trials", study="s1", state="complete") == 1
        assert after("best_value", study="s1") == 0.25
        assert after("messages_rejected_total", reason="bad-json") == 0             # of this life
        assert after("leases_expired_total") == 1
        assert after("epoch") == 2

        _by_file(daemon, wire, tmp_path / "bayesd.prom")


def _by_file(daemon: Process, wire: Wire, output: Path) -> None:
    """The command line, into a file for a collector."""
    done = subprocess.run(
        [sys.executable, "-m", "bayesd.cli", "metrics", "--broker", f"mqtt://{wire.host}:{wire.port}", "--output",
         str(output)], env=os.environ | {"XDG_RUNTIME_DIR": str(output.parent)}, capture_output=True, text=True,
        timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert Numbers(output.read_text()).names >= PROMISED
    assert [each.name for each in output.parent.glob("*.prom*")] == ["bayesd.prom"]


def test_a_thousand_studies_have_fifty_labels() -> None:
    async def story() -> tuple[Numbers, int, Any]:
        daemon = Daemon(MemoryBroker(), MemoryDisk(), settings=Settings(settle_s=0.0))
        service = await daemon.start()
        await asyncio.sleep(1.0)
        desk = service.desk
        for number in range(STUDIES_MAX + 700):
            spec = {"name": f"s{number}", "method": "random", "space": SPACE}
            desk.record("study.created", {"spec": spec, "order": ["x"]}, study=f"s{number}", actor="operator/op",
                        cmd=f"c{number}")
        closed = f"s{STUDIES_MAX + 699}"
        desk.record("study.closed", {"rule": "operator", "running": "finish"}, study=closed)
        service.counters.tally.outcomes = {(f"s{number}", "complete"): 1 for number in range(STUDIES_MAX + 700)}
        exposition = Exposition(service)
        text = await exposition.text()
        again = await exposition.text()
        assert again is not None
        assert "metrics" not in READS       # it is answered beside the rules, which know no clock
        await daemon.stop()
        return Numbers(text), STUDIES_MAX + 700, closed

    found, total, closed = run(story())
    studies = {dict(labels)["study"] for labels in found.of("study_trials")}
    assert len(studies) == STUDIES_MAX + 1
    assert OTHER in studies
    assert closed not in studies            # the newest of all, but closed
    assert f"s{total - 2}" in studies
    assert sum(found.of("trials_total").values()) == total
    assert found("trials_total", study=OTHER, state="complete") == total - STUDIES_MAX
    assert found("studies", state="open") == total - 1


def test_readers_at_the_same_moment_share_one_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> int:
        daemon = Daemon(MemoryBroker(), MemoryDisk(), settings=Settings(settle_s=0.0))
        service = await daemon.start()
        await asyncio.sleep(1.0)
        exposition = Exposition(service)
        readings = 0
        render = exposition._render

        def counted(families: Any) -> Any:
            nonlocal readings
            readings += 1
            return render(families)

        monkeypatch.setattr(exposition, "_render", counted)
        await asyncio.gather(*(exposition.text() for _ in range(100)))
        await daemon.stop()
        return readings

    assert run(story()) == 1


def test_durations_fall_into_the_buckets_of_prometheus() -> None:
    took = Durations()
    for seconds in (0.0, QUICK_S[0], 0.003, 1.0, 1e9):
        took.add(seconds)
    ends = dict(took.buckets)
    assert ends[str(QUICK_S[0])] == 2           # up to and with the end
    assert ends["0.005"] == 3
    assert ends["1.0"] == 4
    assert ends["+Inf"] == took.count == 5
    assert list(ends.values()) == sorted(ends.values())


def test_a_log_that_is_read_counts_what_was_counted_while_it_was_written(tmp_path: Path) -> None:
    said = ['{"retry":true}', 'a quote " and "retry":true']
    datas: list[tuple[str, dict[str, Any]]] = [
        ("trial.completed", {"fence": 1, "values": {"loss": 1}}), ("trial.failed", {"class": "oom", "fence": 1}),
        ("trial.failed", {"class": "oom", "fence": 1, "retry": True}),
        *(("trial.failed", {"class": "crash", "error": text, "fence": 1, "retry": False}) for text in said),
        ("trial.pruned", {"fence": 1}), ("outcome.voided", {"reason": "x"}), ("outcome.late", {"state": "fail"}),
        ("lease.expired", {"fence": 1}), ("lease.expired", {"fence": 1, "reason": "expired"}),
        ("lease.expired", {"fence": 1, "reason": "cancelled"}), ("lease.released", {"fence": 1})]

    async def story() -> tuple[Tally, Tally]:
        log = await SqliteLog.open(tmp_path / "log.db")
        live, read = Tally(), Tally()
        prev = bytes(32)
        for seq, (type, data) in enumerate(datas, 1):
            row = Row.of({"v": 1, "seq": seq, "prev": prev.hex(), "log": "0a1b", "epoch": 1, "type": type,
                          "study": "s" if seq % 2 else "t", "trial": seq, "actor": "daemon", "data": data})
            await log.append([row])
            live.add([row])
            prev = row.hash
        read.read(log.path, log.head()[0])
        before = Tally()
        before.read(log.path, 2)
        await log.close()
        assert sum(before.outcomes.values()) == 2
        return live, read

    live, read = asyncio.run(story())
    assert live.outcomes == read.outcomes
    assert sum(count for (_, state), count in live.outcomes.items() if state == "retried") == 1
    assert sum(count for (_, state), count in live.outcomes.items() if state == "fail") == 3
    assert live.expired == read.expired == 2
    assert live.last == read.last
    assert json.loads(live.last or b"{}")["seq"] == len(datas)
