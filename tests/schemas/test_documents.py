"""The generated documents are those of the code, and the samples are what the code reads and writes."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from bayesd_schemas import generate
from bayesd_schemas.messages import MODELS, OUTGOING, decode

FOLDER = Path(__file__).parents[2] / "schemas" / "json"
SAMPLES = [(name, sample) for name, samples in generate.SAMPLES.items() for sample in samples]


def test_no_document_has_drifted() -> None:
    written = {str(path.relative_to(FOLDER)): path.read_text() for path in FOLDER.rglob("*.json")}
    made = {path: generate.render(document) for path, document in generate.documents().items()}
    assert written == made, "run: python -m bayesd_schemas.generate"


@pytest.mark.parametrize(("name", "sample"), SAMPLES)
def test_a_sample_is_what_its_schema_and_its_model_say(name: str, sample: dict[str, Any]) -> None:
    schema = json.loads((FOLDER / "messages" / f"{name}.json").read_text())
    jsonschema.validate(sample, schema, cls=jsonschema.Draft202012Validator)
    if name in MODELS:
        decode(name, json.dumps(sample).encode())
    else:
        OUTGOING[name].model_validate(sample)


def test_every_message_has_a_sample_and_a_place_on_the_wire() -> None:
    names = {*MODELS, *OUTGOING}
    assert set(generate.SAMPLES) == names
    assert {message for _, message, *_ in generate.WIRE} == names
