"""A study's declaration as events and snapshots have it."""

import orjson

from bayesd.study.canonical import canonical
from bayesd.study.state import Data
from bayesd_schemas.study import LOGGED, StudySpec


def spec_of(data: Data) -> StudySpec:
    """A study's declaration out of an event. What has just been declared is read as a replay will read it, with 1 for
    a choice of 1.0 and opinions in the order of their names: else a life would go on from another declaration than its
    log."""
    return spec_from({**data, "spec": orjson.loads(canonical(data["spec"]))})


def spec_from(data: Data) -> StudySpec:
    """The same out of what `spec_data` said, word for word. Canonical JSON sorts keys, but the order of the
    parameters is the order of the optimiser's axes, so it stands beside as a list."""
    said = data["spec"]
    order = data.get("order")
    if order is not None:
        said = {**said, "space": {name: said["space"][name] for name in order}}
    return StudySpec.model_validate(said, context=LOGGED)


def spec_data(spec: StudySpec) -> Data:
    """What `spec_from` reads."""
    return {"spec": spec.model_dump(mode="json", exclude_unset=True), "order": list(spec.space)}
