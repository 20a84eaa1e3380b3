"""Study files in TOML, JSON or YAML, and the one sentence that tells what is wrong with a bad one.

The sentence names file and line, the key, what was expected, and an example. Parsers keep no
lines, so the line is found afterwards: in YAML and JSON from the nodes of a second parse (JSON is
YAML, but for tabs), in TOML by a scan for table headers and keys.
"""

import difflib
import json
import re
import sys
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from bayesd_schemas.space import CategoricalParameter, FloatParameter, IntParameter, OrdinalParameter
from bayesd_schemas.study import Budget, Fidelity, Lease, Limit, Objective, Prune, Retry, StudySpec

Way = tuple[str | int, ...]
"""A way into the file: ("space", "C", "low")."""

SIZE_MAX = 60 * 1024     # what one request can carry


class BadFile(Exception):
    """The file cannot be a study. One sentence for the person who wrote it."""


@dataclass(frozen=True, slots=True)
class StudyFile:
    """A study as it was written, checked."""

    name: str
    data: dict[str, Any]
    spec: StudySpec


def read_study(path: str) -> StudyFile:
    """Read and check a study file; "-" is TOML on stdin. Raises BadFile."""
    where, text, kind = _text(path)
    data, line_of = _parse(where, text, kind)
    try:
        spec = StudySpec.model_validate(data)
    except ValidationError as error:
        raise BadFile(_explain(where, error, data, line_of)) from error
    if (size := len(json.dumps(data, default=str).encode())) > SIZE_MAX:
        raise BadFile(f"{where}: {size} bytes are too many for one message, at most {SIZE_MAX} are carried; "
                      "enqueue points with `bayesd study enqueue`, or give ranges in place of long lists of choices")
    return StudyFile(where, data, spec)


def read_changes(path: str) -> dict[str, Any]:
    """Read a part of a study file, as `study amend` takes it; the daemon checks what it means."""
    where, text, kind = _text(path)
    return _parse(where, text, kind)[0]


def _text(path: str) -> tuple[str, str, str]:
    """(name for people, text, kind) of a file."""
    if path == "-":
        return "standard input", sys.stdin.read(), "toml"
    kind = {".toml": "toml", ".json": "json", ".yaml": "yaml", ".yml": "yaml"}.get(Path(path).suffix.lower())
    if kind is None:
        raise BadFile(f"{path}: a study file ends in .toml, .json, .yaml or .yml; \"-\" reads TOML from standard input")
    try:
        raw = Path(path).read_bytes()
        text = raw.decode("utf-8-sig")
    except OSError as error:
        raise BadFile(f"{path} cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise BadFile(f"{path}:{raw[:error.start].count(10) + 1}: this is not UTF-8 text") from error
    return path, text, kind


# --- The three notations ------------------------------------------------------------------------

LineOf = Callable[[Way], int | None]


def _parse(where: str, text: str, kind: str) -> tuple[dict[str, Any], LineOf]:
    try:
        return _PARSERS[kind](where, text)
    except RecursionError as error:
        raise BadFile(f"{where}: lists or tables are nested too deep: a study file needs four levels") from error


def _parse_toml(where: str, text: str) -> tuple[dict[str, Any], LineOf]:
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        line = re.search(r"at line (\d+)", str(error))
        place = f"{where}:{line[1]}" if line else f"{where}:{text.count(chr(10)) or 1}"
        words = re.sub(r" \(at (line \d+, column \d+|end of document)\)", "", str(error))
        raise BadFile(f"{place}: this is not TOML: {words}. For example: seed = 7") from error
    lines = text.splitlines()
    return data, lambda path: _toml_line(lines, path)


def _parse_json(where: str, text: str) -> tuple[dict[str, Any], LineOf]:
    try:
        data = json.loads(text, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise BadFile(f"{where}:{error.lineno}: this is not JSON: {error.msg} (column {error.colno}). "
                      'For example: {"seed": 7}') from error
    except ValueError as error:
        raise BadFile(f"{where}: {error}") from error
    return _mapping(where, data), _node_lines(where, text.replace("\t", " "))


def _no_constant(word: str) -> Any:
    raise ValueError(f"{word} is not a number in JSON")


def _parse_yaml(where: str, text: str) -> tuple[dict[str, Any], LineOf]:
    try:
        data = yaml.load(text, Loader=_Yaml)  # noqa: S506  # a SafeLoader with fewer types
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{where}:{mark.line + 1}" if mark is not None else where
        raise BadFile(f"{place}: this is not YAML: {error.problem or error.context}. For example: seed: 7") from error
    except yaml.YAMLError as error:
        raise BadFile(f"{where}: this is not YAML: {error}") from error
    return _mapping(where, data), _node_lines(where, text)


def _mapping(where: str, data: Any) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise BadFile(f"{where}:1: a study file holds keys and values. For example: name, method, [space.x]")
    return data


_PARSERS: dict[str, Callable[[str, str], tuple[dict[str, Any], LineOf]]] = {
    "toml": _parse_toml, "json": _parse_json, "yaml": _parse_yaml}


class _Yaml(yaml.SafeLoader):
    """YAML that means what JSON means: `on` and `2026-01-01` are text, and 1e-3 is a number (the core
    schema of YAML 1.2; PyYAML knows 1.1)."""


_Yaml.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
        ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
        ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
        ("int", r"[-+]?[0-9]+", "-+0123456789"),
        ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
         "-+0123456789."),
        ("merge", r"<<", "<")):
    _Yaml.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first))


def _node_lines(where: str, text: str) -> LineOf:
    """Lines by the nodes of a second parse. Two equal keys, which the first overlooked, are an error."""
    try:
        root = yaml.compose(text, Loader=_Yaml)
    except yaml.YAMLError:
        return lambda path: None      # JSON that YAML cannot read: the key must do
    _refuse_twice(where, root)

    def line_of(path: Way) -> int | None:
        node, line = root, 1
        for part in path:
            found = _child(node, part)
            if found is None:
                return None
            line, node = found
        return line
    return line_of


def _refuse_twice(where: str, node: Any) -> None:
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in seen:
                raise BadFile(f"{where}:{line}: {name} is there already, on line {seen[name]}; a key stands once")
            seen[name] = line
            _refuse_twice(where, value)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            _refuse_twice(where, value)


def _child(node: Any, part: str | int) -> tuple[int, Any] | None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == str(part):
                return key.start_mark.line + 1, value
    if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        return node.value[part].start_mark.line + 1, node.value[part]
    return None


_KEY = r"""(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')"""
_DOTTED = rf"{_KEY}(?:\s*\.\s*{_KEY})*"
_header = re.compile(rf"\s*\[(\[?)\s*({_DOTTED})\s*\]").match
_assigned = re.compile(rf"\s*({_DOTTED})\s*=").match


def _toml_line(lines: Sequence[str], path: Way) -> int | None:
    """The line on which the key at `path` stands, or the nearest table that holds it."""
    table: Way = ()
    arrays: dict[Way, int] = {}
    best: tuple[int, int] | None = None      # (parts that fit, line)
    for number, line in enumerate(lines, start=1):
        if header := _header(line):
            table = _parts(header[2])
            if header[1]:
                arrays[table] = arrays.get(table, -1) + 1
                table = (*table, arrays[table])
            here = table
        elif assigned := _assigned(line):
            here = (*table, *_parts(assigned[1]))
            # An inline table or list goes on to the right: the rest of the path may be in this line.
            rest = path[len(here):]
            if path[:len(here)] == here and rest and re.search(rf"\b{re.escape(str(rest[0]))}\b\s*=", line):
                here = path
        else:
            continue
        fit = len(here) if path[:len(here)] == here else 0
        if fit and (best is None or fit > best[0]):
            best = fit, number
    return best[1] if best is not None else None


def _parts(dotted: str) -> Way:
    return tuple(part.strip("\"'") for part in re.findall(_KEY, dotted))


# --- What is wrong, in one sentence ---------------------------------------------------------------

_KINDS: dict[str, type[BaseModel]] = {"float": FloatParameter, "int": IntParameter, "categorical": CategoricalParameter,
                                      "ordinal": OrdinalParameter}
_TABLES: dict[str, type[BaseModel]] = {"budget": Budget, "lease": Lease, "retry": Retry, "prune": Prune,
                                       "fidelity": Fidelity, "objectives": Objective, "limits": Limit}

_EXAMPLES = {
    "name": 'name = "digits-svm"', "metric": 'metric = "accuracy"', "direction": 'direction = "maximize"',
    "method": 'method = "bayes"', "seed": "seed = 7", "noise": 'noise = "learn"', "late": 'late = "use"',
    "surrogate": 'surrogate = "gp"', "constraints": 'constraints = ["batch * units <= 65536"]',
    "tags": 'tags = ["gpu"]', "trials": "trials = 60", "wall": 'wall = "2h"', "cost": "cost = 25.0",
    "default_s": "default_s = 600", "max_s": "max_s = 604800", "lost": "lost = 2", "crash": "crash = 0",
    "timeout": "timeout = 0", "oom": "oom = 0", "low": "low = 1e-3", "high": "high = 1e3", "scale": 'scale = "log"',
    "exponent": "exponent = 2.0", "levels": "levels = 10", "step": "step = 2", "choices": 'choices = ["rbf", "poly"]',
    "type": 'type = "float"', "when": 'when = { kernel = "poly" }', "reference": "reference = 1.0",
    "space": '[space.C] with type = "float", low = 1e-3, high = 1e3', "budget": "[budget] with trials = 60",
    "enqueue": "enqueue = [{ C = 1.0, kernel = \"rbf\" }]", "lease": "[lease] with default_s = 600",
    "retry": "[retry] with lost = 2", "prune": '[prune] with rule = "median"',
    "fidelity": '[fidelity] with name = "epochs", max = 81', "reduction": "reduction = 3", "rule": 'rule = "median"',
    "objectives": '[[objectives]] with name = "loss", direction = "minimize"',
    "limits": '[[limits]] with name = "latency", at_most = 20.0', "at_most": "at_most = 20.0",
    "at_least": "at_least = 0.8",
}


def _explain(where: str, error: ValidationError, data: Mapping[str, Any], line_of: LineOf) -> str:
    """The first fault: file and line, key, what was expected, an example."""
    first = error.errors(include_url=False)[0]
    path = _in_file(first["loc"])
    words = first["msg"].removeprefix("Value error, ")
    path, words = _sharpen(path, words, data)
    if first["type"].startswith("union_tag"):
        path = (*path, "type")
    key = str(path[-1]) if path else ""
    expected = _expected(first["type"], words, path, data)
    line = _nearest_line(path, line_of)
    place = f"{where}:{line}" if line else where
    dotted = ".".join(map(str, path))
    example = _EXAMPLES.get(key)
    if first["type"] in ("extra_forbidden", "missing") and (guess := _near(path, data)):
        example = _EXAMPLES.get(guess, example)
    if example is None and path:
        example = _EXAMPLES.get(str(path[0]))
    return f"{place}: {dotted or 'the file'}: {expected}" + (f". For example: {example}" if example else "")


def _in_file(loc: tuple[str | int, ...]) -> Way:
    """pydantic's way to a fault as a way into the file: without the names of alternatives."""
    out: list[str | int] = []
    for depth, part in enumerate(loc):
        if part == "[key]" or (isinstance(part, str) and re.search(r"[\[(]|-constrained", part)):
            continue       # a step of the validator, not of the file
        if loc[0] == "space" and depth == 2 and part in _KINDS:
            continue       # which kind of parameter it was read as
        if loc[0] == "space" and 2 < depth == len(loc) - 1 and part in ("str", "bool", "int", "float", "none"):
            continue       # which type of choice was tried
        out.append(part)
    return tuple(out)


def _sharpen(path: Way, words: str, data: Mapping[str, Any]) -> tuple[Way, str]:
    """A fault of a whole part is shown at the key that its words begin with."""
    if path == ("space",) and (found := re.match(r"([A-Za-z_][\w.-]*): when ", words)):
        return ("space", found[1], "when"), words[len(found[1]) + 2:]
    if not path and (found := re.match(r"(enqueue|objectives|limits)\b", words)):
        return (found[1],), words
    if path and path[0] == "space" and len(path) == 2 and (found := re.match(r"(?:give )?(\w+)\b", words)):
        here = data.get("space", {}).get(path[1], {})
        word = {"choice": "choices"}.get(found[1], found[1])
        if isinstance(here, Mapping) and word in here:
            return (*path, word), words
    if path and (found := re.match(rf"{re.escape(str(path[0]))}\.(\w+) ", words)):
        return (path[0], found[1]), words
    return path, words


def _expected(type: str, words: str, path: Way, data: Mapping[str, Any]) -> str:
    if type == "extra_forbidden":
        guess = _near(path, data)
        known = ", ".join(_known(path, data))
        return f"unknown key; did you mean {guess}? Known keys here are {known}" if guess \
            else f"unknown key; known keys here are {known}"
    if type == "missing":
        guess = _near(path, data, among_given=True)
        return "this key is missing" + (f"; there is {guess}, is that it?" if guess else "")
    if type.startswith("union_tag"):
        return "type is one of " + ", ".join(_KINDS)
    value = _value(path, data)
    said = "" if value is None or isinstance(value, (dict, list)) else f", not {json.dumps(value, default=str)}"
    if type == "string_pattern_mismatch":
        words = ("a name is up to 64 of a-z, 0-9, dot, dash and underscore, and begins with a letter or digit"
                 if path == ("name",) else "this is not a well-formed name")
    words = words.replace("Input should be", "expected")
    return words + ("" if type == "value_error" else said)


def _value(path: Way, data: Any) -> Any:
    for part in path:
        try:
            data = data[part]
        except (KeyError, IndexError, TypeError):
            return None
    return data


def _known(path: Way, data: Mapping[str, Any]) -> list[str]:
    """The keys that may stand where `path` stands."""
    model: type[BaseModel] = StudySpec
    if len(path) >= 2 and path[0] in _TABLES:
        model = _TABLES[str(path[0])]
    elif len(path) >= 3 and path[0] == "space":
        kind = _value((*path[:2], "type"), data)
        model = _KINDS.get(kind if isinstance(kind, str) else "", FloatParameter)
    return list(model.model_fields)


def _near(path: Way, data: Mapping[str, Any], among_given: bool = False) -> str | None:
    """The known key that an unknown one was meant to be, or the given key that a missing one may be."""
    if not path:
        return None
    choices = _known(path, data)
    if among_given:
        parent = _value(path[:-1], data)
        choices = [str(key) for key in parent if key not in choices] if isinstance(parent, Mapping) else []
    found = difflib.get_close_matches(str(path[-1]), choices, n=1, cutoff=0.5)
    return found[0] if found else None


def _nearest_line(path: Way, line_of: LineOf) -> int | None:
    """The line of the key, else of the part that should hold it."""
    for length in range(len(path), 0, -1):
        line = line_of(path[:length])
        if line is not None:
            return line
    return None
