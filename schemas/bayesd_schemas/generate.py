"""Write `schemas/json`: JSON Schema 2020-12 of every message, event and the study file, an
AsyncAPI 3 document of the wire, and sample messages that every client must pass.

    python -m bayesd_schemas.generate [FOLDER]
"""

import json
import sys
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from bayesd_schemas import events, messages
from bayesd_schemas.study import StudySpec

DIALECT = "https://json-schema.org/draft/2020-12/schema"

SAMPLES: dict[str, list[dict[str, Any]]] = {
    "beat": [{"run": "4f2a", "leases": [], "asks": []},
             {"run": "4f2a", "leases": [["digits-svm", 7, 1]], "asks": ["4f2a.2"]}],
    "ask": [{"id": "4f2a.1", "run": "4f2a", "study": "digits-svm"},
            {"id": "4f2a.3", "run": "4f2a", "n": 20, "lease_s": 604800, "tags": ["gpu"]},
            {"id": "4f2a.3", "run": "4f2a", "n": 0}],
    "grant": [{"ask": "4f2a.1", "run": "4f2a", "study": "digits-svm", "trial": 7, "fence": 1,
               "params": {"C": 3.1, "kernel": "poly", "degree": 3}, "lease_s": 600, "at": "2026-11-23T09:00:00Z",
               "epoch": 3, "space_rev": 1}],
    "report": [{"id": "r.digits-svm.7.1.0", "study": "digits-svm", "trial": 7, "fence": 1, "step": 0, "value": 0.81}],
    "tell": [{"id": "t.digits-svm.7.1", "study": "digits-svm", "trial": 7, "fence": 1, "value": 0.94, "seconds": 12.5,
              "ask": {"id": "4f2a.2", "run": "4f2a", "study": "digits-svm"}},
             {"id": "t.digits-svm.8.1", "study": "digits-svm", "trial": 8, "fence": 1, "state": "fail", "class": "oom",
              "error": "CUDA out of memory"},
             {"id": "t.digits-svm.9.1", "study": "digits-svm", "trial": 9, "fence": 1, "value": "nan"},
             {"id": "t.digits-svm.10.1", "study": "digits-svm", "trial": 10, "fence": 1, "state": "released"},
             {"id": "t.digits-svm.11.2", "study": "digits-svm", "trial": 11, "fence": 2, "folds": [0.91, 0.93, 0.9]}],
    "receipt": [{"id": "t.digits-svm.7.1", "status": "recorded", "seq": 91, "hash": "0" * 64},
                {"id": "4f2a.2", "run": "4f2a", "status": "closed", "reason": "budget"},
                {"id": "4f2a", "run": "4f2a", "status": "rejected", "reason": "name-in-use"},
                {"id": "t.digits-svm.7.1", "status": "rejected", "reason": "disk-full", "retry_after_s": 10}],
    "stop": [{"study": "digits-svm", "trial": 9, "fence": 1, "reason": "pruned"}],
    "worker": [{"state": "online", "run": "4f2a", "host": "gpu-7", "slots": 2}],
    "request": [{"id": "1", "verb": "study.show", "args": {"study": "digits-svm"}}],
    "reply": [{"id": "1", "status": "ok", "result": {"study": "digits-svm"}},
              {"id": "2", "status": "error", "error": {"code": "unknown-study", "message": "no such study"}}],
    "daemon": [{"state": "online", "version": "0.1.0", "log": "8c1f", "epoch": 3}],
    "head": [{"log": "8c1f", "epoch": 3, "note": "bayesd/8c1f\n90\n" + "A" * 43 + "=\n\n\u2014 bayesd/8c1f " + "A" * 91
              + "=\n", "key": "bayesd/8c1f+00000000+AQ" + "A" * 42 + "="}],
    "study": [{"study": "digits-svm", "state": "open", "closed_by": None,
               "objectives": [{"name": "accuracy", "direction": "maximize"}],
               "space": {"C": {"type": "float", "low": 0.001, "high": 1000.0, "scale": "log"}}, "space_rev": 1,
               "trials": {"running": 1, "complete": 6, "total": 7}, "budget": {"trials": 60},
               "best": {"trial": 5, "value": 0.94, "params": {"C": 3.1}}, "eta_s": 120.5,
               "eta": {"low_s": 90.0, "high_s": 180.5, "rule": "trials"}, "cost": {"spent": 1.5, "to_come": 13.5},
               "log": "8c1f", "epoch": 3, "seq": 90}],
}

WIRE: list[tuple[str, str, str, bool, str]] = [
    ("from/{name}/ask", "ask", "receive", False, "A worker wants trials"),
    ("to/{name}/grant", "grant", "send", False, "One trial, leased"),
    ("from/{name}/beat", "beat", "receive", False, "A worker is alive and holds these leases"),
    ("from/{name}/report", "report", "receive", False, "An intermediate value"),
    ("from/{name}/tell", "tell", "receive", False, "The outcome of a trial"),
    ("to/{name}/receipt", "receipt", "send", False, "The acknowledgement, after the commit"),
    ("to/{name}/stop", "stop", "send", False, "End this trial's training"),
    ("worker/{name}", "worker", "receive", True, "A worker's presence, with a last will; for people"),
    ("admin/{name}/request", "request", "receive", False, "An operator wants a verb done"),
    ("to/{name}/reply", "reply", "send", False, "The answer to a request"),
    ("study/{name}", "study", "send", True, "A study's public state"),
    ("daemon", "daemon", "send", True, "The daemon's state and last will"),
    ("head", "head", "send", True, "The signed head of the log"),
]
"""Topic below bayesd/1, message, what the daemon does with it, retained, one line."""


def schema(model: Any, name: str) -> dict[str, Any]:
    body = TypeAdapter(model).json_schema(by_alias=True, mode="validation")
    return {"$schema": DIALECT, "$id": f"urn:bayesd:1:{name}", **body}


def asyncapi() -> dict[str, Any]:
    """The wire as an AsyncAPI 3 document with MQTT bindings."""
    channels, operations, parts = {}, {}, {}
    for topic, message, action, retained, words in WIRE:
        channel: dict[str, Any] = {
            "address": f"bayesd/1/{topic}", "description": words,
            "messages": {message: {"$ref": f"#/components/messages/{message}"}}}
        if "{name}" in topic:
            channel["parameters"] = {"name": {"description": "worker, client or study: [a-z0-9][a-z0-9._-]{0,63}"}}
        channels[message] = channel
        operations[f"{action}_{message}"] = {
            "action": action, "channel": {"$ref": f"#/channels/{message}"},
            "bindings": {"mqtt": {"qos": 1, "retain": retained, "bindingVersion": "0.2.0"}}}
        parts[message] = {
            "name": message, "contentType": "application/json", "payload": {"$ref": f"messages/{message}.json"},
            "examples": [{"payload": sample} for sample in SAMPLES[message]]}
    return {"asyncapi": "3.0.0",
            "info": {"title": "bayesd", "version": "1",
                     "description": "Tuning trials over MQTT 3.1.1. Operations are the daemon's."},
            "defaultContentType": "application/json",
            "channels": channels, "operations": operations, "components": {"messages": parts}}


def documents() -> dict[str, Any]:
    """Every file of `schemas/json`, by its path in there."""
    out: dict[str, Any] = {"study.json": schema(StudySpec, "study"), "asyncapi.json": asyncapi()}
    for name, model in [*messages.MODELS.items(), *messages.OUTGOING.items()]:
        out[f"messages/{name}.json"] = schema(model, f"messages:{name}")
    out["events/envelope.json"] = schema(events.Envelope, "events:envelope")
    for name, model in events.EVENTS.items():
        out[f"events/{name}.json"] = schema(model, f"events:{name}")
    out["samples.json"] = SAMPLES
    return out


def render(document: Any) -> str:
    return json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "schemas/json")
    for path, document in documents().items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(render(document), encoding="utf-8")


if __name__ == "__main__":
    main()
