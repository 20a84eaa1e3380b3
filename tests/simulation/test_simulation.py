"""Seeded worlds in which everything goes wrong that can, and the planted faults that they must see.

A failure names its seed; `python tests/simulation/run.py --seed N --worlds 1 --trace` tells its story.
"""

import asyncio
import logging
from collections.abc import Iterator

import pytest
from tests.simulation.mutants import MUTANTS, Mutant, hunt
from tests.simulation.world import simulate

from bayesd.testing import Daemon, HandClock, MemoryBroker, MemoryClient, Stuck, Weather, matches, run

WORLDS, BLOCK, MUTANT_WORLDS = 5_000, 250, 2000


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """A daemon that is hurt on purpose has much to say."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, WORLDS, BLOCK))
def test_every_world_keeps_the_rules_and_comes_to_rest(first: int) -> None:
    for seed in range(first, first + BLOCK):
        simulate(seed).check()


def test_a_few_worlds_keep_the_rules_and_come_to_rest() -> None:
    for seed in range(10_000, 10_060):
        simulate(seed).check()


@pytest.mark.parametrize("seed", range(20))
def test_the_same_seed_gives_the_same_log_to_the_last_byte(seed: int) -> None:
    assert simulate(seed) == simulate(seed)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name.replace(" ", "-"))
def test_a_planted_fault_is_seen(mutant: Mutant) -> None:
    assert hunt(mutant, MUTANT_WORLDS) is not None, f"{MUTANT_WORLDS} worlds do not see it: {mutant.name}"


# ---------------------------------------------------------------- what the worlds stand on


def test_a_day_passes_at_once() -> None:
    async def story() -> list[float]:
        loop = asyncio.get_running_loop()
        seen = []
        for seconds in (1.0, 3600.0, 86_400.0):
            await asyncio.sleep(seconds)
            seen.append(loop.time())
        return seen

    assert run(story()) == [1.0, 3601.0, 90_001.0]


def test_waiting_for_nobody_is_an_error_and_not_a_hang() -> None:
    async def story() -> None:
        await asyncio.Event().wait()

    with pytest.raises(Stuck, match="nobody will do"):
        run(story())


def test_what_would_go_to_a_thread_is_done_on_the_spot() -> None:
    async def story() -> tuple[int, str]:
        try:
            await asyncio.to_thread(int, "x")
        except ValueError as error:
            return await asyncio.to_thread(max, 1, 2), str(error)
        return 0, ""

    assert run(story()) == (2, "invalid literal for int() with base 10: 'x'")


def test_the_wall_clock_jumps_alone() -> None:
    clock = HandClock(now=100.0)
    clock.turn(5.0)
    clock.jump(-86_400.0)
    assert (clock.now(), clock.time()) == (105.0, "2025-12-31T00:00:05.000000Z")


@pytest.mark.parametrize(("filter", "topic", "taken"), [
    ("a/+/c", "a/b/c", True), ("a/+/c", "a/b/d", False), ("a/#", "a/b/c", True), ("a/#", "b", False),
    ("a/+", "a", False), ("a", "a/b", False), ("a/b", "a/b", True)])
def test_topic_filters(filter: str, topic: str, taken: bool) -> None:
    assert matches(filter, topic) is taken


def test_the_broker_keeps_what_is_retained_until_it_loses_everything() -> None:
    async def story() -> list[tuple[str, bytes]]:
        heard: list[tuple[str, bytes]] = []
        broker = MemoryBroker()
        one = MemoryClient(broker, "one", [], lambda topic, payload: None)
        assert one.connect()
        assert one.publish("study/s", b"open", retain=True)
        two = MemoryClient(broker, "two", ["study/+"], lambda topic, payload: heard.append((topic, payload)))
        assert two.connect()
        await asyncio.sleep(1.0)
        broker.restart(down_s=5.0)
        assert not two.connect()
        assert not one.publish("study/s", b"lost")
        await asyncio.sleep(5.0)
        assert two.connect()
        await asyncio.sleep(1.0)
        return heard

    assert run(story()) == [("study/s", b"open")]


def test_the_weather_loses_doubles_and_shuffles() -> None:
    async def story(weather: Weather) -> list[int]:
        heard: list[int] = []
        broker = MemoryBroker(seed=3, weather=weather)
        sender = MemoryClient(broker, "a", [], lambda topic, payload: None)
        listener = MemoryClient(broker, "b", ["t"], lambda topic, payload: heard.append(int(payload)))
        sender.connect()
        listener.connect()
        for i in range(100):
            sender.publish("t", b"%d" % i)
        await asyncio.sleep(60.0)
        return heard

    everything = list(range(100))
    assert run(story(Weather())) == everything
    assert 50 < len(run(story(Weather(drop=0.3)))) < 90
    assert 110 < len(run(story(Weather(twice=0.3)))) < 150
    shuffled = run(story(Weather(delay_s=10.0)))
    assert shuffled != everything
    assert sorted(shuffled) == everything
    assert run(story(Weather(delay_s=10.0, overtake=False))) == everything


def test_a_killed_daemon_is_continued_by_the_next_from_its_disk() -> None:
    async def story() -> tuple[list[str], list[bytes]]:
        heard: list[bytes] = []
        broker = MemoryBroker()
        daemon = Daemon(broker)
        await daemon.start()
        worker = MemoryClient(broker, "w1", [broker.topics.to("w1", "receipt")],
                              lambda topic, payload: heard.append(payload))
        worker.connect()
        await asyncio.sleep(1.0)
        worker.publish(broker.topics.sent("w1", "beat"), b'{"run":"4f2a"}')
        await asyncio.sleep(1.0)
        daemon.kill()
        assert daemon.service is None
        await daemon.start()
        await asyncio.sleep(1.0)
        worker.publish(broker.topics.sent("w1", "beat"), b'{"run":"4f2b"}')
        worker.publish(broker.topics.sent("w1", "beat"), b'{"run":"4f2a"}')
        await asyncio.sleep(1.0)
        await daemon.stop()
        return [row.type for row in daemon.disk.rows], heard

    types, heard = run(story())
    assert types == ["log.opened", "daemon.started", "run.began", "daemon.started", "run.began", "daemon.stopped"]
    assert heard == [b'{"id":"4f2a","run":"4f2a","status":"rejected","reason":"name-in-use"}']
