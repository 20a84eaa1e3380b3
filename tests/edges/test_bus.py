"""The bus against a fake broker that shows every packet: what is promised, and when exactly."""

import asyncio
import contextlib
import itertools
import logging
import os
import random
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.edges.mosquitto import FakeBroker, id_of, kinds, payload_of, publish_packet, topic_of

from bayesd import bus as module
from bayesd import link as connection
from bayesd.bus import Ack, BrokerAddress, Bus, BusError, Caller, Message, MqttBus, Outgoing, Will

PUBLISH, DISCONNECT = 0x30, 0xE0


class Daemon:
    """Stands for the service: keeps what came, and can wait for it."""

    def __init__(self, bus: MqttBus) -> None:
        self.bus = bus
        self.messages: asyncio.Queue[tuple[str, bytes, Ack]] = asyncio.Queue()
        self.connects: asyncio.Queue[int] = asyncio.Queue()
        self.task = asyncio.create_task(bus.run(self.on_message, self.on_connect))

    def on_message(self, topic: str, payload: bytes, ack: Ack) -> None:
        self.messages.put_nowait((topic, payload, ack))

    def on_connect(self) -> None:
        self.connects.put_nowait(self.bus.connects)

    async def connected(self) -> int:
        async with asyncio.timeout(5):
            return await self.connects.get()

    async def message(self) -> tuple[str, bytes, Ack]:
        async with asyncio.timeout(5):
            return await self.messages.get()


@contextlib.asynccontextmanager
async def running(address: BrokerAddress | str, **settings: Any) -> AsyncIterator[Daemon]:
    """A bus with its service; jitter 0 makes the first tries quick."""
    address = BrokerAddress.parse(address) if isinstance(address, str) else address
    settings = {"client_id": "daemon", "filters": ["from/+/ask", "from/+/tell"], "jitter": lambda: 0.0, **settings}
    daemon = Daemon(MqttBus(address, **settings))
    try:
        yield daemon
    finally:
        await daemon.bus.close(timeout_s=0.2)
        if not daemon.task.cancelled():
            async with asyncio.timeout(5):
                await daemon.task


async def until(happened: Callable[[], bool]) -> None:
    """For what no event tells."""
    async with asyncio.timeout(5):
        while not happened():
            await asyncio.sleep(0.002)


def accepts(bus: Bus) -> Bus:
    """mypy fails here when MqttBus no longer is what the service needs."""
    return bus


# --- Addresses -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("url", "expected"), [
    ("mqtt://", BrokerAddress()),
    ("mqtt://broker", BrokerAddress(host="broker")),
    ("mqtt://broker:1999/", BrokerAddress(host="broker", port=1999)),
    ("mqtts://broker", BrokerAddress(host="broker", port=8883, tls=True)),
    ("mqtt://ann%40lab@broker", BrokerAddress(host="broker", username="ann@lab")),
    ("mqtt://[::1]:1884", BrokerAddress(host="::1", port=1884)),
])
def test_an_address_says_where_and_who(url: str, expected: BrokerAddress) -> None:
    assert BrokerAddress.parse(url) == expected


def test_an_address_for_people_keeps_its_form() -> None:
    assert BrokerAddress.parse("mqtts://[::1]:1884").url == "mqtts://[::1]:1884"
    assert BrokerAddress.parse("mqtt://ann@broker").url == "mqtt://broker:1883"


@pytest.mark.parametrize(("url", "files", "sentence"), [
    ("broker:1883", {}, "does not begin with mqtt://"),
    ("http://broker", {}, "does not begin with mqtt://"),
    ("mqtt://broker:port", {}, "not a URL"),
    ("mqtt://broker/bayesd", {}, "after the port"),
    ("mqtt://broker", {"ca_file": "ca.pem"}, "write mqtts://"),
    ("mqtts://broker", {"key_file": "key.pem"}, "without its certificate"),
    ("mqtt://broker", {"password_file": "secret"}, "without a user name"),
])
def test_a_wrong_address_is_refused_with_a_remedy(url: str, files: dict[str, str], sentence: str) -> None:
    with pytest.raises(BusError, match=sentence):
        BrokerAddress.parse(url, **files)


def test_a_password_in_the_address_is_refused_and_not_repeated() -> None:
    with pytest.raises(BusError, match="password file") as refusal:
        BrokerAddress.parse("mqtt://ann:hunter2@broker")
    assert "hunter2" not in str(refusal.value)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(BusError, match=r"password file .*secret cannot be read \(No such file"):
        BrokerAddress.parse("mqtt://ann@broker", password_file=tmp_path / "secret").check()
    (tmp_path / "ca.pem").write_text("no certificate")
    with pytest.raises(BusError, match=r"trusted certificates .*ca.pem cannot be used"):
        BrokerAddress.parse("mqtts://broker", ca_file=tmp_path / "ca.pem").check()
    with pytest.raises(BusError, match=r"Our certificate .*ca.pem with key .*ca.pem cannot be used"):
        BrokerAddress.parse("mqtts://broker", cert_file=tmp_path / "ca.pem").check()


# --- Acknowledgements ----------------------------------------------------------------------------


def test_a_message_is_acknowledged_when_ack_is_called_and_not_before() -> None:
    async def story() -> None:
        async with FakeBroker(puback=True) as broker, running(broker.url) as daemon:
            await daemon.connected()
            broker.send(publish_packet("from/w1/tell", b"result", 7))
            topic, payload, ack = await daemon.message()
            assert (topic, payload) == ("from/w1/tell", b"result")
            daemon.bus.publish("marker", b"")
            assert topic_of(await broker.packet()) == "marker"   # and no PUBACK came before it
            ack()
            assert await broker.packet() == b"\x40\x02\x00\x07"

    asyncio.run(story())


def test_acks_go_out_in_the_order_of_their_calls() -> None:
    async def story() -> None:
        async with FakeBroker() as broker, running(broker.url) as daemon:
            await daemon.connected()
            broker.send(*(publish_packet("from/w1/tell", b"", each) for each in (1, 2, 65535)))
            acks = [(await daemon.message())[2] for _ in range(3)]
            for ack in reversed(acks):
                ack()
            assert [(await broker.packet())[2:] for _ in range(3)] == [b"\xff\xff", b"\x00\x02", b"\x00\x01"]

    asyncio.run(story())


def test_a_message_without_qos_has_an_ack_that_does_nothing() -> None:
    async def story() -> None:
        async with FakeBroker() as broker, running(broker.url, qos=0) as daemon:
            await daemon.connected()
            broker.send(publish_packet("from/w1/ask", b"{}"))
            (await daemon.message())[2]()
            daemon.bus.publish("marker", b"")
            assert topic_of(await broker.packet()) == "marker"

    asyncio.run(story())


def test_an_ack_from_before_a_reconnect_does_nothing() -> None:
    async def story() -> None:
        async with FakeBroker(puback=True) as broker, running(broker.url) as daemon:
            await daemon.connected()
            broker.send(publish_packet("from/w1/tell", b"result", 7))
            _, _, ack = await daemon.message()
            broker.hang_up()
            ack()
            assert await daemon.connected() == 2
            ack()
            daemon.bus.publish("marker", b"")
            assert topic_of(await broker.packet()) == "marker"

    asyncio.run(story())


# --- Reading -------------------------------------------------------------------------------------


class Pieces:
    """A socket that gives its bytes in the pieces that a test wants."""

    def __init__(self, pieces: list[bytes]) -> None:
        self.pieces = pieces
        self.sent = bytearray()

    def recv(self, size: int) -> bytes:
        if not self.pieces:
            raise BlockingIOError
        return self.pieces.pop(0)

    def send(self, data: bytearray) -> int:
        self.sent += data
        return len(data)

    def fileno(self) -> int:
        return -1

    def close(self) -> None:
        pass


def read_in_pieces(stream: bytes, cuts: list[int]) -> tuple[list[tuple[str, bytes, bool]], bytes, int]:
    """What a link delivers from a stream cut there, what it answers, and how many packets it skipped."""

    async def story() -> tuple[list[tuple[str, bytes, bool]], bytes, int]:
        got: list[tuple[str, bytes, bool]] = []

        def deliver(topic: str, payload: bytes, ack: Ack, retained: bool) -> None:
            got.append((topic, payload, retained))
            ack()

        link = connection.Link(BrokerAddress(), "x", will=None, keepalive_s=30, deliver=deliver, on_room=lambda: None)
        edges = [0, *sorted(cuts), len(stream)]
        pieces = [stream[a:b] for a, b in itertools.pairwise(edges) if a < b]
        sock = Pieces(pieces)
        link._sock = sock   # type: ignore[assignment]   # only what the link uses
        while sock.pieces:
            link._on_readable()
        link._flush()
        return got, bytes(sock.sent), link.skipped

    return asyncio.run(story())


def test_messages_are_the_same_however_the_stream_is_cut() -> None:
    sizes = [0, 1, 100, 126, 127, 128, 129, 16_380, 16_384, 70_000]
    packets = [publish_packet(f"from/w{size}/tell", bytes([size % 251]) * size, 5 if size % 2 else None,
                              retained=size == 100) for size in sizes]
    stream = b"".join(packets)
    whole = read_in_pieces(stream, [])
    assert whole[0] == [(f"from/w{size}/tell", bytes([size % 251]) * size, size == 100) for size in sizes]
    assert whole[1] == b"\x40\x02\x00\x05" * sum(size % 2 for size in sizes)
    boundary = sum(map(len, packets[:5]))
    assert read_in_pieces(stream, list(range(1, 700))) == whole   # byte by byte over every kind of header
    assert read_in_pieces(stream, list(range(boundary - 5, boundary + 5))) == whole
    for seed in range(50):
        chance = random.Random(seed)
        assert read_in_pieces(stream, chance.choices(range(len(stream)), k=20)) == whole, f"seed {seed}"


@pytest.mark.parametrize("cuts", [[], [1], [3], [5, 6], [7, 19], [100_000, 2_000_000], list(range(1, 40))])
def test_a_packet_too_large_to_hold_is_skipped_and_acknowledged(cuts: list[int]) -> None:
    large = publish_packet("from/w1/tell", b"x" * 3_000_000, 9)
    stream = large + publish_packet("from/w2/tell", b"next", 10)
    # The socket never gives more than a piece at a time, so the whole is seen only when it is cut like this.
    cuts = [*cuts, 250_000, 500_000, 2_900_000]
    got, sent, skipped = read_in_pieces(stream, cuts)
    assert got == [("from/w2/tell", b"next", False)]
    assert sent == b"\x40\x02\x00\x09\x40\x02\x00\x0a"
    assert skipped == 1


def test_a_topic_that_is_not_utf8_is_skipped_and_acknowledged() -> None:
    bad = b"\x32\x07\x00\x02\xff\xfe\x00\x03!"
    got, sent, skipped = read_in_pieces(bad + publish_packet("good", b""), [])
    assert got == [("good", b"", False)]
    assert sent == b"\x40\x02\x00\x03"
    assert skipped == 1


@pytest.mark.parametrize("garbage", [
    b"\x30\xff\xff\xff\xff\x7f",               # a length of five bytes
    b"\x30\x01\x00",                           # no topic
    b"\x30\x04\x00\x09ab",                     # a topic longer than its packet
    b"\x32\x05\x00\x02ab\x00",                 # half an id
    b"\xa0\x80\x80\x80\x01",                   # 2 MiB of something that is no PUBLISH
    b"\x00\x00",                               # no packet at all
])
def test_garbage_ends_the_connection_and_the_next_one_works(garbage: bytes) -> None:
    async def story() -> None:
        async with FakeBroker() as broker, running(broker.url) as daemon:
            await daemon.connected()
            broker.send(garbage)
            assert await daemon.connected() == 2
            broker.send(publish_packet("from/w1/ask", b"{}"))
            assert (await daemon.message())[:2] == ("from/w1/ask", b"{}")

    asyncio.run(story())


def test_a_failure_of_the_receiver_ends_run_and_is_not_taken_for_a_lost_connection() -> None:
    async def story() -> None:
        def on_message(topic: str, payload: bytes, ack: Ack) -> None:
            raise LookupError("a bug")

        async with FakeBroker() as broker:
            bus = MqttBus(BrokerAddress.parse(broker.url), client_id="daemon", filters=["#"])
            ready = asyncio.Event()
            task = asyncio.create_task(bus.run(on_message, ready.set))
            await ready.wait()
            broker.send(publish_packet("x", b""))
            with pytest.raises(LookupError, match="a bug"):
                async with asyncio.timeout(5):
                    await task
            assert not bus.connected

    asyncio.run(story())


# --- Writing -------------------------------------------------------------------------------------


def test_what_is_published_while_disconnected_waits_and_is_bounded() -> None:
    async def story() -> None:
        broker = FakeBroker(puback=True)
        async with broker:
            pass                      # a port where nobody listens any more
        size = Outgoing("to/w1/receipt", b"0123456789", False, 1).size_bytes
        async with running(broker.url, outgoing_max_bytes=3 * size) as daemon:
            bus = daemon.bus
            told = [bus.publish("to/w1/receipt", b"%010d" % each) for each in range(5)]
            assert told == [True, True, True, False, False]
            assert (bus.published, bus.dropped, bus.queued_bytes) == (0, 2, 3 * size)
            async with broker:
                await daemon.connected()
                assert [payload_of(await broker.packet()) for _ in range(3)] == [b"%010d" % each for each in range(3)]
                assert (bus.published, bus.dropped, bus.queued_bytes) == (3, 2, 0)
                await bus.close()

    asyncio.run(story())


def test_the_queue_goes_out_before_on_connect_so_that_the_newest_retained_state_wins() -> None:
    async def story() -> None:
        broker = FakeBroker(puback=True)
        async with broker:
            pass
        bus = MqttBus(BrokerAddress.parse(broker.url), client_id="daemon", filters=["x"], jitter=lambda: 0.0)
        bus.publish("study/s", b"old", retain=True)

        def on_connect() -> None:
            bus.publish("study/s", b"new", retain=True)

        task = asyncio.create_task(bus.run(lambda *_: None, on_connect))
        async with broker:
            packets = [await broker.packet() for _ in range(2)]
            assert [payload_of(each) for each in packets] == [b"old", b"new"]
            assert [each[0] & 1 for each in packets] == [1, 1]
            await bus.close()
            await task

    asyncio.run(story())


def test_more_than_the_window_waits_for_pubacks_and_keeps_its_order() -> None:
    async def story() -> None:
        async with FakeBroker() as broker, running(broker.url) as daemon:
            await daemon.connected()
            count = connection.UNACKED_MAX + 200
            for each in range(count):
                assert daemon.bus.publish("to/w1/receipt", str(each).encode())
            packets = [await broker.packet() for _ in range(connection.UNACKED_MAX)]
            assert broker.packets.empty()
            assert daemon.bus.queued_bytes > 0
            for packet in packets:
                broker.send(b"\x40\x02" + id_of(packet))
            packets += [await broker.packet() for _ in range(200)]
            assert [int(payload_of(each)) for each in packets] == list(range(count))
            assert len({id_of(each) for each in packets}) == count

    asyncio.run(story())


def test_packet_ids_are_never_those_of_messages_still_on_their_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "FIRST_PUBLISH_ID", 65_530)

    async def story() -> None:
        async with FakeBroker() as broker, running(broker.url) as daemon:
            await daemon.connected()
            for _ in range(6):
                daemon.bus.publish("x", b"")
            packets = [await broker.packet() for _ in range(6)]
            broker.send(b"\x40\x02" + id_of(packets[3]))
            await until(lambda: daemon.bus._link is not None and len(daemon.bus._link.unacked) == 5)
            daemon.bus.publish("x", b"")
            assert id_of(await broker.packet()) == id_of(packets[3])

    asyncio.run(story())


def test_unanswered_messages_are_sent_again_first_but_not_for_ever() -> None:
    async def story() -> None:
        async with FakeBroker() as broker, running(broker.url) as daemon:
            await daemon.connected()
            daemon.bus.publish("poison", b"")
            daemon.bus.publish("behind", b"")
            for _ in range(module.TRIES_MAX):
                assert [topic_of(await broker.packet()) for _ in range(2)] == ["poison", "behind"]
                broker.hang_up()
                await daemon.connected()
            daemon.bus.publish("marker", b"")
            assert topic_of(await broker.packet()) == "marker"
            assert daemon.bus.dropped == 2

    asyncio.run(story())


def test_a_message_larger_than_brokers_take_is_dropped_and_reported(caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> None:
        bus = MqttBus(BrokerAddress(), client_id="daemon", filters=[])
        assert not accepts(bus).publish("to/cli/reply", b"x" * (module.MESSAGE_MAX_BYTES + 1))
        assert bus.dropped == 1

    asyncio.run(story())
    assert "too large for a broker" in caplog.text


def test_a_broker_that_reads_slowly_makes_messages_wait_and_then_gets_all_of_them() -> None:
    async def story() -> None:
        payload, count = b"x" * 50_000, 200
        async with FakeBroker() as broker, running(broker.url, qos=0) as daemon:
            await daemon.connected()
            for each in range(count):
                assert daemon.bus.publish(f"t/{each}", payload)
            assert daemon.bus.queued_bytes > 0, "10 MB fit neither into the socket nor into the write buffer"
            packets = [await broker.packet() for _ in range(count)]
            assert [topic_of(each) for each in packets] == [f"t/{each}" for each in range(count)]
            assert {payload_of(each) for each in packets} == {payload}

    asyncio.run(story())


# --- The life of the connection ------------------------------------------------------------------


def test_a_connect_names_us_asks_for_a_clean_session_and_leaves_a_will_made_at_that_moment() -> None:
    async def story() -> None:
        wills = iter([Will("daemon", b"first"), Will("daemon", b"second", retain=False)])
        async with FakeBroker() as broker, running(broker.url, will=lambda: next(wills), keepalive_s=17) as daemon:
            await daemon.connected()
            first = await broker.connects.get()
            # Flags: clean session 2, will 4, its QoS 1 is 8, its retain flag 32.
            assert first[2:] == (b"\x00\x04MQTT\x04" + bytes((2 + 4 + 8 + 32,)) + b"\x00\x11"
                                 b"\x00\x06daemon\x00\x06daemon\x00\x05first")
            broker.hang_up()
            await daemon.connected()
            second = await broker.connects.get()
            assert second[9] == 2 + 4 + 8
            assert second.endswith(b"second")

    asyncio.run(story())


def test_tcp_nodelay_is_on() -> None:
    async def story() -> None:
        async with FakeBroker() as broker, running(broker.url) as daemon:
            await daemon.connected()
            assert daemon.bus._link is not None
            assert daemon.bus._link._sock is not None
            assert daemon.bus._link._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)

    asyncio.run(story())


def test_close_sends_what_is_queued_then_says_goodbye_and_ends_run() -> None:
    async def story() -> None:
        async with FakeBroker(puback=True) as broker, running(broker.url) as daemon:
            await daemon.connected()
            count = connection.UNACKED_MAX + 500
            for each in range(count):
                daemon.bus.publish("to/w1/receipt", str(each).encode())
            await daemon.bus.close()
            async with asyncio.timeout(5):
                await daemon.task
            packets = [await broker.packet() for _ in range(count + 1)]
            assert kinds(packets) == [PUBLISH] * count + [DISCONNECT]
            assert not daemon.bus.connected

    asyncio.run(story())


def test_close_does_not_wait_for_ever_for_a_broker_that_acknowledges_nothing() -> None:
    async def story() -> None:
        async with FakeBroker() as broker, running(broker.url) as daemon:
            await daemon.connected()
            daemon.bus.publish("x", b"")
            async with asyncio.timeout(3):
                await daemon.bus.close(timeout_s=0.05)
                await daemon.task
            assert kinds([await broker.packet() for _ in range(2)]) == [PUBLISH, DISCONNECT]

    asyncio.run(story())


def test_close_ends_a_run_that_is_still_dialling() -> None:
    async def story() -> None:
        async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            dialled.set()
            with contextlib.closing(writer):
                await reader.read()
            hung_up.set()

        dialled, hung_up = asyncio.Event(), asyncio.Event()
        server = await asyncio.start_server(silent, "127.0.0.1", 0)
        async with server, running(f"mqtt://127.0.0.1:{server.sockets[0].getsockname()[1]}") as daemon:
            await dialled.wait()
            await daemon.bus.close()
            async with asyncio.timeout(1):
                await daemon.task
                await hung_up.wait()

    asyncio.run(story())


def test_close_just_before_the_connection_is_used_still_says_goodbye(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        async with FakeBroker() as broker:
            bus = MqttBus(BrokerAddress.parse(broker.url), client_id="daemon", filters=["x"])
            real = connection.Link.open

            async def open_then_close(link: connection.Link, filters: Sequence[str], qos: int) -> None:
                await real(link, filters, qos)
                bus._closing = True   # what close() does when it comes at this moment

            monkeypatch.setattr(connection.Link, "open", open_then_close)
            async with asyncio.timeout(5):
                await bus.run(lambda *_: None, lambda: pytest.fail("it is too late for that"))
            assert kinds([await broker.packet()]) == [DISCONNECT]

    asyncio.run(story())


def test_a_cancelled_run_hangs_up_without_a_goodbye_so_that_the_will_is_fired() -> None:
    async def story() -> None:
        async with FakeBroker() as broker:
            bus = MqttBus(BrokerAddress.parse(broker.url), client_id="daemon", filters=["x"])
            ready = asyncio.Event()
            task = asyncio.create_task(bus.run(lambda *_: None, ready.set))
            await ready.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert not bus.connected
            assert broker.packets.empty()

    asyncio.run(story())


def test_silence_beyond_the_keepalive_is_noticed() -> None:
    async def story() -> None:
        async with FakeBroker() as broker, running(broker.url, keepalive_s=1) as daemon:
            await daemon.connected()
            broker.writers[-1].transport.pause_reading()   # type: ignore[attr-defined]   # a TCP transport has it
            assert await daemon.connected() == 2
            assert "was silent for 1 s" in (daemon.bus.last_error or "")

    asyncio.run(story())


def test_tries_come_slower_and_slower_with_jitter() -> None:
    async def story() -> list[float]:
        with socket.socket() as nobody:
            nobody.bind(("127.0.0.1", 0))   # bound, but not listening
            chances = iter([0.0, 1.0] * 5)
            bus = MqttBus(BrokerAddress(port=nobody.getsockname()[1]), client_id="daemon", filters=[],
                          jitter=lambda: next(chances))
            delays: list[float] = []

            async def note(happened: Callable[[], bool], timeout_s: float) -> None:
                delays.append(timeout_s)
                if len(delays) == 8:
                    await bus.close()

            bus._wait_for_change = note   # type: ignore[method-assign]   # the clock of this test
            await bus.run(lambda *_: None, lambda: None)
            return delays

    assert asyncio.run(story()) == pytest.approx([0.05, 0.2, 0.2, 0.8, 0.8, 3.2, 2.5, 5.0])


def test_an_outage_is_logged_once_and_explained(caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> None:
        broker = FakeBroker()
        async with broker:
            pass
        tries = 0

        def jitter() -> float:
            nonlocal tries
            tries += 1
            return 0.0

        async with running(broker.url, jitter=jitter) as daemon:
            await until(lambda: tries == 3)
            assert daemon.bus.last_error == f"Nothing listens at {broker.url}: start the broker, or check the address."
            assert not daemon.bus.connected

    caplog.set_level(logging.WARNING)
    asyncio.run(story())
    assert len(caplog.records) == 1


def test_a_connection_that_stands_a_while_ends_the_outage_and_the_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STABLE_S", 0.02)

    async def story() -> None:
        async with FakeBroker() as broker:
            broker.connack = b"\x20\x02\x00\x03"
            async with running(broker.url) as daemon:
                await until(lambda: daemon.bus._backoff_s > 0.3)
                assert daemon.bus.last_error is not None
                broker.connack = b"\x20\x02\x00\x00"
                await daemon.connected()
                await until(lambda: daemon.bus.last_error is None)
                assert daemon.bus._backoff_s == module.BACKOFF_MIN_S

    asyncio.run(story())


@pytest.mark.parametrize(("connack", "sentence"), [
    (b"\x20\x02\x00\x04", "refused our login as user 'ann': check the user name, the password file"),
    (b"\x20\x02\x00\x05", "refused our login as user 'ann': check the user name, the password file"),
    (b"\x20\x02\x00\x02", "does not accept our client id"),
    (b"\x20\x02\x00\x03", "is unavailable"),
    (None, "closed the connection before it answered"),
])
def test_a_refusal_is_one_sentence_with_a_remedy_and_the_tries_go_on(connack: bytes | None, sentence: str) -> None:
    async def story() -> None:
        async with FakeBroker() as broker:
            broker.connack = connack
            async with running(broker.url.replace("//", "//ann@")) as daemon:
                await until(lambda: daemon.bus.last_error is not None)
                assert sentence in (daemon.bus.last_error or "")
                broker.connack = b"\x20\x02\x00\x00"
                await daemon.connected()

    asyncio.run(story())


def test_an_unknown_host_and_a_refused_subscription_are_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    async def story() -> None:
        async with FakeBroker(suback_code=0x80) as broker:
            with pytest.raises(BusError, match=r"refuses our subscription to a, b: let its access list"):
                async with Caller(BrokerAddress.parse(broker.url), client_id="cli", filters=["a", "b"]):
                    pass
        monkeypatch.setattr(socket, "getaddrinfo", unknown)
        with pytest.raises(BusError, match="host name 'nowhere\\.invalid' of the broker is not known"):
            async with Caller(BrokerAddress.parse("mqtt://nowhere.invalid"), client_id="cli"):
                pass

    asyncio.run(story())


# --- The caller ----------------------------------------------------------------------------------


def test_a_caller_asks_and_gets_its_answers() -> None:
    async def story() -> None:
        async with FakeBroker(puback=True) as broker, Caller(
                BrokerAddress.parse(broker.url), client_id="cli", filters=["to/cli/reply"]) as caller:
            await caller.publish("admin/cli/request", b"{}")
            assert topic_of(await broker.packet()) == "admin/cli/request"
            broker.send(publish_packet("to/cli/reply", b"1"), publish_packet("study/s", b"2", 4, retained=True))
            assert await caller.receive(5) == Message("to/cli/reply", b"1", False)
            got = [each async for each in caller.messages(timeout_s=0.05)]
            assert got == [Message("study/s", b"2", True)]
            assert await broker.packet() == b"\x40\x02\x00\x04"
            with pytest.raises(TimeoutError):
                await caller.receive(0.01)

    asyncio.run(story())


def test_a_caller_learns_that_the_connection_is_gone() -> None:
    async def story() -> None:
        async with FakeBroker() as broker, Caller(BrokerAddress.parse(broker.url), client_id="cli") as caller:
            waiting = asyncio.create_task(caller.receive(5))
            await asyncio.sleep(0)
            broker.hang_up()
            with pytest.raises(BusError, match="was lost: the broker closed the connection"):
                await waiting
            with pytest.raises(BusError, match="was lost"):
                await caller.publish("x", b"")

    asyncio.run(story())


def test_a_caller_is_told_when_the_broker_takes_nothing() -> None:
    async def story() -> None:
        async with FakeBroker() as broker, Caller(
                BrokerAddress.parse(broker.url), client_id="cli", timeout_s=0.05) as caller:
            with pytest.raises(BusError, match=r"did not take our message within 0.05 s"):
                await caller.publish("x", b"")

    asyncio.run(story())


def test_the_edge_of_mqtt_works_in_a_light_install() -> None:
    heavy = ("numpy", "scipy", "sklearn", "orjson", "aiosqlite", "iotcore")
    code = f"import bayesd.bus, bayesd.broker, sys; found = set({heavy!r}) & set(sys.modules); assert not found, found"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
