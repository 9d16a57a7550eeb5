"""A call of one script."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Call(Generic[T]):
    """One call of one script: `args` are names and values in turn; `decode` converts Redis' reply."""

    script: str
    args: tuple[str, ...]
    decode: Callable[[Any], T]


def make_call(script: str, decode: Callable[[Any], T], **named: str | int | float | None) -> Call[T]:
    args: list[str] = []
    for name, value in named.items():
        if value is not None:
            args += (name, str(value))
    return Call(script, tuple(args), decode)


compact_json: Callable[[Mapping[str, Any]], str] = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode


def ids(reply: list[bytes]) -> list[str]:
    return [item.decode() for item in reply]


W = TypeVar("W", bound=StrEnum)


def word(kind: type[W]) -> Callable[[bytes], W]:
    return lambda reply: kind(reply.decode())
