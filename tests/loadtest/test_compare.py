"""All benchmarks in one run, and the comparison of two runs, with synthetic benchmarks and files."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import pytest
from darkroom_loadtest.bench import compare, run
from darkroom_loadtest.measurement.figures import Figure, Goal, read, write

WRITES = """
import sys
from darkroom_loadtest.measurement.figures import Figure, Goal, write
name, value = sys.argv[1:]
ratio = Figure.ratio(f"{name}_vs_other", ours=[float(value)] * 3, baseline=[2.0] * 3, goal=Goal(least=2))
write(name, [ratio, Figure(name=f"{name}_ms", unit="ms", runs=[1.0, 9.0, 2.0])], machine="a machine")
"""


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def made_up(name: str, value: float) -> list[str]:
    return [sys.executable, "-c", WRITES, name, str(value)]


def test_figures_are_read_as_written() -> None:
    ratio = Figure.ratio("a_vs_b", ours=[4, 5], baseline=[2, 2], goal=Goal(most=3))
    path = write("a", [ratio, Figure(name="plain", unit="ms", runs=[1.5])], machine="a machine")
    found = read(path)
    assert (found.bench, found.machine) == ("a", "a machine")
    of_ratio, of_plain = (figure.encode() for figure in found.figures)
    assert of_ratio.pop("goal") == {"most": 3}
    assert (of_ratio.pop("ours"), of_ratio.pop("baseline")) == ([4, 5], [2, 2])
    assert of_ratio == {"name": "a_vs_b", "value": 2.25, "unit": "ratio", "runs": [2.0, 2.5]}
    assert of_plain == {"name": "plain", "value": 1.5, "unit": "ms", "runs": [1.5]}


def test_all_benchmarks_make_one_table(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PYTHONPATH", ":".join(sys.path))
    monkeypatch.delenv("KUBEBUILDER_ASSETS", raising=False)
    commands = {"submit": made_up("submit", 6), "worker": made_up("worker", 3), "operator": ["never started"]}

    status = run.run_all(commands, repeat=2, into=tmp_path / "before")

    said = capfd.readouterr().out
    rows = {line.split()[0]: line.split() for line in said.splitlines() if line}
    assert status == 0
    assert rows["submit_vs_other"] == ["submit_vs_other", "6", "2", "3", "≥", "2", "yes"]
    assert rows["worker_vs_other"][-1] == "NO"
    assert rows["submit_ms"] == ["submit_ms", "2", "ms"]
    assert "1 of 2 goals are met\nmissed: worker_vs_other\nwithout operator: KUBEBUILDER_ASSETS is not set" in said
    kept = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.glob("before/*/*.json"))
    assert kept == [f"before/{number}/{name}.json" for number in (1, 2) for name in ("submit", "worker")]


def test_a_failed_benchmark_is_named_and_its_old_file_is_not_shown(capfd: pytest.CaptureFixture[str]) -> None:
    write("worker", [Figure(name="old", unit="ms", runs=[1])], machine="a machine")
    assert run.run_all({"worker": [sys.executable, "-c", "raise SystemExit(1)"]}, repeat=1, into=None) == 1
    said = capfd.readouterr().out
    assert "without worker: it failed" in said
    assert "old" not in said


def test_a_benchmark_is_stopped_at_its_timeout(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "TIMEOUT_S", 0.1)
    endless = [sys.executable, "-c", "import time; time.sleep(600)"]
    assert run.run_all({"worker": endless}, repeat=1, into=None) == 1
    assert "not done within 0.1 s" in capfd.readouterr().out


def test_a_change_is_judged_by_its_goal_and_noise_is_ignored(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    dice = random.Random(7)

    def side(name: str, *, faster: float, machine: str = "a machine") -> Path:
        for start in (1, 2):
            folder = tmp_path / name / str(start)
            folder.mkdir(parents=True)
            figures = {
                "rate": ([dice.gauss(100, 3) * faster for _ in range(5)], Goal(least=50)),
                "time_ms": ([dice.gauss(100, 3) / faster for _ in range(5)], Goal(most=500)),
                "goes_up": ([dice.gauss(100, 3) * faster for _ in range(5)], None),
                "same": ([dice.gauss(100, 3) for _ in range(5)], Goal(least=50)),
                "once": ([100 * faster], None),
            }
            found = [
                Figure(name=key, unit="ms", runs=runs, goal=goal).encode() for key, (runs, goal) in figures.items()
            ]
            (folder / "submit.json").write_text(json.dumps({"bench": "x", "machine": machine, "figures": found}))
        return tmp_path / name

    before, after = side("before", faster=1), side("after", faster=1.3, machine="another machine")

    assert compare.main([str(before), str(after)]) == 0

    said = capsys.readouterr().out
    last = {line.split()[0]: line.split()[-1] for line in said.splitlines() if line}
    assert (last["rate"], last["time_ms"], last["goes_up"], last["once"]) == ("better", "better", "changed", "runs")
    assert last["same"].endswith("%")
    assert "DIFFERENT MACHINES" in said
    assert compare.main([str(after), str(before)]) == 0
    assert capsys.readouterr().out.count("WORSE") == 2


def test_a_folder_without_files_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert compare.main([str(tmp_path), str(tmp_path)]) == 1
    assert "has no files of benchmarks" in capsys.readouterr().err


def test_the_interval_agrees_with_published_tables() -> None:
    """Hollander and Wolfe's tables of Mann and Whitney's test: 5 and 5 values, 2 differences cut off at 95 %."""
    before, after = [1.0, 2, 3, 4, 5], [11.0, 22, 33, 44, 55]
    differences = sorted(late - early for early in before for late in after)
    assert compare.shift(before, after, level=0.95).interval == (differences[2], differences[-3])
    assert compare.shift(before, after).interval == (differences[0], differences[-1])
    assert compare.shift(before[:4], after[:4]).interval is None
    assert compare.shift(before, after).is_move
    assert not compare.shift(before, before[::-1]).is_move


def test_few_equal_versions_seem_to_have_changed() -> None:
    dice = random.Random(11)
    runs = [[dice.lognormvariate(0, 0.3) for _ in range(10)] for _ in range(400)]
    moves = sum(compare.shift(left, right).is_move for left, right in zip(runs[::2], runs[1::2], strict=True))
    assert moves <= 6  # of 200, where two are expected
