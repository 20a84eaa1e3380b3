"""The image, Compose file and manifests: locked down, and about settings and commands that there are.

Nothing here needs a container engine. The wheel is built from just those files that the image copies.
"""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from bayesd.cli import bayesd
from bayesd.config import ENVIRONMENT, Config, load

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
PROGRAM = "/opt/bayesd/bin/bayesd"
CLIENT = {"BAYESD_BROKER", "BAYESD_ROOT", "BAYESD_CLIENT", "BAYESD_USERNAME", "BAYESD_PASSWORD_FILE", "BAYESD_CA_FILE",
          "BAYESD_CERT_FILE", "BAYESD_KEY_FILE"}


def instructions() -> list[tuple[str, str]]:
    text = re.sub(r"\\\n\s*", " ", (DEPLOY / "container" / "Containerfile").read_text())
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(line.partition(" ")[0], line.partition(" ")[2]) for line in lines]


@pytest.fixture(scope="module")
def compose() -> Any:
    return yaml.safe_load((DEPLOY / "compose" / "compose.yaml").read_text())


@pytest.fixture(scope="module")
def manifests() -> dict[str, Any]:
    found = yaml.safe_load_all((DEPLOY / "kubernetes" / "bayesd.yaml").read_text())
    return {each["kind"]: each for each in found}


def must_be_known(words: Sequence[str]) -> None:
    """Verbs, and the options before `--`, are those of the command line."""
    command: click.Command = bayesd
    words = list(words)
    while isinstance(command, click.Group):
        name = words.pop(0)
        found = command.get_command(click.Context(command), name)
        assert found is not None, f"there is no command {name}"
        command = found
    options = words[:words.index("--")] if "--" in words else words
    known = {flag for each in command.params for flag in each.opts}
    assert {word for word in options if word.startswith("--")} <= known


# --- The image -----------------------------------------------------------------------------------------


def test_the_image_runs_as_nobody_and_without_a_shell() -> None:
    last: dict[str, str] = {}
    for word, rest in instructions():
        if word == "FROM":
            last = {}
        last[word] = rest
    user, _, group = last["USER"].partition(":")
    assert int(user) >= 10_000
    assert int(group) >= 10_000
    assert json.loads(last["ENTRYPOINT"]) == [PROGRAM]
    must_be_known(json.loads(last["CMD"]))
    assert json.loads(last["HEALTHCHECK"].partition("CMD ")[2])[0] == PROGRAM
    assert "RUN" not in last                        # nothing is done in the image that is kept, so nothing is left over
    environment = dict(each.split("=", 1) for each in last["ENV"].split())
    assert json.loads(last["VOLUME"]) == [environment["STATE_DIRECTORY"]]


def test_the_image_has_all_that_the_wheel_is_built_of(tmp_path: Path) -> None:
    kept = (DEPLOY / "container" / "Containerfile.dockerignore").read_text().splitlines()
    for word, rest in instructions():
        if word == "COPY" and not rest.startswith("--from"):
            *sources, target = rest.split()
            for source in sources:
                assert f"!{source}" in kept
                place = tmp_path / (source if target == "./" else target)
                if (ROOT / source).is_dir():
                    shutil.copytree(ROOT / source, place, ignore=shutil.ignore_patterns("__pycache__"))
                else:
                    shutil.copy(ROOT / source, place)
    done = subprocess.run([sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet", "--no-deps",
                           "--wheel-dir", str(tmp_path / "out"), str(tmp_path)], capture_output=True, text=True,
                          check=False)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "out").glob("bayesd-*.whl"))) == 1


# --- Compose -------------------------------------------------------------------------------------------


def test_every_service_is_locked_in(compose: Any) -> None:
    assert set(compose["services"]) == {"broker", "daemon", "worker", "alice"}
    assert compose["networks"] == {"bayesd": {"internal": True}}
    for name, service in compose["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert not {"privileged", "ports", "network_mode", "pid", "devices"} & service.keys(), name
        assert int(service["user"].partition(":")[0]) > 0, name
        assert service["healthcheck"], name
        for variable, value in service.get("environment", {}).items():
            known = CLIENT | {ENVIRONMENT + key.upper() for key in Config.model_fields}
            assert variable in known, name
            if variable.endswith("_FILE"):          # a secret is a file that only this service has
                assert value in {f"/run/secrets/{each}" for each in service["secrets"]}
    assert all(set(secret) == {"file"} for secret in compose["secrets"].values())


def test_services_say_what_the_command_line_knows(compose: Any) -> None:
    for name in ("daemon", "worker", "alice"):
        must_be_known(compose["services"][name]["command"])
    settings = {key.removeprefix(ENVIRONMENT).lower(): value
                for key, value in compose["services"]["daemon"]["environment"].items()}
    assert load({}, Path("/dev/null"), {ENVIRONMENT + key.upper(): value for key, value in settings.items()})[0].broker


def test_the_program_of_the_worker_fits_its_study(compose: Any) -> None:
    work = DEPLOY / "compose" / "work"
    study = tomllib.loads((work / "study.toml").read_text())
    command = compose["services"]["worker"]["command"]
    assert command[command.index("--study") + 1] == study["name"]
    placeholders = re.findall(r"\{(\w+)\}", " ".join(command))
    assert placeholders == list(study["space"])
    done = subprocess.run([sys.executable, str(work / "train.py"), *(f"--{name}=1" for name in placeholders)],
                          capture_output=True, text=True, check=True)
    assert float(done.stdout) == 9.0


# --- Kubernetes ----------------------------------------------------------------------------------------


def test_there_is_one_pod_and_it_may_do_nothing(manifests: dict[str, Any]) -> None:
    spec = manifests["StatefulSet"]["spec"]
    assert spec["replicas"] == 1
    assert spec["volumeClaimTemplates"][0]["spec"]["accessModes"] == ["ReadWriteOncePod"]
    pod = spec["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] == 30
    assert pod["automountServiceAccountToken"] is False
    assert manifests["ServiceAccount"]["automountServiceAccountToken"] is False
    security = pod["securityContext"]
    assert security["runAsNonRoot"] is True
    assert min(security["runAsUser"], security["runAsGroup"], security["fsGroup"]) >= 10_000
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
    [container] = pod["containers"]
    assert container["securityContext"] == {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True,
                                            "capabilities": {"drop": ["ALL"]}}
    assert container["resources"]["requests"]["memory"] == container["resources"]["limits"]["memory"]
    assert "ports" not in container
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert container[probe]["exec"]["command"][0] == PROGRAM
    writable = {mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")}
    assert writable == {"/var/lib/bayesd", "/tmp"}
    assert manifests["Namespace"]["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def test_the_pod_reaches_the_broker_and_names_and_nothing_else(manifests: dict[str, Any]) -> None:
    policy = manifests["NetworkPolicy"]["spec"]
    labels = manifests["StatefulSet"]["spec"]["template"]["metadata"]["labels"]
    assert policy["podSelector"]["matchLabels"] == labels
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert policy["ingress"] == []
    assert [sorted(each["port"] for each in rule["ports"]) for rule in policy["egress"]] == [[8883], [53, 53]]
    assert all(rule["to"] for rule in policy["egress"])


def test_the_settings_of_the_pod_are_settings(manifests: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "bayesd.toml"
    file.write_text(manifests["ConfigMap"]["data"]["bayesd.toml"])
    config, _ = load({}, file, {})
    assert config.broker is not None
    assert config.broker.startswith("mqtts://")
    [container] = manifests["StatefulSet"]["spec"]["template"]["spec"]["containers"]
    must_be_known(container["args"])
    assert "Secret" not in manifests                # a secret is made by hand and is in no file of ours
    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert {each["value"] for each in container["env"]} <= mounts


def _programs() -> Iterator[list[str]]:
    pod = yaml.safe_load_all((DEPLOY / "kubernetes" / "bayesd.yaml").read_text())
    for each in pod:
        if each["kind"] == "StatefulSet":
            yield each["spec"]["template"]["spec"]["containers"][0]["livenessProbe"]["exec"]["command"]
    services = yaml.safe_load((DEPLOY / "compose" / "compose.yaml").read_text())["services"]
    yield services["daemon"]["healthcheck"]["test"][1:]
    yield json.loads(dict(instructions())["HEALTHCHECK"].partition("CMD ")[2])


def test_the_probes_are_a_command() -> None:
    probes = list(_programs())
    assert len(probes) == 3
    for probe in probes:
        assert probe == [PROGRAM, "health"]
