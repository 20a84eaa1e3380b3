"""The files of deploy/ do what they say, as far as a machine without root services can show."""

import json
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from tests.edges.mosquitto import Mosquitto, missing

DEPLOY = Path(__file__).parents[2] / "deploy"


@pytest.mark.mosquitto
def test_the_acl_lets_a_worker_act_only_as_itself(tmp_path: Path) -> None:
    """Judged on delivery: a denied publish ends with status 0, a denied subscription gets a good answer."""
    for tool in ("mosquitto_pub", "mosquitto_sub", "mosquitto_passwd"):
        if shutil.which(tool) is None:
            missing(tool, "install mosquitto-clients")
    passwords = tmp_path / "passwd"
    passwords.touch(mode=0o600)
    for name in ("bayesd", "w1", "w2", "alice"):
        subprocess.run(["mosquitto_passwd", "-b", str(passwords), name, f"{name}-secret"], check=True,
                       capture_output=True)
    acl = tmp_path / "acl"
    acl.write_text((DEPLOY / "mosquitto" / "bayesd.acl").read_text())
    acl.chmod(0o600)
    settings = [line for line in (DEPLOY / "mosquitto" / "bayesd.conf").read_text().splitlines()
                if line and not line.startswith(("#", "listener", "password_file", "acl_file", "persistence",
                                                 "autosave", "set_tcp", "max_queued"))]
    broker = Mosquitto(tmp_path, *settings, f"password_file {passwords}", f"acl_file {acl}")

    def client(tool: str, who: str, *more: str) -> list[str]:
        return [f"mosquitto_{tool}", "-h", "127.0.0.1", "-p", str(broker.port), "-u", who, "-P", f"{who}-secret", *more]

    with broker:
        ears = {who: subprocess.Popen(client("sub", who, "-t", "#", "-F", "%t", "-W", "6"), stdout=subprocess.PIPE,
                                      text=True) for who in ("bayesd", "w1", "w2", "alice")}
        time.sleep(1.0)            # a denied subscription looks like a good one, so there is no sign to wait for
        said = {"w1": ["from/w1/tell", "from/w2/tell", "to/w2/grant", "admin/alice/request", "admin/w1/request",
                       "study/s", "daemon", "worker/w1", "worker/w2"],
                "alice": ["admin/alice/request", "admin/bob/request", "from/w1/tell", "study/s"],
                "bayesd": ["to/w1/grant", "to/w2/grant", "study/s", "daemon", "from/w1/tell"]}
        for who, topics in said.items():
            for topic in topics:
                subprocess.run(client("pub", who, "-q", "1", "-t", f"bayesd/1/{topic}", "-m", json.dumps(who)),
                               check=False, capture_output=True)
        heard = {who: sorted(line.removeprefix("bayesd/1/") for line in ear.communicate(timeout=20)[0].split())
                 for who, ear in ears.items()}
    assert heard["bayesd"] == ["admin/alice/request", "daemon", "from/w1/tell", "study/s"]
    assert heard["w1"] == ["daemon", "study/s", "to/w1/grant"]
    assert heard["w2"] == ["daemon", "study/s", "to/w2/grant"]
    assert heard["alice"] == ["daemon", "study/s", "worker/w1"]
