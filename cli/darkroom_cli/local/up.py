"""`darkroom up`: runs all parts on this machine until a signal arrives.

In order: lock the data folder, stop the processes that a killed `up` left, check that the port is free, then start the
parts and watch them (`stack.py`).
"""

from __future__ import annotations

from darkroom.settings import load

from darkroom_cli.exits import DONE, FAILED, INTERRUPTED
from darkroom_cli.local import processes, redis_server, welcome
from darkroom_cli.local.data_folder import DataFolder, FolderLocked
from darkroom_cli.local.run_record import RunRecord
from darkroom_cli.local.stack import LocalStack, StartFailed, UpOptions, UpSettings
from darkroom_cli.local.stop_signals import StopRequested, StopSignals
from darkroom_cli.terminal.output import Output


def up(options: UpOptions, output: Output) -> int:
    """Run all parts until a signal arrives; returns the exit status."""
    settings = load(UpSettings)
    folder = DataFolder((options.data or settings.home).absolute())
    with StopSignals().watched() as signals:
        try:
            with folder.locked():
                return _up(options, settings, folder, signals, output)
        except FolderLocked:
            output.error(f"darkroom: {_holder(folder)}")
            return FAILED


def _up(options: UpOptions, settings: UpSettings, folder: DataFolder, signals: StopSignals, output: Output) -> int:
    _stop_leftovers(folder, signals, output)
    port = _claim_port(options.port, options.host, output)
    if port is None:
        return FAILED
    stack = LocalStack(settings, folder, port=port, host=options.host, signals=signals, output=output)
    try:
        try:
            stack.start(options)
            stack.watch()
        finally:
            stack.stop()
    except StartFailed as error:
        output.error(f"darkroom: {error}")
        return FAILED
    except OSError as error:  # a file, or a process that cannot be started
        output.error(f"darkroom: {error}")
        return FAILED
    except StopRequested:
        return DONE if stack.is_ready else INTERRUPTED


def _holder(folder: DataFolder) -> str:
    try:
        record = RunRecord.read(folder.record)
    except ValueError:
        record = None
    where = f", {record.url}, process {record.pid}: Ctrl-C there stops it" if record else ""
    return f"`darkroom up` is already running with {welcome.short(folder.path)}{where}"


def _stop_leftovers(folder: DataFolder, signals: StopSignals, output: Output) -> None:
    """Stop the processes that the record names and that still run: their `up` is gone, since the lock is free."""
    try:
        record = RunRecord.read(folder.record)
    except ValueError as error:
        output.error(f"darkroom: {error}; processes of an earlier run cannot be stopped")
        return
    if record is None:
        return
    left = [process for process in record.processes if process.is_alive]
    if left:
        names = ", ".join(f"{process.name} ({process.pid})" for process in left)
        output.error(f"An earlier `darkroom up` was killed; stopping its processes: {names}")
        processes.stop_in_order(left, hurry=signals.hurry)
    folder.record.unlink(missing_ok=True)


def _claim_port(port: int, host: str, output: Output) -> int | None:
    if port == 0:
        return redis_server.free_port()
    if redis_server.can_listen(port, host):
        return port
    output.error(
        f"darkroom: port {port} of {host} is used by another program; "
        f"choose another one, for example `--port {port + 1}`"
    )
    return None
