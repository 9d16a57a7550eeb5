"""Lists: their query parameters, with readers and schemas."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from darkroom.catalogue import models
from darkroom.catalogue.parameters import shown
from darkroom.errors import FieldError, InvalidInput
from darkroom.jobs import JOB_ID_PATTERN, State, is_job_id
from darkroom.ledger import dead_letters, undelivered
from darkroom.webhooks.subscriptions import DELIVERY_ID_PATTERN, is_delivery_id

from darkroom_functions.http.openapi import in_query
from darkroom_functions.http.routes import Schema
from darkroom_functions.submission.reading import read_user_id
from darkroom_functions.submission.schemas import USER_ID

JOB_ID: Schema = {"type": "string", "pattern": f"^{JOB_ID_PATTERN}$"}
DELIVERY_ID: Schema = {"type": "string", "pattern": f"^{DELIVERY_ID_PATTERN}$"}

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
