"""`--model NAME=SOURCE`: other weights for a model, as a model file that is read after all others.

The file extends the model of that name, so parameters, limits and pipeline are unchanged. `served_as`, which marks a
stand-in as untrained, is dropped with the replaced source (`darkroom.catalogue.models`).
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
"""The form of huggingface.co: an organisation and a name."""


@dataclass(frozen=True)
class ModelSource:
    """Serve the model `name` from `source`, a folder or a hub id."""

    name: str
    source: str

    @classmethod
    def parse(cls, text: str) -> ModelSource:
        """Parse `NAME=FOLDER` or `NAME=HUB_ID`; a folder is made absolute. Raises InvalidInput."""
        name, _, source = text.partition("=")
        if not name or not source:
            raise InvalidInput(f"--model {text} is not NAME=FOLDER or NAME=HUB_ID")
        folder = Path(source).expanduser()
        if folder.is_dir():
            return cls(name, str(folder.absolute()))
        if _HUB_ID.fullmatch(source):
            return cls(name, source)
        raise InvalidInput(
            f"--model {text}: {source} is neither a folder nor a hub id such as black-forest-labs/FLUX.1-schnell"
        )


def own_files(folder: Path, sources: Sequence[ModelSource], *, known: Catalogue) -> Path:
    """Replace the model files in `folder` by those of this run; returns the folder. Raises InvalidInput."""
    for each in sources:
        try:
            known.get(each.name)
        except UnknownModel as error:
            raise InvalidInput(f"--model {each.name}={each.source}: {error.detail}") from None
    for old in folder.glob("*.toml"):
        old.unlink()
    for each in sources:
        # A JSON string is also a TOML string.
        text = MODEL_FILE.format(
            name=json.dumps(each.name, ensure_ascii=False),
            source=json.dumps(each.source, ensure_ascii=False),
        )
        (folder / f"{each.name}.toml").write_text(text)
    return folder
