"""A page of what a witness saw: of one trial, or of the study."""

from typing import Any

from bayesd.study.desk import Desk
from bayesd.why.imported import imported_page
from bayesd.why.live import Live
from bayesd.why.study import study_page
from bayesd.why.trial import trial_page
from bayesd.why.witness import Witness


def of(seen: Witness, number: int | None, live: Live | None = None) -> dict[str, Any]:
    """The page of trial `number`, or of the study when that is None."""
    if number is not None:
        return (trial_page if seen.trial(number).origin is None else imported_page)(seen, number)
    return study_page(seen, Desk(seen.state).problem(seen.study)[0], live)
