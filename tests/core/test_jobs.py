"""Job ids, states, and the encoding of a record's artifacts."""

from __future__ import annotations

import uuid

import pytest
from darkroom.jobs import TERMINAL, TRANSITIONS, Artifact, JobEvent, State, is_job_id, new_job_id, slot_of

NOW_MS = 1_800_000_000_123


# -- ids ---------------------------------------------------------------------------------------------------------------


def test_an_id_is_a_uuid_of_version_seven() -> None:
    for _ in range(1_000):
        parsed = uuid.UUID(job_id := new_job_id(NOW_MS))
        assert (parsed.version, parsed.variant, str(parsed)) == (7, uuid.RFC_4122, job_id)
        assert is_job_id(job_id)


def test_an_id_begins_with_its_time() -> None:
    assert uuid.UUID(new_job_id(NOW_MS)).int >> 80 == NOW_MS


def test_the_rest_of_an_id_is_what_was_drawn() -> None:
    drawn = bytes.fromhex("ffffffffffffffffffff")
    assert new_job_id(0, drawn) == "00000000-0000-7fff-bfff-ffffffffffff"
    assert new_job_id(0, bytes(10)) == "00000000-0000-7000-8000-000000000000"


def test_ids_sort_as_their_times_do() -> None:
    ids = [new_job_id(ms) for ms in (0, 1, NOW_MS, NOW_MS + 1, 2**48 - 1)]
    assert ids == sorted(ids)


def test_no_two_ids_of_one_millisecond_are_alike() -> None:
    assert len({new_job_id(NOW_MS) for _ in range(10_000)}) == 10_000


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nonsense",
        "01a1f999-2b9e-4804-88d9-9fd5d3c06016",  # version 4
        "01a1f999-2b9e-7804-c8d9-9fd5d3c06016",  # another variant
        "01A1F999-2B9E-7804-88D9-9FD5D3C06016",
        "01a1f9992b9e780488d99fd5d3c06016",
        "01a1f999-2b9e-7804-88d9-9fd5d3c06016\n",
        " 01a1f999-2b9e-7804-88d9-9fd5d3c06016",
        "{01a1f999-2b9e-7804-88d9-9fd5d3c06016}",
        "01a1f999-2b9e-7804-88d9-9fd5d3c0601٦",
    ],
)
def test_other_texts_are_no_ids(text: str) -> None:
    assert not is_job_id(text)


def test_the_slot_is_the_last_byte() -> None:
    assert slot_of("01a1f999-2b9e-7804-88d9-9fd5d3c060ff") == 255
    assert {slot_of(new_job_id(NOW_MS)) for _ in range(5_000)} == set(range(256))


# -- states ------------------------------------------------------------------------------------------------------------


def test_four_states_are_terminal() -> None:
    assert {state for state in State if state.is_terminal} == TERMINAL
    assert sorted(TERMINAL) == ["cancelled", "completed", "expired", "failed"]


def test_a_terminal_state_never_changes_and_every_other_can_finish() -> None:
    for state, following in TRANSITIONS.items():
        assert bool(following & TERMINAL) is not state.is_terminal
        if state.is_terminal:
            assert not following


def test_the_table_has_every_state() -> None:
    assert TRANSITIONS.keys() == set(State)


def test_every_terminal_state_is_an_event_of_the_same_name() -> None:
    assert {state.value for state in TERMINAL} <= {event.value for event in JobEvent}


# -- artifacts ---------------------------------------------------------------------------------------------------------

ARTIFACT = Artifact("default/j/1/0-abc.png", sha256="abc", media_type="image/png", size=1234, width=832, height=1216)


def test_an_artifact_is_read_as_it_was_written() -> None:
    assert Artifact.decode(ARTIFACT.encode()) == ARTIFACT


def test_unknown_members_of_an_artifact_are_ignored() -> None:
    assert Artifact.decode({**ARTIFACT.encode(), "thumbnails": []}) == ARTIFACT


@pytest.mark.parametrize("name", ARTIFACT.encode())
def test_a_missing_member_is_named(name: str) -> None:
    raw = ARTIFACT.encode()
    del raw[name]
    with pytest.raises(KeyError, match=name):
        Artifact.decode(raw)
