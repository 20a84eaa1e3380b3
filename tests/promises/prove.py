"""Try to break every promise as often as a release wants: `make prove`, with progress; it goes on where it was stopped.

    make prove                                        # all, and deploy/PROMISES.md is written anew
    make prove ARGS="--only P2"                       # the proofs of a promise, or one by its name
    make prove ARGS="--quick"                         # the counts of the suite; nothing is published
    make prove ARGS="--only 'power cuts' --seed 17 --count 1"     # one round again
    make prove ARGS="--faults"                        # the planted faults instead: each must be seen

Ends with 1 when a promise was broken, a control held, or a fault was not seen.
"""

import argparse
import contextlib
import hashlib
import json
import logging
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), *(str(ROOT / part) for part in ("daemon", "clients/python", "schemas"))]

from rich.progress import (  # noqa: E402  # the path comes first
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from tests.promises.book import PROMISES, Fault, Proof, Round, Tally, book  # noqa: E402
from tests.simulation.mutants import planted  # noqa: E402

KEPT = ROOT / ".prove"
FIGURES = ROOT / "deploy" / "promises.json"
TABLE = ROOT / "deploy" / "PROMISES.md"
SAVE_S = 5.0
HEAD = """\
# What bayesd promises

Each promise has machines that try to break it; the figures are of their last full runs. Run them yourself:
`make prove`, or one with `make prove ARGS="--only P2"`. A round is a function of its seed, so that
`make prove ARGS="--only 'simulated worlds' --seed 17 --count 1"` runs one again. `make prove ARGS="--faults"` plants
faults into our own source, each of which must be seen. This page is written by `make prove`.

| | promise | proof | last figure | date |
|---|---|---|---|---|
"""


def code() -> str:
    """What a tally is about: it is not gone on with when a source changes."""
    digest = hashlib.sha256()
    for part in ("daemon", "clients/python", "schemas/bayesd_schemas", "tests/promises", "tests/simulation"):
        for path in sorted((ROOT / part).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def missing(proof: Proof) -> list[str]:
    """What it needs and is not here."""
    return [each for each in proof.needs if shutil.which(each) is None and not Path("/usr/sbin", each).exists()]


@contextlib.contextmanager
def opened(proof: Proof, fault: Fault | None = None) -> Iterator[Callable[[int], Round]]:
    """The lab of a proof in a folder of its own, with a fault or without."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="prove-")))
        if fault is not None and proof.faulty is not None:
            yield stack.enter_context(proof.faulty(fault, folder))
            return
        if fault is not None:
            stack.enter_context(planted(fault))
        yield stack.enter_context(proof.lab(folder))


def attempt(proof: Proof, seeds: range, tally: Tally, after: Callable[[], None] = lambda: None) -> Tally:
    """Run the rounds of these seeds. One that ends with an error is broken, and the last."""
    with opened(proof) as round_of:
        for seed in seeds:
            began = time.monotonic()
            try:
                seen = round_of(seed)
            except Exception as error:      # nobody knows in what state the machinery is: no further round
                tally.add(seed, Round({}, (f"{type(error).__name__}: {error}",)), time.monotonic() - began)
                break
            tally.add(seed, seen, time.monotonic() - began)
            after()
    return tally


def hunt(proof: Proof, fault: Fault) -> tuple[int, str] | None:
    """The first round that sees the fault, as (seed, what); None when it survives."""
    with opened(proof, fault) as round_of:
        for seed in range(proof.within):
            try:
                seen = round_of(seed)
            except Exception as error:
                return seed, f"{type(error).__name__}: {error}"
            if seen.broken:
                return seed, seen.broken[0]
    return None


def _slug(proof: Proof) -> str:
    return re.sub(r"[^a-z0-9]+", "-", proof.name.lower())


def _kept(proof: Proof, version: str) -> Tally:
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        kept = json.loads((KEPT / f"{_slug(proof)}.json").read_text())
        if kept.pop("code") == version:
            tally = Tally(**kept)
            tally.broken = [(seed, what) for seed, what in tally.broken]
            return tally
    return Tally()


def _keep(proof: Proof, version: str, tally: Tally) -> None:
    KEPT.mkdir(exist_ok=True)
    (KEPT / f"{_slug(proof)}.json").write_text(json.dumps({"code": version, **asdict(tally)}))


def prove(proofs: list[Proof], count: Callable[[Proof], int], first: int | None) -> dict[str, Tally]:
    """Run them with a bar each. A tally that an earlier run began on the same code is gone on with."""
    version, out = code(), {}
    with Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
                  TextColumn("{task.fields[said]}"), TimeRemainingColumn()) as progress:
        for proof in proofs:
            lacking = missing(proof)
            if lacking:
                progress.console.print(f"{proof.name}: left out, {', '.join(lacking)} is not here")
                continue
            tally = Tally() if first is not None else _kept(proof, version)
            goal = count(proof)
            bar = progress.add_task(proof.name, total=goal, completed=min(tally.rounds, goal), said="")
            saved = time.monotonic()

            def after(proof: Proof = proof, tally: Tally = tally, bar: Any = bar) -> None:
                nonlocal saved
                progress.update(bar, advance=1, said=f"{tally.broken_rounds} broken" if tally.broken_rounds else "")
                if first is None and time.monotonic() - saved > SAVE_S:
                    saved = time.monotonic()
                    _keep(proof, version, tally)

            seeds = range(tally.rounds, goal) if first is None else range(first, first + goal)
            if seeds:
                attempt(proof, seeds, tally, after)
            if first is None:
                _keep(proof, version, tally)
            out[proof.name] = tally
            verdict = "holds" if tally.holds(proof) else "BROKEN" if not proof.is_control else "THE CONTROL HOLDS"
            progress.console.print(f"{proof.name}: {tally.figure(proof)} in {tally.seconds:.0f} s: {verdict}")
            for seed, what in [] if tally.holds(proof) else tally.broken[:5]:
                progress.console.print(f"  seed {seed}: {what}", markup=False)
    return out


def faults(proofs: list[Proof]) -> bool:
    """Plant every fault; says whether each was seen."""
    chosen = [(proof, fault) for proof in proofs for fault in proof.faults if not missing(proof)]
    seen = 0
    for proof, fault in chosen:
        found = hunt(proof, fault)
        seen += found is not None
        how = "SURVIVES" if found is None else f"seed {found[0]}: {found[1][:140]}"
        print(f"{fault.name} ({proof.name}): {how}", flush=True)
    print(f"{seen}/{len(chosen)}")
    return seen == len(chosen)


def publish(tallies: dict[str, Tally], proofs: list[Proof]) -> None:
    """Keep the figures, and write the table from all that are kept."""
    figures = json.loads(FIGURES.read_text()) if FIGURES.exists() else {"proofs": {}, "bugs": []}
    by_name = {proof.name: proof for proof in proofs}
    for name, tally in tallies.items():
        figures["proofs"][name] = {
            "rounds": tally.rounds, "figure": tally.figure(by_name[name]), "holds": tally.holds(by_name[name]),
            "date": f"{datetime.now(UTC):%Y-%m-%d}", "code": code(), "seconds": round(tally.seconds, 1),
            "broken": [list(each) for each in tally.broken] if not by_name[name].is_control else []}
    figures["proofs"] = {name: figures["proofs"][name] for name in sorted(figures["proofs"])}
    FIGURES.write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n")
    TABLE.write_text(table(figures, book()))


def table(figures: dict[str, Any], proofs: list[Proof]) -> str:
    """The published page: every promise, who tries to break it, and what came of it last."""
    lines = HEAD.splitlines()
    for id, says in PROMISES.items():
        rows = []
        for proof in proofs:
            if id in proof.of:
                last = figures["proofs"].get(proof.name)
                rows.append((f"{proof.name}{', a control' if proof.is_control else ''}"
                             f"{f', {len(proof.faults)} planted faults' if proof.faults else ''}",
                             last["figure"] if last else "not run in full yet", last["date"] if last else ""))
        for number, row in enumerate(rows or [("no machine of its own yet", "", "")]):
            lines.append(f"| {id if not number else ''} | {says if not number else ''} | {' | '.join(row)} |")
    lines += ["", "## Faults that the machines found", "",
              "Each is mended; the line finds it again on the code before." if figures["bugs"] else "None yet.", ""]
    if figures["bugs"]:
        lines += ["| found by | what | again |", "|---|---|---|"]
        lines += [f"| {bug['proof']} | {bug['what']} | `{bug['again']}` |" for bug in figures["bugs"]]
        lines.append("")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="a promise by its id, or proofs with this in their name")
    parser.add_argument("--quick", action="store_true", help="the counts of the suite")
    parser.add_argument("--count", type=int, help="so many rounds of each")
    parser.add_argument("--seed", type=int, help="begin with this seed, whatever was done before")
    parser.add_argument("--faults", action="store_true", help="plant the faults; each must be seen")
    parser.add_argument("--list", action="store_true", help="what there is")
    parser.add_argument("--table", action="store_true", help="write the table from the figures that are kept")
    parser.add_argument("--no-publish", action="store_true", help="leave the table as it is")
    given = parser.parse_args()
    logging.disable(logging.CRITICAL)       # what is broken on purpose has much to say
    proofs = [proof for proof in book() if not given.only or given.only in proof.of or given.only in proof.name]
    if not proofs:
        parser.error(f"no proof of {given.only}; --list shows what there is")
    if given.list:
        for proof in proofs:
            print(f"{' '.join(proof.of):24} {proof.name}: {proof.quick} in the suite, {proof.release} {proof.unit} for "
                  f"a release, {len(proof.faults)} planted faults{', a control' if proof.is_control else ''}")
        return 0
    if given.table:
        publish({}, [])
        return 0
    if given.faults:
        return int(not faults(proofs))
    tallies = prove(proofs, lambda proof: given.count or (proof.quick if given.quick else proof.release), given.seed)
    if not (given.quick or given.count or given.seed is not None or given.no_publish):
        publish(tallies, proofs)
        print(f"{TABLE.relative_to(ROOT)} is written")
    return int(not all(tallies[proof.name].holds(proof) for proof in proofs if proof.name in tallies))


if __name__ == "__main__":
    sys.exit(main())
