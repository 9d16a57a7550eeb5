"""The lists: what their query parameters are, and how they are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from darkroom.catalogue import models
from darkroom.catalogue.parameters import shown
from darkroom.errors import FieldError, InvalidInput
from darkroom.jobs import State, is_job_id
from darkroom.ledger import undelivered
from darkroom.ledger.dead_letters import place_of
from darkroom.webhooks.subscriptions import is_delivery_id

from darkroom_functions.submission.reading import read_user_id

DEFAULT_PAGE, MAX_PAGE = 20, 100
"""Jobs on one page: a screenful, and what is still made in a few ms."""

Parameters = Mapping[str, tuple[str, Callable[[str], object]]]

_STATES = tuple(state.value for state in State)


@dataclass(frozen=True)
class Listing:
    """What a list is asked for; `after` is the id of a job that the page begins behind, newest first."""

    limit: int = DEFAULT_PAGE
    after: str | None = None
    state: State | None = None
    model: str | None = None
    user_id: str | None = None


@dataclass(frozen=True)
class LetterListing:
    """What a list of dead letters, undelivered events or deliveries is asked for; `after` is the cursor of the page
    before.
    """

    limit: int = DEFAULT_PAGE
    after: str | None = None


def read(query: Sequence[tuple[str, str]]) -> Listing:
    """The list that a query asks for, its parameters as they came. Raises InvalidInput that names all at fault."""
    return Listing(**_values(query, PARAMETERS))


def read_letters(query: Sequence[tuple[str, str]]) -> LetterListing:
    """As `read`, for dead letters."""
    return LetterListing(**_values(query, LETTER_PARAMETERS))


def read_undelivered(query: Sequence[tuple[str, str]]) -> LetterListing:
    """As `read`, for undelivered events."""
    return LetterListing(**_values(query, UNDELIVERED_PARAMETERS))


def read_deliveries(query: Sequence[tuple[str, str]]) -> LetterListing:
    """As `read`, for the deliveries of a job; `after` is the id of one of them."""
    return LetterListing(**_values(query, DELIVERY_PARAMETERS))


def _values(query: Sequence[tuple[str, str]], parameters: Parameters) -> dict[str, Any]:
    """What the query says, by the field that each parameter gives."""
    faults: list[FieldError] = []
    values: dict[str, Any] = {}
    for name, text in query:
        if name not in parameters:
            faults.append(FieldError(shown(name), f"is no parameter of the list; there are {', '.join(parameters)}"))
            continue
        field, reader = parameters[name]
        try:
            value = reader(text)
            if values.setdefault(field, value) != value:
                raise ValueError("says something else than it, or its like, did before")
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
    place_of(text)
    return text


def _after_undelivered(text: str) -> str:
    undelivered.place_of(text)
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


PARAMETERS: Parameters = {
    "state": ("state", _state),
    "status": ("state", _state),
    "model": ("model", _model),
    "user_id": ("user_id", read_user_id),
    "limit": ("limit", _limit),
    "after": ("after", _after),
}
"""Each parameter, the field of `Listing` that it gives, and what reads it."""

LETTER_PARAMETERS: Parameters = {"limit": ("limit", _limit), "after": ("after", _after_letter)}
"""As above, of `LetterListing`."""

UNDELIVERED_PARAMETERS: Parameters = {"limit": ("limit", _limit), "after": ("after", _after_undelivered)}
"""As above, of undelivered events."""

DELIVERY_PARAMETERS: Parameters = {"limit": ("limit", _limit), "after": ("after", _after_delivery)}
"""As above, of deliveries."""
