"""Lists: their query parameters, with readers and schemas."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from darkroom.access.records import TENANT_PATTERN
from darkroom.catalogue import models
from darkroom.catalogue.parameters import shown
from darkroom.errors import FieldError, InvalidInput
from darkroom.history.usage import Dimension
from darkroom.jobs import JOB_ID_PATTERN, State, is_job_id
from darkroom.ledger import dead_letters, undelivered
from darkroom.trail.entries import MAX_TEXT
from darkroom.webhooks.subscriptions import DELIVERY_ID_PATTERN, is_delivery_id

from darkroom_functions.http.openapi import in_query
from darkroom_functions.http.routes import Schema
from darkroom_functions.submission.reading import read_user_id
from darkroom_functions.submission.schemas import USER_ID

JOB_ID: Schema = {"type": "string", "pattern": f"^{JOB_ID_PATTERN}$"}
DELIVERY_ID: Schema = {"type": "string", "pattern": f"^{DELIVERY_ID_PATTERN}$"}

TENANT: Schema = {"type": "string", "pattern": f"^{TENANT_PATTERN}$"}
NUMBER_PATTERN = "[1-9][0-9]{0,17}"
DAY_PATTERN = "[0-9]{4}-[0-9]{2}-[0-9]{2}"

FORMATS = ("json", "csv")
"""The formats of a report of usage."""

DEFAULT_PAGE, MAX_PAGE = 20, 100
"""Items on one page: a screenful, and at most what takes a few ms to build."""

_STATES = tuple(state.value for state in State)


@dataclass(frozen=True)
class QueryParameter:
    """A query parameter of a list: the field that it sets, the reader of its text, its schema and its meaning.

    The reader raises ValueError with the reason, worded to follow the parameter's name.
    """

    field: str
    read: Callable[[str], object]
    schema: Schema
    meaning: str


QueryParameters = Mapping[str, QueryParameter]


@dataclass(frozen=True)
class Listing:
    """The query of a list of jobs, newest first; `after` is the id of the last job of the page before."""

    limit: int = DEFAULT_PAGE
    after: str | None = None
    state: State | None = None
    model: str | None = None
    user_id: str | None = None


@dataclass(frozen=True)
class PageQuery:
    """The query of a list of dead letters, undelivered events or deliveries; `after` is the `next` of a page."""

    limit: int = DEFAULT_PAGE
    after: str | None = None


@dataclass(frozen=True)
class TrailQuery:
    """The query of the audit trail, newest first; `after` is the number of the last entry of the page before."""

    limit: int = DEFAULT_PAGE
    after: int | None = None
    tenant: str | None = None
    actor: str | None = None
    operation: str | None = None
    object: str | None = None


def read(query: Sequence[tuple[str, str]]) -> Listing:
    """The query of a list of jobs. Raises InvalidInput that names every invalid parameter."""
    return Listing(**_values(query, PARAMETERS))


def read_letters(query: Sequence[tuple[str, str]]) -> PageQuery:
    """The query of a list of dead letters. Raises InvalidInput."""
    return PageQuery(**_values(query, LETTER_PARAMETERS))


def read_undelivered(query: Sequence[tuple[str, str]]) -> PageQuery:
    """The query of a list of undelivered events. Raises InvalidInput."""
    return PageQuery(**_values(query, UNDELIVERED_PARAMETERS))


def read_deliveries(query: Sequence[tuple[str, str]]) -> PageQuery:
    """The query of a list of deliveries; `after` is the id of one of them. Raises InvalidInput."""
    return PageQuery(**_values(query, DELIVERY_PARAMETERS))


def read_trail(query: Sequence[tuple[str, str]]) -> TrailQuery:
    """The query of the audit trail. Raises InvalidInput."""
    return TrailQuery(**_values(query, TRAIL_PARAMETERS))


def read_usage(query: Sequence[tuple[str, str]]) -> Mapping[str, Any]:
    """The parameters of a report of usage that were given, by field. Raises InvalidInput."""
    return _values(query, USAGE_PARAMETERS)


def _values(query: Sequence[tuple[str, str]], parameters: QueryParameters) -> dict[str, Any]:
    """The values of the query by the field that each parameter sets."""
    faults: list[FieldError] = []
    values: dict[str, Any] = {}
    for name, text in query:
        if name not in parameters:
            faults.append(FieldError(shown(name), f"is not a parameter of the list: use {', '.join(parameters)}"))
            continue
        parameter = parameters[name]
        try:
            value = parameter.read(text)
            if values.setdefault(parameter.field, value) != value:
                raise ValueError("was given twice with different values")
        except ValueError as error:
            faults.append(FieldError(name, str(error)))
    if faults:
        raise InvalidInput("; ".join(f"{fault.field} {fault.detail}" for fault in faults[:3]), fields=faults)
    return values


def _limit(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= len(str(MAX_PAGE)) and 1 <= int(text) <= MAX_PAGE):
        raise ValueError(f"must be a number from 1 to {MAX_PAGE}")
    return int(text)


def _after(text: str) -> str:
    if not is_job_id(text):
        raise ValueError("must be the `next` of an earlier page")
    return text


def _after_letter(text: str) -> str:
    dead_letters.parse_cursor(text)
    return text


def _after_undelivered(text: str) -> str:
    undelivered.parse_cursor(text)
    return text


def _after_delivery(text: str) -> str:
    if not is_delivery_id(text, job_id=text.partition(".")[0]):
        raise ValueError("must be the `next` of an earlier page")
    return text


def _state(text: str) -> State:
    if text not in _STATES:
        raise ValueError(f"must be one of {', '.join(_STATES)}")
    return State(text)


def _model(text: str) -> str:
    if not models.NAME.fullmatch(text):
        raise ValueError("must be the name of a model")
    return text


def _number(text: str) -> int:
    if re.fullmatch(NUMBER_PATTERN, text, re.ASCII) is None:
        raise ValueError("must be the `next` of an earlier page")
    return int(text)


def _text(text: str) -> str:
    if not text or len(text) > MAX_TEXT or not text.isprintable():
        raise ValueError(f"must have 1 to {MAX_TEXT} printable characters")
    return text


def _tenant(text: str) -> str:
    if re.fullmatch(TENANT_PATTERN, text) is None:
        raise ValueError("must be the name of a tenant")
    return text


def _day(text: str) -> date:
    if re.fullmatch(DAY_PATTERN, text, re.ASCII) is None:
        raise ValueError("must be a day such as 2026-11-30")
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise ValueError("must be a day that exists") from None


def _dimensions(text: str) -> tuple[Dimension, ...]:
    names = text.split(",")
    if len(set(names)) < len(names) or not set(names) <= {each.value for each in Dimension}:
        raise ValueError(f"must be some of {','.join(Dimension)}, each once, with commas between")
    return tuple(Dimension(name) for name in names)


def _format(text: str) -> str:
    if text not in FORMATS:
        raise ValueError(f"must be one of {', '.join(FORMATS)}")
    return text


def described(parameters: QueryParameters) -> list[Schema]:
    """The parameters for the OpenAPI document."""
    return [in_query(name, parameter.schema, parameter.meaning) for name, parameter in parameters.items()]


def _cursor(read: Callable[[str], object], schema: Schema) -> QueryParameter:
    return QueryParameter("after", read, schema, "The `next` of the previous page.")


_LIMIT = QueryParameter(
    "limit",
    _limit,
    {"type": "integer", "minimum": 1, "maximum": MAX_PAGE, "default": DEFAULT_PAGE},
    "The largest number of items on the page.",
)
_STATE = QueryParameter("state", _state, {"enum": list(_STATES)}, "Only jobs in this state.")

PARAMETERS: QueryParameters = {
    "state": _STATE,
    "status": _STATE,
    "model": QueryParameter(
        "model", _model, {"type": "string", "pattern": f"^{models.NAME.pattern}$"}, "Only jobs of this model."
    ),
    "user_id": QueryParameter("user_id", read_user_id, {"type": "string", **USER_ID}, "Only jobs of this user."),
    "limit": _LIMIT,
    "after": _cursor(_after, JOB_ID),
}
"""The parameters of the list of jobs."""

LETTER_PARAMETERS: QueryParameters = {
    "limit": _LIMIT,
    "after": _cursor(_after_letter, {"type": "string", "pattern": f"^{dead_letters.CURSOR_PATTERN}$"}),
}
UNDELIVERED_PARAMETERS: QueryParameters = {
    "limit": _LIMIT,
    "after": _cursor(_after_undelivered, {"type": "string", "pattern": f"^{undelivered.CURSOR_PATTERN}$"}),
}
DELIVERY_PARAMETERS: QueryParameters = {"limit": _LIMIT, "after": _cursor(_after_delivery, DELIVERY_ID)}
"""The parameters of the lists of dead letters, undelivered events and deliveries."""

_TEXT: Schema = {"type": "string", "minLength": 1, "maxLength": MAX_TEXT}
_DAY: Schema = {"type": "string", "format": "date", "pattern": f"^{DAY_PATTERN}$"}
_DIMENSIONS = "|".join(Dimension)

TRAIL_PARAMETERS: QueryParameters = {
    "tenant": QueryParameter("tenant", _tenant, TENANT, "Only operations of callers of this tenant."),
    "actor": QueryParameter("actor", _text, _TEXT, "Only operations of this actor: the id of a key, or a subject."),
    "operation": QueryParameter("operation", _text, _TEXT, "Only this operation, by its operation id."),
    "object": QueryParameter("object", _text, _TEXT, "Only operations on this object, by its id."),
    "limit": _LIMIT,
    "after": _cursor(_number, {"type": "string", "pattern": f"^{NUMBER_PATTERN}$"}),
}
"""The parameters of the audit trail."""

USAGE_PARAMETERS: QueryParameters = {
    "tenant": QueryParameter("tenant", _tenant, TENANT, "Only usage of this tenant. Others than the own need `admin`."),
    "key": QueryParameter("key", _text, _TEXT, "Only usage of this key, by its id."),
    "model": QueryParameter("model", _model, PARAMETERS["model"].schema, "Only usage of this model."),
    "from": QueryParameter("first", _day, _DAY, "The first day, in UTC. By default 29 days before the last one."),
    "to": QueryParameter("last", _day, _DAY, "The last day, in UTC, which is included. By default today."),
    "group_by": QueryParameter(
        "group_by",
        _dimensions,
        {"type": "string", "pattern": f"^({_DIMENSIONS})(,({_DIMENSIONS}))*$"},
        "The dimensions of the rows, with commas between. By default all of them.",
    ),
    "format": QueryParameter("format", _format, {"enum": list(FORMATS)}, "The media type, instead of `Accept`."),
}
"""The parameters of the reports of usage."""
