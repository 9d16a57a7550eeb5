"""The text of API keys: what is generated, what is recognised, and what is stored."""

from __future__ import annotations

import hashlib
import re
import zlib
from pathlib import Path
from typing import Any

import pytest
from darkroom.access.credentials import (
    SECRET_ALPHABET,
    TEXT_PATTERN,
    Credential,
    is_key_id,
)
from hypothesis import given
from hypothesis import strategies as st


def test_a_generated_key_has_the_documented_form_and_is_recognised() -> None:
    credential = Credential.generate()

    assert re.fullmatch(TEXT_PATTERN, credential.text)
    assert is_key_id(credential.key_id)
    assert Credential.parse(credential.text) == credential
    assert credential.digest == hashlib.sha256(credential.text.encode()).hexdigest()
    assert credential.text not in repr(credential)


def test_another_secret_of_a_key_has_its_id() -> None:
    first = Credential.generate()
    second = Credential.generate(first.key_id)

    assert second.key_id == first.key_id
    assert second.text != first.text


def test_no_two_keys_are_equal() -> None:
    many = [Credential.generate() for _ in range(1000)]

    assert len({each.key_id for each in many}) == len({each.text for each in many}) == 1000


def test_the_checksum_is_crc_32_in_base_62() -> None:
    body, checksum = "dk_0123456789ab_0123456789ABCDEFGHIJKLMNOPQRSTUV", "3MnFCC"

    assert sum(
        SECRET_ALPHABET.index(digit) * 62**place for place, digit in enumerate(reversed(checksum))
    ) == zlib.crc32(body.encode())
    assert Credential.parse(body + checksum) == Credential("0123456789ab", body + checksum)


@given(st.text(max_size=80))
def test_other_text_is_not_a_key(text: str) -> None:
    assert Credential.parse(text) is None


@pytest.mark.parametrize("where", range(3, 54))
def test_a_key_with_one_wrong_character_is_not_recognised(where: int) -> None:
    text = Credential.generate().text
    wrong = "x" if text[where] != "x" else "y"

    assert Credential.parse(text[:where] + wrong + text[where + 1 :]) is None


@pytest.mark.parametrize("change", ["{}\n", " {}", "{}0", "DK{}", "{}\0"])
def test_what_surrounds_a_key_is_not_ignored(change: str) -> None:
    assert Credential.parse(change.format(Credential.generate().text)) is None


def test_the_documentation_lets_a_secret_scanner_verify_a_key(repository: Path) -> None:
    page = (repository / "docs/access.md").read_text()
    (pattern,) = re.findall(r"^dk_\S+$", page, re.MULTILINE)
    (program,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names: dict[str, Any] = {}
    exec(program, names)  # noqa: S102 - the example of the page
    for _ in range(100):
        text = Credential.generate().text
        assert re.fullmatch(pattern, text)
        assert names["is_key"](text)
        assert not names["is_key"](text[:-1] + ("0" if text[-1] != "0" else "1"))
    assert pattern == TEXT_PATTERN
