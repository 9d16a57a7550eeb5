"""JSON text as darkroom takes it from outside, and as it writes it: RFC 8259, and nothing that readers differ about.

The bodies of CloudEvents pass here (`event_http.py`), and the data within them. What Python's `json` lets through and
this does not: NaN and the infinities (a number such as 1e999 too), bytes that are not UTF-8, a name given twice in one
object (RFC 8259, section 4, leaves open which one counts, so a gateway may have checked another than we would use),
unpaired surrogates (section 8.2: no UTF-8 can carry them on), and nesting without a bound.

The standard library does the reading. orjson and msgspec keep silent about repeated names; with a second pass over the
text for these they took longer.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from typing import Any

MAX_DEPTH = 64
"""Objects and arrays within one another, the outermost counted. Ours nest four deep; a reader of it may recurse."""

_SURROGATE_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_SHOWN_CHARS = 64
"""So much of a name that a caller chose is repeated in a message."""

_TOO_DEEP = f"is nested deeper than {MAX_DEPTH} levels"
_TOO_LARGE = "holds a number beyond any that can be kept"


class JsonError(ValueError):
    """Why the text cannot be taken, worded to follow its name: "is not JSON: …"."""


class _Unfit(JsonError):
    """Valid JSON that is not taken: raised from within the decoder, and the one kind that concerns one element only."""


class _Repeating(dict[str, Any]):
    """In place of an object that gave a name twice, so that its neighbours in a batch can be read."""

    def __init__(self, flaw: str) -> None:
        super().__init__()
        self.flaw = flaw


def parse(text: bytes) -> Any:
    """The value that `text` is. Raises JsonError, and nothing else, whatever the bytes."""
    value = _decode(_decoder, text)
    if _is_doubtful(text) and (flaw := _flaw(value)):
        raise JsonError(flaw)
    return value


def parse_elements(text: bytes) -> list[Any]:
    """The elements of the array that `text` is; in place of one that cannot be taken stands its JsonError.

    So one bad element leaves the others whole. Raises JsonError where the text is no JSON array, or one so deep (around
    a thousand levels) that the decoder gives up.
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
    except ValueError:  # the only one left: an integer longer than Python converts (`sys.get_int_max_str_digits`)
        raise _Unfit(_TOO_LARGE) from None


def _is_doubtful(text: bytes) -> bool:
    """Whether `_flaw` must look. Mostly two counts show that nothing is deep, and there is no escape of a surrogate."""
    return text.count(b"{") + text.count(b"[") > MAX_DEPTH or (
        b"\\u" in text and _SURROGATE_ESCAPE.search(text) is not None
    )


def _flaw(value: Any) -> str | None:
    """The first thing in `value` that is not taken, found level by level, so that no depth can exhaust the stack."""
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
    raise JsonError(f"is not JSON: {name} is no number of it")


_decoder = json.JSONDecoder(object_pairs_hook=_once, parse_float=_finite, parse_constant=_refuse_constant)
_marking_decoder = json.JSONDecoder(
    object_pairs_hook=_marked, parse_float=float, parse_int=_int_or_infinity, parse_constant=_refuse_constant
)
_encoder = json.JSONEncoder(ensure_ascii=False, allow_nan=False, check_circular=False, separators=(",", ":"))
