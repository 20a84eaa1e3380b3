"""Nobody falsifies a log unnoticed by who kept one signed note; and what goes unnoticed without one.

The table of the README ("What the log proves") is held against this. More tries: `python tests/edges/attacks.py`.
"""

from pathlib import Path

import pytest
from tests.edges import attacks
from tests.edges.attacks import ATTACKS, Outcome, World, attempt, world

from bayesd.cli import offline
from bayesd.evidence import Head

TRIES = 20
ALWAYS, WITH_KEY, NEVER = (True, True), (True, False), (False, False)

# (noticed with the file and the public key, noticed with the file alone), where no note came from outside.
ALONE: dict[tuple[str, str], tuple[bool, bool]] = {
    ("truncate", "notes, too"): NEVER,
    ("roll back", "an older copy"): NEVER,
    ("fork", "notes gone"): NEVER,
    ("fork", "notes gone, shorter"): NEVER,
    ("fork", "notes by the key"): NEVER,
    ("fork", "notes by the key, shorter"): NEVER,
    ("reseal", "notes gone"): NEVER,
    ("reseal", "notes by the key"): NEVER,
    ("reseal", "notes by another key"): WITH_KEY,
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> World:
    return world(tmp_path_factory.mktemp("attacks"))


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_is_noticed_and_its_place_is_named(made: World, name: str) -> None:
    outcomes = [attempt(made, name, seed) for seed in range(TRIES)]
    assert [f"seed {seed}, {outcome.struck.variant}: {outcome.fault}"
            for seed, outcome in enumerate(outcomes) if outcome.fault is not None] == []
    for seed, outcome in enumerate(outcomes):
        noticed = outcome.with_key, outcome.with_file
        assert noticed == _alone(outcome), (seed, outcome.struck)


def _alone(outcome: Outcome) -> tuple[bool, bool]:
    return ALONE.get((outcome.name, outcome.struck.variant), ALWAYS)


def test_a_copy_that_nobody_changed_is_no_damage(made: World) -> None:
    """The control: what the attacks are compared with."""
    for leftover in made.path.parent.glob("log.db*"):
        leftover.unlink()
    made.copy().write(made.path, made.template)
    for head in (1, 20, 133, attacks.EVENTS):
        found = offline.examine(made.path, keys=[made.signer.vkey],
                                heads=[Head("a worker's note", made.heads[head])])
        assert found.damage is None
        assert (found.report.verdict.heads, found.report.verdict.notes, found.report.verdict.signed) == (1, 10, 200)
        assert found.recorded.compared == 2         # the snapshot, and the record of it in the log
    assert attacks.folded_by_a_daemon(made.path) == made.state


def test_the_readme_says_what_goes_unnoticed() -> None:
    readme = Path(__file__).parents[2].joinpath("README.md").read_text()
    table = readme[readme.index("## What the log proves"):readme.index("## Measured")]
    rows = {line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:5]]
            for line in table.splitlines() if line.startswith("| ")}
    told = {True: "yes", False: "no"}
    said = {
        "cut off its end, or put an older copy in its place": ("truncate", "notes, too"),
        "another history from some event on, the notes behind it removed": ("fork", "notes gone"),
        "an event changed and all behind it made anew, the notes behind it removed": ("reseal", "notes gone"),
        "the same, signed by another key, which the log then names": ("reseal", "notes by another key"),
        "the same, signed by the daemon's own key": ("reseal", "notes by the key"),
        "an event edited, deleted, put in or moved; a column beside it; a snapshot": ("edit", "body")}
    for words, which in said.items():
        with_key, with_file = ALONE.get(which, ALWAYS)
        assert rows[words] == ["yes", told[with_key], told[with_file]], words
