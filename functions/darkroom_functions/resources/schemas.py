"""Bodies of the API: the type of each, and what its fields mean.

A body is a plain dict, which orjson encodes fastest. mypy checks those of `views.py` against their types, a job's
aside; pydantic makes the schemas of the OpenAPI document of the types (`http/openapi.py`), and the tests validate every
response against them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, NotRequired, TypeVar

from darkroom.cloudevents.event import REQUESTED, SPEC_VERSION
from darkroom.jobs import JOB_ID_PATTERN, State
from darkroom.ledger.calls import Receipt
from darkroom.ledger.records import FIELDS, FieldType, RecordField
from darkroom.updates import CELERY_STATUS
from darkroom.webhooks.signatures import SECRET_PREFIX
from darkroom.webhooks.subscriptions import (
    MAX_SUBSCRIPTIONS,
    SUBSCRIPTION_PREFIX,
    DeliveryState,
    SubscriptionState,
    WebhookEvent,
)
from pydantic import ConfigDict, Field, WithJsonSchema, with_config
from typing_extensions import TypedDict

from darkroom_functions.resources import listing
from darkroom_functions.submission.schemas import EVENT_NAMES, RECEIVER

SHA256_PATTERN = "^[0-9a-f]{64}$"
SUBSCRIPTION_ID_PATTERN = f"^{SUBSCRIPTION_PREFIX}{JOB_ID_PATTERN}$"

_INSTANT = r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$"
_SECRET = f"^{SECRET_PREFIX}[A-Za-z0-9+/]+=*$"
_EVENT = {
    "type": "object",
    "properties": {
        "specversion": {"const": SPEC_VERSION},
        "type": {"const": REQUESTED},
        "subject": {"type": "string", "pattern": f"^{JOB_ID_PATTERN}$"},
        "data": {"type": "object"},
    },
    "required": ["specversion", "id", "source", "type", "subject", "time", "data"],
    "description": "The CloudEvent that requested the job, with the input that the worker received.",
}
_UNDELIVERED_EVENT = {
    "type": "object",
    "properties": {"specversion": {"const": SPEC_VERSION}},
    "required": ["specversion", "id", "source", "type"],
    "description": "The CloudEvent, with secrets hidden. A list leaves out its data.",
}


def _known(values: Iterable[str]) -> WithJsonSchema:
    """A string of known values. A later version may write others, which are shown as they are."""
    known = sorted(str(value) for value in values)
    return WithJsonSchema(
        {"anyOf": [{"enum": known}, {"type": "string", "description": "A value of a later version."}]}
    )


OPEN = with_config(ConfigDict(extra="allow"))
"""The mark of objects that are shown as they are stored, with the members that a later version adds."""

JobId = Annotated[str, Field(json_schema_extra={"pattern": f"^{JOB_ID_PATTERN}$"})]
Time = Annotated[str, Field(json_schema_extra={"format": "date-time", "pattern": _INSTANT})]
Url = Annotated[str, Field(json_schema_extra={"format": "uri"})]
Sha256 = Annotated[str, Field(json_schema_extra={"pattern": SHA256_PATTERN})]
Secret = Annotated[str, Field(json_schema_extra={"pattern": _SECRET})]
SubscriptionId = Annotated[str, Field(json_schema_extra={"pattern": SUBSCRIPTION_ID_PATTERN})]
Count = Annotated[int, Field(ge=0)]
Number = Annotated[int, Field(ge=1)]
StateName = Annotated[str, _known(State)]
CeleryStatus = Annotated[str, _known({*CELERY_STATUS.values(), "RETRY"})]
SubscriptionStateName = Annotated[str, _known(SubscriptionState)]
DeliveryStateName = Annotated[str, _known(DeliveryState)]
EventName = Annotated[str, _known(WebhookEvent)]
OutcomeName = Annotated[str, _known(("running", "released", "retried", "completed", "failed", "cancelled"))]
ReceiptName = Annotated[str, WithJsonSchema({"enum": [receipt.value for receipt in Receipt]})]
EventNames = Annotated[list[str], WithJsonSchema(EVENT_NAMES)]
ModelNames = Annotated[
    list[str],
    WithJsonSchema(
        {
            "type": "array",
            "items": {"type": "string"},
            "uniqueItems": True,
            "description": "Names of the models whose jobs it covers. Empty or absent: all models.",
        }
    ),
]

Item = TypeVar("Item")
Page = Annotated[list[Item], Field(max_length=listing.MAX_PAGE)]
Next = Annotated[str | None, Field(description="The value of `after` for the next page.")]


# Refusals


class FieldErrorBody(TypedDict):
    """A field and why it is refused."""

    field: str
    detail: str


_OfLimits = TypedDict(
    "_OfLimits",
    {
        "violated-policies": NotRequired[
            Annotated[list[str], Field(description="The limits that are reached, as RateLimit-Policy names them.")]
        ]
    },
)


class ProblemBody(_OfLimits):
    """The reason why a request was refused (RFC 9457)."""

    type: Url
    title: str
    status: int
    detail: str
    errors: NotRequired[list[FieldErrorBody]]
    verdicts: NotRequired[list[AcceptedVerdictBody | RefusedVerdictBody]]
    state: NotRequired[Annotated[StateName, Field(description="The last state of a deleted job.")]]
    ended_at: NotRequired[Time]
    deleted_at: NotRequired[Time]


# Submissions

CurrentState = Annotated[
    StateName | None,
    Field(description="The job's state. Null for a repeat whose job is no longer in Redis: read the job instead."),
]


class AcceptedBody(TypedDict):
    """The receipt of an accepted job."""

    id: JobId
    job_id: JobId
    task_id: JobId
    status: CurrentState


class AcceptedVerdictBody(TypedDict):
    """The verdict on an event of a batch that was accepted."""

    id: JobId
    job_id: JobId
    task_id: JobId
    status: Literal[200, 202]
    state: CurrentState
    location: str


class RefusedVerdictBody(TypedDict):
    """The verdict on an event of a batch that was refused."""

    status: Annotated[int, Field(ge=400)]
    problem: ProblemBody


class VerdictsBody(TypedDict):
    """The verdicts on the events of a batch, in their order."""

    verdicts: list[AcceptedVerdictBody | RefusedVerdictBody]


# Jobs


class TaskBody(TypedDict):
    """The state of a job in Celery's terms."""

    task_id: JobId
    status: CeleryStatus


class AttemptBody(TypedDict):
    """One execution of a job by one worker."""

    number: Number
    worker: str
    started_at: Time
    ended_at: Time | None
    outcome: OutcomeName
    reason: str | None
    message: str | None


@OPEN
class ArtifactBody(TypedDict):
    """An output file of a job. Its link expires; reading the job again returns a new one."""

    url: Url
    sha256: Sha256
    media_type: str
    size: Count
    width: Number
    height: Number


@OPEN
class JobErrorBody(TypedDict):
    """The reason why a job has no result."""

    kind: str
    message: str


_MEMBER_TYPES: Mapping[FieldType, Any] = {
    FieldType.ID: JobId,
    FieldType.TEXT: str,
    FieldType.STATE: StateName,
    FieldType.JSON: dict[str, Any],
    FieldType.INTEGER: int,
    FieldType.SMALL: int,
    FieldType.DECIMAL: float,
    FieldType.TIME: Time,
}


def _member(field: RecordField) -> Any:
    kind = _MEMBER_TYPES[field.type]
    if kind is int:
        kind = Annotated[int, Field(ge=field.minimum, le=field.maximum)]
    return Annotated[kind | None if field.is_optional else kind, Field(description=field.meaning)]


if TYPE_CHECKING:

    class RecordMembers(TypedDict):
        """The members of a job's view that each show one field of its record, by the table of fields."""

else:
    RecordMembers = TypedDict("RecordMembers", {member: _member(field) for field in FIELDS for member in field.views})


class JobBody(RecordMembers):
    """A job in its present state."""

    model_served: Annotated[str, Field(description="The model that runs, where an alias is requested.")]
    job_type: str | None
    user_id: str | None
    prompt: str | None
    width: int | None
    height: int | None
    seed: int | None
    updated_at: Time
    output_paths: list[Url]
    artifacts: list[ArtifactBody]
    content_id: Annotated[Sha256 | None, Field(description="SHA-256 of the first artifact.")]
    error: JobErrorBody | None
    record: Annotated[
        dict[str, Any] | None, Field(description="Everything that is needed to generate the same image again.")
    ]
    redrive_of: Annotated[JobId | None, Field(description="The dead letter that this job was redriven from.")]
    webhook: Annotated[Url | None, Field(description="The address that the job's events are posted to.")]
    webhook_events_filter: list[EventName] | None
    attempts: NotRequired[
        Annotated[
            list[AttemptBody] | None,
            Field(description="In a single job only. Null when its log is no longer stored, or cannot be read now."),
        ]
    ]


class JobsBody(TypedDict):
    """A page of jobs, newest first. With a filter, a page may hold fewer jobs than requested although more follow."""

    jobs: Page[JobBody]
    next: Next
    complete: Annotated[
        bool,
        Field(description="False while the history is unavailable: older jobs may be missing here."),
    ]


class CancelledBody(TypedDict):
    """The effect of a cancel, and the job's state after it."""

    job_id: JobId
    receipt: ReceiptName
    status: StateName


# Dead letters


class DeadLetterBody(TypedDict):
    """A job whose attempts are used up. It is stored until it is purged, redriven or deleted."""

    id: JobId
    model: str
    user_id: str | None
    created_at: Time
    ended_at: Time | None
    error: JobErrorBody
    attempts: list[AttemptBody]
    event: Annotated[dict[str, Any], WithJsonSchema(_EVENT)]


class DeadLettersBody(TypedDict):
    """A page of dead letters, the most recent first."""

    dead_letters: Page[DeadLetterBody]
    next: Next


class RedriveRequestBody(TypedDict, total=False):
    """The differences between the new job and the dead letter."""

    input: Annotated[dict[str, Any] | None, Field(description="Parameters that replace those of the dead letter.")]


class PurgedBody(TypedDict):
    """The result of purging all dead letters."""

    purged: Annotated[int, Field(ge=0, description="Number of purged dead letters.")]


# Undelivered events


class UndeliveredEventBody(TypedDict):
    """An event that Knative could not deliver. The newest are stored until they are deleted."""

    id: str
    state: Literal["undelivered", "replayed"]
    event: Annotated[dict[str, Any], WithJsonSchema(_UNDELIVERED_EVENT)]
    bytes: Count
    destination: Annotated[str | None, Field(description="The subscriber of the last attempt.")]
    code: Annotated[int | None, Field(description="The status of the last response.")]
    answer: Annotated[str | None, Field(description="The beginning of the last response's text.")]
    first_failed_at: Time
    failed_at: Time
    replayed_at: Time | None


class UndeliveredEventsBody(TypedDict):
    """A page of undelivered events, the most recent failure first."""

    undelivered_events: Page[UndeliveredEventBody]
    next: Next


class ReplayedBody(TypedDict):
    """The sink's response to an undelivered event that was posted again."""

    id: str
    status: Annotated[int, Field(description="The status of the sink's response.")]
    delivered: Annotated[
        bool, Field(description="Whether the sink accepted the event, and its delivery has not failed again since.")
    ]
    answer: Annotated[str, Field(description="The beginning of the response's text.")]


# Webhooks


class SubscriptionRequestBody(TypedDict):
    """The receiver of a tenant's job events, and which events it receives."""

    url: Annotated[str, WithJsonSchema(RECEIVER)]
    events: NotRequired[EventNames | None]
    models: NotRequired[ModelNames | None]


class SubscriptionChangeBody(TypedDict, total=False):
    """The fields to change. A field that is absent or null keeps its value."""

    url: Annotated[str, WithJsonSchema(RECEIVER)] | None
    events: EventNames | None
    models: ModelNames | None
    state: Literal["enabled", "disabled"] | None


class SubscriptionBody(TypedDict):
    """A receiver of a tenant's job events."""

    id: SubscriptionId
    url: Url
    events: list[EventName]
    models: ModelNames
    state: Annotated[SubscriptionStateName, Field(description="Events are delivered only while it is enabled.")]
    reason: Annotated[str | None, Field(description="The reason why it is not enabled, unless its owner disabled it.")]
    created_at: Time
    changed_at: Annotated[Time, Field(description="Time of the last change of state.")]
    failing_since: Annotated[Time | None, Field(description="Time since which every delivery failed.")]
    allowed_rate: Annotated[int | None, Field(description="Deliveries per minute that the receiver allows.")]


class SubscriptionsBody(TypedDict):
    """All subscriptions of a tenant, in the order of their creation."""

    subscriptions: Annotated[list[SubscriptionBody], Field(max_length=MAX_SUBSCRIPTIONS)]


class SecretBody(TypedDict):
    """The secret that signs deliveries (Standard Webhooks, `v1`)."""

    secret: Secret
    generation: Annotated[int | None, Field(ge=1, description="The number of a subscription's secret.")]
    previous: Annotated[Secret | None, Field(description="The secret before this one, while it also signs.")]
    previous_until: Time | None


class RotationRequestBody(TypedDict, total=False):
    """The secret to replace."""

    generation: Annotated[
        int | None,
        Field(ge=1, description="The generation to replace: a repeated request then replaces no other secret."),
    ]


class WebhookKeyBody(TypedDict):
    """A JSON Web Key."""

    kty: Literal["OKP"]
    crv: Literal["Ed25519"]
    x: str
    kid: str
    use: Literal["sig"]
    alg: Literal["EdDSA"]
    whpk: Annotated[
        str, Field(description="The same key in Standard Webhooks form.", json_schema_extra={"pattern": "^whpk_"})
    ]


class WebhookKeysBody(TypedDict):
    """The keys that verify `v1a` signatures (a JSON Web Key Set), newest first."""

    keys: Annotated[list[WebhookKeyBody], Field(min_length=1)]


class TryBody(TypedDict):
    """One attempt to post an event."""

    number: Number
    at: Time
    took_ms: Count
    status: Annotated[int | None, Field(description="The status of the receiver's response; null without one.")]
    error: Annotated[str | None, Field(description="The reason why the attempt failed.")]


class DeliveryBody(TypedDict):
    """The delivery of one event to one webhook."""

    id: str
    job_id: JobId
    event_id: Annotated[str, Field(description="The id of the event, which the receiver receives as `webhook-id`.")]
    event: EventName
    sequence: Number
    subscription: Annotated[SubscriptionId | None, Field(description="Null for the webhook of the job's own request.")]
    url: Url
    state: DeliveryStateName
    reason: Annotated[str | None, Field(description="The reason why it was given up.")]
    created_at: Time
    ended_at: Time | None
    due_at: Annotated[Time | None, Field(description="Time of the next attempt of an open delivery.")]
    tried: Annotated[int, Field(ge=0, description="Number of attempts.")]
    tries: Annotated[list[TryBody], Field(description="The most recent attempts.")]


class DeliveriesBody(TypedDict):
    """A page of a job's deliveries, oldest first. They are stored for a day after they finished."""

    deliveries: Page[DeliveryBody]
    next: Next


# Models


class ModelBody(TypedDict):
    """A model and its parameters."""

    name: str
    title: str
    description: str
    served: Annotated[str, Field(description="The model that runs under this name.")]
    default: bool
    run_timeout: Annotated[int, Field(description="The longest time that a job may run, in seconds.")]
    parameters: Annotated[dict[str, Any], Field(description="A JSON Schema of the parameters.")]


class ModelsBody(TypedDict):
    """The models and their parameters."""

    models: list[ModelBody]
