"""Reading of job requests: a CloudEvent or a REST body becomes a `darkroom.ledger.calls.Submission`.

`resources/submissions.py` passes the request, and gets the submission or one refusal with every invalid field. Nothing
here reads a clock or draws a number: `SubmissionContext` has what is drawn, and times are those of Redis.

The fields of a request are those of `FIELDS`, and the model's parameters: at the top level, or under `input`. A null
field counts as absent.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeGuard

from darkroom import times
from darkroom.access.principals import Principal
from darkroom.catalogue import models
from darkroom.catalogue.models import Catalogue, Model
from darkroom.catalogue.parameters import MAX_FAULTS, SIDES, SIZE, read_integer, shown
from darkroom.cloudevents.event import REQUESTED, Event
from darkroom.errors import FieldError, InvalidEvent, InvalidInput, ModelNotPermitted, UnknownModel
from darkroom.ledger.calls import DEFAULT_PRIORITY, MAX_ATTEMPTS, Submission
from darkroom.ledger.dead_letters import REDRIVE_OF
from darkroom.ledger.records import JobRecord
from darkroom.webhooks.guard import NOTHING, Allow
from darkroom.webhooks.subscriptions import DEFAULT_EVENTS, Webhook, WebhookEvent

from darkroom_functions.submission import webhooks

JOB_TYPE = "image"
"""The only type of job."""

MAX_USER_ID = 200
"""The longest user id, in characters. A guess: UUIDs, mail addresses and numbers are much shorter."""

MAX_IDEMPOTENCY_KEY = 255
"""The longest `Idempotency-Key`, in characters."""

IDEMPOTENCY_KEY_PATTERN = r"^[!-~]([ -~]*[!-~])?$"
"""Printable ASCII. HTTP drops spaces around a header's value."""

MAX_EVENT_NAME = 2048
"""The longest `id` and the longest `source` of a CloudEvent, in characters: both are stored with the job."""

MIN_RUN_TIMEOUT_S = 1

MAX_START_DELAY_S = 365 * 24 * 3600
"""The longest `start_deadline` in seconds: a year. Beyond, a mistake in the unit is likelier than such a request."""

LEAST_PRIORITY, MOST_PRIORITY = 0, 9
"""0 is first, 9 last."""

SEED_BITS = 32
"""Bits of a drawn seed: enough to avoid collisions, and few enough digits to type."""

EXPIRY = "expirytime"
"""The CloudEvents extension of that name; here the start deadline of a job.

https://github.com/cloudevents/spec/blob/main/cloudevents/extensions/expirytime.md
"""

WEBHOOK, WEBHOOK_EVENTS = "webhook", "webhook_events_filter"
"""The fields of a request, and of its job, that name the receiver of its events, and which events."""

REPEATED = "Darkroom-Repeated"
"""The header of a response to a repeat: the job was accepted by an earlier request."""

_SHOWN_FAULTS = 3
"""Faults that the detail of a refusal names; the list of errors has all."""

USER_ID_PATTERN = r"^[^\u0000-\u001f\u007f-\u009f]+$"
"""The pattern of a user id in the OpenAPI document. It leaves out surrogates, as a parameter's pattern does
(`darkroom.catalogue.parameters`).
"""

_USER_ID = re.compile(r"[^\x00-\x1f\x7f-\x9f\ud800-\udfff]+")


@dataclass(frozen=True)
class SubmissionContext:
    """What is drawn for each request: the id of the job, a seed and a trace."""

    job_id: str
    seed: int
    traceparent: str


@dataclass(frozen=True)
class Rules:
    """What the fields of a request are validated against: its model, and the allowed addresses of webhooks."""

    model: Model
    allow: Allow


@dataclass(frozen=True)
class RestRequest:
    """A REST body with the model in the path, and the key that makes repeats one request."""

    data: Mapping[str, object]
    model: str | None
    idempotency_key: str | None
    traceparent: str | None


@dataclass(frozen=True)
class StartDeadline:
    """Until when a job may start: at a time (milliseconds since 1970), or within so many milliseconds of its
    acceptance, which Redis counts by its own clock. This process' clock may differ from that.
    """

    at: int | None = None
    within: int | None = None


@dataclass(frozen=True)
class CheckedRequest:
    """A valid request. `run_timeout` is in seconds."""

    model: Model
    input: Mapping[str, object]
    priority: int
    run_timeout: float
    start_deadline: StartDeadline
    user_id: str | None
    webhook: Webhook | None


def of_event(
    event: Event, *, catalogue: Catalogue, allow: Allow, principal: Principal, context: SubmissionContext
) -> Submission:
    """The job that a CloudEvent requests; its `source` and `id` make repeats of it one job.

    Raises InvalidEvent for its attributes, InvalidInput, UnknownModel and ModelNotPermitted for its data.
    """
    expiry = _checked(event)
    data = {} if event.data is None else event.data
    if not isinstance(data, dict):
        raise _refusal([FieldError("data", "must be a JSON object")])
    checked = read(data, catalogue=catalogue, allow=allow, where="data.")
    deadline = checked.start_deadline.at
    if deadline is None or (expiry is not None and expiry < deadline):
        deadline = expiry
    return _submission(
        checked,
        principal=principal,
        context=context,
        start_deadline=replace(checked.start_deadline, at=deadline),
        event_id=event.id,
        event_source=event.source,
        event_time=event.time,
        idempotency_key=_hash(f"ce\n{event.source}\n{event.id}"),
        fingerprint=_fingerprint(data),
        traceparent=event.traceparent or context.traceparent,
        is_event=True,
    )


def of_rest(
    request: RestRequest,
    *,
    catalogue: Catalogue,
    allow: Allow,
    principal: Principal,
    context: SubmissionContext,
    source: str,
) -> Submission:
    """The job that a REST request requests, with a CloudEvent made for it whose `source` is the public URL.

    Raises InvalidInput, UnknownModel and ModelNotPermitted.
    """
    checked = read(request.data, catalogue=catalogue, allow=allow, model_of_path=request.model)
    key = request.idempotency_key
    return _submission(
        checked,
        principal=principal,
        context=context,
        start_deadline=checked.start_deadline,
        event_id=context.job_id,
        event_source=source,
        event_time=None,
        idempotency_key=None if key is None else _hash(f"rest\n{key}"),
        fingerprint=None if key is None else _fingerprint([request.model, request.data]),
        traceparent=request.traceparent or context.traceparent,
    )


def read_edits(body: Mapping[str, object]) -> Mapping[str, object]:
    """The changes in the body of a redrive: `input`, its only field. Raises InvalidInput."""
    faults = [FieldError(shown(name), "is not a field of a redrive: use input") for name in body if name != "input"]
    edits = body.get("input")
    if edits is not None and not isinstance(edits, dict):
        faults.append(FieldError("input", "must be a JSON object"))
    if faults:
        raise _refusal(faults)
    return edits if isinstance(edits, dict) else {}


def of_redrive(
    letter: JobRecord,
    edits: Mapping[str, object],
    *,
    catalogue: Catalogue,
    principal: Principal,
    context: SubmissionContext,
    source: str,
    traceparent: str | None,
) -> Submission:
    """The job of a redrive: the dead letter with its webhook, and with `edits` over its input. It has no start
    deadline, since that of the dead letter bound its first attempt only. `principal`, of the same tenant, is charged.

    Raises InvalidInput, UnknownModel and ModelNotPermitted: the input is validated against the model as that is now.
    """
    model = _model({"model": letter.model}, catalogue, None, "")
    kept: Mapping[str, object] = letter.input
    if SIZE in edits:  # it sets both sides, and would have to agree with the old ones
        kept = {name: value for name, value in kept.items() if name not in SIDES}
    data = {
        "model": model.name,
        "input": {**kept, **edits},
        "priority": letter.priority,
        "run_timeout": min(letter.run_timeout, model.run_timeout_s),
        "user_id": letter.fields.get("user_id"),
    }
    checked = read(data, catalogue=catalogue, allow=NOTHING)
    return _submission(
        replace(checked, webhook=letter.webhook),
        principal=principal,
        context=context,
        start_deadline=StartDeadline(),
        event_id=context.job_id,
        event_source=source,
        event_time=None,
        idempotency_key=None,
        fingerprint=None,
        traceparent=traceparent or context.traceparent,
        max_attempts=letter.max_attempts,
        redrive_of=letter.id,
    )


def read(
    data: Mapping[str, object],
    *,
    catalogue: Catalogue,
    allow: Allow,
    model_of_path: str | None = None,
    where: str = "",
) -> CheckedRequest:
    """The valid request in `data`. `where` precedes the names of fields in faults.

    Raises one InvalidInput with all faults; UnknownModel alone, since without a model the rest cannot be validated.
    """
    model = _model(data, catalogue, model_of_path, where)
    rules = Rules(model, allow)
    faults: list[FieldError] = []
    values: dict[str, Any] = {}
    for name, reader in FIELDS.items():
        value = data.get(name)
        if value is not None:
            try:
                values[name] = reader(value, rules)
            except ValueError as error:
                faults.append(FieldError(where + name, str(error)))
    if WEBHOOK_EVENTS in values and data.get(WEBHOOK) is None:
        faults.append(FieldError(where + WEBHOOK_EVENTS, f"requires {WEBHOOK}"))
    parameters, prefix = _parameters(data, where, faults)
    checked: Mapping[str, object] = {}
    try:
        checked = models.validate(model, parameters)
    except InvalidInput as error:
        faults += [FieldError(prefix + fault.field, fault.detail) for fault in error.fields]
    if faults:
        raise _refusal(faults)
    return CheckedRequest(
        model=model,
        input=checked,
        priority=values.get("priority", DEFAULT_PRIORITY),
        run_timeout=values.get("run_timeout", model.run_timeout_s),
        start_deadline=values.get("start_deadline", StartDeadline()),
        user_id=values.get("user_id"),
        webhook=Webhook(values[WEBHOOK], values.get(WEBHOOK_EVENTS, DEFAULT_EVENTS)) if WEBHOOK in values else None,
    )


def _submission(
    checked: CheckedRequest,
    *,
    principal: Principal,
    context: SubmissionContext,
    start_deadline: StartDeadline,
    event_id: str,
    event_source: str,
    event_time: str | None,
    idempotency_key: str | None,
    fingerprint: str | None,
    traceparent: str,
    max_attempts: int = MAX_ATTEMPTS,
    redrive_of: str | None = None,
    is_event: bool = False,
) -> Submission:
    model, job_input = checked.model, _with_seed(checked, context.seed)
    if not principal.may_use(model.name):
        raise ModelNotPermitted(f"the credential {principal.actor} does not permit the model {model.name}")
    event = {"id": event_id, "source": event_source}
    if event_time is not None:  # otherwise the ledger sets the time of acceptance
        event["time"] = event_time
    fields: dict[str, object] = {"job_type": JOB_TYPE, "event": event}
    if checked.user_id is not None:
        fields["user_id"] = checked.user_id
    if redrive_of is not None:
        fields[REDRIVE_OF] = redrive_of
    return Submission(
        job_id=context.job_id,
        tenant=principal.tenant,
        model=model.name,
        pool=model.pool,
        input=job_input,
        fields=fields,
        run_timeout=checked.run_timeout,
        priority=checked.priority,
        start_deadline=start_deadline.at,
        start_within=start_deadline.within,
        max_attempts=max_attempts,
        idempotency_key=idempotency_key,
        fingerprint=fingerprint,
        traceparent=traceparent,
        accepted={"model": model.name},
        redrive_of=redrive_of,
        webhook=checked.webhook,
        is_event=is_event,
        images=_images_of(job_input),
        key_id=principal.key_id,
        weight=principal.weight,
        tenant_limits=principal.tenant_limits,
        key_limits=principal.limits,
    )


def _images_of(job_input: Mapping[str, object]) -> int:
    """The number of images of a job; 1 for a model without that parameter."""
    images = job_input.get("images")
    return images if isinstance(images, int) else 1


def _with_seed(checked: CheckedRequest, drawn: int) -> Mapping[str, object]:
    """The input with a seed, where the model has one: the record must have it, also when the request has none."""
    seed = checked.model.parameters.get("seed")
    if seed is None or "seed" in checked.input:
        return checked.input
    least, most = int(seed.minimum or 0), int(seed.maximum or 0)
    return {**checked.input, "seed": least + drawn % (most - least + 1)}


def _checked(event: Event) -> int | None:
    """The start deadline of the event, if any. Raises InvalidEvent for an event that does not request a job."""
    faults = []
    if event.type != REQUESTED:
        faults.append(FieldError("type", f'must be "{REQUESTED}" here'))
    for name, value in (("id", event.id), ("source", event.source)):
        if len(value) > MAX_EVENT_NAME:
            faults.append(FieldError(name, f"must have at most {MAX_EVENT_NAME} characters"))
    expiry, expiry_ms = event.extensions.get(EXPIRY), None
    if expiry is not None:
        try:
            expiry_ms = times.to_ms(str(expiry))
        except ValueError as error:
            faults.append(FieldError(EXPIRY, str(error)))
    if faults:
        raise InvalidEvent("; ".join(f"{fault.field} {fault.detail}" for fault in faults), fields=faults)
    return expiry_ms


def model_named(data: object, catalogue: Catalogue, model_of_path: str | None = None) -> str:
    """The model that a request names, refused or not; empty where it names none that exists, more than one, or is no
    request.
    """
    try:
        return _model(data, catalogue, model_of_path, "").name if isinstance(data, Mapping) else ""
    except (InvalidInput, UnknownModel):
        return ""


def _model(data: Mapping[str, object], catalogue: Catalogue, model_of_path: str | None, where: str) -> Model:
    named = data.get("model")
    if named is None:
        named = model_of_path
    if named is None:
        return catalogue.default
    if not isinstance(named, str):
        raise _refusal([FieldError(f"{where}model", "must be a string")])
    if model_of_path is not None and named != model_of_path:
        raise _refusal([FieldError(f"{where}model", "differs from the model in the path")])
    try:
        return catalogue.get(named)
    except UnknownModel as error:
        raise UnknownModel(error.detail, fields=[FieldError(f"{where}model", "is not the name of a model")]) from None


def _parameters(data: Mapping[str, object], where: str, faults: list[FieldError]) -> tuple[Mapping[str, object], str]:
    """The model's parameters in `data`, and the prefix of their names."""
    flat = {name: value for name, value in data.items() if name not in FIELDS and name not in ("model", "input")}
    nested = data.get("input")
    if nested is None:
        return flat, where
    if not isinstance(nested, dict):
        faults.append(FieldError(f"{where}input", "must be a JSON object"))
        return {}, where
    faults += [
        FieldError(f"{where}{name}", "is beside `input`: put all parameters under `input`, or all at the top level")
        for name in list(flat)[:MAX_FAULTS]
    ]
    return nested, f"{where}input."


def _refusal(faults: list[FieldError]) -> InvalidInput:
    named = faults[:MAX_FAULTS]
    detail = "; ".join(f"{fault.field} {fault.detail}" for fault in named[:_SHOWN_FAULTS])
    more = len(faults) - _SHOWN_FAULTS
    return InvalidInput(f"{detail}; and {more} more" if more > 0 else detail, fields=named)


def _fingerprint(sent: object) -> str:
    """A hash of the data, independent of spaces, order and mode: a Broker may change an event's mode."""
    text = json.dumps(sent, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def read_user_id(value: object) -> str:
    """A user id, of a request or a filter. Raises ValueError."""
    if not isinstance(value, str) or len(value) > MAX_USER_ID or not _USER_ID.fullmatch(value):
        raise ValueError(f"must be a string of 1 to {MAX_USER_ID} characters, none of them a control character")
    return value


def _read_job_type(value: object, _rules: Rules) -> str:
    if value != JOB_TYPE:
        raise ValueError(f'must be "{JOB_TYPE}"')
    return JOB_TYPE


def _read_priority(value: object, _rules: Rules) -> int:
    refusal = ValueError(f"must be an integer from {LEAST_PRIORITY} (first) to {MOST_PRIORITY} (last)")
    try:
        priority = read_integer(value)
    except ValueError:
        raise refusal from None
    if not LEAST_PRIORITY <= priority <= MOST_PRIORITY:
        raise refusal
    return priority


def _read_run_timeout(value: object, rules: Rules) -> float:
    longest = rules.model.run_timeout_s
    if not _is_number(value) or not MIN_RUN_TIMEOUT_S <= value <= longest:
        raise ValueError(f"must be a number of seconds from {MIN_RUN_TIMEOUT_S} to {longest}")
    return value


def _read_start_deadline(value: object, _rules: Rules) -> StartDeadline:
    if isinstance(value, str):
        return StartDeadline(at=times.to_ms(value))
    if not _is_number(value) or not 0 < value <= MAX_START_DELAY_S:
        raise ValueError(f"must be an RFC 3339 time, or a number of seconds from now, at most {MAX_START_DELAY_S}")
    return StartDeadline(within=math.ceil(value * 1000))


def _read_webhook(value: object, rules: Rules) -> str:
    return webhooks.read_url(value, allow=rules.allow)


def _read_webhook_events(value: object, _rules: Rules) -> frozenset[WebhookEvent]:
    return webhooks.read_events(value)


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


FIELDS: Mapping[str, Callable[[object, Rules], object]] = {
    "user_id": lambda value, _rules: read_user_id(value),
    "job_type": _read_job_type,
    "priority": _read_priority,
    "run_timeout": _read_run_timeout,
    "start_deadline": _read_start_deadline,
    WEBHOOK: _read_webhook,
    WEBHOOK_EVENTS: _read_webhook_events,
}
"""The fields of the job, beside `model` and `input`, with their readers. A reader raises ValueError with the reason,
worded to follow the field's name."""
