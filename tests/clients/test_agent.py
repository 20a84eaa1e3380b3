"""The worker's side of the contract, rule by rule: given messages, when a call, then what is sent."""

import json
import random
from collections.abc import Mapping
from typing import Any

import pytest

from bayesd_client.agent import SEND_MAX, Agent, Answered, Effect, Halt, Note, Send, Settings, Start, tail, tell_message
from bayesd_client.kept import MemorySpool, SavedGrant, SavedHead, SavedTell
from bayesd_schemas.messages import ERROR_MAX, decode

RUN = "4f2a"


def grant(trial: int, ask: str = "4f2a.1", fence: int = 1, run: str = RUN, **more: Any) -> dict[str, Any]:
    return {"ask": ask, "run": run, "study": "s", "trial": trial, "fence": fence, "params": {"x": 0.5},
            "lease_s": 600, "at": "2026-11-23T09:00:00Z", "epoch": 3, "space_rev": 1, **more}


def daemon(epoch: int = 3, state: str = "online", log: str = "log-a") -> dict[str, Any]:
    return {"state": state, "version": "0.1", "log": log, "epoch": epoch}


def study(state: str = "open") -> dict[str, Any]:
    return {"study": "s", "state": state, "objectives": [], "space": {}, "space_rev": 1, "trials": {}, "budget": {},
            "log": "log-a", "epoch": 3, "seq": 1}


class Story:
    """One agent with a hand-turned clock; everything it sends is checked against the schema."""

    def __init__(self, spool: MemorySpool | None = None, connect: bool = True, **settings: Any) -> None:
        self.spool = spool or MemorySpool()
        self.now = 1000.0
        self.agent = Agent(Settings(**{"run": RUN, "study": "s", **settings}), self.spool, random.Random(7))
        self.first = self.check(self.agent.begin(self.now))
        if connect:
            self.first += self.check(self.agent.connected(self.now))

    def check(self, effects: list[Effect]) -> list[Effect]:
        for effect in effects:
            if isinstance(effect, Send):
                payload = json.dumps(effect.message, allow_nan=False).encode()
                assert len(payload) <= SEND_MAX
                decode(effect.kind, payload)
        return effects

    def hear(self, kind: str, message: Mapping[str, Any], retained: bool = False) -> list[Effect]:
        return self.check(self.agent.received(kind, message, self.now, retained))

    def receipt(self, id: str, status: str, **more: Any) -> list[Effect]:
        return self.hear("receipt", {"id": id, "status": status, **more})

    def answer(self, id: str, status: str, **more: Any) -> list[Effect]:
        """A receipt for an ask or a beat: it carries the run."""
        return self.receipt(id, status, **{"run": RUN, **more})

    def finish(self, trial: int, outcome: Mapping[str, Any], fence: int = 1) -> list[Effect]:
        return self.check(self.agent.finished(("s", trial, fence), outcome, self.now))

    def wait(self, seconds: float) -> list[Effect]:
        """Let time pass, as a worker does: tick whenever something is due."""
        until = self.now + seconds
        effects: list[Effect] = []
        while (due := self.agent.due_s()) is not None and due <= until:
            self.now = max(self.now, due)
            effects += self.check(self.agent.tick(self.now))
            again = self.agent.due_s()
            assert again is None or again > self.now, "a worker that turns in place"
        self.now = until
        return effects + self.check(self.agent.tick(self.now))

    def leave(self, patience_s: float = 10.0) -> list[Effect]:
        return self.check(self.agent.leave(self.now, patience_s))

    def reconnect(self) -> list[Effect]:
        self.check(self.agent.disconnected(self.now))
        return self.check(self.agent.connected(self.now))


def sent(effects: list[Effect], kind: str | None = None) -> list[dict[str, Any]]:
    return [effect.message for effect in effects if isinstance(effect, Send) and kind in (None, effect.kind)]


def kinds(effects: list[Effect]) -> list[str]:
    return [effect.kind for effect in effects if isinstance(effect, Send)]


def started(effects: list[Effect]) -> list[int]:
    return [effect.lease.trial for effect in effects if isinstance(effect, Start)]


# The exchange of the contract, literally.

def test_the_literal_exchange() -> None:
    story = Story(prefetch=0)
    assert story.first == [Send("beat", {"run": RUN, "leases": [], "asks": []}),
                           Send("ask", {"id": "4f2a.1", "run": RUN, "study": "s"})]
    effects = story.hear("grant", grant(7))
    assert started(effects) == [7]
    assert sent(effects) == []
    effects = story.check(story.agent.report(("s", 7, 1), 0, {"value": 0.81}, story.now))
    assert effects == [Send("report", {"id": "r.s.7.1.0", "study": "s", "trial": 7, "fence": 1, "step": 0,
                                       "value": 0.81})]
    assert story.receipt("r.s.7.1.0", "recorded", seq=90) == [Answered(("s", 7, 1), 0)]
    assert story.finish(7, {"value": 0.94, "seconds": 12.5}) == [Send("tell", {
        "id": "t.s.7.1", "study": "s", "trial": 7, "fence": 1, "value": 0.94, "seconds": 12.5,
        "ask": {"id": "4f2a.2", "run": RUN, "study": "s"}})]
    story.receipt("t.s.7.1", "recorded", seq=91)
    assert story.agent.end is None
    story.answer("4f2a.2", "closed", reason="budget")
    assert story.agent.end is not None
    assert (story.agent.end.reason, story.agent.end.code) == ("closed", 0)
    assert story.spool.tells == {}
    assert story.spool.grants == {}


# Rule 1: the receipt is the acknowledgement.

def test_a_result_is_saved_before_it_is_sent_and_kept_until_its_receipt() -> None:
    story = Story()
    story.hear("grant", grant(7))
    story.finish(7, {"value": 1.0})
    assert story.spool.tells[("s", 7, 1)].tell["value"] == 1.0
    assert ("s", 7, 1) not in story.spool.grants
    story.receipt("t.s.7.1", "recorded")
    assert story.spool.tells == {}


def test_a_tell_is_sent_again_from_2_s_doubling_to_60_s_with_jitter() -> None:
    story = Story()
    story.hear("grant", grant(7))
    first = story.finish(7, {"value": 1.0})
    times: list[float] = []
    for _ in range(40):
        due = story.agent.due_s()
        assert due is not None
        story.now = due
        tells = sent(story.check(story.agent.tick(due)), "tell")
        if tells:
            times.append(due)
            # The same message again, without the ask that rode in the first one (rule 9).
            assert tells == [{name: value for name, value in sent(first, "tell")[0].items() if name != "ask"}]
    gaps = [b - a for a, b in zip([1000.0, *times], times, strict=False)]
    for number, gap in enumerate(gaps):
        assert 1.0 <= gap <= min(60.0, 2.0 * 2**number)
    assert len(set(gaps)) == len(gaps)
    assert max(gaps) > 8


@pytest.mark.parametrize("status", ["recorded", "duplicate", "late"])
def test_every_receipt_ends_the_sending(status: str) -> None:
    story = Story()
    story.hear("grant", grant(7))
    story.finish(7, {"value": 1.0})
    story.receipt("t.s.7.1", status)
    assert story.agent.undelivered == frozenset()
    assert sent(story.wait(300), "tell") == []


@pytest.mark.parametrize("reason", ["rate", "disk-full"])
def test_retry_after_keeps_the_tell_until_then(reason: str) -> None:
    story = Story()
    story.hear("grant", grant(7))
    story.finish(7, {"value": 1.0})
    story.receipt("t.s.7.1", "rejected", reason=reason, retry_after_s=120)
    assert sent(story.wait(119), "tell") == []
    assert sent(story.reconnect(), "tell") == []        # not even a connect is a reason to hurry
    assert len(sent(story.wait(2), "tell")) == 1
    assert story.spool.rejected == {}


def test_a_rejected_tell_is_set_aside_and_the_exit_says_so() -> None:
    story = Story(prefetch=0)
    story.hear("grant", grant(7))
    story.finish(7, {"value": 1.0})
    effects = story.receipt("t.s.7.1", "rejected", reason="unknown-trial", detail="no trial 7")
    assert any(isinstance(effect, Note) and effect.warning for effect in effects)
    assert story.spool.rejected[("s", 7, 1)]["receipt"]["reason"] == "unknown-trial"
    assert story.spool.tells == {}
    story.answer("4f2a.2", "closed", reason="budget")
    assert story.agent.end is not None
    assert story.agent.end.code == 1


def test_a_closed_study_does_not_end_a_worker_that_holds_a_tell() -> None:
    story = Story(prefetch=0)
    story.hear("grant", grant(7))
    story.finish(7, {"value": 1.0})
    story.answer("4f2a.2", "closed", reason="budget")
    story.agent.disconnected(story.now)
    story.wait(7 * 86400)
    assert story.agent.end is None                       # days offline
    assert sent(story.check(story.agent.connected(story.now)), "tell")[0]["id"] == "t.s.7.1"
    story.receipt("t.s.7.1", "recorded")
    assert story.agent.end is not None
    assert story.agent.end.code == 0


# Rule 3: asks.

def test_asks_one_per_slot_and_one_ahead() -> None:
    story = Story(slots=3)
    asks = sent(story.first, "ask")
    assert [ask["id"] for ask in asks] == ["4f2a.1", "4f2a.2", "4f2a.3", "4f2a.4"]
    assert all("n" not in ask for ask in asks)
    effects = [effect for number in (1, 2, 3, 4) for effect in story.hear("grant", grant(number, f"4f2a.{number}"))]
    assert started(effects) == [1, 2, 3]
    assert sent(effects) == []
    effects = story.finish(2, {"value": 1.0})
    assert started(effects) == [4]                       # the one ahead fills the slot at once
    assert sent(effects, "tell")[0]["ask"]["id"] == "4f2a.5"


def test_an_ask_carries_what_was_asked_for() -> None:
    story = Story(lease_s=90.0, tags=("gpu",), prefetch=0, connect=False)
    effects = story.check(story.agent.connected(story.now))
    assert sent(effects, "ask") == [{"id": "4f2a.1", "run": RUN, "study": "s", "lease_s": 90.0, "tags": ["gpu"]}]


def head(size: int, log: str = "l") -> dict[str, Any]:
    return {"log": log, "epoch": 1, "note": f"bayesd/{log}\n{size}\nroot of {size}\n", "key": "k"}


def seen(effects: list[Effect]) -> list[str | None]:
    """The size that each ask shows."""
    return [ask["seen"].split("\n")[1] if "seen" in ask else None for ask in sent(effects, "ask")]


def test_an_ask_shows_the_head_until_one_is_answered_and_again_after_each_connect() -> None:
    story = Story(prefetch=0, connect=False)
    story.hear("head", head(12))
    assert seen(story.check(story.agent.connected(story.now))) == ["12"]
    assert set(seen(story.wait(31))) == {"12"}
    story.answer("4f2a.1", "rejected", reason="rate", retry_after_s=1)        # perhaps it was not even read
    assert seen(story.wait(2)) == ["12"]
    story.answer("4f2a.1", "waiting", reason="paused")
    assert seen(story.wait(31)) == [None]
    story.check(story.agent.disconnected(story.now))
    assert seen(story.check(story.agent.connected(story.now))) == ["12"]


def test_the_head_that_we_have_is_shown_before_a_newer_one_takes_its_place() -> None:
    story = Story(prefetch=0, connect=False)
    story.hear("head", head(12))
    story.check(story.agent.connected(story.now))
    story.hear("head", head(20))                              # perhaps of a daemon on another copy of the log
    assert story.spool.head == SavedHead("l", head(12)["note"])
    story.answer("4f2a.1", "waiting", reason="paused")
    assert story.spool.head == SavedHead("l", head(20)["note"])
    assert seen(story.wait(31)) == ["20"]
    story.answer("4f2a.1", "waiting", reason="paused")
    story.hear("head", head(15))                              # the largest counts: an older one proves less
    story.hear("head", {**head(30), "note": "no note"})
    assert seen(story.wait(31)) == [None]
    story.hear("head", head(30))
    assert seen(story.wait(31)) == ["30"]


def test_the_head_outlives_the_process_and_gives_way_to_that_of_another_log() -> None:
    spool = MemorySpool()
    first = Story(prefetch=0, spool=spool, connect=False)
    first.hear("head", head(12))
    second = Story(prefetch=0, spool=spool, connect=False)
    assert seen(second.check(second.agent.connected(second.now))) == ["12"]
    second.hear("head", head(3, log="m"))
    assert spool.head == SavedHead("m", head(3, log="m")["note"])


def test_a_head_of_a_later_branch_takes_the_place_of_a_larger_one() -> None:
    story = Story(prefetch=0, connect=False)
    story.hear("head", head(300))
    story.check(story.agent.connected(story.now))
    story.answer("4f2a.1", "waiting", reason="paused")
    later = {**head(210), "note": head(210)["note"] + "branch 202\n\n"}      # an operator accepted a rollback
    story.hear("head", later)
    assert story.spool.head == SavedHead("l", later["note"])
    story.hear("head", head(400))                             # of the branch that was given up
    assert seen(story.wait(31)) == ["210"]


def test_a_waiting_ask_is_sent_again_every_30_s_with_the_same_id() -> None:
    story = Story(prefetch=0)
    story.answer("4f2a.1", "waiting", reason="paused")
    assert sent(story.wait(29)) == []
    assert [ask["id"] for ask in sent(story.wait(61), "ask")] == ["4f2a.1", "4f2a.1", "4f2a.1"]


def test_an_ask_without_any_answer_is_sent_again_within_30_s() -> None:
    story = Story(prefetch=0)
    assert 1 <= len(sent(story.wait(30), "ask")) <= 15
    asks = sent(story.wait(3600), "ask")
    assert {ask["id"] for ask in asks} == {"4f2a.1"}
    assert len(asks) >= 119


def test_asks_go_again_after_every_connect_and_when_the_epoch_changes() -> None:
    story = Story(prefetch=0)
    story.hear("daemon", daemon(3), retained=True)
    story.answer("4f2a.1", "waiting", reason="budget")
    assert sent(story.reconnect()) == [{"run": RUN, "leases": [], "asks": ["4f2a.1"]},
                                       {"id": "4f2a.1", "run": RUN, "study": "s"}]
    assert sent(story.hear("daemon", daemon(3), retained=True)) == []
    assert kinds(story.hear("daemon", daemon(4))) == ["beat", "ask"]
    assert sent(story.hear("daemon", daemon(4))) == []
    story.hear("daemon", daemon(4, state="offline"))     # it lost its line: what we said then is lost
    assert kinds(story.hear("daemon", daemon(4))) == ["beat", "ask"]


def test_a_grant_of_a_newer_epoch_is_news_of_it_too() -> None:
    story = Story(slots=2, prefetch=0)
    story.hear("daemon", daemon(3), retained=True)
    assert kinds(story.hear("grant", grant(7, epoch=4))) == ["beat", "ask", "ask"]


def test_duplicate_ends_an_ask_and_another_takes_its_place() -> None:
    story = Story(prefetch=0)
    assert [ask["id"] for ask in sent(story.answer("4f2a.1", "duplicate"), "ask")] == ["4f2a.2"]


def test_a_rejected_ask_ends_the_worker_after_its_trainings() -> None:
    story = Story(slots=2, prefetch=0)
    story.hear("grant", grant(7))
    effects = story.answer("4f2a.2", "rejected", reason="bad-field", detail="lease_s: too long")
    assert sent(effects) == []
    assert story.agent.end is None
    story.finish(7, {"value": 1.0})
    story.receipt("t.s.7.1", "recorded")
    assert story.agent.end is not None
    assert (story.agent.end.reason, story.agent.end.code) == ("refused", 1)
    assert "too long" in story.agent.end.detail


def test_an_ask_that_is_rejected_for_its_rate_stands() -> None:
    story = Story(prefetch=0)
    story.answer("4f2a.1", "rejected", reason="rate", retry_after_s=5)
    assert sent(story.wait(4.9)) == []
    assert [ask["id"] for ask in sent(story.wait(0.2), "ask")] == ["4f2a.1"]


def test_keep_waits_for_a_closed_study_to_be_opened_again() -> None:
    story = Story(prefetch=0, keep=True)
    story.hear("study", study("open"), retained=True)
    story.answer("4f2a.1", "closed", reason="closed")
    assert story.agent.end is None
    assert sent(story.wait(20)) == []
    story.hear("study", study("closed"))
    assert sent(story.wait(600)) == []
    assert story.agent.end is None
    assert [ask["id"] for ask in sent(story.hear("study", study("open")), "ask")] == ["4f2a.2"]


def test_keep_asks_again_now_and_then_when_no_topic_says_closed() -> None:
    story = Story(prefetch=0, keep=True)
    story.answer("4f2a.1", "closed", reason="budget")
    assert [ask["id"] for ask in sent(story.wait(31), "ask")] == ["4f2a.2"]


# The clean exit.

def test_a_clean_exit_withdraws_releases_and_waits_for_the_receipts() -> None:
    story = Story(slots=1, prefetch=1)
    story.hear("grant", grant(7))
    effects = story.leave()
    assert effects == [
        Send("ask", {"id": "4f2a.2", "run": RUN, "study": "s", "n": 0}),
        Halt(("s", 7, 1), "stopped", owed=False),
        Send("tell", {"id": "t.s.7.1", "study": "s", "trial": 7, "fence": 1, "state": "released"})]
    assert story.spool.grants == {}                      # so a clean stop does not count as a start
    story.answer("4f2a.2", "closed", reason="withdrawn")
    assert story.agent.end is None
    story.receipt("t.s.7.1", "recorded")
    assert story.agent.end is not None
    assert (story.agent.end.reason, story.agent.end.code) == ("stopped", 0)


def test_a_grant_that_crosses_the_withdrawal_is_released() -> None:
    story = Story(slots=1, prefetch=0)
    story.leave()
    assert sent(story.hear("grant", grant(7)), "tell")[0]["state"] == "released"
    story.answer("4f2a.1", "closed", reason="withdrawn")
    story.receipt("t.s.7.1", "recorded")
    assert story.agent.end is not None
    assert story.agent.end.code == 0


def test_a_clean_exit_without_receipts_ends_with_1_and_keeps_the_tells() -> None:
    story = Story(slots=1, prefetch=0)
    story.hear("grant", grant(7))
    story.finish(7, {"value": 1.0})
    story.leave(patience_s=10)
    story.wait(11)
    assert story.agent.end is not None
    assert (story.agent.end.reason, story.agent.end.code) == ("undelivered", 1)
    assert list(story.spool.tells) == [("s", 7, 1)]


def test_a_clean_exit_offline_and_idle_is_at_once() -> None:
    story = Story()
    story.agent.disconnected(story.now)
    story.leave()
    assert story.agent.end is not None
    assert story.agent.end.code == 0


def test_a_line_that_breaks_during_a_clean_exit_does_not_hold_it_up() -> None:
    story = Story(prefetch=0)
    story.leave()
    assert story.agent.end is None
    story.agent.disconnected(story.now)                  # unserved asks lapse by themselves
    assert story.agent.end is not None
    assert story.agent.end.code == 0


def test_withdrawals_are_sent_again() -> None:
    story = Story(prefetch=0)
    story.leave(patience_s=10)
    again = sent(story.wait(9), "ask")
    assert again
    assert all(ask == {"id": "4f2a.1", "run": RUN, "study": "s", "n": 0} for ask in again)


# Rule 4: beats.

def test_after_every_connect_beat_then_tells_then_asks() -> None:
    story = Story(slots=2, prefetch=0)
    story.hear("grant", grant(7))
    story.agent.disconnected(story.now)
    assert sent(story.finish(7, {"value": 1.0})) == []
    effects = story.check(story.agent.connected(story.now))
    assert kinds(effects) == ["beat", "tell", "ask", "ask"]
    assert sent(effects, "beat") == [{"run": RUN, "leases": [["s", 7, 1]], "asks": ["4f2a.2"]}]
    assert "ask" not in sent(effects, "tell")[0]


def test_a_beat_every_third_of_the_lease_while_one_is_held() -> None:
    story = Story(slots=1, prefetch=1)
    story.hear("grant", grant(7, lease_s=30))
    story.hear("grant", grant(8, "4f2a.2", lease_s=60))
    beats = sent(story.wait(60), "beat")
    assert len(beats) == 6
    assert beats[0]["leases"] == [["s", 7, 1], ["s", 8, 1]]      # in training, and queued
    story.finish(7, {"value": 1.0})
    assert ["s", 7, 1] in sent(story.wait(20), "beat")[0]["leases"]     # a tell without receipt is listed
    story.receipt("t.s.7.1", "recorded")
    assert sent(story.wait(20), "beat")[0]["leases"] == [["s", 8, 1]]
    story.finish(8, {"value": 1.0})
    story.receipt("t.s.8.1", "recorded")
    assert sent(story.wait(3600), "beat") == []


def test_name_in_use_stops_asking_and_beating_gives_up_delivers_and_exits_1() -> None:
    story = Story(slots=2, prefetch=1)
    story.hear("grant", grant(7, lease_s=3))
    story.hear("grant", grant(8, "4f2a.2", lease_s=3))
    story.finish(7, {"value": 1.0})
    effects = story.answer(RUN, "rejected", reason="name-in-use")
    assert effects == [Halt(("s", 8, 1), "name-in-use", owed=False)]
    assert list(story.spool.grants) == []
    assert list(story.spool.tells) == [("s", 7, 1)]
    later = story.wait(600)
    assert set(kinds(later)) == {"tell"}
    assert all("ask" not in tell for tell in sent(later))
    assert kinds(story.reconnect()) == ["tell"]
    assert story.hear("grant", grant(9, "4f2a.3")) == []         # nothing is trained or released any more
    story.receipt("t.s.7.1", "recorded")
    assert story.agent.end is not None
    assert (story.agent.end.reason, story.agent.end.code) == ("name-in-use", 1)


def test_name_in_use_of_another_run_is_not_ours() -> None:
    story = Story()
    story.receipt("other", "rejected", reason="name-in-use", run="other")
    assert story.agent.end is None
    assert sent(story.wait(30), "ask")


# Rule 5 and 6: leases, fences, grants.

def test_grants_and_receipts_of_another_run_are_ignored() -> None:
    story = Story(prefetch=0)
    assert story.hear("grant", grant(7, run="beef")) == []
    assert story.receipt("4f2a.1", "closed", reason="budget", run="beef") == []
    assert story.agent.end is None
    assert story.spool.grants == {}


def test_a_grant_that_is_running_is_ignored() -> None:
    story = Story(prefetch=1)
    story.hear("grant", grant(7))
    assert story.hear("grant", grant(7)) == []


def test_a_grant_told_without_receipt_is_told_again() -> None:
    story = Story(prefetch=0)
    story.hear("grant", grant(7))
    story.finish(7, {"value": 1.0})
    effects = story.hear("grant", grant(7))
    assert [tell["value"] for tell in sent(effects, "tell")] == [1.0]
    assert started(effects) == []


def test_a_grant_with_a_receipt_is_ignored() -> None:
    story = Story(prefetch=0)
    story.hear("grant", grant(7))
    story.finish(7, {"value": 1.0})
    story.receipt("t.s.7.1", "recorded")
    assert story.hear("grant", grant(7)) == []


def test_the_same_trial_with_a_new_fence_is_a_new_grant() -> None:
    story = Story(prefetch=0)
    story.hear("grant", grant(7))
    story.finish(7, {"state": "fail"})
    story.receipt("t.s.7.1", "recorded")
    effects = story.hear("grant", grant(7, "4f2a.2", fence=2))
    assert [effect.lease.fence for effect in effects if isinstance(effect, Start)] == [2]


def test_a_grant_without_room_is_released() -> None:
    story = Story(slots=1, prefetch=0)
    story.hear("grant", grant(7))
    effects = story.hear("grant", grant(8, "stray"))
    assert sent(effects) == [{"id": "t.s.8.1", "study": "s", "trial": 8, "fence": 1, "state": "released"}]


def test_a_grant_and_its_number_of_starts_are_saved_before_the_start() -> None:
    story = Story(slots=1, prefetch=1)
    story.hear("grant", grant(7))
    story.hear("grant", grant(8, "4f2a.2"))
    assert {key[1]: saved.starts for key, saved in story.spool.grants.items()} == {7: 1, 8: 0}


def after_crash(starts: int) -> Story:
    spool = MemorySpool()
    spool.grants[("s", 7, 1)] = SavedGrant(grant(7, run="dead"), starts)
    return Story(spool, prefetch=0)


@pytest.mark.parametrize("starts", [0, 1])
def test_after_a_crash_the_grant_is_listed_first_and_trained_again(starts: int) -> None:
    story = after_crash(starts)
    assert sent(story.first, "beat") == [{"run": RUN, "leases": [["s", 7, 1]], "asks": []}]
    assert sent(story.first, "ask") == []                # its slot is taken
    assert kinds(story.first)[0] == "beat"
    assert started(story.first) == [7]
    assert story.spool.grants[("s", 7, 1)].starts == starts + 1


def test_a_process_that_died_in_its_second_start_fails_the_trial() -> None:
    story = after_crash(2)
    assert started(story.first) == []
    assert story.spool.grants == {}
    assert [(tell["state"], tell["class"]) for tell in sent(story.first, "tell")] == [("fail", "crash")]


def test_without_a_broker_saved_work_waits_a_while_and_then_goes_on() -> None:
    spool = MemorySpool()
    spool.grants[("s", 7, 1)] = SavedGrant(grant(7, run="dead"), 1)
    story = Story(spool, connect=False)
    assert started(story.wait(29)) == []
    assert started(story.wait(2)) == [7]


def test_a_saved_tell_is_listed_and_sent_after_a_crash() -> None:
    spool = MemorySpool()
    tell = {"id": "t.s.7.1", "study": "s", "trial": 7, "fence": 1, "value": 2.5}
    spool.tells[("s", 7, 1)] = SavedTell(tell)
    spool.grants[("s", 7, 1)] = SavedGrant(grant(7, run="dead"), 1)      # died between the two
    story = Story(spool, prefetch=0)
    assert kinds(story.first) == ["beat", "tell", "ask"]
    assert sent(story.first, "beat")[0]["leases"] == [["s", 7, 1]]
    assert sent(story.first, "tell") == [tell]
    assert spool.grants == {}


def test_saved_work_of_another_study_is_released_not_trained() -> None:
    spool = MemorySpool()
    spool.grants[("old", 7, 1)] = SavedGrant({**grant(7, run="dead"), "study": "old"}, 1)
    story = Story(spool)
    assert started(story.first) == []
    assert [(tell["study"], tell["state"]) for tell in sent(story.first, "tell")] == [("old", "released")]


def test_a_first_beat_superseded_drops_saved_work() -> None:
    story = after_crash(1)
    effects = story.hear("stop", {"study": "s", "trial": 7, "fence": 1, "reason": "superseded"})
    assert Halt(("s", 7, 1), "superseded", owed=False) in effects
    assert story.spool.grants == {}
    assert sent(effects, "tell") == []


# Rule 7: stops.

def stop(trial: int, reason: str) -> dict[str, Any]:
    return {"study": "s", "trial": trial, "fence": 1, "reason": reason}


def test_a_pruned_training_is_ended_and_told_pruned() -> None:
    story = Story(prefetch=0)
    story.hear("grant", grant(7))
    assert story.hear("stop", stop(7, "pruned")) == [Halt(("s", 7, 1), "pruned", owed=True)]
    assert story.hear("stop", stop(7, "pruned")) == []
    tell = sent(story.finish(7, {"state": "released"}), "tell")[0]
    assert tell["state"] == "pruned"


def test_a_training_that_ended_by_itself_after_a_prune_keeps_its_value() -> None:
    story = Story(prefetch=0)
    story.hear("grant", grant(7))
    story.hear("stop", stop(7, "pruned"))
    tell = sent(story.finish(7, {"value": 3.0, "seconds": 1.0}), "tell")[0]
    assert (tell["state"], tell["value"]) == ("pruned", 3.0)


def test_a_stop_in_a_reports_receipt_counts() -> None:
    story = Story()
    story.hear("grant", grant(7))
    story.agent.report(("s", 7, 1), 3, {"value": 0.1}, story.now)
    assert story.receipt("r.s.7.1.3", "recorded", stop="pruned") == [
        Halt(("s", 7, 1), "pruned", owed=True), Answered(("s", 7, 1), 3)]


@pytest.mark.parametrize("reason", ["cancelled", "closed", "superseded"])
def test_after_another_stop_nothing_is_owed(reason: str) -> None:
    story = Story(prefetch=0)
    story.hear("grant", grant(7))
    effects = story.hear("stop", stop(7, reason))
    assert effects == [Halt(("s", 7, 1), reason, owed=False)]    # no ask: the training still fills the slot
    assert story.spool.grants == {}
    effects = story.finish(7, {"state": "released"})
    assert kinds(effects) == ["ask"]
    assert story.hear("grant", grant(7)) == []


def test_a_superseded_training_that_came_to_its_end_is_told_late() -> None:
    story = Story(prefetch=0)
    story.hear("grant", grant(7))
    story.hear("stop", stop(7, "superseded"))
    assert sent(story.finish(7, {"value": 3.0}), "tell")[0]["value"] == 3.0


def test_a_stop_may_come_before_its_grant() -> None:
    story = Story(prefetch=0)
    assert story.hear("stop", stop(7, "cancelled")) == []
    effects = story.hear("grant", grant(7))
    assert started(effects) == []
    assert sent(effects, "tell") == []
    assert [ask["id"] for ask in sent(effects, "ask")] == ["4f2a.2"]


def test_a_pruned_stop_before_its_grant_is_told_pruned() -> None:
    story = Story(prefetch=0)
    story.hear("stop", stop(7, "pruned"))
    effects = story.hear("grant", grant(7))
    assert started(effects) == []
    assert sent(effects, "tell")[0]["state"] == "pruned"


def test_a_stop_of_queued_work() -> None:
    story = Story(slots=1, prefetch=1)
    story.hear("grant", grant(7))
    story.hear("grant", grant(8, "4f2a.2"))
    effects = story.hear("stop", stop(8, "cancelled"))
    assert kinds(effects) == ["ask"]
    assert list(story.spool.grants) == [("s", 7, 1)]


def test_a_stop_never_ends_the_sending_of_a_tell() -> None:
    story = Story(prefetch=0)
    story.hear("grant", grant(7))
    story.finish(7, {"value": 1.0})
    assert story.hear("stop", stop(7, "superseded")) == []
    assert story.agent.undelivered == {("s", 7, 1)}
    assert sent(story.wait(3), "tell")


# Rules 7, 8, 10: what is sent.

@pytest.mark.parametrize(("value", "wire"), [(float("nan"), "nan"), (float("inf"), "inf"), (float("-inf"), "-inf"),
                                             (None, None), (10**400, "inf"), (2**70, float(2**70)), (3, 3)])
def test_a_value_that_is_no_number_is_sent_so_that_it_is_recorded_as_one(value: Any, wire: Any) -> None:
    message = tell_message(("s", 7, 1), {"value": value})
    assert message["value"] == wire
    recorded = decode("tell", json.dumps(message, allow_nan=False).encode()).value
    assert recorded == (wire if isinstance(wire, (int, float)) else None)


def test_an_error_is_cut_to_its_last_4_kib() -> None:
    message = tell_message(("s", 7, 1), {"state": "fail", "error": "é" * 9000 + "the cause"})
    assert len(message["error"].encode()) <= ERROR_MAX
    assert message["error"].endswith("the cause")
    assert tail("short") == "short"
    assert tail("\ud800 x") == "? x"


@pytest.mark.parametrize("outcome", [{"values": {"a b": 1.0}}, {"value": "high"}, {}, {"folds": []},
                                     {"value": 1.0, "folds": [1.0]}, {"value": 1.0, "cost": -1},
                                     {"folds": [0.123456789] * 1001}, {"value": object()}])
def test_a_result_that_the_daemon_would_refuse_becomes_a_failure_that_says_why(outcome: dict[str, Any]) -> None:
    message = tell_message(("s", 7, 1), outcome)
    assert (message["state"], message["class"]) == ("fail", "other")
    assert "cannot be told" in message["error"]
    decode("tell", json.dumps(message, allow_nan=False).encode())


def test_reports_are_a_burst_and_then_one_a_second_the_newest_first() -> None:
    story = Story()
    story.hear("grant", grant(7))
    effects = [effect for step in range(100)
               for effect in story.check(story.agent.report(("s", 7, 1), step, {"value": 1.0}, story.now))]
    assert [report["step"] for report in sent(effects, "report")] == list(range(10))
    assert [report["step"] for report in sent(story.wait(1.5), "report")] == [99]
    assert sent(story.wait(60), "report") == []


def test_reports_are_lost_without_a_line_and_after_a_stop() -> None:
    story = Story()
    story.hear("grant", grant(7))
    story.agent.disconnected(story.now)
    assert story.agent.report(("s", 7, 1), 0, {"value": 1.0}, story.now) == []
    assert sent(story.check(story.agent.connected(story.now)), "report") == []
    story.hear("stop", stop(7, "pruned"))
    assert story.agent.report(("s", 7, 1), 1, {"value": 1.0}, story.now) == []


def test_thousands_of_tells_do_not_make_a_beat_too_large() -> None:
    spool = MemorySpool()
    for trial in range(1, 6001):
        spool.tells[("s", trial, 1)] = SavedTell({"id": f"t.s.{trial}.1", "study": "s", "trial": trial, "fence": 1,
                                                  "value": 1.0})
    story = Story(spool)
    assert len(sent(story.first, "tell")) == 6000
    assert len(sent(story.first, "beat")[0]["leases"]) > 1000


# Rule 14: another log.

def test_a_result_of_one_log_is_not_told_to_another() -> None:
    spool = MemorySpool()
    spool.tells[("s", 7, 1)] = SavedTell({"id": "t.s.7.1", "study": "s", "trial": 7, "fence": 1, "value": 1.0}, "old")
    spool.grants[("s", 8, 1)] = SavedGrant(grant(8, run="dead"), 1, "old")
    story = Story(spool)
    assert story.first == []                             # waits for the word which log this is
    effects = story.hear("daemon", daemon(log="new"), retained=True)
    assert "tell" not in kinds(effects)
    assert started(effects) == []
    assert sent(effects, "beat")[0]["leases"] == []
    assert list(spool.rejected) == [("s", 7, 1)]
    assert spool.grants == {}


def test_a_result_of_the_same_log_is_told_when_the_daemon_has_said_it() -> None:
    spool = MemorySpool()
    spool.tells[("s", 7, 1)] = SavedTell({"id": "t.s.7.1", "study": "s", "trial": 7, "fence": 1, "value": 1.0}, "log-a")
    story = Story(spool)
    assert kinds(story.hear("daemon", daemon(), retained=True))[:2] == ["beat", "tell"]
    silent = Story(spool)
    assert kinds(silent.wait(2))[:2] == ["beat", "tell"]         # a daemon that says nothing does not block us


# Everything that is not the contract.

@pytest.mark.parametrize(("kind", "message"), [
    ("grant", {}), ("grant", {**grant(7), "trial": "7"}), ("receipt", {"id": "4f2a.1", "status": "new-word"}),
    ("stop", {"study": "s", "trial": 0, "fence": 1, "reason": "pruned"}), ("daemon", {"state": "x"}), ("study", {}),
    ("novelty", {"a": 1})])
def test_what_cannot_be_read_is_ignored(kind: str, message: dict[str, Any]) -> None:
    story = Story()
    assert sent(story.hear(kind, message)) == []
    assert story.hear(kind, message) == []               # and complained of once


def test_unknown_fields_are_ignored() -> None:
    story = Story()
    effects = story.hear("grant", grant(7, novelty=[1], fidelity={"name": "epochs", "value": 3, "from": "c", "z": 1}))
    lease = next(effect.lease for effect in effects if isinstance(effect, Start))
    assert lease.fidelity is not None
    assert (lease.fidelity.value, lease.fidelity.start) == (3.0, "c")


def test_a_broken_disk_does_not_stop_the_work() -> None:
    class Broken(MemorySpool):
        def save_tell(self, key: Any, saved: SavedTell) -> None:
            raise OSError(28, "No space left on device")
        save_grant = save_tell  # type: ignore[assignment]  # both fail alike

    story = Story(Broken(), prefetch=0)
    effects = story.hear("grant", grant(7))
    assert started(effects) == [7]
    effects += story.finish(7, {"value": 1.0})
    assert sent(effects, "tell")[0]["value"] == 1.0
    assert any(isinstance(effect, Note) and "No space" in effect.text for effect in effects)


def test_doubles_and_disorder_change_nothing() -> None:
    """Every message twice and shuffled: each lease starts once and each tell is the same message."""
    for seed in range(50):
        rng = random.Random(seed)
        story = Story(slots=2, prefetch=2)
        mail = [("grant", grant(n, f"4f2a.{n}")) for n in range(1, 5)] * 2
        mail += [("stop", stop(4, "superseded"))] * 2
        rng.shuffle(mail)
        effects = [effect for kind, message in mail for effect in story.hear(kind, message)]
        for _ in range(4):
            for trial in sorted({key[1] for key in story.agent.training}):
                effects += story.finish(trial, {"value": float(trial)})
        effects += [effect for trial in range(1, 4) for effect in story.hear("grant", grant(trial, "again"))]
        assert len(started(effects)) == len(set(started(effects))) >= 3, seed
        tells: dict[int, Any] = {}
        for tell in sent(effects, "tell"):
            tell.pop("ask", None)
            assert tells.setdefault(tell["trial"], tell) == tell, seed


def test_a_worker_that_trains_offline_for_long_is_not_called_for_ever() -> None:
    # Its slots are full when the patience for a broker ends; found by a simulated world (seed 5103).
    spool = MemorySpool()
    before = Agent(Settings("run-1", study="s"), spool, random.Random(1))
    effects = [*before.begin(0.0), *before.connected(0.0), *before.tick(1.0), *before.tick(2.0)]
    asks = [effect.message for effect in effects if isinstance(effect, Send) and effect.kind == "ask"]
    for trial, ask in enumerate(asks[:2], start=1):
        before.received("grant", {
            "ask": ask["id"], "run": ask["run"], "study": "s", "trial": trial, "fence": 1, "params": {},
            "lease_s": 600, "at": "2026-01-01T00:00:00Z", "epoch": 1, "space_rev": 1}, 2.0)
    agent = Agent(Settings("run-2", study="s"), spool, random.Random(2))       # the process died; this one is offline
    agent.begin(0.0)
    assert [effect for effect in agent.tick(30.0) if isinstance(effect, Start)]
    agent.tick(31.0)
    assert agent.due_s() is None
