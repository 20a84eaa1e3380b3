"""Signed messages on a real broker, by every client, beside a hostile one that has all rights there."""

import json
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion
from tests.clients.test_javascript import packages
from tests.clients.test_real_daemon import MODULE, SHELL
from tests.edges.daemon import Broker, Daemon, Wire
from tests.edges.hostile import altered
from tests.edges.mosquitto import binary

pytestmark = pytest.mark.mosquitto
__all__ = ["packages"]

TRIALS = 12
PROGRAM = """
import {{ run }} from '{module}'
const options = {{ broker: 'mqtt://127.0.0.1:{port}', name: 'js-1', study: 's', spool: '{spool}', signKey: '{key}' }}
await run(options, async trial => {{ await new Promise(r => setTimeout(r, 200)); return (trial.params.x - 0.3) ** 2 }})
"""


class Hostile:
    """A client with all rights: what it hears it sends again, altered, moved, stripped; it lies about the log."""

    def __init__(self, port: int) -> None:
        self.lies = 0
        self._draw = random.Random(1)  # a seeded test
        self._kept: list[tuple[str, bytes]] = []
        self._sent: Counter[tuple[str, bytes]] = Counter()
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id="hostile")
        self._client.on_connect = lambda client, *_: client.subscribe("bayesd/1/#")
        self._client.on_message = self._on_message
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()

    def _on_message(self, client: mqtt.Client, userdata: object, message: mqtt.MQTTMessage) -> None:
        topic, payload = message.topic, bytes(message.payload)
        if self._sent[topic, payload]:
            self._sent[topic, payload] -= 1                 # our own
            return
        if topic.endswith("/daemon") and payload and self._draw.random() < 0.5:
            self._say(topic, json.dumps({**json.loads(payload), "log": "a-lie", "epoch": 99}).encode())
            self._say(topic, payload, retain=True)          # soon taken back
        if payload.startswith(b'{"signed"'):
            envelope = json.loads(payload)
            self._say(topic, json.dumps({**envelope, "mac": [envelope["mac"]]}).encode())   # as text it is the same
            self._kept.append((topic, payload))
            for _ in range(3):
                old = self._draw.choice(self._kept)
                self._say(*old)
                self._say(*altered(old[1], old[0], self._kept, self._draw))

    def _say(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        self._sent[topic, payload] += 1
        self.lies += 1
        self._client.publish(topic, payload, retain=retain)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


@pytest.mark.slow
@pytest.mark.usefixtures("packages")
def test_every_client_completes_a_signed_study_beside_a_hostile_one(tmp_path: Path) -> None:
    for program in ("jq", "openssl"):
        binary(program)
    keys = tmp_path / "keys.toml"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("BAYESD_")}

    def bayesd(*words: str) -> str:
        done = subprocess.run([sys.executable, "-m", "bayesd.cli", *words], env=environment, capture_output=True,
                              text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    for name in ("sh-1", "js-1", "py-1", "op"):
        bayesd("worker", "key", name, "-o", str(tmp_path / f"{name}.key"), "--keys", str(keys))
        assert (tmp_path / f"{name}.key").stat().st_mode & 0o777 == 0o600
    assert keys.stat().st_mode & 0o777 == 0o600
    study = tmp_path / "study.json"
    study.write_text(json.dumps({"name": "s", "method": "random", "budget": {"trials": TRIALS}, "retry": {"lost": 50},
                                 "lease": {"default_s": 10}, "space": {"x": {"type": "float", "low": 0, "high": 1}}}))
    flags = ("--worker-keys", str(keys), "--require-signed")
    with Broker(tmp_path) as broker, Daemon(tmp_path, broker.url, *flags) as daemon:
        with Wire(broker.url) as wire:
            daemon.ready(wire)
        hostile = Hostile(broker.port)
        reach = ("--broker", broker.url, "--client", "op", "--sign-key", str(tmp_path / "op.key"), "--timeout", "30")
        bayesd("study", "create", str(study), *reach)
        shell = {**environment, "BAYESD_BROKER_PORT": str(broker.port), "BAYESD_SPOOL": str(tmp_path / "sh"),
                 "BAYESD_ASK_S": "2", "BAYESD_TELL_S": "2", "BAYESD_SIGN_KEY_FILE": str(tmp_path / "sh-1.key")}
        script = PROGRAM.format(module=MODULE, port=broker.port, spool=tmp_path / "js", key=tmp_path / "js-1.key")
        workers = [
            subprocess.Popen(["sh", str(SHELL), "sh-1", "s", "echo \"$BAYESD_PARAMS\" | jq '(.x - 0.3) * (.x - 0.3)'"],
                             env=shell),
            subprocess.Popen(["node", "--input-type=module", "--eval", script], env=environment),
            subprocess.Popen([sys.executable, "-m", "bayesd.cli", "worker", "run", "--study", "s", "--name", "py-1",
                              "--broker", broker.url, "--sign-key", str(tmp_path / "py-1.key"), "--spool",
                              str(tmp_path / "py"), "--", "sh", "-c", "echo {x} | jq '(. - 0.3) * (. - 0.3)'"],
                             env=environment)]
        try:
            assert [worker.wait(90) for worker in workers] == [0, 0, 0]
        finally:
            hostile.close()
            for worker in workers:
                if worker.poll() is None:
                    worker.kill()
        assert hostile.lies > 100
        events = daemon.events()
        said = bayesd("study", "show", "s", "-f", "json", *reach)
        assert json.loads(said)["state"] == "closed"
        assert daemon.stop() == 0
    points = {event["trial"]: event["data"]["params"]["x"] for event in events if event["type"] == "trial.proposed"}
    results = [event for event in events if event["type"] == "trial.completed"]
    assert sorted(event["trial"] for event in results) == list(range(1, TRIALS + 1))
    for event in results:
        assert event["data"]["auth"] == "hmac"
        assert event["data"]["values"]["value"] == pytest.approx((points[event["trial"]] - 0.3) ** 2)
    assert {event["actor"] for event in results} == {"worker/sh-1", "worker/js-1", "worker/py-1"}
    for secret in (path.read_text().strip() for path in tmp_path.glob("*.key")):
        assert secret not in daemon.said()
