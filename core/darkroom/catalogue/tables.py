"""A table of a TOML file, read key by key; `models.py` reads the model files with it.

Each key is read once, with its type; keys that are never read are unknown. Every fault is a SettingError that names the
file and the key.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping

from darkroom.errors import SettingError

MAX_EXACT_INTEGER = 2**53 - 1
"""The greatest integer that every JSON reader represents exactly, also as a double (RFC 8259, section 6)."""


class Table:
    """`raw` is a table of `file`; `prefix` precedes the keys in faults (`parameters.width.`)."""

    def __init__(self, file: str, raw: Mapping[str, object], *, prefix: str = "") -> None:
        self.file = file
        self._prefix = prefix
        self._left = dict(raw)
        self._known: list[str] = []

    def fault(self, key: str, why: str) -> SettingError:
        return SettingError(f"{self.file}: {self._prefix}{key}: {why}")

    def take(self, key: str) -> object:
        """The value of any type; None where the key is absent (TOML has no null)."""
        self._known.append(key)
        return self._left.pop(key, None)

    def text(self, key: str, *, pattern: re.Pattern[str] | None = None) -> str:
        found = self.optional_text(key, pattern=pattern)
        if found is None:
            raise self.fault(key, "is missing")
        return found

    def optional_text(self, key: str, *, pattern: re.Pattern[str] | None = None) -> str | None:
        found = self.take(key)
        if found is None:
            return None
        if not isinstance(found, str) or not found.strip():
            raise self.fault(key, "must be a string with something in it")
        if pattern is not None and not pattern.fullmatch(found):
            raise self.fault(key, f'"{found}" does not match {pattern.pattern}')
        return found

    def flag(self, key: str) -> bool:
        found = self.take(key)
        if found is not None and not isinstance(found, bool):
            raise self.fault(key, "must be true or false")
        return found is True

    def count(self, key: str, *, maximum: int = MAX_EXACT_INTEGER) -> int | None:
        """A positive integer; None where the key is absent."""
        found = self.take(key)
        if found is None:
            return None
        if isinstance(found, bool) or not isinstance(found, int) or not 1 <= found <= maximum:
            raise self.fault(key, f"must be an integer from 1 to {maximum}")
        return found

    def number(self, key: str, *, whole: bool) -> float | None:
        """A number of either sign; an integer stays one, and is required if `whole`."""
        found = self.take(key)
        return None if found is None else self._number(key, found, whole=whole)

    def numbers(self, key: str) -> dict[str, float]:
        """A table of numbers."""
        found = self.take(key)
        if found is None:
            return {}
        if not isinstance(found, dict):
            raise self.fault(key, "must be a table of numbers")
        return {name: self._number(f"{key}.{name}", value, whole=False) for name, value in found.items()}

    def array(self, key: str) -> list[object]:
        found = self.take(key)
        if found is None:
            return []
        if not isinstance(found, list) or not found:
            raise self.fault(key, "must be an array with something in it")
        return found

    def tables(self, key: str) -> dict[str, Mapping[str, object]]:
        """A table of tables."""
        found = self.take(key)
        if found is None:
            return {}
        if not isinstance(found, dict):
            raise self.fault(key, "must hold tables")
        for name, table in found.items():
            if not isinstance(table, dict):
                raise self.fault(f"{key}.{name}", "must be a table")
        return found

    def nothing_else(self) -> None:
        for key in self._left:
            near = difflib.get_close_matches(key, self._known, n=1)
            raise self.fault(key, "is no key here" + (f'; did you mean "{near[0]}"?' if near else ""))

    def _number(self, key: str, found: object, *, whole: bool) -> float:
        if isinstance(found, bool) or not isinstance(found, int if whole else int | float):
            raise self.fault(key, "must be an integer" if whole else "must be a number")
        if not abs(found) <= MAX_EXACT_INTEGER:  # worded so that NaN is refused as well
            raise self.fault(key, f"must be within {MAX_EXACT_INTEGER} of zero")
        return found
