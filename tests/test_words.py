"""The words of the project: terms that the code and its documentation do not use, each with the term to use instead.

They were an idiom of this project alone. An identifier counts as its words: `is_told` and `TOLD_FIELDS` contain `told`.
"""

from __future__ import annotations

import re

import pytest

from tests.test_layout import ROOT, committed_files

INSTEAD = {
    "told": "notified, published, delivered, set, named",
    "untold": "not published, pending",
    "tell": "notify, publish, report",
    "tells": "notifies, publishes, reports",
    "telling": "notifying, publishing",
    "whoever": "clients, callers, the process that",
    "nobody": "no client, no process",
    "somebody": "a client, a user",
    "slip": "receipt, the job's id",
}

EXCEPT = {
    "CHANGELOG.md": "releases of the past",
    "requirements.lock": "names of packages",
    "tests/test_words.py": "this list",
    "tests/upgrade/fixtures/version-2.json": "written by an earlier version",
    "tests/postgres_server.py": "the Unix user `nobody`",
    "functions/gateway/start": "the Unix user `nobody`",
}
"""Files that may contain the words, with the reason."""

STORED = re.compile(r"""['"`:](?:un)?told['"`:]""")
"""The fields of a record in Redis, which keep their names: an older version reads them."""

WORDS = re.compile(rf"(?<![a-z])(?:{'|'.join(INSTEAD)})(?![a-z])", re.IGNORECASE)


def words_of(text: str) -> str:
    """The text with its identifiers taken apart: `TenantTold` becomes `Tenant Told`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", text)


def test_the_text_uses_the_terms_of_the_glossary() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {word} (instead: {INSTEAD[word.lower()]})"
        for path in committed_files()
        if path.relative_to(ROOT).as_posix() not in EXCEPT
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), start=1)
        for word in WORDS.findall(words_of(STORED.sub("", line)))
    ]
    assert found == []


@pytest.mark.parametrize("text", ["is_told", "TOLD_FIELDS", "TenantTold", "who was told.", "Nobody"])
def test_a_word_is_found_in_names_and_in_text(text: str) -> None:
    assert WORDS.search(words_of(text))


@pytest.mark.parametrize("text", ["slipped", "bodytold", "untolded", "tellurium"])
def test_a_word_is_not_found_within_another(text: str) -> None:
    assert not WORDS.search(words_of(text))
