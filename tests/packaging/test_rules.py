"""The alerts fire when they should, ask for metrics that there are, and each has a paragraph for who is woken."""

import asyncio
import re
import subprocess
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from tests.edges.mosquitto import binary

from bayesd.bus import BrokerAddress, MqttBus
from bayesd.cli import bayesd
from bayesd.log import MemoryDisk, SqliteLog
from bayesd.metrics import Exposition
from bayesd.notes import Signer
from bayesd.testing import Daemon, MemoryBroker, run

FOLDER = Path(__file__).parents[2] / "deploy" / "prometheus"
RULES: list[dict[str, Any]] = [rule for group in yaml.safe_load((FOLDER / "bayesd.rules.yml").read_text())["groups"]
                               for rule in group["rules"]]


def test_prometheus_itself_says_that_each_alert_fires_when_it_should() -> None:
    promtool = binary("promtool")
    for task in (["check", "rules", "bayesd.rules.yml"], ["test", "rules", "tests.yml"]):
        done = subprocess.run([promtool, *task], cwd=FOLDER, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_is_tried() -> None:
    tried = set(re.findall(r'alertname="(\w+)"', (FOLDER / "tests.yml").read_text()))
    assert tried == {rule["alert"] for rule in RULES}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: str(rule["alert"]))
def test_each_alert_has_words_and_a_remedy(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("critical", "warning", "info")
    said = rule["annotations"]
    assert set(said) == {"summary", "description", "runbook"}
    path, _, anchor = said["runbook"].partition("#")
    assert path == "deploy/prometheus/README.md"
    assert anchor == rule["alert"].lower()
    assert f"\n### {rule['alert']}\n" in (FOLDER / "README.md").read_text()


def test_the_readme_has_no_alert_that_is_gone() -> None:
    said = re.findall(r"^### (Bayesd\w+)$", (FOLDER / "README.md").read_text(), re.MULTILINE)
    assert sorted(said) == sorted(rule["alert"] for rule in RULES)


def test_each_command_that_is_advised_is_there() -> None:
    advised = re.findall(r"`bayesd ([a-z]+)(?: ([a-z]+))?", "".join(
        (FOLDER / name).read_text() for name in ("bayesd.rules.yml", "README.md")))
    assert advised
    for noun, verb in advised:
        command = bayesd.commands[noun]
        assert not isinstance(command, click.Group) or verb in command.commands, (noun, verb)


@pytest.fixture(scope="module")
def exposed(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Every name that a daemon may show, with a disk, a broker, a certificate and a key."""
    folder = tmp_path_factory.mktemp("names")

    async def on_disk() -> SqliteLog:
        log = await SqliteLog.open(folder / "log.db")
        await log.close()
        return log

    log = asyncio.run(on_disk())

    async def story() -> str:
        daemon = Daemon(MemoryBroker(), MemoryDisk(), signer=Signer.generate("memory"))
        service = await daemon.start()
        await asyncio.sleep(1.0)
        service.desk.record("study.created", {"spec": {
            "name": "s", "space": {"x": {"type": "float", "low": 0, "high": 1}}, "budget": {"trials": 3}},
            "order": ["x"]}, study="s", actor="operator/op", cmd="c")
        bus, service.bus = service.bus, MqttBus(BrokerAddress.parse("mqtt://127.0.0.1"), client_id="c", filters=())
        memory, service.log = service.log, log
        _certificate(folder / "cert.pem")
        text = await Exposition(service, {"cert": folder / "cert.pem"}).text()
        service.bus, service.log = bus, memory
        await daemon.stop()
        return text

    families = list(text_string_to_metric_families(run(story())))
    return {sample.name for family in families for sample in family.samples} | {
        family.name for family in families if family.type != "counter"}


def _certificate(path: Path) -> None:
    subprocess.run([binary("openssl"), "req", "-x509", "-newkey", "ed25519", "-nodes", "-keyout", "/dev/null",
                    "-subj", "/CN=test", "-days", "3", "-out", str(path)], check=True, capture_output=True)


def test_each_metric_of_an_alert_is_there(exposed: set[str]) -> None:
    for rule in RULES:
        asked = set(re.findall(r"\b(?:bayesd|process)_\w+", rule["expr"]))
        assert asked or "up{" in rule["expr"]
        assert not asked - exposed, rule["alert"]


def test_each_metric_is_told_of_in_the_readme(exposed: set[str]) -> None:
    text = (FOLDER / "README.md").read_text()
    told = set(re.findall(r"`(?:bayesd|process)_\w+", text))
    for name in exposed:
        base = re.sub(r"_(bucket|count|sum)$", "", name) if "duration" in name or "lag" in name else name
        assert f"`{base}" in told, name
    assert "bayesd_certificate_expiry_timestamp_seconds" in exposed
