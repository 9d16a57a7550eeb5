"""`python -m darkroom_operator`: reads the settings and runs until SIGTERM or SIGINT.

The exit status is 0 after a signal, 1 if another operator acquired the Lease, and 2 for an invalid setting.
"""

from __future__ import annotations

import asyncio
import logging
import sys

from darkroom import logs, settings, supervision
from darkroom.errors import SettingError
from lightkube import ConfigError

from darkroom_operator.process import OperatorProcess
from darkroom_operator.settings import OperatorSettings


def main() -> int:
    """Run the operator and return the exit status."""
    try:
        logs.configure("operator")
        operator_settings = settings.load(OperatorSettings)
        logging.getLogger("httpx2").setLevel(logging.WARNING)  # it logs each request
        logging.getLogger("kopf").setLevel(logging.WARNING)  # it logs each handler's success
        return asyncio.run(OperatorProcess(operator_settings).run()) or supervision.exit_status()
    except SettingError as error:
        sys.stderr.write(f"{error.detail}\n")
    except ConfigError as error:
        sys.stderr.write(f"no cluster is configured: {error}\n")
    return 2


if __name__ == "__main__":
    sys.exit(main())
