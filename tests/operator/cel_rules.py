"""The validation rules of a CRD (`x-kubernetes-validations`), evaluated as the API server evaluates them.

The API server of the tests may be too old for CEL. This module reproduces the documented semantics
(https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/#validation-rules): a
missing key is an error; defaults are applied to an object before its rules are evaluated, but not to the defaults of
the schema, which must satisfy the rules as they are written; a rule sees only fields that the schema declares, and of
the metadata the name alone; a rule that mentions `oldSelf` is evaluated on updates alone. The estimated cost of a rule
and the static check of its types are out of reach.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import celpy
from celpy.adapter import json_to_cel
from celpy.evaluation import CELEvalError

Object = dict[str, Any]

CEL = "x-kubernetes-validations"

OF_METADATA = ("name", "generateName")

_ABSENT = object()


def with_defaults(schema: Object, value: Any) -> Any:
    """The value with the defaults of its schema, including nested ones; a default replaces a null."""
    if isinstance(value, list):
        return [with_defaults(schema.get("items", {}), item) for item in value]
    if not isinstance(value, dict):
        return value
    fields = schema.get("properties", {})
    filled = dict(value)
    for name, member in fields.items():
        if "default" in member and (name not in filled or (filled[name] is None and not member.get("nullable"))):
            filled[name] = member["default"]
    return {name: with_defaults(_of_member(schema, name), member) for name, member in filled.items()}


def broken(schema: Object, value: Any, *, before: Any = _ABSENT) -> list[str]:
    """The messages of the rules that the value breaks, at any level; `before` is the value that an update replaces. A
    rule that cannot be evaluated is broken, and its message is the error.
    """
    return [f"{path}: {message}" for path, message in _broken(schema, value, before, "self")]


def broken_by_defaults(schema: Object, path: str = "self") -> list[str]:
    """The rules that a default of the schema breaks, by itself or within its parent."""
    found = []
    if "default" in schema:
        # The API server takes a default for the old value too.
        found += [
            f"{where}: {message}" for where, message in _broken(schema, schema["default"], schema["default"], path)
        ]
    for name, member in schema.get("properties", {}).items():
        found += broken_by_defaults(member, f"{path}.{name}")
    for kind in ("items", "additionalProperties"):
        if isinstance(schema.get(kind), dict):
            found += broken_by_defaults(schema[kind], f"{path}[]")
    return found


def _broken(schema: Object, value: Any, before: Any, path: str) -> Iterator[tuple[str, str]]:
    for rule in schema.get(CEL, []):
        mentions_before = re.search(r"\boldSelf\b", rule["rule"]) is not None
        if mentions_before and before is _ABSENT and not rule.get("optionalOldSelf"):
            continue
        context = {"self": json_to_cel(_seen(schema, value))}
        if before is not _ABSENT:
            context["oldSelf"] = json_to_cel(_seen(schema, before))
        language = celpy.Environment()
        try:
            holds = language.program(language.compile(rule["rule"])).evaluate(context)
        except CELEvalError as error:
            yield path, f"{error} evaluating rule: {rule['message']}"
        else:
            if not holds:
                yield path, rule["message"]
    if isinstance(value, dict):
        for name, member in value.items():
            old = before.get(name, _ABSENT) if isinstance(before, dict) else _ABSENT
            yield from _broken(_of_member(schema, name), member, old, f"{path}.{name}")
    elif isinstance(value, list):  # items of a list without keys have no old values
        for index, item in enumerate(value):
            yield from _broken(schema.get("items", {}), item, _ABSENT, f"{path}[{index}]")


def _of_member(schema: Object, name: str) -> Object:
    fields: Object = schema.get("properties", {})
    of_others = schema.get("additionalProperties")
    found: Object = fields.get(name, of_others if isinstance(of_others, dict) else {})
    return found


def _seen(schema: Object, value: Any) -> Any:
    """The value as rules see it."""
    if isinstance(value, list):
        return [_seen(schema.get("items", {}), item) for item in value]
    if not isinstance(value, dict):
        return value
    if isinstance(schema.get("additionalProperties"), dict):
        return {name: _seen(schema["additionalProperties"], member) for name, member in value.items()}
    seen = {name: _seen(member, value[name]) for name, member in schema.get("properties", {}).items() if name in value}
    if "kind" in schema.get("properties", {}) and "metadata" in value:
        seen["metadata"] = {name: value["metadata"][name] for name in OF_METADATA if name in value["metadata"]}
    return seen
