"""The attributes of a CloudEvent: the valid names and values by CloudEvents 1.0.2, one check per type.

`event.py` validates every event by them. A check returns the fault, worded to follow the attribute's name ("must not be
empty"), or None. The types: https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/spec.md#type-system
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from darkroom import times

Attribute = str | int | bool
"""A value of an extension: a string, a 32-bit integer or a boolean."""

REQUIRED = ("id", "source", "type")
OPTIONAL = ("subject", "time", "datacontenttype", "dataschema")
"""With `specversion` these are the attributes that the specification defines; all others are extensions."""

JSON_TYPE = "application/json"

_RESERVED = frozenset({"specversion", *REQUIRED, *OPTIONAL, "data"})
_NAME = re.compile("[a-z0-9]+")
_INT32 = range(-(2**31), 2**31)


_UTF_8 = frozenset({"utf-8", "utf8", "us-ascii", "ascii"})
"""Names of charsets whose bytes are UTF-8, in lower case."""


@dataclass(frozen=True)
class MediaType:
    """A media type without its parameters, in lower case, and of these the charset, in lower case."""

    essence: str
    charset: str | None

    @property
    def is_json(self) -> bool:
        """Whether it is `*/json` or `*/*+json` (JSON format, section 3.1.1) in UTF-8 (RFC 8259, section 8.1).

        US-ASCII is a subset of UTF-8.
        """
        return self.essence.endswith(("/json", "+json")) and (self.charset is None or self.charset in _UTF_8)


# Runs of characters are atomic groups, here and below: they match in one way only, so that no text is slow to refuse
# (`webhooks/guard.py` has the reason against possessive quantifiers).
_TOKEN = r"(?>[!#$%&'*+\-.^_`|~0-9A-Za-z]+)"
_QUOTED = r'"(?>(?:[^"\\]|\\.)*)"'
_SPACE = r"(?>[ \t]*)"
_MEDIA_TYPE = re.compile(
    rf"({_TOKEN}/{_TOKEN})((?>(?:{_SPACE};{_SPACE}(?>(?:{_TOKEN}=(?:{_TOKEN}|{_QUOTED}))?))*)){_SPACE}"
)
_PARAMETER = re.compile(rf";{_SPACE}({_TOKEN})=({_TOKEN}|{_QUOTED})")


def media_type(text: str) -> MediaType | None:
    """`text` as a media type (RFC 9110, section 8.3.1); None if it is none, or names two charsets."""
    match = _MEDIA_TYPE.fullmatch(text)
    if match is None:
        return None
    charsets = [value.strip('"').lower() for name, value in _PARAMETER.findall(match[2]) if name.lower() == "charset"]
    if len(charsets) > 1:
        return None
    return MediaType(match[1].lower(), charsets[0] if charsets else None)


# RFC 3986, appendix A.
def _run(extra: str) -> str:
    allowed = rf"(?>[A-Za-z0-9\-._~!$&'()*+,;={extra}]*)"
    return rf"{allowed}(?>(?:%[0-9A-Fa-f]{{2}}{allowed})*)"


_SCHEME = r"[A-Za-z](?>[A-Za-z0-9+.\-]*):"
_IP_LITERAL = r"\[(?:(?P<ipv6>(?>[0-9A-Fa-f:.]+))|[vV](?>[0-9A-Fa-f]+)\.(?>[A-Za-z0-9\-._~!$&'()*+,;=:]+))\]"
_AUTHORITY = rf"(?:{_run(':')}@)?(?:{_IP_LITERAL}|{_run('')})(?::(?>[0-9]*))?"
_HIERARCHY = rf"(?://{_AUTHORITY}(?:/{_run(':@/')})?|(?!//){_run(':@/')})"
_QUERY = rf"(?:\?{_run(':@/?')})?"
_ABSOLUTE_URI = re.compile(rf"{_SCHEME}{_HIERARCHY}{_QUERY}")
# Without a scheme the first segment has no colon (`path-noscheme`).
_URI_REFERENCE = re.compile(rf"(?:{_SCHEME}|(?!(?>[^:/?#]*):)){_HIERARCHY}{_QUERY}(?:#{_run(':@/?')})?")

# Type String: no control characters, no surrogates, none of the noncharacters of each plane.
_FORBIDDEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef"
    + "".join(chr(plane << 16 | 0xFFFE) + chr(plane << 16 | 0xFFFF) for plane in range(17))
    + "]"
)


def text_fault(value: object) -> str | None:
    """For `id`, `type` and `subject`: a non-empty string."""
    if value is None:
        return "is required"
    return "must not be empty" if value == "" else _string_fault(value)


def uri_reference_fault(value: object) -> str | None:
    """For `source`."""
    return _uri_fault(value, _URI_REFERENCE, "a URI-reference (RFC 3986)")


def absolute_uri_fault(value: object) -> str | None:
    """For `dataschema`, whose type URI is RFC 3986's `absolute-URI`: with a scheme, without a fragment."""
    return _uri_fault(value, _ABSOLUTE_URI, "an absolute URI without a fragment (RFC 3986, section 4.3)")


def time_fault(value: object) -> str | None:
    """For `time`."""
    if fault := text_fault(value):
        return fault
    try:
        times.parse(str(value))
    except ValueError as error:
        return str(error)
    return None


def json_type_fault(value: object) -> str | None:
    """For `datacontenttype`: darkroom reads JSON only."""
    if value == JSON_TYPE:
        return None
    if fault := text_fault(value):
        return fault
    parsed = media_type(str(value))
    if parsed is None:
        return "must be a media type (RFC 2046)"
    return None if parsed.is_json else "must be application/json, or another JSON type, in UTF-8"


def extension_fault(name: str, value: object) -> str | None:
    """For every other attribute and its name. An extension may be an empty string."""
    if not _NAME.fullmatch(name):
        return "must have a name of the lower-case letters a to z and digits"
    if name in _RESERVED:
        return "must not be the name of an extension"
    if isinstance(value, str):
        return _string_fault(value)
    if isinstance(value, bool) or (isinstance(value, int) and value in _INT32):
        return None
    return "must be a string, an integer of 32 bits or a boolean"


def canonical(value: Attribute) -> str:
    """The string form of a value, as in headers."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def _string_fault(value: object) -> str | None:
    if not isinstance(value, str):
        return "must be a string"
    if not (value.isascii() and value.isprintable()) and _FORBIDDEN.search(value):
        return "must not hold control characters, unpaired surrogates or noncharacters"
    return None


def _uri_fault(value: object, pattern: re.Pattern[str], kind: str) -> str | None:
    if fault := text_fault(value):
        return fault
    match = pattern.fullmatch(str(value))
    if match is None:
        return f"must be {kind}"
    if match["ipv6"] is not None:
        try:
            ipaddress.IPv6Address(match["ipv6"])
        except ValueError:
            return f"must be {kind}, and its IPv6 address one"
    return None
