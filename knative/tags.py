"""Write the tags of images into the manifests, as `kustomize edit set image` does for one kustomization.

    python3 knative/tags.py dev.local/darkroom-functions=0.1.0-4f1c2a9be07d ...

`make images` calls it with the tags of the images that it built. A tag follows from what is in the image, so that
applying the manifests replaces every part whose image changed, and no other. It needs only the standard library.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

FOLDER = Path(__file__).resolve().parent


def main(arguments: Sequence[str], folder: Path = FOLDER) -> int:
    """Set each `IMAGE=TAG`. Returns 2, after a line on stderr, for an image that no manifest names."""
    files = {path: path.read_text() for path in sorted(folder.rglob("*.yaml"))}
    for argument in arguments:
        image, _, tag = argument.partition("=")
        pattern = re.compile(rf'(newName: {re.escape(image)}\n *newTag: |image: {re.escape(image)}:)"?[\w.-]+"?')
        if not any(pattern.search(text) for text in files.values()):
            sys.stderr.write(f"no manifest names the image {image}\n")
            return 2
        quoted, bare = rf'\g<1>"{tag}"', rf"\g<1>{tag}"
        files = {
            path: pattern.sub(lambda found: found.expand(quoted if "newTag" in found[1] else bare), text)  # noqa: B023
            for path, text in files.items()
        }
    for path, text in files.items():
        if text != path.read_text():
            path.write_text(text)
            sys.stdout.write(f"wrote the tags into {path.relative_to(folder.parent)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
