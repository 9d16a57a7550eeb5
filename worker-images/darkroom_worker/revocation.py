"""A revoke in Flower, or by `celery control revoke`, is a cancel: it goes to the ledger.

Celery's own revoke is kept in the memory of the workers that happen to listen, leaves a running task alone unless it is
told to kill its process, and has the message discarded before any code of ours runs. So the commands are replaced:
every worker that hears one cancels the job, which is the same as one worker doing it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from celery import signals
from celery.worker import control
from darkroom import logs, transitions
from darkroom.errors import TemporaryError
from darkroom.jobs import is_job_id
from darkroom.ledger import Ledger


def cancel_on_revoke(ledger: Ledger) -> None:
    """From now on this process answers `revoke` and `terminate` with cancels in the ledger."""
    log = logs.logger(__name__)

    def cancel(job_ids: Iterable[str]) -> dict[str, Any]:
        said: list[str] = []
        try:
            for job_id in job_ids:
                receipt = ledger.run(transitions.cancel(job_id, tenant=None)).receipt if is_job_id(job_id) else None
                said.append(f"{job_id}: {receipt or 'unknown'}")
        except TemporaryError as error:
            return {"error": error.detail}
        log.info("revoked", answers=said)
        return {"ok": ", ".join(said)}

    @control.control_command(variadic="task_id", signature="[id1 [id2 [... [idN]]]]")  # type: ignore[misc]  # untyped
    def revoke(_state: object, task_id: str | list[str], **_options: object) -> dict[str, Any]:
        """Cancel jobs by their ids. Whether to terminate makes no difference: a running job stops at its next step."""
        return cancel([task_id] if isinstance(task_id, str) else task_id)

    @control.control_command(  # type: ignore[misc]  # as above
        variadic="task_id", args=[("signal", str)], signature="<signal> [id1 [id2 [... [idN]]]]"
    )
    def terminate(_state: object, signal: str, task_id: str | list[str], **_options: object) -> dict[str, Any]:
        """Cancel jobs by their ids. The signal makes no difference."""
        return cancel([task_id] if isinstance(task_id, str) else task_id)

    def on_task_revoked(request: Any, **_fields: object) -> None:
        """Celery revoked a task by itself (by a stamped header, say): its job must not be left behind."""
        cancel([request.id])

    signals.task_revoked.connect(on_task_revoked, weak=False, dispatch_uid="darkroom-cancel")
