"""Signed heads: when they are made, and what ends a daemon whose log went back or split in two."""

import asyncio
import base64
import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from tests.edges.test_service import Worker, begin, events

from bayesd import lineage
from bayesd.heads import Heads, RolledBack, fences_from
from bayesd.log import DiskFull, MemoryDisk, MemoryLog, Note, Row
from bayesd.notes import Signer, open_note
from bayesd.outside import HeadFiles
from bayesd.replay import fold
from bayesd.service import Outside, Settings
from bayesd.study import snapshot
from bayesd.study.merkle import root_of
from bayesd.testing import Daemon, MemoryBroker, Weather, run

SIGNER = Signer("memory", bytes(range(32)))
STRANGER = Signer("memory", bytes(32))
PATIENT = Settings(settle_s=0.5)


def copy_of(disk: MemoryDisk, size: int | None = None) -> MemoryDisk:
    """What a backup of the log file has: its first events, and the notes among them."""
    rows = disk.rows[:size]
    return MemoryDisk(rows=list(rows), epoch=disk.epoch, notes=[note for note in disk.notes if note.seq <= len(rows)])


def roots_hold(disk: MemoryDisk) -> None:
    """Every saved note says what the log says."""
    for saved in disk.notes:
        checkpoint = open_note(saved.note.decode(), SIGNER.vkey)
        assert (checkpoint.log, checkpoint.size) == ("memory", saved.seq)
        assert checkpoint.root == root_of([row.hash for row in disk.rows[:saved.seq]])


class Watch:
    """Every head that the daemon publishes, with how much was committed and saved at that moment."""

    def __init__(self, broker: MemoryBroker, disk: MemoryDisk) -> None:
        self.broker, self.disk = broker, disk
        self.seen: list[tuple[float, int]] = []
        broker.watchers.append(self._watch)

    def _watch(self, who: str, topic: str, payload: bytes) -> None:
        if topic == self.broker.topics.head and payload:
            said = json.loads(payload)
            assert said["key"] == SIGNER.vkey
            size = open_note(said["note"], SIGNER.vkey).size
            assert size <= len(self.disk.rows), "a head of what is not committed"
            assert any(note.note.decode() == said["note"] for note in self.disk.notes), "said before it was saved"
            if not self.seen or self.seen[-1][1] != size:
                self.seen.append((asyncio.get_running_loop().time(), size))


def head_of(broker: MemoryBroker) -> str:
    return str(json.loads(broker.retained[broker.topics.head])["note"])


def more_spellings(note: str, count: int) -> list[str]:
    """One note with signatures of strangers: each verifies, and no two are the same text."""
    return [f"{note}\u2014 x {base64.b64encode(b'%08d' % n).decode()}\n" for n in range(count)]


async def work(worker: Worker, trials: int, first: int = 1) -> None:
    """Ask and tell so many times; each is answered before the next."""
    for i in range(first, first + trials):
        worker.say("ask", id=f"w{i}", run="r", study="s")
        grant = await worker.wait(lambda kind, body, i=i: kind == "grant" and body["ask"] == f"w{i}")    # type: ignore[misc]
        worker.say("tell", id=f"t{i}", study="s", trial=grant["trial"], fence=grant["fence"], value=0.5)
        await worker.wait(lambda kind, body, i=i: body.get("id") == f"t{i}")    # type: ignore[misc]


# ---------------------------------------------------------------- when


def test_a_head_is_signed_at_the_start_each_minute_with_news_and_at_the_stop() -> None:
    async def story() -> list[tuple[float, int]]:
        broker, disk = MemoryBroker(), MemoryDisk()
        watch, daemon = Watch(broker, disk), Daemon(broker, disk, signer=SIGNER)
        await daemon.start()
        await asyncio.sleep(600.0)
        await begin(broker, method="random")            # an open study counts its time in the log each minute
        await asyncio.sleep(150.0)
        await daemon.stop()
        roots_hold(disk)
        assert watch.seen[-1][1] == len(disk.rows)
        assert disk.rows[-1].type == "daemon.stopped"
        return watch.seen

    times = [at for at, _ in run(story())]
    assert times[0] < 1.0
    assert 600.0 <= times[1] < 602.0                    # silence made no note, and the first news need not wait
    assert [int(at) for at in times[2:-1]] == [661, 721], times
    assert times[-1] > 750.0


def test_a_head_is_signed_every_so_many_events() -> None:
    async def story() -> list[int]:
        broker, disk = MemoryBroker(), MemoryDisk()
        watch = Watch(broker, disk)
        daemon = Daemon(broker, disk, signer=SIGNER, settings=Settings(settle_s=0.0, note_events=20, note_s=1e9))
        await daemon.start()
        _, worker = await begin(broker, method="random")
        await work(worker, 50)
        daemon.kill()
        roots_hold(disk)
        return [size for _, size in watch.seen]

    sizes = run(story())
    assert len(sizes) >= 6
    assert all(20 <= later - earlier < 30 for earlier, later in itertools.pairwise(sizes[1:]))


def test_a_head_never_comes_before_the_commit_nor_after_a_failed_one() -> None:
    async def story() -> None:
        broker, disk = MemoryBroker(), MemoryDisk()
        full = False

        async def slowly(rows: Sequence[Row]) -> None:
            await asyncio.sleep(3.0)
            if full:
                raise DiskFull("no space; nothing was written")

        watch = Watch(broker, disk)        # asserts the order at each publish
        daemon = Daemon(broker, disk, signer=SIGNER, before_commit=slowly,
                        settings=Settings(settle_s=0.0, note_events=1, note_s=0.1))
        await daemon.start()
        await asyncio.sleep(5.0)
        _, worker = await begin(broker, method="random")
        await work(worker, 3)
        full = True
        worker.say("ask", id="more", run="r", study="s")
        await asyncio.sleep(30.0)
        size = watch.seen[-1][1]
        assert size == len(disk.rows)
        full = False
        await asyncio.sleep(30.0)
        assert watch.seen[-1][1] > size
        roots_hold(disk)
        await daemon.stop()

    run(story())


def test_the_key_is_on_record_and_without_a_signer_nothing_changes() -> None:
    async def story(signer: Signer | None) -> tuple[MemoryBroker, MemoryDisk]:
        broker, disk = MemoryBroker(), MemoryDisk()
        daemon = Daemon(broker, disk, signer=signer)
        await daemon.start()
        _, worker = await begin(broker, method="random")
        worker.say("ask", id="a2", run="r", study="s", seen=SIGNER.sign(10**6, bytes(32)))
        await worker.wait(lambda kind, body: kind == "grant" and body["ask"] == "a2")
        await daemon.stop()
        return broker, disk

    broker, disk = run(story(None))
    assert broker.topics.head not in broker.retained
    assert disk.notes == []
    assert all("key" not in event["data"] for event in events(disk, "daemon.started"))
    with pytest.raises(AssertionError, match="not within"):
        run(story(SIGNER))                  # the same head is a proof, once there is a key

    async def keyed() -> str | None:
        disk = MemoryDisk()
        daemon = Daemon(MemoryBroker(), disk, signer=SIGNER)
        await daemon.start()
        await asyncio.sleep(1.0)
        await daemon.stop()
        state, _ = await fold(await MemoryLog.open(disk))
        loaded = snapshot.load(*snapshot.dump(state))
        assert loaded is not None
        assert loaded.key == state.key
        return state.key

    assert run(keyed()) == SIGNER.vkey


# ---------------------------------------------------------------- refused


async def grown(broker: MemoryBroker, trials: int = 5) -> MemoryDisk:
    """A log with a study and some results, whose daemon has stopped."""
    disk = MemoryDisk()
    daemon = Daemon(broker, disk, signer=SIGNER)
    await daemon.start()
    operator, worker = await begin(broker, method="random")
    await work(worker, trials)
    await daemon.stop()
    for each in (operator, worker):
        each.client.disconnect()
    return disk


def of(note: str, disk: MemoryDisk) -> str:
    """What the refusal must name: both sizes."""
    return f"has {open_note(note, SIGNER.vkey).size} events.*the log has {len(disk.rows)} events"


def test_a_copy_that_was_put_back_is_refused_by_the_head_that_the_broker_keeps() -> None:
    async def story() -> None:
        broker = MemoryBroker()
        disk = await grown(broker)
        note, old = head_of(broker), copy_of(disk, len(disk.rows) - 6)
        daemon = Daemon(broker, old, signer=SIGNER, settings=PATIENT)
        await daemon.start()
        worker = Worker(broker)
        for _ in range(20):
            worker.say("ask", id="a9", run="r2", study="s")
            await asyncio.sleep(0.25)
        assert isinstance(daemon.ended, RolledBack)
        with pytest.raises(RolledBack, match=of(note, old)):
            raise daemon.ended
        assert daemon.ended.exit_code == 65
        assert "--accept-rollback" in str(daemon.ended)
        assert [kind for kind, _ in worker.heard if kind == "grant"] == []
        assert head_of(broker) == note                      # the witness is still there
        assert json.loads(broker.retained[broker.topics.daemon])["state"] == "offline"
        right = Daemon(broker, disk, signer=SIGNER, settings=PATIENT)      # the newest copy is put back
        await right.start()
        await asyncio.sleep(2.0)
        worker.say("ask", id="a9", run="r2", study="s")
        await worker.wait(lambda kind, body: kind == "grant")
        await right.stop()

    run(story())


def test_nothing_is_signed_or_announced_before_the_witness_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Heads._root_at

    async def slowly(heads: Heads, size: int) -> bytes:
        await asyncio.sleep(5.0)                            # a million events take some seconds
        return await right(heads, size)

    async def story() -> None:
        broker, elsewhere = MemoryBroker(), MemoryBroker()
        disk = await grown(broker)
        fork = copy_of(disk, len(disk.rows) - 6)
        for _ in range(8):                                  # it goes on alone, where nobody listens
            lonely = Daemon(elsewhere, fork, signer=SIGNER)
            await lonely.start()
            await asyncio.sleep(1.0)
            lonely.kill()
        assert len(fork.rows) > len(disk.rows)
        notes, said = list(fork.notes), []
        broker.watchers.append(lambda who, topic, payload: said.append(payload) if who == "daemon" else None)
        broker.weather = Weather(delay_s=0.4)
        monkeypatch.setattr(Heads, "_root_at", slowly)
        daemon = Daemon(broker, fork, signer=SIGNER, settings=Settings(settle_s=0.5, tick_s=0.01, note_events=1))
        await daemon.start()
        await asyncio.sleep(10.0)
        assert isinstance(daemon.ended, RolledBack)
        assert fork.notes == notes
        assert said == []

    run(story())


def test_a_worker_that_has_seen_more_ends_the_daemon_before_it_is_granted_anything() -> None:
    async def story(inside_a_tell: bool) -> None:
        broker = MemoryBroker()
        disk = await grown(broker)
        note, old = head_of(broker), copy_of(disk, len(disk.rows) - 6)
        broker.restart()                                    # it keeps nothing
        daemon = Daemon(broker, old, signer=SIGNER)
        await daemon.start()
        await asyncio.sleep(1.0)
        worker, other = Worker(broker), Worker(broker, "w2")
        other.say("ask", id="b1", run="q", study="s")
        await other.wait(lambda kind, body: kind == "grant")            # nobody knows yet
        ask = {"id": "a9", "run": "r2", "study": "s", "seen": note}
        if inside_a_tell:
            worker.say("tell", id="t", study="s", trial=99, fence=1, value=1.0, ask=ask)
        else:
            worker.say("ask", **ask)
        other.say("ask", id="b2", run="q", study="s")
        await asyncio.sleep(5.0)
        assert isinstance(daemon.ended, RolledBack)
        assert "worker w1" in str(daemon.ended)
        assert [kind for kind, _ in worker.heard if kind == "grant"] == []
        assert events(old, "daemon.stopped") == []

    run(story(False))
    run(story(True))


def test_two_daemons_on_copies_are_found_out_by_the_first_worker_that_talks_to_both() -> None:
    async def story() -> None:
        left, right = MemoryBroker(), MemoryBroker()
        disk = await grown(left)
        daemons = Daemon(left, disk, signer=SIGNER), Daemon(right, copy_of(disk), signer=SIGNER)
        for daemon in daemons:
            await daemon.start()
        await asyncio.sleep(1.0)
        here, there = Worker(left, "w2"), Worker(right, "w3")
        here.say("beat", run="r")
        there.say("beat", run="r")
        await work(here, 20)
        await work(there, 40)
        await asyncio.sleep(90.0)
        note = head_of(left)
        assert open_note(note, SIGNER.vkey).size < open_note(head_of(right), SIGNER.vkey).size
        here.client.disconnect()
        traveller = Worker(right, "w2")
        traveller.say("ask", id="x", run="r", study="s", seen=note)
        await asyncio.sleep(2.0)
        ended = daemons[1].ended
        assert isinstance(ended, RolledBack)
        assert "does not contain" in str(ended)
        assert [kind for kind, _ in traveller.heard if kind == "grant"] == []
        assert daemons[0].ended is None
        await daemons[0].stop()

    run(story())


def test_two_daemons_on_copies_on_one_broker_hear_each_others_heads() -> None:
    async def story() -> None:
        broker = MemoryBroker()
        disk = await grown(broker)
        first, second = Daemon(broker, disk, signer=SIGNER), Daemon(broker, copy_of(disk), signer=SIGNER)
        await first.start()
        await asyncio.sleep(1.0)
        await work(Worker(broker, "w2"), 3)
        await second.start()
        await asyncio.sleep(90.0)
        assert any(isinstance(daemon.ended, RolledBack) for daemon in (first, second))

    run(story())


def test_a_daemon_that_was_overtaken_is_fenced_and_not_called_rolled_back() -> None:
    async def story() -> None:
        broker, elsewhere = MemoryBroker(), MemoryBroker()
        disk = await grown(broker)
        old = Daemon(broker, disk, signer=SIGNER)
        await old.start()
        await asyncio.sleep(1.0)
        disk.steal_lock()
        new = Daemon(elsewhere, disk, signer=SIGNER)
        await new.start()
        await asyncio.sleep(2.0)
        worker = Worker(broker)
        worker.say("ask", id="a9", run="r2", study="s", seen=head_of(elsewhere))
        await asyncio.sleep(2.0)
        assert type(old.ended).__name__ == "Fenced"
        await new.stop()

    run(story())


@pytest.mark.parametrize("which", ["of a stranger", "of another log", "changed", "no note"])
def test_a_head_that_does_not_verify_is_ignored_and_counted(which: str) -> None:
    async def story() -> None:
        broker = MemoryBroker()
        disk = await grown(broker)
        good = SIGNER.sign(10**6, bytes(32))
        lie = {"of a stranger": STRANGER.sign(10**6, bytes(32)), "no note": "seen nothing",
               "of another log": Signer("other", bytes(range(32))).sign(10**6, bytes(32)),
               "changed": good.replace("1000000", "2000000")}[which]
        said = {"log": "memory", "epoch": 1, "note": lie, "key": "k"}
        broker.retained[broker.topics.head] = json.dumps(said).encode()
        daemon = Daemon(broker, disk, signer=SIGNER, settings=PATIENT, outside=Outside([("a file", [lie])]))
        service = await daemon.start()
        await asyncio.sleep(2.0)
        worker = Worker(broker)
        worker.say("ask", id="a9", run="r2", study="s", seen=lie)
        await worker.wait(lambda kind, body: kind == "grant")
        assert service.heads is not None
        assert service.heads.ignored == 3
        await daemon.stop()
        assert daemon.ended is None

    run(story())


def test_the_key_of_before_still_counts_at_the_start_that_changes_it() -> None:
    async def story() -> None:
        broker = MemoryBroker()
        disk = await grown(broker)
        note = head_of(broker)
        broker.restart()
        daemon = Daemon(broker, copy_of(disk, len(disk.rows) - 6), signer=STRANGER)     # the key file was not restored
        await daemon.start()
        await asyncio.sleep(1.0)
        Worker(broker).say("ask", id="a9", run="r2", study="s", seen=note)
        await asyncio.sleep(2.0)
        assert isinstance(daemon.ended, RolledBack)

    run(story())


def test_a_heads_file_refuses_before_a_word_is_written() -> None:
    async def story() -> None:
        broker = MemoryBroker()
        disk = await grown(broker)
        notes = [each.note.decode() for each in disk.notes]
        old = copy_of(disk, len(disk.rows) - 6)
        size = len(old.rows)
        daemon = Daemon(MemoryBroker(), old, signer=SIGNER, outside=Outside([("the file h", notes)]))
        await daemon.start()
        await asyncio.sleep(1.0)
        assert isinstance(daemon.ended, RolledBack)
        assert "the file h" in str(daemon.ended)
        assert len(old.rows) == size
        whole = Daemon(MemoryBroker(), disk, signer=SIGNER, outside=Outside([("the file h", notes)]))
        await whole.start()
        await asyncio.sleep(1.0)
        assert whole.ended is None
        await whole.stop()

    run(story())


# ---------------------------------------------------------------- accepted


def test_an_accepted_rollback_is_on_record_fences_and_serves_again() -> None:
    async def story() -> None:
        broker = MemoryBroker()
        disk = await grown(broker, trials=8)
        note = head_of(broker)
        lost = next(event for event in events(disk, "trial.leased") if event["trial"] == 6)["data"]
        # The copy knows nothing of trial 6, which went to w1, and of what followed.
        cut = next(row.seq for row in disk.rows if row.type == "trial.proposed" and json.loads(row.body)["trial"] == 6)
        old = copy_of(disk, cut - 1)
        kept: list[str] = []
        daemon = Daemon(broker, old, signer=SIGNER, settings=PATIENT,
                        outside=Outside(accept="the disk died", keep=kept.append))
        await daemon.start()
        await asyncio.sleep(3.0)
        assert daemon.ended is None
        (repair,) = events(old, "log.repaired")
        assert repair["data"]["reason"] == "the disk died"
        assert repair["data"]["accepted"] == note
        assert repair["data"]["size"] == len(disk.rows)
        base = repair["data"]["fences_from"]
        assert base > 10**12
        worker = Worker(broker)
        worker.say("ask", id="n1", run="r", study="s", seen=note)
        grant = await worker.wait(lambda kind, body: kind == "grant" and body["ask"] == "n1")
        assert (grant["trial"], grant["fence"]) == (6, base + 1)
        worker.say("tell", id="zombie", study="s", trial=6, fence=lost["fence"], value=99.0)     # of the lost future
        answer = await worker.wait(lambda kind, body: body.get("id") == "zombie")
        assert (answer["status"], answer["reason"]) == ("rejected", "unknown-trial")
        worker.say("report", id="zombie-r", study="s", trial=6, fence=lost["fence"], step=0, value=99.0)
        assert (await worker.wait(lambda kind, body: body.get("id") == "zombie-r"))["status"] == "rejected"
        worker.say("beat", run="r", leases=[["s", 6, lost["fence"]], ["s", 6, base + 1]])
        stop = await worker.wait(lambda kind, body: kind == "stop")
        assert (stop["fence"], stop["reason"]) == (lost["fence"], "superseded")
        worker.say("tell", id="right", study="s", trial=6, fence=base + 1, value=0.25)
        assert (await worker.wait(lambda kind, body: body.get("id") == "right"))["status"] == "recorded"
        worker.say("tell", id="right2", study="s", trial=6, fence=base + 1, value=0.25)
        assert (await worker.wait(lambda kind, body: body.get("id") == "right2"))["status"] == "duplicate"
        live = snapshot.digest(daemon.service.desk.state) if daemon.service is not None else ""
        state, _ = await fold(await MemoryLog.open(copy_of(old)))
        assert snapshot.digest(state) == live
        loaded = snapshot.load(*snapshot.dump(state))
        assert loaded is not None
        assert snapshot.digest(loaded) == live
        lease = loaded.lease("s", 6, base + 1)
        assert lease is not None
        assert lease.told is not None
        await daemon.stop()
        assert kept[0] == note                              # what follows it in the file is of the log that goes on
        roots_hold(old)
        # Without the flag it starts, too, with the file and with workers that still show the head of before.
        again = Daemon(broker, old, signer=SIGNER, settings=PATIENT, outside=Outside([("h", [note, *kept])]))
        service = await again.start()
        await asyncio.sleep(2.0)
        worker.say("ask", id="n2", run="r", study="s", seen=note)
        await worker.wait(lambda kind, body: kind == "grant" and body["ask"] == "n2")
        assert service.heads is not None
        assert service.heads.given_up == 1
        assert again.ended is None
        await again.stop()
        # And a second rollback is seen in the file at once, although its heads are smaller than the one given up.
        twice = Daemon(MemoryBroker(), copy_of(old, cut + 2), signer=SIGNER, outside=Outside([("h", [note, *kept])]))
        await twice.start()
        await asyncio.sleep(1.0)
        assert isinstance(twice.ended, RolledBack)

    run(story())


def test_a_trial_in_hand_at_the_rollback_still_counts_and_comes_again_with_a_high_fence() -> None:
    async def story() -> None:
        broker = MemoryBroker()
        disk = await grown(broker)
        cut = [row.seq for row in disk.rows if row.type == "trial.leased"][-1]
        number = json.loads(disk.rows[cut - 1].body)["trial"]
        old = copy_of(disk, cut)
        daemon = Daemon(broker, old, signer=SIGNER, settings=PATIENT, outside=Outside(accept="so be it"))
        await daemon.start()
        await asyncio.sleep(700.0)                          # nobody tells it: the lease ends
        worker = Worker(broker, "w9")
        worker.say("ask", id="n1", run="r", study="s")
        again = [await worker.wait(lambda kind, body: kind == "grant")]
        (base,) = [event["data"]["fences_from"] for event in events(old, "log.repaired")]
        assert (again[0]["fence"]) == base + 1
        late = Worker(broker)
        late.say("tell", id="t", study="s", trial=number, fence=1, value=0.5)
        answer = await late.wait(lambda kind, body: body.get("id") == "t")
        assert answer["status"] in ("recorded", "late")     # the same trial, with the same point, in both futures
        await daemon.stop()

    run(story())


def test_the_flag_alone_gives_nothing_up(caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> None:
        broker = MemoryBroker()
        disk = await grown(broker)
        daemon = Daemon(broker, disk, signer=SIGNER, settings=PATIENT, outside=Outside(accept="just in case"))
        await daemon.start()
        await asyncio.sleep(2.0)
        assert events(disk, "log.repaired") == []
        late = SIGNER.sign(10**6, bytes(32))
        Worker(broker).say("ask", id="a", run="r2", study="s", seen=late)      # and it is for the start alone
        await asyncio.sleep(2.0)
        assert isinstance(daemon.ended, RolledBack)

    run(story())
    assert "leave --accept-rollback out" in caplog.text


def test_a_heads_file_that_cannot_be_written_is_said_once_and_ends_nobody(caplog: pytest.LogCaptureFixture) -> None:
    def away(note: str) -> None:
        raise OSError("the disk is away")

    async def story() -> None:
        broker, disk = MemoryBroker(), MemoryDisk()
        daemon = Daemon(broker, disk, signer=SIGNER, outside=Outside(keep=away))
        await daemon.start()
        _, worker = await begin(broker, method="random")
        await asyncio.sleep(70.0)
        await work(worker, 3)
        await daemon.stop()
        assert len(disk.notes) >= 2

    run(story())
    assert caplog.text.count("the heads file cannot be written") == 1


# ---------------------------------------------------------------- once more


def test_a_second_rollback_below_what_was_accepted_is_noticed() -> None:
    async def story() -> None:
        broker = MemoryBroker()
        disk = await grown(broker, trials=40)
        old = copy_of(disk, len(disk.rows) - 100)
        first = Daemon(broker, old, signer=SIGNER, settings=PATIENT, outside=Outside(accept="the disk died"))
        await first.start()
        await asyncio.sleep(3.0)
        (repair,) = events(old, "log.repaired")
        backup = len(old.rows)
        worker = Worker(broker)
        worker.say("beat", run="r")
        await work(worker, 4, first=100)
        await first.stop()
        newest = head_of(broker)
        told = open_note(newest, SIGNER.vkey)
        assert told.branch == repair["seq"]
        assert told.size < repair["data"]["size"]
        for size in (backup, repair["seq"] - 2):            # behind the repair, and before it
            again = Daemon(broker, copy_of(old, size), signer=SIGNER, settings=PATIENT)
            await again.start()
            await asyncio.sleep(3.0)
            assert isinstance(again.ended, RolledBack)
        # The same copy a second time: the branch that goes on has another name than the one that is given up.
        twice = copy_of(old, repair["seq"] - 2)
        last = Daemon(broker, twice, signer=SIGNER, settings=PATIENT, outside=Outside(accept="and again"))
        await last.start()
        await asyncio.sleep(3.0)
        assert last.ended is None
        seqs = [event["seq"] for event in events(twice, "log.repaired")]
        assert seqs[-1] != told.branch
        worker.say("ask", id="z", run="q", study="s", seen=newest)
        grant = await worker.wait(lambda kind, body: kind == "grant" and body["ask"] == "z")
        assert grant["fence"] > repair["data"]["fences_from"] + 4
        await last.stop()

    run(story())


@pytest.mark.parametrize("by", [None, STRANGER])
def test_a_forged_repair_excuses_nothing(by: Signer | None) -> None:
    async def story() -> None:
        broker = MemoryBroker()
        disk = await grown(broker)
        note, forged = head_of(broker), copy_of(disk, len(disk.rows) - 6)
        theirs, prev = open_note(note, SIGNER.vkey), forged.rows[-1].hash.hex()
        data = {"reason": "routine", "accepted": note, "size": theirs.size, "fences_from": 1}
        if by is not None:
            data["signature"] = lineage.sign(by, prev, theirs, 0, 1)
        last = json.loads(forged.rows[-1].body)
        forged.rows.append(Row.of({
            **{key: last[key] for key in ("v", "log", "epoch", "time")}, "tv": 1, "seq": last["seq"] + 1,
            "type": "log.repaired", "crit": True, "actor": "daemon", "data": data, "prev": prev}))
        forged.notes.append(Note(theirs.size, note.encode()))       # nor does the note itself in the file
        for outside in (Outside([("the file h", [note])]), Outside()):
            daemon = Daemon(broker, copy_of(forged), signer=SIGNER, settings=PATIENT, outside=outside)
            await daemon.start()
            await asyncio.sleep(3.0)
            assert isinstance(daemon.ended, RolledBack)

    run(story())


def test_every_key_that_the_log_named_counts() -> None:
    async def story() -> None:
        broker = MemoryBroker()
        disk = await grown(broker)
        note, old = head_of(broker), copy_of(disk, len(disk.rows) - 6)
        for _ in range(2):                                  # the key file was not restored; a life in between
            daemon = Daemon(broker := MemoryBroker(), old, signer=STRANGER)
            service = await daemon.start()
            await asyncio.sleep(2.0)
            if daemon.ended is None and len(events(old, "daemon.started")) < 3:
                await daemon.stop()
        loaded = snapshot.load(*snapshot.dump(service.desk.state))
        assert loaded is not None
        assert loaded.keys == [SIGNER.vkey, STRANGER.vkey]
        Worker(broker).say("ask", id="a9", run="r2", study="s", seen=note)
        await asyncio.sleep(2.0)
        assert isinstance(daemon.ended, RolledBack)

    run(story())


def test_one_note_in_many_spellings_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    right, looks, at_once = Heads._root_at, 0, 0

    async def slowly(heads: Heads, size: int) -> bytes:
        nonlocal looks, at_once
        looks, at_once = looks + 1, at_once + 1
        assert at_once <= 5
        await asyncio.sleep(1.0)
        at_once -= 1
        return await right(heads, size)

    async def story() -> None:
        broker = MemoryBroker()
        disk = await grown(broker)
        note = head_of(broker)
        monkeypatch.setattr(Heads, "_root_at", slowly)
        daemon = Daemon(broker, disk, signer=SIGNER, settings=PATIENT)
        await daemon.start()
        await asyncio.sleep(4.0)
        before = looks
        tree = [SIGNER.sign(size, root_of([row.hash for row in disk.rows[:size]])) for size in range(3, 15)]
        evil, good = Worker(broker, "evil"), Worker(broker, "good")
        for n, spelling in enumerate(more_spellings(tree[0], 50)):
            evil.say("ask", id=f"e{n}", run="q", study="none", seen=spelling)
        for n, other in enumerate(tree):                    # others than the one under way are not looked at
            evil.say("ask", id=f"f{n}", run="q", study="none", seen=other)
        await asyncio.sleep(3.0)
        assert looks == before + 1
        for n, other in enumerate(tree[1:]):
            Worker(broker, f"m{n}").say("ask", id="m", run="q", study="none", seen=other)
        good.say("ask", id="g", run="r", study="s", seen=note)
        await good.wait(lambda kind, body: kind == "grant")
        await asyncio.sleep(3.0)
        assert looks == before + 5
        await daemon.stop()

    run(story())


def test_the_witness_is_forgotten_once_the_repair_is_on_record() -> None:
    async def story() -> None:
        broker = MemoryBroker()
        disk = await grown(broker)
        note, old, full = head_of(broker), copy_of(disk, len(disk.rows) - 6), True
        forgotten: list[int] = []

        async def space(rows: Sequence[Row]) -> None:
            if full:
                raise DiskFull("full")

        daemon = Daemon(MemoryBroker(), old, signer=SIGNER, before_commit=space, outside=Outside(
            [("LOG.refused", [note])], "why", forget=lambda: forgotten.append(len(events(old, "log.repaired")))))
        await daemon.start()
        await asyncio.sleep(2.0)
        assert forgotten == []
        full = False
        await asyncio.sleep(20.0)
        assert forgotten == [1]
        await daemon.stop()

    run(story())


def test_the_head_that_ended_a_daemon_is_kept_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = HeadFiles(tmp_path / "log.db", None)
    files.remember("one\n")
    monkeypatch.setattr("os.fsync", lambda file: (_ for _ in ()).throw(OSError(28, "full")))
    files.remember("two\n")
    assert [list(notes) for _, notes in files.read()] == [["one\n"]]
    files.forget()
    assert files.read() == []


def test_no_grant_goes_out_once_the_conflict_is_known() -> None:
    async def story() -> None:
        broker = MemoryBroker()
        disk = await grown(broker)
        note, old = head_of(broker), copy_of(disk, len(disk.rows) - 6)
        broker.restart()

        async def slowly(rows: Sequence[Row]) -> None:
            await asyncio.sleep(2.0)

        daemon = Daemon(broker, old, signer=SIGNER, before_commit=slowly)
        service = await daemon.start()
        await asyncio.sleep(5.0)
        other, worker, third = Worker(broker, "w2"), Worker(broker), Worker(broker, "w3")
        other.say("ask", id="b1", run="q", study="s")
        await asyncio.sleep(0.5)
        third.say("ask", id="c1", run="q", study="s")           # waits for the commit after this one
        worker.say("ask", id="a9", run="r2", study="s", seen=note)
        await asyncio.sleep(0.2)
        assert service._conflict is not None
        size = len(service.desk._rows) + len(old.rows)
        await asyncio.sleep(20.0)
        assert isinstance(daemon.ended, RolledBack)
        assert [body for each in (other, worker, third) for kind, body in each.heard if kind == "grant"] == []
        assert len(old.rows) <= size
        assert all(event["worker"] != "w3" for event in (each["data"] for each in events(old, "trial.leased")))

    run(story())


def test_what_was_looked_at_is_known_and_only_so_much_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        disk = await grown(MemoryBroker())
        state, _ = await fold(log := await MemoryLog.open(disk))
        heads = Heads(log, SIGNER)
        roots = [root_of([row.hash for row in disk.rows[:size]]) for size in range(len(disk.rows) + 1)]
        ours = [SIGNER.sign(size, roots[size]) for size in range(1, 9)]
        assert not heads.knows(ours[0])
        for note in ours:
            theirs = heads.read(note)
            assert theirs is not None
            assert await heads.conflict("a worker", note, theirs, state) is None
        assert all(map(heads.knows, ours))
        assert not heads.knows(SIGNER.sign(1, roots[2]))
        monkeypatch.setattr("bayesd.heads.KNOWN_MAX", 4)
        assert heads.knows(await heads.sign(0.0, state.repairs) or "")
        assert len(heads._known) == 8                # one in, one out
        assert not heads.knows(ours[0])
        assert await heads.sign(1.0, state.repairs) is None        # no news

        # A file with another future: the worst of it counts, and what both have is what came before.
        others = [SIGNER.sign(size, bytes([size]) * 32) for size in (9, 12, 10)]
        (conflict,) = await heads.conflicts_in("a file", [*ours, *others], state)
        assert (conflict.note, conflict.theirs.size, conflict.shared) == (others[1], 12, 8)

        # A clock that is wrong does not let fences come back.
        for time in ("1970-01-01T00:00:00Z", "2026-01-01T00:00:00Z"):
            assert fences_from(conflict, state, time) > max(12, state.fence_base) + 900_000
        state.fence_base = 10 ** 15
        assert fences_from(conflict, state, "2026-01-01T00:00:00Z") > 10 ** 15

    run(story())
