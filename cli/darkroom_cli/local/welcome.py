"""What `up` prints when all parts are ready: the address, and two commands that make a picture."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from darkroom.catalogue.models import Model

from darkroom_cli.address import DEFAULT_URL
from darkroom_cli.terminal.output import Output

PROMPT = "a lighthouse at dusk"

CURL = """\
curl {url}/ -H "ce-id: $(date +%s)" -H "ce-source: /curl" -H "ce-type: dev.darkroom.job.requested" \
-H "ce-specversion: 1.0" -H "content-type: application/json" -d '{{"prompt": "{prompt}"}}'"""
"""A CloudEvent in binary mode. Its id is the time in seconds: the same id and source again would be the same job."""

READY = """
darkroom is ready at {url}

Submit a job as a CloudEvent; the response has the job's id:
  {curl}
  {watch}

Submit a job, wait for its picture and save it:
  {submit}
{notes}
Logs: {logs}   Ctrl-C stops darkroom.
"""

STAND_INS = """
{names}: untrained stand-ins, whose pictures are coloured noise.
`--model {first}=FOLDER_OR_HUB_ID` serves real weights instead.
"""


def welcome(output: Output, *, url: str, data: Path, models: Sequence[Model]) -> None:
    """Print the address and the commands as text, or as JSON."""
    program = own_program()
    where = "" if url == DEFAULT_URL else f" --url {url}"
    untrained = [model.name for model in models if model.served_as is not None]
    notes = STAND_INS.format(names=", ".join(untrained), first=untrained[0]) if untrained else ""
    curl = CURL.format(url=url, prompt=PROMPT)
    submit = f'{program} submit "{PROMPT}"{where}'
    watch = f"{program} watch ID --output .{where}"
    output.result(READY.format(url=url, curl=curl, watch=watch, submit=submit, notes=notes, logs=short(data / "logs")))
    output.record(
        {
            "event": "ready",
            "url": url,
            "curl": curl,
            "submit": submit,
            "models": {model.name: model.served for model in models},
            "data": str(data),
        }
    )


def own_program() -> str:
    """The shell command that runs this program from the current folder."""
    script = Path(sys.executable).with_name("darkroom")
    if not script.exists():
        return f"{shlex.quote(sys.executable)} -m darkroom_cli"
    found = shutil.which("darkroom")
    if found is not None and Path(found).samefile(script):
        return "darkroom"
    return shlex.quote(short(script))


def short(path: Path) -> str:
    """The path, relative if it is below the current folder."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith(os.pardir) else relative
