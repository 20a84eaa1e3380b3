"""Keys as people handle them: made by a command, kept in files, read again at SIGHUP."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from tests.edges.hostile import KEYS

from bayesd.cli import bayesd
from bayesd.config import ConfigError, load
from bayesd.daemon import _keys
from bayesd.seals import Seals, Unverified, add_key, load_keys
from bayesd_client.errors import BadOptions
from bayesd_client.worker import _sign_key
from bayesd_schemas.sealed import read_key, seal


def call(*words: str | Path) -> tuple[int, str]:
    done = CliRunner().invoke(bayesd, [str(word) for word in words])
    return done.exit_code, done.output + str(done.exception or "")


def test_a_key_is_made_for_both_sides_and_kept_from_others(tmp_path: Path) -> None:
    keys, mine = tmp_path / "keys.toml", tmp_path / "gpu.7.key"
    assert call("worker", "key", "gpu.7", "-o", mine, "--keys", keys)[0] == 0
    assert call("worker", "key", "alice", "-o", tmp_path / "alice.key", "--keys", keys)[0] == 0
    assert load_keys(keys) == {"gpu.7": read_key(mine), "alice": read_key(tmp_path / "alice.key")}
    assert {path.stat().st_mode & 0o777 for path in (keys, mine)} == {0o600}
    before = read_key(mine)
    assert "--replace" in call("worker", "key", "gpu.7", "-o", tmp_path / "other", "--keys", keys)[1]
    assert read_key(mine) == before
    keys.chmod(0o640)
    assert call("worker", "key", "gpu.7", "-o", mine, "--keys", keys, "--replace")[0] == 0
    assert load_keys(keys)["gpu.7"] == read_key(mine) != before
    assert keys.stat().st_mode & 0o777 == 0o640            # its owner lets the daemon's group read it
    assert "not a name" in call("worker", "key", "No/Name", "--keys", keys)[1]


def test_json_means_the_same_as_toml(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(json.dumps({"w1": KEYS["w1"].hex()}))
    add_key(keys, "w2", KEYS["w2"])
    assert load_keys(keys) == {"w1": KEYS["w1"], "w2": KEYS["w2"]}


BAD = ['w1 = "{key}', '"w1" = "{key}0"', '"w1" = 7', '"No" = "{key}"', '{{"w1": "{key}"', "w1"]


@pytest.mark.parametrize("text", BAD)
def test_a_bad_file_is_named_and_its_keys_are_not(text: str, tmp_path: Path) -> None:
    keys, secret = tmp_path / "keys", KEYS["w1"].hex()
    keys.write_text(text.format(key=secret))
    with pytest.raises(ConfigError) as caught:
        _keys(load({"worker_keys": str(keys)})[0])
    assert str(keys) in str(caught.value)
    assert secret not in str(caught.value)
    (tmp_path / "one").write_text(secret[:-1])
    with pytest.raises(BadOptions) as refused:
        _sign_key(tmp_path / "one")
    assert secret[:-1] not in str(refused.value)


def test_keys_that_are_read_again_count_from_then_on() -> None:
    seals = Seals()
    assert seals.open("a", "from/w1/tell", "w1", "tell", b"{}") == (b"{}", False)
    seals.replace({"w1": KEYS["w1"]}, required=False)
    assert seals.turn(0.0)
    assert seals.nonce is not None
    with pytest.raises(Unverified):
        seals.open("a", "from/w1/tell", "w1", "tell", b"{}")
    assert seals.open("a", "from/w1/tell", "w1", "tell", seal(KEYS["w1"], "a", "from/w1/tell", b"{}")) == (b"{}", True)
    seals.replace({}, required=False)
    assert not seals.active
    assert seals.nonce is None
