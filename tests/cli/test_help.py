"""`--help`: every command and every argument has a description."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator

import pytest
from darkroom_cli.main import parser

SHORTEST = 12
"""Shorter texts repeat the name of what they describe."""

PRONOUN = re.compile(r"\b(he|ones|she|them|they|those|who)\b|^(how|it|its|one|their|what)\b", re.IGNORECASE)

OPENS_WITH_PRONOUN = re.compile(r"(?:^|[.:] )(?:he|it|one|ones|she|their|them|they|those|what|who)\b", re.IGNORECASE)


def parsers(root: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """The parser and those of all of its commands."""
    yield root
    for action in root._actions:
        if isinstance(action, argparse._SubParsersAction):
            for each in dict.fromkeys(action.choices.values()):
                yield from parsers(each)


def lines() -> Iterator[tuple[str, str]]:
    """The summaries of commands and arguments, with their location."""
    for each in parsers(parser()):
        for action in each._actions:
            if isinstance(action, argparse._SubParsersAction):
                summaries = {choice.dest: choice.help for choice in action._choices_actions}
                assert summaries.keys() == action.choices.keys(), each.prog
                yield from ((f"{each.prog} {name}", help_ or "") for name, help_ in summaries.items())
            elif not isinstance(action, argparse._HelpAction | argparse._VersionAction):
                yield f"{each.prog} {action.option_strings or action.dest}", action.help or ""


@pytest.mark.parametrize(("where", "text"), list(lines()))
def test_every_command_and_argument_has_a_summary_without_pronouns(where: str, text: str) -> None:
    assert len(text) >= SHORTEST, where
    assert PRONOUN.search(text) is None, f"{where}: {text}"


@pytest.mark.parametrize("each", list(parsers(parser())), ids=lambda each: each.prog)
def test_every_command_has_a_description_that_names_its_subject(each: argparse.ArgumentParser) -> None:
    description = " ".join((each.description or "").split())
    assert len(description) >= SHORTEST
    assert OPENS_WITH_PRONOUN.search(description) is None, description
