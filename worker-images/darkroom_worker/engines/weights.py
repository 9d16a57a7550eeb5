"""The fingerprint of a folder of weights that has no revision of a hub.

The diffusers engine writes it to the reproducibility record, and the stand-ins are verified by it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from pathlib import Path

SAMPLE = 1024 * 1024
"""Bytes read at each end of a file. Reading many gigabytes of weights would delay every start; a fine-tune changes the
tensors at both ends, and a smaller file is read whole."""


def fingerprint(folder: Path, *, without: Collection[str] = ()) -> str:
    """SHA-256 (hex) over the names, the sizes and the first and last `SAMPLE` bytes of all files below `folder`.

    Hidden files and folders are excluded, and so are the relative paths in `without`. Raises `OSError` for a file that
    cannot be read.
    """
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if not path.is_file() or name.as_posix() in without or any(part.startswith(".") for part in name.parts):
            continue
        size = path.stat().st_size
        digest.update(f"{name.as_posix()}\0{size}\0".encode())
        with path.open("rb") as file:
            digest.update(file.read(SAMPLE))
            file.seek(max(size - SAMPLE, SAMPLE))
            digest.update(file.read(SAMPLE))
    return digest.hexdigest()
