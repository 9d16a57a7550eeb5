"""The garbage collector's settings for a process that has loaded its modules; entry modules apply them.

Loaded objects live until the process exits. By default the collector scans them again and again during requests and
runs, which took a tenth of submit's time.
"""

from __future__ import annotations

import gc


def freeze_loaded_objects(*, collect_every: int | None = None) -> None:
    """Exclude all present objects from collections, and collect after so many new objects.

    Python's default is 700, which two requests create. A process whose garbage may hold much memory keeps the default.
    """
    gc.collect()
    gc.freeze()
    if collect_every is not None:
        gc.set_threshold(collect_every)
