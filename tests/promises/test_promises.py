"""A few rounds of every proof, planted faults that they must see, and the table that is published."""

import json
import os
from pathlib import Path

import pytest
from tests.edges.mosquitto import missing as lacking
from tests.promises.book import PROMISES, Fault, Proof, Round, Tally, book
from tests.promises.prove import FIGURES, TABLE, attempt, hunt, missing, table

BOOK = book()


def _marks(proof: Proof) -> list[pytest.MarkDecorator]:
    return [pytest.mark.slow, *([pytest.mark.mosquitto] if "mosquitto" in proof.needs else [])]


@pytest.mark.parametrize("proof", [pytest.param(each, id=each.name.replace(" ", "-"), marks=_marks(each))
                                   for each in BOOK])
def test_it_cannot_be_broken(proof: Proof) -> None:
    for program in missing(proof):
        lacking(program, f"{proof.name} needs it")
    first = int(os.environ.get("BAYESD_SEED", "0"))
    tally = attempt(proof, range(first, first + proof.quick), Tally())
    assert tally.holds(proof), f"{tally.figure(proof)}: {tally.broken[:3]}"


@pytest.mark.parametrize(("proof", "fault"), [
    pytest.param(proof, fault, id=fault.name.replace(" ", "-"), marks=_marks(proof))
    for proof in BOOK for fault in (proof.faults[:1] if proof.needs else proof.faults)])     # `make mutants` has all
def test_a_planted_fault_is_seen(proof: Proof, fault: Fault) -> None:
    for program in missing(proof):
        lacking(program, f"{proof.name} needs it")
    assert hunt(proof, fault) is not None


@pytest.mark.parametrize("fault", [fault for proof in BOOK for fault in proof.faults], ids=lambda fault: fault.name)
def test_a_fault_has_its_place_in_the_source(fault: Fault) -> None:
    assert fault.source().count(fault.old) == 1


def test_every_promise_has_a_proof_and_every_proof_a_figure() -> None:
    figures = json.loads(FIGURES.read_text())
    assert TABLE.read_text() == table(figures, BOOK), "run `make prove`, or `python tests/promises/prove.py`"
    assert set(figures["proofs"]) <= {proof.name for proof in BOOK}


def test_a_tally_adds_and_a_control_must_break() -> None:
    proof = Proof("x", ("P1",), "kills", lambda folder: pytest.fail("not opened"), 1, 1)
    tally = Tally()
    tally.add(3, Round({"results": 2, "seconds max": 4.0}), 0.5)
    tally.add(4, Round({"results": 5, "seconds max": 1.5}, ("lost 7",)), 0.5)
    assert tally.figure(proof) == "2 kills, 7 results, 4 seconds max, 1 broken"
    assert not tally.holds(proof)
    assert tally.broken == [(4, "lost 7")]
    assert set(PROMISES) == {f"P{number}" for number in range(1, 34)}
    assert Path(TABLE).name == "PROMISES.md"
