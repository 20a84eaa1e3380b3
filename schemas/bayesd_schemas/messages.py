"""Every message of the wire contract, and the strict decoder.

What comes in is read leniently by version (unknown fields are ignored) and strictly by value:
size, depth, duplicate keys, finite numbers, ids. What goes out is built from the same models
or, on the daemon's hot path, as plain dictionaries that a test holds against them.
"""

import json
import math
import re
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    WithJsonSchema,
    model_validator,
)

from bayesd_schemas.names import NUMBER_MAX, Count, Id, Name, Run, is_id, whole
from bayesd_schemas.space import Value
from bayesd_schemas.study import MetricName

SIZE_MAX = 64 * 1024
"""Bytes of one message; clients stay under 60 KiB."""
DEPTH_MAX = 16
ERROR_MAX = 4096
"""Bytes of an error text; longer ones are cut."""
METRICS_MAX = 64
FOLDS_MAX = 1000

Reason = Literal["bad-json", "too-large", "bad-field", "bad-name", "name-in-use", "unknown-study",
                 "unknown-trial", "rate", "disk-full"]
WaitReason = Literal["paused", "budget", "unknown-study", "no-matching-tags", "exhausted", "disk-full"]
FailureClass = Literal["crash", "timeout", "oom", "nonfinite", "other"]
StopReason = Literal["pruned", "cancelled", "closed", "superseded"]


class BadMessage(ValueError):
    """A message that breaks the contract: the sender's fault, answered with `rejected`, never logged."""

    def __init__(self, reason: Reason, detail: str, id: str | None = None, *, run: str | None = None,
                 ask: Any = None) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail
        self.id = id
        self.run = run
        self.ask = ask
        """The ask inside a tell, which is judged on its own."""


def measured(value: Any) -> Any:
    """A measurement as JSON may carry it. Null, NaN, infinity (bare or quoted) and numbers beyond
    1e300 become None: a failure of class nonfinite, never a number."""
    if isinstance(value, str):
        if value.strip().lower().lstrip("+-") in ("nan", "inf", "infinity"):
            return None
        raise ValueError('a value is a number, null, "nan" or "inf"')
    if isinstance(value, bool):
        raise ValueError("a value is a number, not true or false")
    if isinstance(value, (int, float)):
        number = float(value) if isinstance(value, float) or abs(value) < 10**301 else math.inf
        return number if abs(number) <= NUMBER_MAX else None     # NaN compares false
    return value


Measured = Annotated[float | None, BeforeValidator(measured), WithJsonSchema({
    "anyOf": [{"type": "number"}, {"type": "null"},
              {"type": "string", "pattern": "^[+-]?([nN][aA][nN]|[iI][nN][fF].*)$"}],
    "description": "A number; null, nan or inf is a failure of class nonfinite"})]
Seconds = Annotated[float, Field(ge=0, le=1e12, allow_inf_nan=False)]


Nonce = Annotated[str, Field(max_length=64, description="Of the daemon's retained state; in signed messages only")]
Transmission = Annotated[int, Field(ge=1, le=2**53 - 1, strict=True, description="Grows with each transmission of a "
                                    "run, or of a request's id; in signed messages only")]


class _Incoming(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


OneFolds = Annotated[list[Measured], Field(min_length=1, max_length=FOLDS_MAX)]
"""The values of one metric in all folds, in the order of the folds."""


class Ask(_Incoming):
    """A worker wants `n` more trials."""

    id: Id
    run: Run
    study: Name | None = None
    n: Annotated[int, Field(ge=0, le=10_000, strict=True)] = 1
    lease_s: Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)] | None = None
    tags: Annotated[list[Annotated[str, Field(max_length=256)]], Field(max_length=64)] = []
    seen: Annotated[str, Field(max_length=4096)] | None = None
    nonce: Nonce | None = None
    count: Transmission | None = None


class Beat(_Incoming):
    """A worker is alive and still holds these leases."""

    run: Run
    leases: Annotated[list[tuple[Name, Count, Count]], Field(max_length=10_000)] = []
    asks: Annotated[list[Id], Field(max_length=10_000)] = []
    nonce: Nonce | None = None
    count: Transmission | None = None


class Report(_Incoming):
    """An intermediate value of a running trial."""

    id: Id
    study: Name
    trial: Count
    fence: Count
    step: Annotated[int, BeforeValidator(whole), Field(ge=0, le=2**53 - 1, strict=True)]
    value: Measured = None
    values: Annotated[dict[MetricName, Measured], Field(max_length=METRICS_MAX)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _one_way(cls, data: Any) -> Any:
        if isinstance(data, dict) and ("value" in data) == ("values" in data):
            raise ValueError("give either value or values")
        return data


class Tell(_Incoming):
    """The outcome of a trial, or the lease given back."""

    id: Id
    study: Name
    trial: Count
    fence: Count
    state: Literal["complete", "fail", "pruned", "released"] = "complete"
    value: Measured = None
    values: Annotated[dict[MetricName, Measured], Field(max_length=METRICS_MAX)] | None = None
    folds: OneFolds | Annotated[dict[MetricName, OneFolds], Field(min_length=1, max_length=METRICS_MAX)] | None = None
    seconds: Seconds | None = None
    cost: Annotated[float, Field(ge=0, le=1e15, allow_inf_nan=False)] | None = None
    failure: Annotated[FailureClass | None, Field(alias="class")] = None
    error: str | None = None
    checkpoint: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    """A name under which whoever goes on with this trial finds what was trained so far."""
    ask: Any = None
    """A complete ask with its own id, judged on its own whatever becomes of the tell."""

    @model_validator(mode="before")
    @classmethod
    def _one_way(cls, data: Any) -> Any:
        if isinstance(data, dict):
            given = [key for key in ("value", "values", "folds") if key in data]
            if len(given) > 1:
                raise ValueError(f"give one of value, values, folds, not {' and '.join(given)}")
            error = data.get("error")
            if isinstance(error, str) and len(error) > ERROR_MAX // 4:
                data = {**data, "error": cut(error, ERROR_MAX)}
        return data


class Request(_Incoming):
    """An operator wants a verb done."""

    id: Id
    verb: Annotated[str, Field(pattern=r"^[a-z]+(\.[a-z]+)?$", max_length=64)]
    args: dict[str, Any] = {}
    nonce: Nonce | None = None
    count: Transmission | None = None


class _Outgoing(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Fidelity(_Outgoing):
    """How far to train: `name` at `value`, going on from checkpoint `from`."""

    name: str
    value: float
    start: Annotated[str | None, Field(alias="from")] = None


class Grant(_Outgoing):
    """One trial, leased to one run of one worker."""

    ask: Id
    run: Run
    study: Name
    trial: Count
    fence: Count
    params: dict[str, Value]
    lease_s: float
    at: str
    epoch: Count
    space_rev: Count
    fidelity: Fidelity | None = None
    repeat: Count | None = Field(None, description="Of a point that is measured again: for the how-manieth time, so "
                                                   "that other folds or seeds can be used")


class Receipt(_Outgoing):
    """The answer to a message; for a tell or report, the acknowledgement that it is on disk."""

    id: Id
    status: Literal["recorded", "duplicate", "late", "rejected", "waiting", "closed"]
    run: Run | None = None
    seq: Count | None = None
    hash: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    reason: str | None = None
    detail: str | None = None
    retry_after_s: float | None = None
    stop: StopReason | None = None


class Stop(_Outgoing):
    """End this trial's training."""

    study: Name
    trial: Count
    fence: Count
    reason: StopReason


class Presence(_Incoming):
    """A worker's retained sign of life, for people; it never ends a lease."""

    state: Literal["online", "offline"]
    run: Run
    host: str | None = None
    slots: int | None = None


class ErrorBody(_Outgoing):
    """What went wrong, whose key it was, and an example of what is right."""

    code: str
    message: str
    key: str | None = None
    example: str | None = None


class Reply(_Outgoing):
    """The answer to a request."""

    id: Id
    status: Literal["ok", "exists", "error"]
    result: Any = None
    error: ErrorBody | None = None


class DaemonState(_Outgoing):
    """The daemon's retained state and last will."""

    state: Literal["online", "offline"]
    version: str
    log: str
    epoch: Count
    nonce: str | None = None
    """What signed asks, beats and requests carry; it changes every few minutes, and is there only with keys."""


class Head(_Outgoing):
    """The signed head of the daemon's log, retained."""

    log: str
    epoch: Count
    note: Annotated[str, Field(max_length=4096)]
    """A C2SP signed note. Whoever keeps it can show later what the log was."""
    key: str
    """The public key that signed it, for tools; whom to trust is known from elsewhere."""


class StudyState(_Outgoing):
    """A study's retained state, at most one a second."""

    study: Name
    state: Literal["open", "paused", "closed"]
    closed_by: str | None = None
    objectives: list[dict[str, Any]]
    space: dict[str, Any]
    space_rev: Count
    trials: dict[str, int]
    budget: dict[str, Any]
    best: dict[str, Any] | None = None
    eta_s: float | None = None
    eta: dict[str, Any] | None = Field(
        None, description="low_s and high_s, between which it ends with a chance of 80 % at the pace so far, and the "
                          "rule that is expected to fire first.")
    cost: dict[str, float | None] | None = Field(None, description="spent, and expected to_come until it ends.")
    log: str
    epoch: Count
    seq: Annotated[int, Field(ge=0)]


Incoming: TypeAlias = Ask | Beat | Report | Tell | Request

MODELS: dict[str, type[Ask] | type[Beat] | type[Report] | type[Tell] | type[Request]] = {
    "ask": Ask, "beat": Beat, "report": Report, "tell": Tell, "request": Request}
OUTGOING: dict[str, type[BaseModel]] = {
    "grant": Grant, "receipt": Receipt, "stop": Stop, "reply": Reply,
    "daemon": DaemonState, "head": Head, "study": StudyState, "worker": Presence}

_ID_OF = {kind: "run" if kind == "beat" else "id" for kind in MODELS}
_VALIDATE = {kind: TypeAdapter(model).validator.validate_python for kind, model in MODELS.items()}


def cut(text: str, bytes_max: int) -> str:
    """`text` in at most `bytes_max` bytes of UTF-8, whole characters only."""
    return text.encode("utf-8", "replace")[:bytes_max].decode("utf-8", "ignore")


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]  # add returns None on purpose
        raise BadMessage("bad-json", f"key {cut(twice, 100)!r} is there twice")
    return out


_scan = json.JSONDecoder(object_pairs_hook=_pairs).decode


def _depth(payload: bytes) -> int:
    """Deepest nesting of brackets outside strings; cheap when there are few brackets at all."""
    if payload.count(b"{") + payload.count(b"[") <= DEPTH_MAX:
        return 0
    depth = deepest = 0
    in_string = escaped = False
    for byte in payload:
        if in_string:
            if escaped:
                escaped = False
            elif byte == 0x5C:
                escaped = True
            elif byte == 0x22:
                in_string = False
        elif byte == 0x22:
            in_string = True
        elif byte in (0x7B, 0x5B):
            depth += 1
            deepest = max(deepest, depth)
        elif byte in (0x7D, 0x5D):
            depth -= 1
    return deepest


def parse(payload: bytes, size_max: int = SIZE_MAX) -> dict[str, Any]:
    """Bytes to a JSON object. Raises BadMessage for anything that is not strictly one."""
    if len(payload) > size_max:
        raise BadMessage("too-large", f"{len(payload)} bytes; at most {size_max} are read")
    if _depth(payload) > DEPTH_MAX:
        raise BadMessage("bad-json", f"nested deeper than {DEPTH_MAX}")
    try:
        value = _scan(payload.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise BadMessage("bad-json", f"not UTF-8 at byte {error.start}") from error
    except BadMessage:
        raise
    except (ValueError, RecursionError) as error:      # a number of 5,000 digits is a ValueError, too
        raise BadMessage("bad-json", f"not JSON: {cut(str(error), 200)}") from error
    if not isinstance(value, dict):
        raise BadMessage("bad-json", "a message is a JSON object")
    if b"\\u" in payload:
        _refuse_half_pairs(value)
    return value


def _refuse_half_pairs(value: dict[str, Any]) -> None:
    """Half a surrogate pair is not text and cannot be written again. An error text comes out of other
    programs, so it is mended: a result is worth more than its words."""
    error = value.get("error")
    if isinstance(error, str):
        value["error"] = cut(error, SIZE_MAX)
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as fault:
        raise BadMessage("bad-json", "half a surrogate pair is not text") from fault


def salvage_id(data: dict[str, Any], key: str = "id") -> str | None:
    """The id to answer a bad message to, if it has a well-formed one."""
    value = data.get(key)
    return value if isinstance(value, str) and is_id(value) else None


_find = {key: re.compile(rb'"%b"\s*:\s*"([A-Za-z0-9._:-]{1,128})"' % key.encode()).search for key in ("id", "run")}


def salvage_raw_id(payload: bytes, key: str = "id") -> str | None:
    """The first thing that looks like an id in bytes that are not JSON, or too many.

    Without an answer the sender would send it again for ever.
    """
    found = _find[key](payload)
    return found[1].decode("ascii") if found else None


def validate(kind: str, data: dict[str, Any]) -> Any:
    """A parsed object as the model of `kind`. Raises BadMessage naming the field."""
    try:
        return _VALIDATE[kind](data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        said = first["msg"].removeprefix("Value error, ")
        reason: Reason = "bad-name" if where.split(".")[0] in ("study", "id", "run") else "bad-field"
        raise BadMessage(reason, cut(f"{where}: {said}" if where else said, 400), salvage_id(data, _ID_OF[kind]),
                         run=salvage_id(data, "run") if kind in ("ask", "beat") else None,
                         ask=data.get("ask") if kind == "tell" else None) from error


def decode(kind: str, payload: bytes) -> Any:
    """Bytes to the message of `kind`: Ask, Beat, Report, Tell or Request. Raises BadMessage."""
    try:
        data = parse(payload)
    except BadMessage as error:
        id = salvage_raw_id(payload, _ID_OF[kind])
        raise BadMessage(error.reason, error.detail, id, run=id if kind == "beat" else None) from error
    return validate(kind, data)
