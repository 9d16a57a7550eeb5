"""`--model NAME=SOURCE`: other weights for a model, as a model file that is read after all others.

The file extends the model of that name, so parameters, limits and pipeline stay as they are; `served_as`, which calls a
stand-in untrained, goes with the source that it spoke of (`darkroom.catalogue.models`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from darkroom.catalogue.models import Catalogue
from darkroom.errors import InvalidInput, UnknownModel

MODEL_FILE = """\
# Written by `darkroom up --model`, for this run.
extends = {name}
pool = "local"
source = {source}
"""

_HUB_ID = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")
"""As huggingface.co has them: an organisation and a name."""


@dataclass(frozen=True)
class Replacement:
    """Serve the model `name` from `source`, a folder or a hub id."""

    name: str
    source: str

    @classmethod
    def parse(cls, text: str) -> Replacement:
        """From `NAME=FOLDER` or `NAME=HUB_ID`, the folder made absolute. Raises InvalidInput."""
        name, _, source = text.partition("=")
        if not name or not source:
            raise InvalidInput(f"--model {text}: is not NAME=FOLDER or NAME=HUB_ID")
        folder = Path(source).expanduser()
        if folder.is_dir():
            return cls(name, str(folder.absolute()))
        if _HUB_ID.fullmatch(source):
            return cls(name, source)
        raise InvalidInput(
            f"--model {text}: {source} is neither a folder here nor a hub id such as black-forest-labs/FLUX.1-schnell"
        )


def own_files(folder: Path, replacements: Sequence[Replacement], *, known: Catalogue) -> Path:
    """Write the files of this run into `folder` and answer it; those of an earlier run go. Raises InvalidInput."""
    for replacement in replacements:
        try:
            known.get(replacement.name)
        except UnknownModel as error:
            raise InvalidInput(f"--model {replacement.name}={replacement.source}: {error.detail}") from None
    for old in folder.glob("*.toml"):
        old.unlink()
    for replacement in replacements:
        # JSON's strings are also TOML's.
        text = MODEL_FILE.format(
            name=json.dumps(replacement.name, ensure_ascii=False),
            source=json.dumps(replacement.source, ensure_ascii=False),
        )
        (folder / f"{replacement.name}.toml").write_text(text)
    return folder
