"""The report of a run: one self-contained HTML page, and the same content as JSON.

The plots are inline SVG by matplotlib, so that the page needs no script and can be printed.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from math import nan
from pathlib import Path
from typing import Any

from darkroom_loadtest.load.gauges import Gauge
from darkroom_loadtest.load.outcome import SHOWN, Latency, LoadOutcome, TimeWindow
from darkroom_loadtest.load.profiles import LoadPlan
from darkroom_loadtest.measurement.samples import Trend

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #1c1c1c; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: 0; } h2 { font-size: 1.1rem; margin: 2rem 0 .4rem; }
table { border-collapse: collapse; width: 100%; } caption { text-align: left; color: #555; padding-bottom: .3rem; }
th, td { text-align: left; padding: .15rem .8rem .15rem 0; border-bottom: 1px solid #ddd; vertical-align: top; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
.verdict { font-weight: 600; padding: .5rem .8rem; border: 2px solid; margin: 1rem 0; }
.passed { color: #14602b; } .failed { color: #9c1c1c; }
figure { margin: 1rem 0; break-inside: avoid; } figure svg { width: 100%; height: auto; }
figcaption, .note { color: #555; } section { break-inside: avoid; } code { font-size: .9em; overflow-wrap: anywhere; }
@media print { body { max-width: none; margin: 0; font-size: 11px; } }
"""

COLOURS = ("#0b5394", "#b45f06", "#8a1c1c", "#3f6b34")
"""In print the dashes distinguish the curves as well."""

DASHES = ("-", "--", ":", "-.")

Cells = Sequence[str]


@dataclass(frozen=True, kw_only=True)
class LoadRun:
    """The contents of the report. `audit` is the summary of `darkroom audit`, or the reason why there is none; `remark`
    is the reason of an early end.
    """

    plan: LoadPlan
    outcome: LoadOutcome
    began: str
    wall_s: float
    capacity_per_s: float | None
    gauges: Sequence[Gauge]
    memory: Sequence[Trend]
    audit: Mapping[str, Any] | str
    remark: str | None
    versions: Mapping[str, str]
    machine: str
    load_average: str


def write(run: LoadRun, folder: Path) -> Path:
    """Write `report.json` and `report.html`; returns the path of the latter."""
    raw = asdict(run) | {"passed": not run.outcome.missed}
    (folder / "report.json").write_text(json.dumps(raw, indent=2) + "\n")
    page = folder / "report.html"
    page.write_text(render(run))
    return page


def render(run: LoadRun) -> str:
    """The report as HTML."""
    plan, outcome, windows = run.plan, run.outcome, run.outcome.windows
    title = f"darkroom under load: {plan.profile}, {plan.shape}"
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="note">{escape(_about(run))}</p>',
        f'<p class="note">{escape(run.remark)}</p>' if run.remark else "",
        _verdict(outcome),
        _table("Thresholds", ("threshold", "measured", "at most", "met"), _checks(outcome), numbers=(1, 2)),
        _table("Totals", ("figure", "value"), _totals(run), numbers=(1,)),
        _table(
            "Latency (ms)",
            ("latency", "count", "p50", "p95", "p99"),
            _latencies(outcome),
            numbers=(1, 2, 3, 4),
            note="From just before the request, measured at the client. End to end is to the terminal message on a "
            "socket, or to the response of a waiting request.",
        ),
        _figure("Offered, accepted and refused", draw(windows, lambda axes: _rates(axes, windows))),
        _figure("Images completed", draw(windows, lambda axes: _images(axes, windows))),
        _figure("Submission: to the 202", draw(windows, lambda axes: _percentiles(axes, windows, "submit"))),
        _figure("Start: to the message `started`", draw(windows, lambda axes: _percentiles(axes, windows, "start"))),
        _figure("End to end", draw(windows, lambda axes: _percentiles(axes, windows, "end_to_end"))),
        _figure("Backlog and replicas", draw(windows, lambda axes: _gauges(axes, run.gauges, began=outcome.began)))
        if run.gauges
        else '<p class="note">Backlog and replicas: Redis could not be reached.</p>',
        _table("Around the engine", ("time", "median"), _around(outcome), numbers=(1,)),
        _table("Refusals", ("status and reason", "count"), _counts(outcome.refused), numbers=(1,)),
        _table("Hostile input", ("case", "responses"), _hostile(outcome)),
        _table("Errors", ("error", "count"), _counts(outcome.errors), numbers=(1,)),
        _table("Lost, doubled, unnotified", ("kind", "jobs"), _violations(outcome)),
        _audit(run.audit),
        _memory(run.memory),
        _table("Versions and machine", ("name", ""), [*run.versions.items(), ("machine", run.machine)]),
    ]
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<link rel="icon" href="data:,"><style>{STYLE}</style></head>\n<body>\n'
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def draw(windows: Sequence[TimeWindow], plot: Callable[[Any], None]) -> str:
    """An SVG element of the plot that `plot` draws; the time axis covers the windows."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot

    with pyplot.rc_context({"svg.fonttype": "none", "font.size": 10, "font.family": "sans-serif"}):
        figure, axes = pyplot.subplots(figsize=(9, 2.6), layout="constrained")
        plot(axes)
        axes.set_xlabel("s after the first request")
        axes.set_xlim(0, 2 * windows[0].at_s * len(windows) if windows else 1)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
        pyplot.close(figure)
    return text.getvalue().partition("<svg")[1] + text.getvalue().partition("<svg")[2]


def _about(run: LoadRun) -> str:
    plan = run.plan
    capacity = (
        "" if run.capacity_per_s is None else f" The capacity was measured as {run.capacity_per_s:.2f} jobs per second."
    )
    return (
        f"{run.began}, against {plan.host}: {plan.duration_s:g} s, {plan.peak_per_s:.3g} jobs per second at the peak, "
        f"model {plan.model} with {json.dumps(plan.parameters)}.{capacity} Load average of the machine at the end: "
        f"{run.load_average}."
    )


def _verdict(outcome: LoadOutcome) -> str:
    if not outcome.missed:
        return '<p class="verdict passed">Passed: every threshold is met.</p>'
    names = ", ".join(check.name for check in outcome.missed)
    return f'<p class="verdict failed">Failed: {escape(names)}.</p>'


def _checks(outcome: LoadOutcome) -> list[Cells]:
    return [
        (
            check.name,
            "unknown" if check.value is None else _short(check.value),
            "" if check.limit is None else _short(check.limit),
            "" if check.limit is None else "yes" if check.is_met else "NO",
        )
        for check in outcome.checks
    ]


def _totals(run: LoadRun) -> list[Cells]:
    outcome = run.outcome
    ends = ", ".join(f"{count} {state}" for state, count in sorted(outcome.ends.items()))
    backlog = [gauge.backlog for gauge in run.gauges]
    return [
        ("jobs offered", str(outcome.offered)),
        ("jobs accepted (202)", str(outcome.accepted)),
        ("jobs refused", str(sum(outcome.refused.values()))),
        ("terminal states of accepted jobs", ends or "none"),
        ("images per minute", _short(outcome.images_per_min)),
        ("from the last submission to the last end", "" if outcome.settle_s is None else f"{outcome.settle_s:.1f} s"),
        ("maximum backlog, and backlog at the end", f"{max(backlog)}, {backlog[-1]}" if backlog else "unknown"),
        ("duration of the run", f"{run.wall_s:.0f} s"),
    ]


def _latencies(outcome: LoadOutcome) -> list[Cells]:
    rows = [("submission", outcome.submit), ("start", outcome.start), ("end to end", outcome.end_to_end)]
    rows += [(f"end to end: {way}", latency) for way, latency in outcome.by_way.items()]
    return [
        (name, *(("0", "", "", "") if latency is None else (str(latency.count), *map(_short, _values(latency)))))
        for name, latency in rows
    ]


def _values(latency: Latency) -> tuple[float, float, float]:
    return latency.p50, latency.p95, latency.p99


def _around(outcome: LoadOutcome) -> list[Cells]:
    around = outcome.around

    def ms(value: float | None) -> str:
        return "unknown" if value is None else f"{value:.1f} ms"

    part = "unknown" if around.between_percent is None else f"{around.between_percent:.1f} %"
    return [
        ("an attempt, from claim to end, including the engine", ms(around.attempt)),
        ("between a worker's end and next start, while that job waited", ms(around.between)),
        ("its share of both", part),
        ("from a job's end to its client (different clocks on different machines)", ms(around.notified)),
    ]


def _counts(counts: Mapping[str, int]) -> list[Cells]:
    return [(name, str(count)) for name, count in counts.items()]


def _hostile(outcome: LoadOutcome) -> list[Cells]:
    return [
        (case, ", ".join(f"{count} × {status}" for status, count in counts.items()))
        for case, counts in outcome.hostile.items()
    ]


def _violations(outcome: LoadOutcome) -> list[Cells]:
    groups = (("lost", outcome.lost), ("doubled", outcome.doubled), ("unnotified", outcome.unnotified))
    return [(f"{name}: {len(jobs)}", ", ".join(jobs[:SHOWN])) for name, jobs in groups if jobs]


def _audit(audit: Mapping[str, Any] | str) -> str:
    text = audit if isinstance(audit, str) else json.dumps(audit)
    return f"<section><h2>darkroom audit</h2><p><code>{escape(text)}</code></p></section>"


def _memory(trends: Sequence[Trend]) -> str:
    rows = [
        (
            trend.series,
            f"{trend.first:.1f}",
            f"{trend.last:.1f}",
            f"{trend.most:.1f}",
            trend.unit,
            f"{trend.slope:+.1f}",
        )
        for trend in trends
    ]
    return _table(
        "Memory, descriptors and keys",
        ("series", "first", "last", "max", "unit", "slope per hour"),
        rows,
        numbers=(1, 2, 3, 5),
        note="After the first quarter of the run, the warm-up. The hourly slope of a short run is not meaningful.",
    )


def _table(
    title: str, headings: Sequence[str], rows: Iterable[Cells], *, numbers: Sequence[int] = (), note: str = ""
) -> str:
    """A section with a table; a note if there are no rows."""
    listed = list(rows)
    if not listed:
        return f'<section><h2>{escape(title)}</h2><p class="note">None.</p></section>'

    def cells(row: Cells, tag: str) -> str:
        return "".join(
            f"<{tag}{' class=n' if column in numbers else ''}>{escape(cell)}</{tag}>" for column, cell in enumerate(row)
        )

    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in listed)
    caption = f"<caption>{escape(note)}</caption>" if note else ""
    head = f"<thead><tr>{cells(headings, 'th')}</tr></thead>"
    return f"<section><h2>{escape(title)}</h2><table>{caption}{head}<tbody>{body}</tbody></table></section>"


def _figure(title: str, svg: str) -> str:
    return f"<figure><h2>{escape(title)}</h2>{svg}</figure>"


def _rates(axes: Any, windows: Sequence[TimeWindow]) -> None:
    at = [window.at_s for window in windows]
    for index, name in enumerate(("offered", "accepted", "refused")):
        values = [getattr(window, name) for window in windows]
        axes.plot(at, values, DASHES[index], color=COLOURS[index], label=name)
    axes.set_ylabel("jobs per second")


def _images(axes: Any, windows: Sequence[TimeWindow]) -> None:
    axes.plot([window.at_s for window in windows], [window.images_per_min for window in windows], color=COLOURS[0])
    axes.set_ylabel("images per minute")


def _percentiles(axes: Any, windows: Sequence[TimeWindow], what: str) -> None:
    """A curve has a gap where nothing was measured."""
    latencies = [getattr(window, what) for window in windows]
    at = [window.at_s for window in windows]
    for index, percent in enumerate(("p50", "p95", "p99")):
        values = [nan if latency is None else getattr(latency, percent) for latency in latencies]
        axes.plot(at, values, DASHES[index], marker=".", color=COLOURS[index], label=percent)
    axes.set_ylabel("ms")


def _gauges(axes: Any, gauges: Sequence[Gauge], *, began: float) -> None:
    at = [gauge.at - began for gauge in gauges]
    axes.plot(at, [gauge.backlog for gauge in gauges], color=COLOURS[0], label="backlog")
    axes.plot(at, [gauge.running for gauge in gauges], DASHES[1], color=COLOURS[1], label="running")
    axes.step(at, [gauge.workers for gauge in gauges], DASHES[2], where="post", color=COLOURS[2], label="replicas")
    axes.set_ylabel("jobs, replicas")


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"
