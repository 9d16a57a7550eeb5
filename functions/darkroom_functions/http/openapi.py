"""The OpenAPI 3.1 document, made of the routes.

A route names the types of its bodies (`resources/schemas.py`), from which pydantic makes the schemas, and the errors
that it raises (`darkroom.errors`), which make its refusals. `jobs` serves the document at `/openapi.json`. The tests
validate every response against it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from darkroom import errors
from darkroom.access.principals import Scope
from darkroom.errors import DarkroomError, LimitExceeded, TemporaryError
from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode, JsonSchemaValue
from pydantic_core import core_schema

from darkroom_functions.http import access
from darkroom_functions.http.access import Open
from darkroom_functions.http.credentials import cookies
from darkroom_functions.http.rate_limits import LIMIT_FIELD, POLICY_FIELD
from darkroom_functions.http.responses import JSON_TYPE, PROBLEM_TYPE, problem_members
from darkroom_functions.http.routes import ApiResponse, ApiRoute, Schema
from darkroom_functions.http.semantics import REVALIDATED

VERSION = "1"
"""Of the interface, as in `/api/v1`; not of the software."""

BODY = "Body"
"""Types of bodies are named `…Body`; their schemas are named without it."""

KEY, SESSION, TICKET = "key", "session", "ticket"

SECURITY_SCHEMES: Mapping[str, Schema] = {
    KEY: {
        "type": "http",
        "scheme": "bearer",
        "description": "An API key. The schemes `Token` and `Key` are equal to `Bearer`; in `Basic` the key is the "
        "password. An operation names the scope that the key must have.",
    },
    SESSION: {
        "type": "apiKey",
        "in": "cookie",
        "name": cookies.SECURE_NAME,
        "description": f"The cookie of a session, for pages of the same origin. Over http on loopback its name is "
        f"`{cookies.PLAIN_NAME}`. A header counts instead.",
    },
    TICKET: {
        "type": "apiKey",
        "in": "query",
        "name": access.TICKET,
        "description": "A single-use ticket, for what a browser requests without headers: sockets, event streams and "
        "artifacts.",
    },
}
"""How callers authenticate where `DARKROOM_AUTH` is `keys`."""

_COMPONENTS = "#/components/schemas/"


def document(
    routes: Iterable[ApiRoute],
    *,
    description: str,
    public_url: str,
    webhooks: Mapping[str, Schema],
    components: Mapping[str, Schema],
    problem: object,
) -> Schema:
    """The document of the routes that have an operation id. `components` are the schemas that no type has; `problem` is
    the type of a refusal's body.
    """
    described = [route for route in routes if route.operation]
    bodies = Bodies([problem, *(body for route in described for body in _bodies_of(route))])
    paths: dict[str, Schema] = {}
    for route in described:
        paths.setdefault(route.template, {})[route.method.lower()] = _operation(route, bodies)
    return {
        "openapi": "3.1.0",
        "info": {"title": "darkroom", "version": VERSION, "description": description},
        "servers": [{"url": public_url}],
        "paths": paths,
        "webhooks": dict(webhooks),
        "components": {"schemas": {**bodies.components, **components}, "securitySchemes": SECURITY_SCHEMES},
    }


class Bodies:
    """The schemas of the types of bodies."""

    def __init__(self, types: Iterable[object]) -> None:
        self._types: list[Any] = list({str(each): each for each in types}.values())
        adapters: list[tuple[int, JsonSchemaMode, TypeAdapter[Any]]] = [
            (index, "serialization", TypeAdapter(each)) for index, each in enumerate(self._types)
        ]
        schemas, definitions = TypeAdapter.json_schemas(
            adapters,
            ref_template=_COMPONENTS + "{model}",
            schema_generator=_Generator,
        )
        self._schemas = {str(self._types[key]): _renamed(schema) for (key, _), schema in schemas.items()}
        self.components: dict[str, Schema] = {
            name.removesuffix(BODY): _renamed(schema) for name, schema in definitions.get("$defs", {}).items()
        }

    def schema(self, body: object) -> Schema:
        """The schema of a type, or `body` where it is one."""
        return body if isinstance(body, dict) else self._schemas[str(body)]


class _Generator(GenerateJsonSchema):
    """Closed objects, unless their types allow more members, whose fields have no titles made of their names."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def typed_dict_schema(self, schema: core_schema.TypedDictSchema) -> JsonSchemaValue:
        made = super().typed_dict_schema(schema)
        made.pop("title", None)
        return {"additionalProperties": False, **made}


def _renamed(schema: Any) -> Any:
    """The schema with references to components by their names."""
    if isinstance(schema, dict):
        return {key: item.removesuffix(BODY) if key == "$ref" else _renamed(item) for key, item in schema.items()}
    return [_renamed(item) for item in schema] if isinstance(schema, list) else schema


def _bodies_of(route: ApiRoute) -> list[object]:
    contents = [*(response.content for response in route.responses.values()), (route.request or {}).get("content", {})]
    return [body for content in contents for body in content.values() if not isinstance(body, dict)]


def _operation(route: ApiRoute, bodies: Bodies) -> Schema:
    operation: Schema = {
        "operationId": route.operation,
        "summary": route.summary,
        "security": _security(route),
        "parameters": list(route.parameters),
        "responses": {
            **{status: _response(response, bodies) for status, response in _validated(route).items()},
            **_refusals(route),
            "default": _ANY_PROBLEM,
        },
    }
    if route.request is not None:
        operation["requestBody"] = {**route.request, "content": _content(route.request["content"], bodies)}
    return operation


def _security(route: ApiRoute) -> list[Schema]:
    """The credentials of a route, each of which is enough alone."""
    if route.scope in {Open.PUBLIC, Open.INTERNAL}:
        return []
    scopes = [route.scope.value] if isinstance(route.scope, Scope) else []
    schemes = [KEY, SESSION, *([TICKET] if route.takes_ticket else [])]
    by_link: list[Schema] = [{}] if route.scope is Open.LINK else []
    return [*by_link, *({scheme: scopes} for scheme in schemes)]


def _response(response: ApiResponse, bodies: Bodies) -> Schema:
    described: Schema = {"description": response.description}
    if response.headers:
        described["headers"] = dict(response.headers)
    if response.content:
        described["content"] = _content(response.content, bodies)
    return described


def _content(content: Mapping[str, object], bodies: Bodies) -> Schema:
    return {media_type: {} if body is None else {"schema": bodies.schema(body)} for media_type, body in content.items()}


def _validated(route: ApiRoute) -> Mapping[str, ApiResponse]:
    """The responses of a route: a JSON document that a GET reads has an `ETag`, and 304 is a response too."""
    document = route.responses.get("200")
    if route.method != "GET" or document is None or JSON_TYPE not in document.content:
        return route.responses
    if "Cache-Control" in document.headers:  # it has rules of its own: an artifact or a secret
        return route.responses
    with_tag = ApiResponse(document.description, document.content, {**document.headers, **_VALIDATED})
    return {**route.responses, "200": with_tag, "304": _NOT_MODIFIED}


def _refusals(route: ApiRoute) -> Schema:
    """The responses for the errors of a route, by their status."""
    by_status: dict[str, list[type[DarkroomError]]] = {}
    for kind in route.refusals:
        status = problem_members(kind(""), of_event=route.takes_events)["status"]
        by_status.setdefault(str(status), []).append(kind)
    return {status: _problem(by_status[status]) for status in sorted(by_status)}


def _problem(kinds: Sequence[type[DarkroomError]]) -> Schema:
    types = [errors.PROBLEM_BASE + kind.slug for kind in kinds]
    described: Schema = {
        "description": " Or: ".join(f"{kind.title}." for kind in kinds),
        "content": {
            PROBLEM_TYPE: {"schema": {"allOf": [ref("Problem"), {"properties": {"type": {"enum": types}}}]}},
        },
    }
    if any(issubclass(kind, TemporaryError) for kind in kinds):
        described["headers"] = {"Retry-After": header({"type": "integer", "minimum": 1}, "Seconds to wait.")}
    if any(issubclass(kind, LimitExceeded) for kind in kinds):
        described["headers"] |= LIMIT_HEADERS
    return described


def ref(name: str) -> Schema:
    """A reference to a component."""
    return {"$ref": _COMPONENTS + name}


def header(schema: Schema, description: str) -> Schema:
    return {"schema": schema, "description": description}


def in_path(name: str, schema: Schema, description: str) -> Schema:
    return {"name": name, "in": "path", "required": True, "schema": schema, "description": description}


def in_header(name: str, schema: Schema, description: str) -> Schema:
    return {"name": name, "in": "header", "schema": schema, "description": description}


def in_query(name: str, schema: Schema, description: str, *, required: bool = False) -> Schema:
    return {"name": name, "in": "query", "required": required, "schema": schema, "description": description}


def json_body(body: object, *, required: bool = False) -> Schema:
    """The request body of a route that reads JSON."""
    return {"required": required, "content": {JSON_TYPE: body}}


def json_response(body: object, description: str, headers: Mapping[str, Schema] | None = None) -> ApiResponse:
    return ApiResponse(description, {JSON_TYPE: body}, headers or {})


LIMIT_HEADERS: dict[str, Schema] = {
    POLICY_FIELD: header({"type": "string"}, "Each limit of the tenant and of the key, a List of RFC 9651."),
    LIMIT_FIELD: header({"type": "string"}, "The remaining quota of each limit, after the submission."),
}
"""The fields of `rate_limits.py`; absent where no limit is set."""

_ANY_PROBLEM: Schema = {
    "description": "Any other refusal, such as of an unsupported method (405), or an internal error (500).",
    "content": {PROBLEM_TYPE: {"schema": ref("Problem")}},
}
_VALIDATED: Schema = {
    "ETag": header({"type": "string", "pattern": '^W/"[0-9a-f]+"$'}, "Changes with the document."),
    "Cache-Control": header({"const": REVALIDATED}, "A private cache may store it, and revalidates each use."),
}
_NOT_MODIFIED = ApiResponse("The document has not changed since the caller read it (`If-None-Match`).", {}, _VALIDATED)
