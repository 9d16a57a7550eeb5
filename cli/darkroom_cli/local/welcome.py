"""What `up` says when all is ready: the address, and two lines that make a picture, as they can be typed."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from darkroom.catalogue.models import Model

from darkroom_cli.terminal.output import Output

DEFAULT_URL = "http://127.0.0.1:8000"
"""Where the commands look for darkroom unless told otherwise; `up` serves there unless told otherwise."""

PROMPT = "a lighthouse at dusk"

CURL = """\
curl {url}/ -H "ce-id: $(date +%s)" -H "ce-source: /curl" -H "ce-type: dev.darkroom.job.requested" \
-H "ce-specversion: 1.0" -H "content-type: application/json" -d '{{"prompt": "{prompt}"}}'"""
"""A CloudEvent in binary mode. An id is a second's own: the same id and source again would be the same job."""

READY = """
darkroom is ready at {url}

A picture by a CloudEvent; the answer has the job's id:
  {curl}
  {watch}

The same in one, which waits for the picture and saves it:
  {submit}
{notes}
Logs: {logs}   Ctrl-C ends all of it.
"""

STAND_INS = """
{names}: untrained stand-ins, whose pictures are coloured noise.
`--model {first}=FOLDER_OR_HUB_ID` serves real weights in the place of one.
"""


def welcome(output: Output, *, url: str, data: Path, models: Sequence[Model]) -> None:
    """Say it, to people or to programs."""
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
    """How this program is called from here, for a shell."""
    script = Path(sys.executable).with_name("darkroom")
    if not script.exists():
        return f"{shlex.quote(sys.executable)} -m darkroom_cli"
    found = shutil.which("darkroom")
    if found is not None and Path(found).samefile(script):
        return "darkroom"
    return shlex.quote(short(script))


def short(path: Path) -> str:
    """A path as people write it from here: relative where it is below."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith(os.pardir) else relative
