"""`python -m darkroom_loadtest.chaos.faulty_courier`: darkroom's courier, without the protection that CHAOS_WITHOUT
names.
"""

from __future__ import annotations

import os
import sys

from darkroom_courier.__main__ import main

from darkroom_loadtest.chaos.protections import VARIABLE, Protection, remove_from_courier

if __name__ == "__main__":
    if os.environ[VARIABLE]:
        remove_from_courier(Protection(os.environ[VARIABLE]))
    sys.exit(main())
