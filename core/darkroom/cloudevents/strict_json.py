"""Strict JSON: RFC 8259 without the constructs on which readers differ, parsed and encoded.

It parses the bodies of CloudEvents (`http.py`) and the data in them. Unlike Python's `json` it refuses NaN and the
infinities (also numbers such as 1e999), bytes that are not UTF-8, a name that occurs twice in one object (RFC 8259,
section 4, leaves open which one counts, so that a gateway may have checked the other), unpaired surrogates (section
8.2: UTF-8 cannot encode them), and unbounded nesting.

It uses the decoder of the standard library. orjson and msgspec do not report repeated names; with a second pass over
the text for these they were slower.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from typing import Any

MAX_DEPTH = 64
"""Nested objects and arrays, including the outermost. darkroom's own nest four deep; readers may recurse."""

_SURROGATE_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_SHOWN_CHARS = 64
"""The longest part of a caller's name that a message repeats."""

_TOO_DEEP = f"is nested deeper than {MAX_DEPTH} levels"
_TOO_LARGE = "contains a number that is too large"


class JsonError(ValueError):
    """The fault of a text, worded to follow its name: "is not JSON: …"."""


class _Unfit(JsonError):
    """Valid JSON that is refused: raised within the decoder, and the only error that concerns a single element."""


class _Repeating(dict[str, Any]):
    """Stands for an object with a repeated name, so that the other elements of a batch can be read."""

    def __init__(self, flaw: str) -> None:
        super().__init__()
        self.flaw = flaw


def parse(text: bytes) -> Any:
    """The value of `text`. Raises JsonError, and no other error, for any bytes."""
    value = _decode(_decoder, text)
    if _is_doubtful(text) and (flaw := _flaw(value)):
        raise JsonError(flaw)
    return value


def parse_elements(text: bytes) -> list[Any]:
    """The elements of the array in `text`; an invalid element is replaced by its JsonError.

    The other elements are not affected. Raises JsonError where the text is no JSON array, or nested so deeply (around a
    thousand levels) that the decoder fails.
    """
    doubtful = _is_doubtful(text)
    try:
        elements = _decode(_decoder, text)
    except _Unfit:
        elements = _decode(_marking_decoder, text)
        doubtful = True
    if not isinstance(elements, list):
        raise JsonError("is not a JSON array")
    if not doubtful:
        return elements
    return [JsonError(flaw) if (flaw := _flaw(element)) else element for element in elements]


def encode(value: Any) -> bytes:
    """Compact UTF-8. Raises ValueError for NaN, infinities and unpaired surrogates, TypeError for what is not JSON."""
    return _encoder.encode(value).encode()


def _decode(decoder: json.JSONDecoder, text: bytes) -> Any:
    try:
        return decoder.decode(text.decode())
    except JsonError:
        raise
    except UnicodeDecodeError as error:
        raise JsonError(f"is not UTF-8, at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise JsonError(f"is not JSON: {error}") from None
    except RecursionError:
        raise JsonError(_TOO_DEEP) from None
    except ValueError:  # an integer with more digits than Python converts (`sys.get_int_max_str_digits`)
        raise _Unfit(_TOO_LARGE) from None


def _is_doubtful(text: bytes) -> bool:
    """Whether `_flaw` is needed. Usually two counts show that nothing is nested deeply, and no surrogate is escaped."""
    return text.count(b"{") + text.count(b"[") > MAX_DEPTH or (
        b"\\u" in text and _SURROGATE_ESCAPE.search(text) is not None
    )


def _flaw(value: Any) -> str | None:
    """The first fault in `value`, searched level by level, so that no nesting can exhaust the stack."""
    level, depth = [value], 0
    while level:
        depth += 1
        below: list[Any] = []
        for item in level:
            if isinstance(item, str):
                if _SURROGATE.search(item):
                    return "is not JSON: it holds an unpaired surrogate"
            elif isinstance(item, float):
                if math.isinf(item):
                    return _TOO_LARGE
            elif isinstance(item, dict | list):
                if depth > MAX_DEPTH:
                    return _TOO_DEEP
                if isinstance(item, _Repeating):
                    return item.flaw
                below.extend(item)
                if isinstance(item, dict):
                    below.extend(item.values())
        level = below
    return None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise _Unfit(_repetition(pairs))
    return members


def _marked(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        return _Repeating(_repetition(pairs))
    return members


def _repetition(pairs: list[tuple[str, Any]]) -> str:
    ((name, _),) = Counter(name for name, _ in pairs).most_common(1)
    return f"gives the name {name[:_SHOWN_CHARS]!a} twice in one object"


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise _Unfit(_TOO_LARGE)
    return number


def _int_or_infinity(text: str) -> int | float:
    try:
        return int(text)
    except ValueError:
        return math.inf


def _refuse_constant(name: str) -> float:
    raise JsonError(f"is not JSON: {name} is not a JSON number")


_decoder = json.JSONDecoder(object_pairs_hook=_once, parse_float=_finite, parse_constant=_refuse_constant)
_marking_decoder = json.JSONDecoder(
    object_pairs_hook=_marked, parse_float=float, parse_int=_int_or_infinity, parse_constant=_refuse_constant
)
_encoder = json.JSONEncoder(ensure_ascii=False, allow_nan=False, check_circular=False, separators=(",", ":"))
