"""The table of py-spy's stacks, with synthetic stacks in py-spy's format."""

from __future__ import annotations

from darkroom_loadtest.profiling.flames import of_processes, table

PARENT = 'process 7:"python -m darkroom_worker"'
CHILD = 'process 9:"python -c from spawn import main; main(fd=3) --fork"'
STACKS = f"""\
{PARENT};main (darkroom_worker/__main__.py:3);loop (/venv/celery/worker/loops.py:97);poll (kombu/utils/eventio.py:83) 60
{PARENT};main (darkroom_worker/__main__.py:3);loop (/venv/celery/worker/loops.py:98) 40
{PARENT};{CHILD};<module> (<string>:1);run (darkroom_worker/run.py:9);run (darkroom_worker/run.py:12) 5
{PARENT};{CHILD};<module> (<string>:1);idle 15
"""


def test_stacks_are_grouped_by_process_and_function() -> None:
    found = of_processes(STACKS.splitlines())
    assert set(found) == {"process 7", "process 9"}
    assert found["process 7"] == {
        ("main (darkroom_worker/__main__.py)", "loop (worker/loops.py)", "poll (utils/eventio.py)"): 60,
        ("main (darkroom_worker/__main__.py)", "loop (worker/loops.py)"): 40,
    }
    assert found["process 9"][("<module> (<string>)", "idle")] == 15


def test_the_table_counts_a_function_once_per_stack_without_entry_functions() -> None:
    found = of_processes(STACKS.splitlines())
    assert [line.split()[:3] for line in table(found["process 7"]).splitlines()[1:]] == [
        ["100.0%", "40.0%", "loop"],
        ["60.0%", "60.0%", "poll"],
    ]
    assert [line.split()[:3] for line in table(found["process 9"]).splitlines()[1:]] == [
        ["75.0%", "75.0%", "idle"],
        ["25.0%", "25.0%", "run"],
    ]
