"""The models: one declarative file each, read into a catalogue when a part starts.

Submit validates requests by the model's file, workers read the engine, pipeline and source to load from it, and the
OpenAPI document its parameters. A model is added by adding a file (ARCHITECTURE.md). A file is TOML:

- `name`, `title`, `description`, `engine`, `pipeline`, `source` (a hub id or a local folder), `dtype`, `pool`;
- optional: `revision` of the source, `default`, `run_timeout_s`, `load_timeout_s`, `max_pixels` of one image, and
  `served_as`: the model that runs, where it differs from the name;
- `[parameters.NAME]`, one table each, with the fields of `Parameter`;
- `extends = "NAME"` uses a model that was read before as the base. Values are overridden one by one. `revision` and
  `served_as` belong to a `source` and are dropped when another one is named; `default` is not inherited by another
  name. A parameter's table with a `type` replaces the base's, one without changes it, and `parameters.NAME = false`
  removes it: a model must not accept a parameter that it would ignore.
"""

from __future__ import annotations

import importlib.resources
import math
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from darkroom.catalogue.parameters import SIDES, Parameter, ParameterType, Value, json_schema, read_input, shown
from darkroom.catalogue.tables import MAX_EXACT_INTEGER, Table
from darkroom.errors import SettingError, UnknownModel

__all__ = [
    "RESERVED_FIELDS",
    "RESERVED_NAMES",
    "Catalogue",
    "Model",
    "Parameter",
    "ParameterType",
    "schema",
    "validate",
]

DEFAULT_RUN_TIMEOUT_S = 600
"""The run timeout of a model whose file has none: an estimate, generous for one image on a slow GPU."""

DEFAULT_LOAD_TIMEOUT_S = 900
"""The load timeout of a model whose file has none: tens of gigabytes from a cold disk or the hub."""

MAX_TIMEOUT_S = 43_200
"""Half of the day after which Celery redelivers a message (the visibility timeout)."""

DTYPES = ("float32", "float16", "bfloat16")

RESERVED_NAMES = frozenset(
    "admin api artifacts dead-letters docs events favicon.ico flower healthz jobs keys livez login metrics models"
    " openapi.json readyz redoc robots.txt static status subscriptions sync tasks tenants ui version webhooks"
    " ws".split()
)
"""First path segments of present and future routes, which `POST /{model}` must not hide."""

RESERVED_FIELDS = frozenset(
    "id idempotency_key input job_id job_type model priority run_timeout size start_deadline task_id tenant user_id"
    " webhook webhook_events_filter".split()
)
"""Fields of a request that concern the job (`size`: two parameters), and so cannot be names of parameters."""

NAME = re.compile(r"[a-z][a-z0-9-]{0,40}")
"""The name of a model, an engine or a pool."""

_PARAMETER_NAME = re.compile(r"[a-z][a-z0-9_]{0,40}")
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}")


@dataclass(frozen=True, kw_only=True)
class Model:
    """One model. Times are in whole seconds; `parameters` keep the file's order."""

    name: str
    title: str
    description: str
    engine: str
    pipeline: str
    source: str
    dtype: str
    pool: str
    parameters: Mapping[str, Parameter] = field(hash=False)
    revision: str | None = None
    default: bool = False
    run_timeout_s: int = DEFAULT_RUN_TIMEOUT_S
    load_timeout_s: int = DEFAULT_LOAD_TIMEOUT_S
    max_pixels: int | None = None
    served_as: str | None = None

    @property
    def served(self) -> str:
        """The model that runs, as every result states it."""
        return self.served_as or self.name


def validate(model: Model, raw: Mapping[str, object]) -> dict[str, object]:
    """The complete input of a job, ready for JSON: see `parameters.read_input`. Raises InvalidInput with every fault.

    It has no `seed` unless one was given: submit draws one.
    """
    return read_input(model.parameters, raw, max_pixels=model.max_pixels)


def schema(model: Model) -> dict[str, object]:
    """The input that `validate` accepts, as JSON Schema (draft 2020-12): see `parameters.json_schema`."""
    return {"title": model.title, **json_schema(model.parameters, max_pixels=model.max_pixels)}


@dataclass(frozen=True)
class Catalogue:
    """All models by name; iterates over them in the order of their names."""

    models: Mapping[str, Model]

    @classmethod
    def load(cls, folders: Sequence[Path] = ()) -> Catalogue:
        """The shipped files, then each folder's `*.toml` in name order. A later folder's file replaces one of its name.

        Raises SettingError, which names the file and the key.
        """
        files: dict[str, str] = {}
        tables: dict[str, dict[str, object]] = {}
        models: dict[str, Model] = {}
        for place in (_shipped(), *map(_in_folder, folders)):
            here: set[str] = set()
            for file, text in place:
                table = _extended(file, _parsed(file, text), tables)
                model = _model(Table(file, table))
                if model.name in here:
                    raise SettingError(f'{file}: name: "{model.name}" is also in {files[model.name]}')
                here.add(model.name)
                files[model.name], tables[model.name], models[model.name] = file, table, model
        defaults = [f"{file} ({name})" for name, file in sorted(files.items()) if models[name].default]
        if len(defaults) != 1:
            raise SettingError(f"default: exactly one file must set it; {' and '.join(defaults) or 'none'} does")
        return cls({name: models[name] for name in sorted(models)})

    @cached_property
    def default(self) -> Model:
        return next(model for model in self if model.default)

    def get(self, name: str) -> Model:
        """Raises UnknownModel, which lists the names there are."""
        if name not in self.models:
            raise UnknownModel(f'There is no model "{shown(name)}". There are: {", ".join(self.models)}.')
        return self.models[name]

    def __iter__(self) -> Iterator[Model]:
        return iter(self.models.values())

    def __len__(self) -> int:
        return len(self.models)


def _shipped() -> Iterator[tuple[str, str]]:
    folder = importlib.resources.files("darkroom.catalogue")
    for file in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if file.name.endswith(".toml"):
            yield f"darkroom/catalogue/{file.name}", file.read_text(encoding="utf-8")


def _in_folder(folder: Path) -> Iterator[tuple[str, str]]:
    if not folder.is_dir():
        raise SettingError(f"{folder}: is not a folder of model files")
    for file in sorted(folder.glob("*.toml")):
        try:
            yield str(file), file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise SettingError(f"{file}: cannot be read: {error}") from error


def _parsed(file: str, text: str) -> dict[str, object]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SettingError(f"{file}: is not TOML: {error}") from error


def _extended(file: str, own: dict[str, object], read: Mapping[str, dict[str, object]]) -> dict[str, object]:
    """`own`, merged into the table that it extends, if any."""
    if "extends" not in own:
        return own
    table = Table(file, own)
    base_name = table.text("extends")
    if base_name not in read:
        raise table.fault("extends", f'"{base_name}" was not read before; {", ".join(read)} were')
    base = dict(read[base_name])
    if own.get("name", base_name) != base_name:
        base.pop("default", None)
    if "source" in own:
        base.pop("revision", None)
        base.pop("served_as", None)
    before = Table(file, base).tables("parameters")
    parameters: dict[str, object] = dict(before)
    changes = own.get("parameters", {})
    if not isinstance(changes, dict):
        raise table.fault("parameters", "must hold tables")
    for name, change in changes.items():
        if change is False:
            if parameters.pop(name, None) is None:
                raise table.fault(f"parameters.{name}", f'"{base_name}" has no such parameter to remove')
        elif name in before and isinstance(change, dict) and "type" not in change:
            parameters[name] = {**before[name], **change}
        else:
            parameters[name] = change
    stated = {key: value for key, value in own.items() if key != "extends"}
    return {**base, **stated, "parameters": parameters}


def _model(table: Table) -> Model:
    name = table.text("name", pattern=NAME)
    if name in RESERVED_NAMES:
        raise table.fault("name", f'"{name}" is a route')
    model = Model(
        name=name,
        title=table.text("title"),
        description=table.text("description"),
        engine=table.text("engine", pattern=NAME),
        pipeline=table.text("pipeline", pattern=_IDENTIFIER),
        source=table.text("source"),
        dtype=table.text("dtype", pattern=re.compile("|".join(DTYPES))),
        pool=table.text("pool", pattern=NAME),
        parameters={key: _parameter(table, key, raw) for key, raw in table.tables("parameters").items()},
        revision=table.optional_text("revision"),
        default=table.flag("default"),
        run_timeout_s=table.count("run_timeout_s", maximum=MAX_TIMEOUT_S) or DEFAULT_RUN_TIMEOUT_S,
        load_timeout_s=table.count("load_timeout_s", maximum=MAX_TIMEOUT_S) or DEFAULT_LOAD_TIMEOUT_S,
        max_pixels=table.count("max_pixels"),
        served_as=table.optional_text("served_as"),
    )
    table.nothing_else()
    _check_together(table, model)
    return model


def _check_together(table: Table, model: Model) -> None:
    """Check the rules that concern several parameters."""
    for name, parameter in model.parameters.items():
        for other in parameter.needs_above:
            level = model.parameters.get(other)
            if level is None or level.nullable or level.type not in (ParameterType.INTEGER, ParameterType.NUMBER):
                raise table.fault(f"parameters.{name}.needs_above", f'"{other}" is no number that always has a value')
    sides = [parameter for name, parameter in model.parameters.items() if name in SIDES]
    for side in sides:
        if side.type is not ParameterType.INTEGER:
            raise table.fault(f"parameters.{side.name}.type", "must be integer: it is in pixels")
    if model.max_pixels is not None:
        defaults = [side.default for side in sides if isinstance(side.default, int)]
        if len(defaults) != len(SIDES) or math.prod(defaults) > model.max_pixels:
            raise table.fault("max_pixels", "requires the parameters width and height, with defaults within it")


def _parameter(model: Table, name: str, raw: Mapping[str, object]) -> Parameter:
    table = Table(model.file, raw, prefix=f"parameters.{name}.")
    if not _PARAMETER_NAME.fullmatch(name) or name in RESERVED_FIELDS:
        raise model.fault(f"parameters.{name}", "is a field of the job, or no lower-case name")
    kind = ParameterType(table.text("type", pattern=re.compile("|".join(ParameterType))))
    text, whole = kind is ParameterType.STRING, kind is ParameterType.INTEGER
    number = whole or kind is ParameterType.NUMBER
    parameter = Parameter(
        name=name,
        type=kind,
        description=table.text("description"),
        required=table.flag("required"),
        minimum=table.number("minimum", whole=whole) if number else None,
        maximum=table.number("maximum", whole=whole) if number else None,
        multiple_of=table.count("multiple_of") if whole else None,
        min_length=table.count("min_length") if text else None,
        max_length=table.count("max_length") if text else None,
        argument=table.optional_text("argument", pattern=_IDENTIFIER),
        needs_above=table.numbers("needs_above"),
    )
    if whole:
        least, most = parameter.minimum, parameter.maximum
        parameter = replace(
            parameter,
            minimum=-MAX_EXACT_INTEGER if least is None else least,
            maximum=MAX_EXACT_INTEGER if most is None else most,
        )
    for low, high in ("minimum", "maximum"), ("min_length", "max_length"):
        least, most = getattr(parameter, low), getattr(parameter, high)
        if least is not None and most is not None and least > most:
            raise table.fault(low, f"is above {high}")
    if kind is not ParameterType.BOOLEAN:
        choices = tuple(_value(table, "choices", choice, parameter) for choice in table.array("choices"))
        parameter = replace(parameter, choices=choices)
    default = table.take("default")
    if default is not None:
        parameter = replace(parameter, default=_value(table, "default", default, parameter))
    if default is not None and parameter.required:
        raise table.fault("default", "is of no use to a parameter that is required")
    if default is None and parameter.needs_above:
        raise table.fault("needs_above", "requires a default: the value that has no effect")
    table.nothing_else()
    return parameter


def _value(table: Table, key: str, found: object, parameter: Parameter) -> Value:
    """`found` as a value of `parameter`, within the limits that hold for requests."""
    try:
        return parameter.read(found)
    except ValueError as error:
        raise table.fault(key, str(error)) from error
