"""`darkroom usage`: what tenants and keys have used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from darkroom_cli.client import Client
from darkroom_cli.exits import DONE
from darkroom_cli.terminal.output import Output

VALUES = ("jobs", "images", "gpu_s", "refusals")


def usage(client: Client, output: Output, filters: Mapping[str, str]) -> int:
    """Print a table: a line per group, and the sums. With `--json`, an object per group."""
    report = client.usage(filters)
    rows = report["rows"]
    for row in rows:
        output.record(row)
    if not rows:
        output.info(f"There is no usage from {report['from']} to {report['to']}.")
        return DONE
    names = report["group_by"]
    table = [[*names, *VALUES], *([*(row[name] or "-" for name in names), *_values([row])] for row in rows)]
    if len(rows) > 1:
        table.append([*("total" if index == 0 else "" for index in range(len(names))), *_values(rows)])
    for line in _aligned(table, left=len(names)):
        output.result(line)
    return DONE


def usage_as_csv(client: Client, output: Output, filters: Mapping[str, str]) -> int:
    """Print the report as CSV."""
    output.content(client.usage_as_csv(filters).encode())
    return DONE


def _values(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    gpu_ms = sum(row["gpu_ms"] for row in rows)
    return [
        str(sum(row["jobs"] for row in rows)),
        str(sum(row["images"] for row in rows)),
        f"{gpu_ms // 1000}.{gpu_ms % 1000:03}",
        str(sum(sum(row["refusals"].values()) for row in rows)),
    ]


def _aligned(table: Sequence[Sequence[str]], *, left: int) -> list[str]:
    """Lines with columns of one width; the first `left` ones are texts, the others numbers."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if index < left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in table
    ]
