"""Orders to the optimiser, and what it made."""

import math
from dataclasses import replace

from bayesd.study import stopping
from bayesd.study.desk import Candidate, Desk, Order
from bayesd.study.problem import Suggestion
from bayesd.study.rules.ends import may_stop, settle, stop_by
from bayesd.study.rules.serving import explain, fits, freshen, has_room, serve
from bayesd.study.state import Study

SUGGESTIONS_MAX = 256      # candidates made in one go
PATIENCE_SHARE = 0.02      # of a mean trial's seconds: so long may a worker wait for a modelled point
MODELLED_MAX = 8           # of a model: each takes milliseconds, and the first is not held up by the last


def orders(desk: Desk) -> list[Order]:
    """What the optimiser should work on now: studies with room and too little in the drawer."""
    out = []
    for study in desk.state.studies.values():
        drawer = desk.drawer(study.name)
        if study.status != "open" or drawer.busy_since is not None or drawer.exhausted or study.queue:
            continue
        wanted = _wanted(desk, study) - len(drawer.candidates)
        if wanted <= 0:
            continue
        problem, pending = desk.problem(study)
        if study.spec.stop is not None and study.spec.stop.by_model:
            problem = replace(problem, judged=True)
        drawer.busy_since = desk.now
        out.append(Order(study.name, drawer.generation, study.version, problem,
                         min(wanted, SUGGESTIONS_MAX), desk.state.seq, pending))
    return out


def _wanted(desk: Desk, study: Study) -> int:
    """How many candidates should lie ready: enough that nobody waits, few enough to stay fresh."""
    if not has_room(study):
        return 0
    room = SUGGESTIONS_MAX if study.spec.budget.trials is None else study.spec.budget.trials - study.used
    queue = desk.queues.get(study.name, {})
    asked = sum(standing.ask.n for standing in queue.values()) + sum(
        standing.ask.n for standing in desk.queues.get("", {}).values())
    if not asked and not study.running:
        return 0                                   # nobody is there: make nothing
    held = len(desk.drawer(study.name).candidates)
    if study.spec.method == "bayes":
        # A fresh point is better than a ready one, and takes milliseconds: few workers get theirs made
        # when they ask (those that ask ahead do not wait), many find some ready.
        return min(room, asked + len(study.running) // 4, held + MODELLED_MAX)
    busy = asked + len(study.running)
    # A model-free point never grows stale, so draw many at once and not before they run low.
    return min(room, 4 * busy + 8) if held < busy else 0


def supply(desk: Desk, order: Order, suggestion: Suggestion) -> None:
    """Put what the optimiser made into the drawer, note its fit, and serve those who wait.

    Survives coming late: what is no longer wanted is dropped, and the study is asked for again.
    """
    study = desk.state.studies[order.study]
    drawer = desk.drawer(study.name)
    drawer.busy_since = None
    if order.version == study.version and suggestion.fit is not None and study.status != "closed":
        # A fit is logged whatever becomes of the candidates that asked for it.
        fit = suggestion.fit
        desk.record("model.fitted", {"model": fit.model, "n": fit.n, "theta": list(fit.theta),
                                     "as_of": order.as_of, "number": order.problem.number}, study=study)
    if order.version == study.version and suggestion.convergence is not None and may_stop(study):
        fired = stopping.by_model(study.spec.stop, suggestion.convergence)
        if fired is not None:
            stop_by(desk, study, fired, order.as_of)
            settle(desk, study)
    if order.version != study.version or order.generation != drawer.generation or study.status == "closed":
        return
    overtaken = order.problem.number != study.next_stream + len(drawer.candidates)
    if overtaken and not (study.spec.method == "bayes" and study.repeats):
        return         # a plainer sampler answered meanwhile, and these may be the same points
    # By value where a model saw them; elsewhere they are the trials proposed since `as_of`, and may be hundreds.
    ahead = order.problem.pending[len(order.pending):] if study.spec.method == "bayes" else None
    drawn = order.problem.drawn
    for number, proposal in enumerate(suggestion.proposals, order.problem.number):
        drawer.candidates.append(Candidate(proposal, order.as_of, order.pending, ahead or (),
                                           len(order.problem.history), desk.now, study.fit_seq, number, drawn))
        drawn = proposal.drawn
        if ahead is not None:
            ahead = (*ahead, proposal.params)
    if suggestion.exhausted and not suggestion.proposals:
        drawer.exhausted = True
    serve(desk, study)
    freshen(desk, study)
    if drawer.exhausted:
        settle(desk, study)
        for standing in desk.waiting_for(study.name):
            explain(desk, standing)


def overdue(desk: Desk, deadline_s: float) -> list[Order]:
    """Studies whose suggestions are slow while somebody waits: a plainer sampler should answer now.

    Who trains for an hour does better to wait some seconds for a good point than to train on any.
    """
    out = []
    for name, drawer in desk.drawers.items():
        study = desk.state.studies.get(name)
        if study is None or drawer.busy_since is None:
            continue
        patience_s = max(deadline_s, PATIENCE_SHARE * study.told_seconds / max(1, study.told_count))
        waiting = [standing for standing in desk.waiting_for(name)
                   if desk.now - standing.began >= patience_s and fits(study, standing.ask)]
        if waiting and study.status == "open" and has_room(study) and not drawer.candidates:
            problem, pending = desk.problem(study)
            room = math.inf if study.spec.budget.trials is None else study.spec.budget.trials - study.used
            count = int(min(sum(standing.ask.n for standing in waiting), room, SUGGESTIONS_MAX))
            out.append(Order(name, drawer.generation, study.version, replace(problem, method="random"),
                             count, desk.state.seq, pending))
    return out


def supply_fallback(desk: Desk, order: Order, suggestion: Suggestion) -> None:
    """Serve from a plainer sampler under a deadline; the slow suggestion stays under way."""
    drawer = desk.drawer(order.study)
    busy_since = drawer.busy_since
    proposals = tuple(replace(proposal, fallback="deadline", drawn=order.problem.drawn)
                      for proposal in suggestion.proposals)
    supply(desk, order, replace(suggestion, proposals=proposals, fit=None, exhausted=False))
    drawer.busy_since = busy_since
