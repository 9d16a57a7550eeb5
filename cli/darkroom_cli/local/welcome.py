"""What `up` prints when all parts are ready: the address, and two commands that make a picture."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from darkroom.catalogue.models import Model

from darkroom_cli.address import DEFAULT_URL
from darkroom_cli.terminal.output import Output

PROMPT = "a lighthouse at dusk"

CURL = """\
curl {url}/ -H "ce-id: $(date +%s)" -H "ce-source: /curl" -H "ce-type: dev.darkroom.job.requested" \
-H "ce-specversion: 1.0" -H "content-type: application/json" -d '{{"prompt": "{prompt}"}}'"""
"""A CloudEvent in binary mode. Its id is the time in seconds: the same id and source again would be the same job."""

SEND_KEY = """printf 'Authorization: Bearer %s\\n' "$DARKROOM_KEY" | """
"""curl reads the header from its input: other users see the arguments of processes, and printf is part of the shell."""

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

WITH_KEYS = """
Every request needs a key, and the commands above take it from DARKROOM_KEY:
  export DARKROOM_KEY=$(cat {file})
`darkroom tenants create` and `darkroom keys create` make others for your team (docs/access.md).
"""

FIRST_KEY = """
The first key, which permits everything: {key}
It is stored in {file}, and is not printed again.
"""

REMOTE = """
Links to pictures begin with {url}. For clients on other machines set DARKROOM_PUBLIC_URL
to the address of this machine and start again. HTTP does not hide keys: put TLS in front.
"""

STAND_INS = """
{names}: untrained stand-ins, whose pictures are coloured noise.
`--model {first}=FOLDER_OR_HUB_ID` serves real weights instead.
"""


@dataclass(frozen=True)
class FirstKey:
    """The key of administrators and its file; `text` is None where an earlier start has shown it.

    `is_remote`: whether links can be fetched from other machines.
    """

    file: Path
    text: str | None
    is_remote: bool


def welcome(output: Output, *, url: str, data: Path, models: Sequence[Model], key: FirstKey | None) -> None:
    """Print the address and the commands as text, or as JSON. `key` is None where no request needs one."""
    program = own_program()
    where = "" if url == DEFAULT_URL else f" --url {url}"
    untrained = [model.name for model in models if model.served_as is not None]
    notes = STAND_INS.format(names=", ".join(untrained), first=untrained[0]) if untrained else ""
    curl = CURL.format(url=url, prompt=PROMPT)
    if key is not None:
        curl = f"{SEND_KEY}{curl} -H @-"
        file = shlex.quote(short(key.file))
        notes = WITH_KEYS.format(file=file) + ("" if key.is_remote else REMOTE.format(url=url)) + notes
        if key.text is not None:
            notes = FIRST_KEY.format(key=key.text, file=file) + notes
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
            **({} if key is None else {"key_file": str(key.file), "key": key.text}),
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
