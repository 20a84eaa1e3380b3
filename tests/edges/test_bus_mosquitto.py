"""The bus with real brokers on loopback: restarts, last wills, logins, TLS."""

import asyncio
import contextlib
import itertools
import os
import signal
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.edges.mosquitto import Mosquitto, binary

from bayesd.broker import EmbeddedBroker
from bayesd.bus import Ack, BrokerAddress, BusError, Caller, Message, MqttBus, Will

pytestmark = pytest.mark.mosquitto


class Daemon:
    """Stands for the service: acknowledges at once and keeps what came."""

    def __init__(self, bus: MqttBus) -> None:
        self.bus = bus
        self.messages: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue()
        self.connects: asyncio.Queue[int] = asyncio.Queue()
        self.task = asyncio.create_task(bus.run(self.on_message, self.on_connect))

    def on_message(self, topic: str, payload: bytes, ack: Ack) -> None:
        self.messages.put_nowait((topic, payload))
        ack()

    def on_connect(self) -> None:
        self.bus.publish("daemon", b"online", retain=True)
        self.connects.put_nowait(self.bus.connects)

    async def connected(self) -> int:
        async with asyncio.timeout(10):
            return await self.connects.get()

    async def message(self) -> tuple[str, bytes]:
        async with asyncio.timeout(10):
            return await self.messages.get()


@contextlib.asynccontextmanager
async def running(address: BrokerAddress | str, **settings: Any) -> AsyncIterator[Daemon]:
    address = BrokerAddress.parse(address) if isinstance(address, str) else address
    settings = {"client_id": "daemon", "filters": ["from/+/tell"], "jitter": lambda: 0.0, **settings}
    daemon = Daemon(MqttBus(address, **settings))
    try:
        yield daemon
    finally:
        await daemon.bus.close(timeout_s=1.0)
        async with asyncio.timeout(10):
            await daemon.task


_numbers = itertools.count()


def caller(address: BrokerAddress | str, *filters: str, **settings: Any) -> Caller:
    address = BrokerAddress.parse(address) if isinstance(address, str) else address
    return Caller(address, client_id=f"cli-{next(_numbers)}", filters=filters, **settings)


@pytest.mark.parametrize("qos", [0, 1])
def test_messages_go_both_ways_in_order(tmp_path: Path, qos: int) -> None:
    async def story(url: str) -> None:
        count = 3000
        async with running(url, qos=qos) as daemon, caller(url, "to/w1/receipt", qos=qos) as worker:
            await daemon.connected()

            async def ask() -> None:
                for each in range(count):
                    await worker.publish("from/w1/tell", str(each).encode())

            asking = asyncio.create_task(ask())
            for each in range(count):
                assert await daemon.message() == ("from/w1/tell", str(each).encode())
                assert daemon.bus.publish("to/w1/receipt", str(each).encode())
            await asking
            for each in range(count):
                assert await worker.receive(10) == Message("to/w1/receipt", str(each).encode(), False)

    with Mosquitto(tmp_path) as broker:
        asyncio.run(story(broker.url))


def test_a_killed_broker_is_found_again_with_subscriptions_state_and_what_was_said_meanwhile(tmp_path: Path) -> None:
    async def story(broker: Mosquitto) -> None:
        async with running(broker.url) as daemon:
            await daemon.connected()
            for life in (2, 3):
                broker.kill()
                while daemon.bus.connected:
                    await asyncio.sleep(0.002)
                assert daemon.bus.publish("study/s", b"said meanwhile %d" % life, retain=True)
                broker.start()
                assert await daemon.connected() == life
                async with caller(broker.url, "daemon", "study/s") as worker:
                    # The broker has forgotten everything; what is retained came from us after the restart.
                    got = sorted([(await worker.receive(5)).payload for _ in range(2)])
                    assert got == [b"online", b"said meanwhile %d" % life]
                    await worker.publish("from/w1/tell", b"result")
                    assert await daemon.message() == ("from/w1/tell", b"result")

    with Mosquitto(tmp_path) as broker:
        asyncio.run(story(broker))


DAEMON = """
import asyncio, sys
from bayesd.bus import BrokerAddress, MqttBus, Will

async def main():
    bus = MqttBus(BrokerAddress.parse(sys.argv[1]), client_id="daemon", filters=["from/+/tell"],
                  will=lambda: Will("daemon", b"offline"))
    await bus.run(lambda *_: None, lambda: bus.publish("daemon", b"online", retain=True) and None)

asyncio.run(main())
"""


def test_the_will_is_fired_when_the_daemon_is_killed(tmp_path: Path) -> None:
    async def story(url: str) -> None:
        async with caller(url, "daemon") as watcher:
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
            daemon = subprocess.Popen([sys.executable, "-c", DAEMON, url], env=environment)
            try:
                assert (await watcher.receive(10)).payload == b"online"
            finally:
                daemon.send_signal(signal.SIGKILL)
                daemon.wait()
            assert (await watcher.receive(10)).payload == b"offline"

    with Mosquitto(tmp_path) as broker:
        asyncio.run(story(broker.url))


def test_the_will_is_not_fired_by_a_clean_close_and_nothing_queued_is_lost(tmp_path: Path) -> None:
    async def story(url: str) -> None:
        async with caller(url, "daemon", "to/#", "done") as watcher:
            async with running(url, qos=0, will=lambda: Will("daemon", b"will")) as daemon:
                await daemon.connected()
                # Messages that come in while we leave must not reset the connection before ours are out.
                flood = asyncio.create_task(_flood(url))
                await daemon.message()
                for each in range(2000):
                    daemon.bus.publish("to/w1/receipt", b"%0300d" % each)
                daemon.bus.publish("daemon", b"offline", retain=True)
                await daemon.bus.close()
                await flood
            async with caller(url) as other:
                await other.publish("done", b"")
            got = [await watcher.receive(10) for _ in range(2003)]
            assert [each.payload for each in got if each.topic == "daemon"] == [b"online", b"offline"]
            assert [int(each.payload) for each in got if each.topic.startswith("to/")] == list(range(2000))
            assert got[-1].topic == "done"

    async def _flood(url: str) -> None:
        async with Caller(BrokerAddress.parse(url), client_id="flood", qos=0) as flood:
            for _ in range(2000):
                await flood.publish("from/w1/tell", b"x" * 300)

    with Mosquitto(tmp_path) as broker:
        asyncio.run(story(broker.url))


def test_two_daemons_with_one_id_do_not_fight_hot_and_both_say_so(tmp_path: Path) -> None:
    async def story(url: str) -> None:
        async with running(url) as one, running(url) as two:
            for daemon in (one, two):
                async with asyncio.timeout(10):
                    while "another client may use our id 'daemon'" not in (daemon.bus.last_error or ""):
                        await daemon.connects.get()
            assert one.bus.connects + two.bus.connects < 12

    with Mosquitto(tmp_path) as broker:
        asyncio.run(story(broker.url))


# --- Logins and TLS ------------------------------------------------------------------------------


def test_a_password_comes_from_its_file_and_a_wrong_one_is_explained(tmp_path: Path) -> None:
    passwords, secret = tmp_path / "passwords", tmp_path / "secret"
    passwords.write_text("ann:right\n")
    subprocess.run([binary("mosquitto_passwd"), "-U", str(passwords)], check=True, capture_output=True)
    secret.write_text("wrong\n")

    async def story(url: str) -> None:
        with pytest.raises(BusError, match="refused our login without a user name"):
            async with caller(url):
                pass
        address = BrokerAddress.parse(url, username="ann", password_file=secret)
        with pytest.raises(BusError, match="refused our login as user 'ann': check the user name, the password file"):
            async with caller(address):
                pass
        async with running(address) as daemon:
            async with asyncio.timeout(5):
                while daemon.bus.last_error is None:
                    await asyncio.sleep(0.002)
            secret.write_text("right\n")     # read again at the next try: no restart is needed
            await daemon.connected()

    with Mosquitto(tmp_path, "allow_anonymous false", f"password_file {passwords}") as broker:
        asyncio.run(story(broker.url))


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate authority, a certificate of `localhost`, one of a client, and a second authority."""
    folder = tmp_path_factory.mktemp("certificates")

    def openssl(*words: str) -> None:
        subprocess.run([binary("openssl"), *words], cwd=folder, check=True, capture_output=True)

    new_key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    for authority in ("ca", "other"):
        openssl("req", "-x509", *new_key, "-keyout", f"{authority}.key", "-out", f"{authority}.pem",
                "-subj", f"/CN={authority}", "-days", "2")
    (folder / "san").write_text("subjectAltName=DNS:localhost\n")
    for name in ("localhost", "client"):
        openssl("req", *new_key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        openssl("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
                "-out", f"{name}.pem", "-days", "2", *(("-extfile", "san") if name == "localhost" else ()))
    return folder


def tls(folder: Path, *more: str) -> list[str]:
    return [f"cafile {folder}/ca.pem", f"certfile {folder}/localhost.pem", f"keyfile {folder}/localhost.key", *more]


def test_tls_carries_large_messages_both_ways(tmp_path: Path, certificates: Path) -> None:
    async def story(port: int) -> None:
        address = BrokerAddress.parse(f"mqtts://localhost:{port}", ca_file=certificates / "ca.pem")
        address.check()
        payloads = [os.urandom(size) for size in (1, 16_383, 16_384, 16_385, 60_000, 110_000)] * 8
        async with running(address) as daemon, caller(address, "to/w1/grant", timeout_s=10) as worker:
            await daemon.connected()
            for each in payloads:
                assert daemon.bus.publish("to/w1/grant", each)
                await worker.publish("from/w1/tell", each)
            for each in payloads:
                assert (await worker.receive(10)).payload == each
                assert (await daemon.message())[1] == each

    with Mosquitto(tmp_path, *tls(certificates)) as broker:
        asyncio.run(story(broker.port))


def test_a_broker_of_the_wrong_name_or_authority_is_refused(tmp_path: Path, certificates: Path) -> None:
    async def story(port: int) -> None:
        ca_file = certificates / "ca.pem"
        for address, sentence in [
            (BrokerAddress.parse(f"mqtts://127.0.0.1:{port}", ca_file=ca_file),
             r"not to be trusted \(IP address mismatch"),
            (BrokerAddress.parse(f"mqtts://localhost:{port}", ca_file=certificates / "other.pem"),
             r"not to be trusted \(unable to get local issuer certificate|not to be trusted \(self.signed"),
            (BrokerAddress.parse(f"mqtts://localhost:{port}"), "not to be trusted"),
            (BrokerAddress.parse(f"mqtt://localhost:{port}"), "closed the connection before it answered.* without TLS"),
        ]:
            with pytest.raises(BusError, match=sentence):
                async with caller(address):
                    pass

    with Mosquitto(tmp_path, *tls(certificates)) as broker:
        asyncio.run(story(broker.port))


def test_a_plain_broker_does_not_pass_for_an_encrypted_one(tmp_path: Path) -> None:
    async def story(port: int) -> None:
        with pytest.raises(BusError, match=r"does not agree on TLS|cannot be reached|does not answer"):
            async with caller(BrokerAddress.parse(f"mqtts://localhost:{port}")):
                pass

    with Mosquitto(tmp_path) as broker:
        asyncio.run(story(broker.port))


def test_a_client_certificate_is_a_login(tmp_path: Path, certificates: Path) -> None:
    async def story(port: int) -> None:
        url, ca_file = f"mqtts://localhost:{port}", certificates / "ca.pem"
        with pytest.raises(BusError, match="broker at mqtts://localhost"):
            async with caller(BrokerAddress.parse(url, ca_file=ca_file)):
                pass
        ours = BrokerAddress.parse(
            url, ca_file=ca_file, cert_file=certificates / "client.pem", key_file=certificates / "client.key")
        async with caller(ours, "x") as client:
            await client.publish("x", b"hello")
            assert (await client.receive(5)).payload == b"hello"

    with Mosquitto(tmp_path, *tls(certificates, "require_certificate true")) as broker:
        asyncio.run(story(broker.port))


def test_certificates_are_checked_with_no_way_to_turn_it_off(certificates: Path) -> None:
    context = BrokerAddress.parse("mqtts://x", ca_file=certificates / "ca.pem").tls_context()
    assert context is not None
    assert context.check_hostname
    assert context.verify_mode is ssl.CERT_REQUIRED


# --- The broker out of the wheel -----------------------------------------------------------------


@pytest.mark.parametrize("qos", [0, 1])
def test_iotcore_speaks_with_the_bus(qos: int) -> None:
    async def story() -> None:
        async with EmbeddedBroker(port=None, kind="iotcore") as broker, running(
                broker.url, qos=qos, will=lambda: Will("daemon", b"will")) as daemon:
            await daemon.connected()
            async with caller(broker.url, "daemon", "to/w1/receipt", qos=qos) as worker:
                assert await worker.receive(5) == Message("daemon", b"online", True)
                for each in range(20):
                    await worker.publish("from/w1/tell", b"%d" % each)
                    assert await daemon.message() == ("from/w1/tell", b"%d" % each)
                    daemon.bus.publish("to/w1/receipt", b"%d" % each)
                    assert (await worker.receive(5)).payload == b"%d" % each
                large = os.urandom(100_000)
                daemon.bus.publish("to/w1/receipt", large)
                assert (await worker.receive(5)).payload == large
                daemon.task.cancel()
                await asyncio.wait((daemon.task,))
                assert (await worker.receive(5)).payload == b"will"
            daemon.task = asyncio.create_task(asyncio.sleep(0))

    pytest.importorskip("iotcore")
    asyncio.run(story())
