"""`python -m darkroom_worker`: one worker, which runs the jobs of the pool DARKROOM_POOL."""

from __future__ import annotations

import logging
import os
import sys

from darkroom import logs
from darkroom.errors import SettingError
from darkroom.settings import load

from darkroom_worker.settings import BAD_SETTING, WorkerSettings, served_models


def main() -> int:
    """Read the settings and run. Returns the exit status: 2, after one line on stderr, for an invalid setting."""
    try:
        settings = load(WorkerSettings)
        models = served_models(settings)
    except SettingError as error:
        sys.stderr.write(f"darkroom_worker: {error}\n")
        return BAD_SETTING
    logs.configure("worker")
    logging.captureWarnings(capture=True)
    # billiard reads this one when it is imported: children ignore SIGTERM, and Celery ends them by SIGQUIT. The others
    # would connect Celery to a broker that is not the ledger's.
    os.environ["REMAP_SIGTERM"] = "SIGQUIT"
    for name in ("CELERY_BROKER_URL", "CELERY_BROKER_READ_URL", "CELERY_BROKER_WRITE_URL"):
        os.environ.pop(name, None)
    from darkroom_worker.parent.process import run_worker

    try:
        return run_worker(settings, models)
    except SettingError as error:
        sys.stderr.write(f"darkroom_worker: {error}\n")
        return BAD_SETTING


if __name__ == "__main__":
    sys.exit(main())
