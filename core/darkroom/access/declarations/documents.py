"""A YAML document whose parts have a position, so that each fault has its line and column.

A name that is given twice is a fault, and so is a second document: PyYAML drops both in silence. Times are texts here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

Place = tuple[str | int, ...]
"""Names and positions from the root to a part, as pydantic gives them."""


@dataclass(frozen=True, order=True)
class Fault:
    """What is wrong, and where; lines and columns begin with 1. `field` is empty for the whole document."""

    line: int
    column: int
    field: str
    reason: str

    def __str__(self) -> str:
        where = f"{self.field}: " if self.field else ""
        return f"line {self.line}, column {self.column}: {where}{self.reason}"


class Unreadable(Exception):
    """The text is no YAML document; `faults` are the reasons."""

    def __init__(self, *faults: Fault) -> None:
        super().__init__("; ".join(map(str, faults)))
        self.faults = faults


class _Loader(yaml.SafeLoader):
    """YAML's safe types except times, which are read strictly elsewhere."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


class Document:
    """One YAML document. `content` has its mappings, lists and scalars. Raises Unreadable."""

    def __init__(self, text: str) -> None:
        try:
            loader = _Loader(text)
            try:
                root = loader.get_single_node()
                if root is None:
                    raise Unreadable(Fault(1, 1, "", "the document is empty"))
                faults = tuple(_repeated(root))
                if faults:
                    raise Unreadable(*sorted(faults))
                self._root: Node = root
                self.content: Any = loader.construct_document(root)
            finally:
                loader.dispose()
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line, column = (1, 1) if mark is None else (mark.line + 1, mark.column + 1)
            raise Unreadable(Fault(line, column, "", f"is not YAML: {error.problem or error.context}")) from None
        except yaml.YAMLError as error:
            position = getattr(error, "position", 0)
            line = text.count("\n", 0, position) + 1
            raise Unreadable(Fault(line, 1, "", f"is not YAML: {getattr(error, 'reason', 'unreadable')}")) from None
        except (ValueError, OverflowError) as error:  # a number or a binary scalar that PyYAML cannot convert
            raise Unreadable(Fault(1, 1, "", f"has a value that cannot be read: {error}")) from None
        except RecursionError:
            raise Unreadable(Fault(1, 1, "", "is nested too deeply")) from None

    def fault(self, place: Sequence[str | int], reason: str) -> Fault:
        """A fault at a place: at the name of the part, or where that is missing at what it is missing in."""
        node, mark = self._root, self._root.start_mark
        for step in place:
            key, below = _child(node, step)
            if below is None:
                break
            node, mark = below, (key or below).start_mark
        return Fault(mark.line + 1, mark.column + 1, field_of(place), reason)


def field_of(place: Sequence[str | int]) -> str:
    """A place as text: `tenants[0].keys[1].scopes`."""
    text = ""
    for step in place:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text


def _child(node: Node, step: str | int) -> tuple[Node | None, Node | None]:
    """The name and the node of a part; a part of a list has no name."""
    if isinstance(node, SequenceNode) and isinstance(step, int) and step < len(node.value):
        return None, node.value[step]
    if isinstance(node, MappingNode):
        return next(((key, value) for key, value in node.value if key.value == step), (None, None))
    return None, None


def _repeated(root: Node) -> Iterator[Fault]:
    """The names that a mapping has twice. Each node is visited once: aliases may repeat or contain one."""
    seen: set[int] = set()
    waiting: list[tuple[Node, Place]] = [(root, ())]
    while waiting:
        node, place = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, SequenceNode):
            waiting += [(child, (*place, index)) for index, child in enumerate(node.value)]
        if isinstance(node, MappingNode):
            lines: dict[str, int] = {}
            for key, value in node.value:
                name = key.value if isinstance(key, ScalarNode) else ""
                if name in lines and name != "<<":
                    mark = key.start_mark
                    reason = f"was given in line {lines[name]} already"
                    yield Fault(mark.line + 1, mark.column + 1, field_of((*place, name)), reason)
                lines.setdefault(name, key.start_mark.line + 1)
                waiting.append((value, (*place, name)))
