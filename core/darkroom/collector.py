"""Python's garbage collector, in a process that has loaded all that it needs: entry modules tell it so.

What is loaded stays until the process ends; without a word the collector looks at it again and again, in the middle of
requests and of runs. That took a tenth of submit's time.
"""

from __future__ import annotations

import gc


def spare_what_is_loaded(*, look_every: int | None = None) -> None:
    """From now on it looks only at what is made later, each time that so many more objects live than at its last look.

    Python's own number is 700, which two requests make. A process whose garbage may hold much memory keeps to it.
    """
    gc.collect()
    gc.freeze()
    if look_every is not None:
        gc.set_threshold(look_every)
