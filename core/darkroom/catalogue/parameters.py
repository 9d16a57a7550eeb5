"""The parameters of a model: their declaration, the validation of a request, and their JSON Schema.

`models.py` reads the declarations from the model files, and submit calls `read_input` through it before it stores
anything. This module depends on no files, routes or engines: it returns the input of a request, or all its faults.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from darkroom.errors import FieldError, InvalidInput

Value = str | int | float | bool
"""The value of a parameter after validation."""

MAX_FAULTS = 50
"""The most faults in one response, whose size must not depend on the request. An estimate of what people read."""

MAX_SHOWN_NAME = 64
"""Characters of an unknown field's name that a response repeats. Longer names get no suggestion either."""

SIZE = "size"
"""The field for width and height in one: `"832x1216"`."""

SIDES = ("width", "height")
"""The parameters of `size` and `max_pixels`, where a model has both."""

_SIZE = re.compile(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})", re.ASCII)
# C0 and C1 controls and DEL, except tab, line feed and carriage return: prompts of several lines are usual.
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_SURROGATE = re.compile("[\ud800-\udfff]")
# The same as `_CONTROL`, for the schema. Surrogates are left out: UTF-8 cannot encode them, and some regular expression
# engines treat every character beyond U+FFFF as two of them.
_TEXT_PATTERN = r"^[^\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f]*$"


class ParameterType(StrEnum):
    """The type of a parameter, named as in JSON Schema."""

    STRING = "string"
    INTEGER = "integer"
    NUMBER = "number"
    BOOLEAN = "boolean"


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One parameter of a model.

    Without `default` and not `required` it may be left out, or be null: then the engine's own default holds. `argument`
    is its name in the engine (for diffusers a keyword of the pipeline), where that is not `name`. `needs_above` maps
    other parameters to values that they must exceed for this one to have an effect: without an effect it is refused.
    """

    name: str
    type: ParameterType
    description: str
    default: Value | None = None
    required: bool = False
    minimum: float | None = None
    maximum: float | None = None
    multiple_of: int | None = None
    min_length: int | None = None
    max_length: int | None = None
    choices: tuple[Value, ...] = ()
    argument: str | None = None
    needs_above: Mapping[str, float] = field(default_factory=dict, hash=False)

    @property
    def nullable(self) -> bool:
        return self.default is None and not self.required

    def read(self, value: object) -> Value:
        """`value`, as decoded from JSON, after validation. Numbers are returned as float, integers as int.

        Raises ValueError with the reason, worded to follow the parameter's name.
        """
        result = _READERS[self.type](value)
        if isinstance(result, str):
            self._check_length(result)
        elif not isinstance(result, bool):
            self._check_limits(result)
        if self.choices and result not in self.choices:
            raise ValueError("must be one of " + ", ".join(str(choice) for choice in self.choices))
        return float(result) if self.type is ParameterType.NUMBER else result

    def _check_length(self, text: str) -> None:
        if self.min_length is not None and len(text) < self.min_length:
            raise ValueError("must not be empty" if self.min_length == 1 else f"is below {self.min_length} characters")
        if self.max_length is not None and len(text) > self.max_length:
            raise ValueError(f"must have at most {self.max_length} characters, not {len(text)}")

    def _check_limits(self, number: float) -> None:
        if self.minimum is not None and number < self.minimum:
            raise ValueError(f"must be at least {_plain(self.minimum)}")
        if self.maximum is not None and number > self.maximum:
            raise ValueError(f"must be at most {_plain(self.maximum)}")
        if self.multiple_of is not None and number % self.multiple_of:
            raise ValueError(f"must be a multiple of {self.multiple_of}")


def read_input(
    parameters: Mapping[str, Parameter], raw: Mapping[str, object], *, max_pixels: int | None = None
) -> dict[str, object]:
    """The complete input of a job: the values of `raw`, and the defaults of the rest, in the order of declaration.

    Parameters that are left out and have no default are not in it. `size` is read as width and height where a model has
    both. All faults are raised together, as one InvalidInput.
    """
    faults = list(_unknown(parameters, raw))
    read: dict[str, Value] = {}
    given = _without_size(parameters, raw, faults)
    for name, parameter in parameters.items():
        written = SIZE if name not in raw and name in given else name
        value = given.get(name)
        if value is not None or (name in given and not parameter.nullable):
            try:
                read[name] = parameter.read(value)
            except ValueError as error:
                faults.append(FieldError(written, f"{name} {error}" if written == SIZE else str(error)))
        elif parameter.default is not None:
            read[name] = parameter.default
        elif parameter.required:
            faults.append(FieldError(name, "is missing"))
    faults.extend(_without_effect(parameters, read))
    if max_pixels is not None:
        faults.extend(_too_many_pixels(raw, read, max_pixels))
    if faults:
        raise _refusal(faults)
    return dict(read)


def json_schema(parameters: Mapping[str, Parameter], *, max_pixels: int | None = None) -> dict[str, object]:
    """JSON Schema (draft 2020-12) of the input that `read_input` accepts.

    It never refuses an input that `read_input` accepts. It cannot express three checks of `read_input`: the limits of
    `size` and its agreement with width and height, the pixels of an image, and unpaired surrogates.
    """
    properties = {name: _property(parameter) for name, parameter in parameters.items()}
    if _has_size(parameters):
        properties[SIZE] = {
            "type": "string",
            "description": "Width and height in one: `832x1216`.",
            "minLength": len("1x1"),
            "maxLength": len("99999x99999"),
            "pattern": f"^{_SIZE.pattern}$",
        }
    document: dict[str, object] = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
    }
    if max_pixels is not None:
        document["description"] = f"Width times height is at most {max_pixels} pixels."
    required = [name for name, parameter in parameters.items() if parameter.required]
    if required:
        document["required"] = required
    conditions = [
        _condition(parameter, parameters[other], floor)
        for parameter in parameters.values()
        for other, floor in parameter.needs_above.items()
    ]
    if conditions:
        document["allOf"] = conditions
    return document


def shown(name: str) -> str:
    """`name`, which a caller chose, in a form for responses: truncated, and without surrogates."""
    cut = name if len(name) <= MAX_SHOWN_NAME else name[:MAX_SHOWN_NAME] + "…"
    return cut.encode("utf-8", "backslashreplace").decode("utf-8")


def _suggestion(name: str, known: Mapping[str, object]) -> str:
    near = difflib.get_close_matches(name, known, n=1) if len(name) <= MAX_SHOWN_NAME else []
    return f'; did you mean "{near[0]}"?' if near else ""


def _plain(number: float) -> str:
    return str(number) if isinstance(number, int) else f"{number:g}"


def _read_text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("must be a string")
    if _CONTROL.search(value):
        raise ValueError("must not contain control characters")
    if _SURROGATE.search(value):
        raise ValueError("contains a surrogate without its other half")
    return value


def read_integer(value: object) -> int:
    """The integer value of a JSON number: `42.0` and `1e3` are integers too (JSON Schema 2020-12, section 6.3 of the
    core and 6.1.1 of the validation vocabulary). Raises ValueError.
    """
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError("must be an integer")
    return value


def _read_number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("must be a number")
    try:
        finite = math.isfinite(value)
    except OverflowError:  # an integer beyond every float
        finite = False
    if not finite:
        raise ValueError("must be a finite number")
    return value


def _read_boolean(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("must be true or false")
    return value


_READERS: Mapping[ParameterType, Callable[[object], Value]] = {
    ParameterType.STRING: _read_text,
    ParameterType.INTEGER: read_integer,
    ParameterType.NUMBER: _read_number,
    ParameterType.BOOLEAN: _read_boolean,
}


def _has_size(parameters: Mapping[str, Parameter]) -> bool:
    return all(side in parameters for side in SIDES)


def _unknown(parameters: Mapping[str, Parameter], raw: Mapping[str, object]) -> Iterator[FieldError]:
    arguments = {parameter.argument: name for name, parameter in parameters.items()}
    unknown = [name for name in raw if name not in parameters and not (name == SIZE and _has_size(parameters))]
    # One more than is named, so that the response states that there are more.
    for name in unknown[: MAX_FAULTS + 1]:
        meant = f'; it is called "{arguments[name]}" here' if name in arguments else _suggestion(name, parameters)
        yield FieldError(shown(name), "is not a parameter of this model" + meant)


def _without_size(
    parameters: Mapping[str, Parameter], raw: Mapping[str, object], faults: list[FieldError]
) -> Mapping[str, object]:
    """`raw` with `size` replaced by width and height; faults of `size` itself are added to `faults`."""
    size = raw.get(SIZE)
    if SIZE not in raw or not _has_size(parameters):
        return raw
    match = _SIZE.fullmatch(size) if isinstance(size, str) else None
    if match is None:
        faults.append(FieldError(SIZE, "must be written as width x height, for example 832x1216"))
        return raw
    sides: dict[str, object] = dict(zip(SIDES, map(int, match.groups()), strict=True))
    for name, side in sides.items():
        if name in raw and raw[name] != side:
            faults.append(FieldError(SIZE, f"has {name} {side}, but {name} is given with another value"))
    return {**sides, **raw}


def _without_effect(parameters: Mapping[str, Parameter], read: Mapping[str, Value]) -> Iterator[FieldError]:
    for name, value in read.items():
        parameter = parameters[name]
        if value == parameter.default:
            continue
        for other, floor in parameter.needs_above.items():
            if isinstance(level := read.get(other), int | float) and level <= floor:
                yield FieldError(name, f"has no effect unless {other} is above {_plain(floor)}")


def _too_many_pixels(raw: Mapping[str, object], read: Mapping[str, Value], max_pixels: int) -> Iterator[FieldError]:
    width, height = read.get("width"), read.get("height")
    if isinstance(width, int) and isinstance(height, int) and width * height > max_pixels:
        written = next((name for name in (SIZE, *SIDES) if name in raw), SIZE)
        yield FieldError(written, f"{width}x{height} are {width * height} pixels; the limit is {max_pixels}")


def _refusal(faults: list[FieldError]) -> InvalidInput:
    named = faults[:MAX_FAULTS]
    more = " and more" if len(faults) > MAX_FAULTS else ""
    fields = ", ".join(dict.fromkeys(fault.field for fault in named))
    return InvalidInput(f"The input is not valid: {fields}{more}.", fields=named)


def _property(parameter: Parameter) -> dict[str, object]:
    limits = {
        "default": parameter.default,
        "minimum": parameter.minimum,
        "maximum": parameter.maximum,
        "multipleOf": parameter.multiple_of,
        "minLength": parameter.min_length,
        "maxLength": parameter.max_length,
    }
    stated: dict[str, object] = {key: value for key, value in limits.items() if value is not None}
    if parameter.choices:
        stated["enum"] = [*parameter.choices, None] if parameter.nullable else list(parameter.choices)
    elif parameter.type is ParameterType.STRING:
        stated["pattern"] = _TEXT_PATTERN
    kinds: object = [parameter.type.value, "null"] if parameter.nullable else parameter.type.value
    return {"type": kinds, "description": parameter.description, **stated}


def _condition(parameter: Parameter, other: Parameter, floor: float) -> dict[str, object]:
    """`needs_above` as a schema: this parameter, unless it has its default, requires a high value of the other."""
    then: dict[str, object] = {"properties": {other.name: {"exclusiveMinimum": floor}}}
    if isinstance(other.default, int | float) and other.default <= floor:
        then["required"] = [other.name]
    given = {"required": [parameter.name], "properties": {parameter.name: {"not": {"const": parameter.default}}}}
    return {"if": given, "then": then}
