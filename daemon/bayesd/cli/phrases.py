"""An event in words, for `log show` and `log tail`."""

from collections.abc import Callable
from typing import Any

from bayesd import show
from bayesd_schemas.upcast import upcast

Data = dict[str, Any]


def of(body: Data) -> str:
    """What happened, in a phrase. An event of a later version is shown by its data."""
    phrase = _PHRASES.get(body["type"])
    if phrase is None:
        return show.cell(body["data"])[:120]
    try:
        words = phrase(upcast(body["type"], body.get("tv", 1), body["data"]))
    except (KeyError, TypeError, AttributeError):     # of a later version
        words = show.cell(body["data"])[:120]
    actor = str(body["actor"])
    return f"{words}  by {actor.partition('/')[2]}" if actor.startswith("operator/") else words


def _measured(data: Data) -> str:
    values = data.get("values") or {}
    words = show.cell(next(iter(values.values()))) if len(values) == 1 else show.params(values)
    if data.get("se") is not None:
        words += f" ± {data['se']:.2g}"
    if data.get("seconds") is not None:
        words += f" in {data['seconds']:.3g} s"
    return words + (f"  (fence {data['fence']})" if data.get("fence", 1) > 1 else "")


def _proposed(data: Data) -> str:
    why = f", because {data['fallback']}" if data.get("fallback") else ""
    return f"{show.params(data['params'])}  by {data['sampler']}{why}"


def _failed(data: Data) -> str:
    again = ", to be tried again" if data.get("retry") else ""
    error = str(data.get("error") or "").strip().splitlines()
    return f"{data['class']}{again}" + (f": {error[-1][:80]}" if error else "")


def _run_began(data: Data) -> str:
    words = f"{data['worker']} begins run {data['run']}"
    if data.get("took"):
        words += f", holds {len(data['took'])} leases"
    return words + (f", gives up {len(data['ended'])}" if data.get("ended") else "")


_PHRASES: dict[str, Callable[[Data], str]] = {
    "log.opened": lambda data: f"log {data['log']} begins, format {data['format']}",
    "log.repaired": lambda data: f"a head of {data['size']} events is given up: {data['reason']}",
    "daemon.started": lambda data: f"daemon {data['version']}, epoch {data['epoch']}",
    "daemon.stopped": lambda data: str(data.get("reason", "")),
    "engine.fingerprint": lambda data: f"numbers are made by {str(data['fingerprint'])[:12]}…",
    "study.created": lambda data: f"{data['spec'].get('method', 'bayes')} over {', '.join(data['spec']['space'])}",
    "study.forked": lambda data: f"of {data['origin']['study']} behind event {data['origin']['at']}, "
                                f"{data['spec'].get('method', 'bayes')}",
    "study.warmed": lambda data: f"{data['source']} is to help, with {data['n']} results up to event {data['at']}",
    "study.amended": lambda data: f"changed; its space has revision {data['space_rev']}",
    "study.paused": lambda data: "hands out nothing",
    "study.resumed": lambda data: "hands out again",
    "study.closed": lambda data: f"by rule {data['rule']}, running trials {data['running']}",
    "study.stopping": lambda data: f"rule {data['rule']} fired; running trials finish",
    "study.confirming": lambda data: f"trials {', '.join(map(str, data['trials']))} are measured again, each "
                                     f"{data['repeats']} times",
    "study.winner": lambda data: "none" if data["trial"] is None else f"#{data['trial']}"
                                 + ("" if data["confirmed"] else ", which nobody measured again"),
    "study.ticked": lambda data: f"open for {data['elapsed_s']:.0f} s",
    "point.enqueued": lambda data: show.params(data["params"]),
    "run.began": _run_began,
    "trial.proposed": _proposed,
    "trial.leased": lambda data: f"to {data['worker']} for {data['lease_s']:g} s, fence {data['fence']}"
                                 + (f", up to rung {data['fidelity']}" if data.get("fidelity") else ""),
    "lease.expired": lambda data: f"fence {data['fence']}: {data.get('reason', 'no word in time')}",
    "lease.held": lambda data: f"fence {data['fence']} goes on, run {data['run']}",
    "lease.released": lambda data: f"fence {data['fence']} given back",
    "trial.reported": lambda data: f"step {data['step']}: {_measured({'values': data['values']})}",
    "trial.completed": _measured,
    "trial.failed": _failed,
    "trial.paused": lambda data: f"at rung {data['fidelity']}: {_measured(data)}",
    "trial.pruned": _measured,
    "trial.imported": lambda data: f"{_measured(data) if data.get('values') else data.get('class') or 'failed'}  from "
                                  f"{data['origin']['study']} #{data['origin']['trial']}",
    "outcome.late": lambda data: f"late: {data['state']} {_measured(data)}",
    "outcome.voided": lambda data: str(data.get("reason", "(text outside)")),
    "model.fitted": lambda data: f"{data['model']} of {data['n']} outcomes",
    "worker.revoked": lambda data: f"{data['worker']}: {data.get('reason', '(text outside)')}",
    "text.redacted": lambda data: f"{len(data['refs'])} texts: {data['reason']}",
}
