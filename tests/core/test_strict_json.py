"""Strict JSON: what Python's own parser accepts and this one refuses; no text crashes it.

Most refusals are among the vectors of `test_events.py`; here stands what no CloudEvent shows.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from darkroom.cloudevents.strict_json import MAX_DEPTH, JsonError, encode, parse, parse_elements
from hypothesis import given
from hypothesis import strategies as st

texts = st.text(st.characters(exclude_categories=["Cs"]))
values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner) | st.dictionaries(texts, inner),
)


@given(values)
def test_what_is_written_is_read_back(value: Any) -> None:
    assert parse(encode(value)) == value


@given(values)
def test_escapes_are_read_as_what_they_stand_for(value: Any) -> None:
    assert parse(json.dumps(value, ensure_ascii=True).encode()) == value


@given(st.binary() | st.text('[]{}",:\\u d80c1e9-.NaInfity').map(str.encode))
def test_no_text_raises_anything_but_a_json_error(text: bytes) -> None:
    for read in (parse, parse_elements):
        try:
            read(text)
        except JsonError:
            continue


@given(st.lists(values))
def test_the_elements_of_an_array_are_those_of_its_value(elements: list[Any]) -> None:
    assert parse_elements(encode(elements)) == elements


def nested(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


def test_nesting_ends_at_the_limit() -> None:
    assert parse(nested(MAX_DEPTH)) is not None
    with pytest.raises(JsonError, match="deeper than 64"):
        parse(nested(MAX_DEPTH + 1))


@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'[{"a":[{"b":'], ids=["arrays", "objects", "both"])
def test_no_depth_brings_the_reader_down(opening: bytes) -> None:
    for read in (parse, parse_elements):
        with pytest.raises(JsonError):
            read(opening * 100_000)


def test_the_depth_of_an_element_is_its_own() -> None:
    deepest, too_deep = parse_elements(b"[" + nested(MAX_DEPTH) + b"," + nested(MAX_DEPTH + 1) + b"]")
    assert isinstance(deepest, list)
    assert isinstance(too_deep, JsonError)


def test_brackets_in_strings_are_no_nesting() -> None:
    assert parse(encode("[{" * 100)) == "[{" * 100


def test_a_repeated_name_is_reported_in_ascii_and_truncated() -> None:
    with pytest.raises(JsonError, match=r"^gives the name '\\xe9{1}' twice in one object$"):
        parse('{"é":1,"é":2}'.encode())
    with pytest.raises(JsonError) as caught:
        parse(b'{"%b":1,"%b":2}' % (b"n" * 100_000, b"n" * 100_000))
    assert len(str(caught.value)) < 200


def test_many_names_with_one_repeated_at_the_end_are_refused() -> None:
    members = ",".join(f'"n{index}":0' for index in [*range(100_000), 0])
    with pytest.raises(JsonError, match="'n0' twice"):
        parse(f"{{{members}}}".encode())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "\ud800"], ids=["nan", "infinity", "surrogate"])
def test_what_no_json_can_carry_is_not_written(value: object) -> None:
    with pytest.raises(ValueError, match=r"JSON compliant|surrogates not allowed"):
        encode(value)
