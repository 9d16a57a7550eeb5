"""`python -m darkroom_cli` is `darkroom`, for when its script is not on the PATH."""

from __future__ import annotations

import sys

from darkroom_cli.main import main

if __name__ == "__main__":
    sys.exit(main())
