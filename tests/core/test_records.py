"""The table of the fields of a job's record, and the decoding that derives from it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from darkroom.history.schema import jobs
from darkroom.jobs import State, UnknownValue, is_job_id, new_job_id
from darkroom.ledger.records import FIELDS, FieldType, JobRecord, decode_job

JOB_ID = new_job_id(1_800_000_000_000)
EXAMPLES: dict[FieldType, Any] = {
    FieldType.ID: JOB_ID,
    FieldType.TEXT: "text",
    FieldType.STATE: "pending",
    FieldType.JSON: json.dumps({"prompt": "ä"}, ensure_ascii=False),
    FieldType.INTEGER: 7,
    FieldType.SMALL: 5,
    FieldType.DECIMAL: "600.5",
    FieldType.TIME: 1_800_000_000_000,
}
REQUIRED = [field for field in FIELDS if field.in_redis and not field.is_optional and field.absent is None]


def stored(**fields: Any) -> list[bytes]:
    """A hash as Redis returns it over RESP2: names and values in turn."""
    return [str(part).encode() for pair in fields.items() for part in pair]


def smallest(**more: Any) -> list[bytes]:
    return stored(**{field.redis or field.name: EXAMPLES[field.type] for field in REQUIRED}, **more)


def decoded(record: list[bytes], position: int = 0) -> JobRecord:
    job = decode_job([record, position])
    assert job is not None
    return job


def test_a_record_with_the_required_fields_alone_is_decoded() -> None:
    job = decoded(smallest())
    assert is_job_id(job.id)
    assert (job.state, job.input, job.run_timeout) == (State.PENDING, {"prompt": "ä"}, 600.5)
    optional = {field.name: getattr(job, field.name) for field in FIELDS if field not in REQUIRED}
    assert {name for name, value in optional.items() if value is not None} == {"progress", "gpu_ms"}


def test_optional_fields_are_decoded_by_their_names_in_redis() -> None:
    job = decoded(smallest(cancel=1_800_000_000_001, step=3, worker="one"), position=4)
    assert (job.cancel_requested, job.step, job.worker, job.place) == (1_800_000_000_001, 3, "one", 4)


def test_a_map_of_resp3_is_decoded_as_well() -> None:
    pairs = smallest()
    assert decode_job([dict(zip(pairs[::2], pairs[1::2], strict=True)), 0]) == decoded(pairs)


def test_fields_outside_of_the_table_are_ignored() -> None:
    assert decoded(smallest(paused_until=1, token="secret")) == decoded(smallest())


def test_a_record_without_its_input_is_not_whole() -> None:
    assert (decoded(smallest()).is_whole, decoded(smallest(input_archived=1)).is_whole) == (True, False)


def test_an_unknown_state_is_no_member_and_keeps_its_text() -> None:
    pairs = smallest()
    pairs[pairs.index(b"state") + 1] = b"resting"
    state = decoded(pairs).state
    assert isinstance(state, UnknownValue)
    assert (state.value, state.is_terminal) == ("resting", False)


@pytest.mark.parametrize("field", REQUIRED, ids=lambda field: field.name)
def test_a_missing_field_is_refused_by_its_name(field: Any) -> None:
    pairs = smallest()
    index = pairs.index((field.redis or field.name).encode())
    with pytest.raises(TypeError, match=field.name):
        decode_job([pairs[:index] + pairs[index + 2 :], 0])


def test_each_member_of_a_view_shows_one_field() -> None:
    members = [member for field in FIELDS for member in field.views]
    assert len(set(members)) == len(members)


def test_every_field_has_a_meaning_that_the_api_can_show() -> None:
    assert [field.name for field in FIELDS if len(field.meaning) < 12] == []


def test_the_columns_of_the_history_begin_with_the_fields_that_it_stores() -> None:
    names = [field.name for field in FIELDS if field.in_history]
    assert [column.name for column in jobs.columns][: len(names)] == names
