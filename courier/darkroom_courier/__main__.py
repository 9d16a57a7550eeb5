"""`python -m darkroom_courier`: reads the settings and runs until SIGTERM or SIGINT.

Its exit status is 0 then, 2 for an invalid setting, and 70 if a loop ended by itself.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys

from darkroom import logs, settings, supervision
from darkroom.errors import SettingError

from darkroom_courier.courier import Courier
from darkroom_courier.settings import CourierSettings


async def _run(courier_settings: CourierSettings) -> None:
    courier = Courier(courier_settings)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, courier.stop)
    await courier.run()


def main() -> int:
    try:
        logs.configure("courier")
        logging.getLogger("httpx").setLevel(logging.WARNING)  # it logs each request
        courier_settings = settings.load(CourierSettings)
        asyncio.run(_run(courier_settings))
    except SettingError as error:
        sys.stderr.write(f"{error.detail}\n")
        return 2
    return supervision.exit_status()


if __name__ == "__main__":
    sys.exit(main())
