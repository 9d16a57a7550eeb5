"""`darkroom models`: list the server's models and their parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from darkroom_cli.client import Client
from darkroom_cli.exits import DONE
from darkroom_cli.terminal.output import Output

NAME_COLUMN = 22


def models(client: Client, output: Output) -> int:
    """Print the models, one record per model."""
    for model in client.models()["models"]:
        output.record(model)
        output.result(_entry(model))
    return DONE


def _entry(model: Mapping[str, Any]) -> str:
    served = "" if model["served"] == model["name"] else f"  Served by: {model['served']}.\n"
    default = ", the default" if model["default"] else ""
    parameters = model["parameters"]["properties"]
    lines = [f"    {name:<{NAME_COLUMN}}{_limits(schema)}" for name, schema in parameters.items()]
    return f"{model['name']}{default}: {model['title']}\n  {model['description']}\n{served}" + "\n".join(lines) + "\n"


def _limits(schema: Mapping[str, Any]) -> str:
    """The limits in a parameter's JSON Schema, as text."""
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    words = [next(kind for kind in kinds if kind != "null")]
    if "enum" in schema:
        words = ["one of " + " ".join(str(choice) for choice in schema["enum"] if choice is not None)]
    if "minimum" in schema and "maximum" in schema:
        words.append(f"{schema['minimum']} to {schema['maximum']}")
    if "multipleOf" in schema:
        words.append(f"a multiple of {schema['multipleOf']}")
    if "maxLength" in schema:
        words.append(f"at most {schema['maxLength']} characters")
    if schema.get("default") not in (None, ""):
        words.append(f"default {schema['default']}")
    return ", ".join(words)
