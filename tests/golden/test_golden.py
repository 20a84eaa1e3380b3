"""Logs of every release replay for ever, to the same state."""

import json
from pathlib import Path

import pytest

from bayesd.replay import event_of
from bayesd.study import snapshot
from bayesd.study.canonical import ZERO, canonical, leaf_hash
from bayesd.study.fold import KNOWN, apply, replay
from bayesd.study.knowledge import knowledge_digest
from bayesd.study.state import State
from bayesd_schemas import events
from bayesd_schemas.upcast import VERSIONS

FOLDER = Path(__file__).parent
LOGS = sorted(FOLDER.glob("*.jsonl"))


def read(path: Path) -> tuple[list[bytes], str]:
    *bodies, last = path.read_text(encoding="utf-8").splitlines()
    return [body.encode() for body in bodies], json.loads(last)["digest"]


def test_there_is_a_golden_log_of_every_version_of_an_event() -> None:
    seen = {(body["type"], body["tv"]) for path in LOGS for body in map(json.loads, read(path)[0])}
    assert {(type, tv) for type in events.EVENTS for tv in range(1, VERSIONS.get(type, 1) + 1)} <= seen


@pytest.mark.parametrize("path", LOGS, ids=lambda path: path.stem)
def test_what_the_optimiser_knows_is_what_it_knew(path: Path) -> None:
    state = replay(event_of(body, leaf_hash(body)) for body in read(path)[0])
    known = json.loads(path.read_text(encoding="utf-8").splitlines()[-1]).get("knowledge")
    if known is None:       # written before there was such a digest, which then lies beside
        known = json.loads((FOLDER / f"{path.stem}.knowledge.json").read_text())
    assert {name: knowledge_digest(study) for name, study in state.studies.items()} == known


@pytest.mark.parametrize("path", LOGS, ids=lambda path: path.stem)
def test_a_golden_log_folds_to_its_state(path: Path) -> None:
    bodies, digest = read(path)
    assert snapshot.digest(replay(event_of(body, leaf_hash(body)) for body in bodies)) == digest


@pytest.mark.parametrize("path", LOGS, ids=lambda path: path.stem)
def test_its_chain_holds_and_its_events_are_what_the_schemas_say(path: Path) -> None:
    prev = ZERO
    for seq, body in enumerate(read(path)[0], start=1):
        envelope = json.loads(body)
        assert (envelope["seq"], envelope["prev"]) == (seq, prev)
        assert canonical(envelope) == body
        events.validate(envelope)
        prev = leaf_hash(body).hex()


@pytest.mark.parametrize("path", LOGS, ids=lambda path: path.stem)
def test_a_snapshot_anywhere_and_the_rest_are_the_whole(path: Path) -> None:
    bodies, digest = read(path)
    whole = [event_of(body, leaf_hash(body)) for body in bodies]
    state = State()
    for count, event in enumerate(whole, start=1):
        apply(state, event)
        loaded = snapshot.load(*snapshot.dump(state))
        assert loaded is not None
        if count % 10 == 0 or count > len(whole) - 20:
            rest = [event_of(body, leaf_hash(body)) for body in bodies[count:]]
            assert snapshot.digest(replay(rest, loaded)) == digest, f"a snapshot at event {count} goes another way"


def test_every_event_type_that_is_written_is_in_a_golden_log() -> None:
    seen = {json.loads(body)["type"] for path in LOGS for body in read(path)[0]}
    assert seen == set(events.EVENTS)
    assert set(events.EVENTS) == KNOWN
