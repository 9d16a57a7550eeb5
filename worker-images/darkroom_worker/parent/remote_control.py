"""Remote control commands (Flower, `celery control`) that replace Celery's own.

`revoke` cancels the job in the ledger. Celery's own is kept in the memory of the workers that receive it, does not
affect a running task unless it kills its process, and drops the message before any code of ours runs. Every worker that
receives the command cancels the job; repeated cancels are idempotent.

`shutdown` starts a drain. Celery's own waits for the running task without a limit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from celery import signals
from celery.worker import control
from darkroom import logs
from darkroom.errors import TemporaryError
from darkroom.jobs import is_job_id
from darkroom.ledger import calls
from darkroom.ledger.client import Ledger


def replace_commands(ledger: Ledger, drain: Callable[[], None]) -> None:
    """Replace `revoke` and `terminate` by cancels in the ledger, and `shutdown` by `drain`, in this process."""
    log = logs.logger(__name__)

    def cancel(job_ids: Iterable[str]) -> dict[str, Any]:
        answers: list[str] = []
        try:
            for job_id in job_ids:
                receipt = ledger.run(calls.cancel(job_id, tenant=None)).receipt if is_job_id(job_id) else None
                answers.append(f"{job_id}: {receipt or 'unknown'}")
        except TemporaryError as error:
            return {"error": error.detail}
        log.info("revoked", answers=answers)
        return {"ok": ", ".join(answers)}

    def revoke(_state: object, task_id: str | list[str], **_options: object) -> dict[str, Any]:
        """Cancel jobs by their ids. Whether to terminate makes no difference: a running job stops at its next step."""
        return cancel([task_id] if isinstance(task_id, str) else task_id)

    def terminate(_state: object, signal: str, task_id: str | list[str], **_options: object) -> dict[str, Any]:
        """Cancel jobs by their ids. The signal makes no difference."""
        return cancel([task_id] if isinstance(task_id, str) else task_id)

    def shutdown(_state: object, **_options: object) -> dict[str, Any]:
        """Accept no more jobs, let the running one finish within the grace, and stop."""
        drain()
        return {"ok": "draining"}

    def on_task_revoked(request: Any, **_fields: object) -> None:
        """Celery revoked a task by itself, such as by a stamped header: cancel its job too."""
        cancel([request.id])

    ids = "[id1 [id2 [... [idN]]]]"
    control.control_command(variadic="task_id", signature=ids)(revoke)
    control.control_command(variadic="task_id", args=[("signal", str)], signature=f"<signal> {ids}")(terminate)
    control.control_command()(shutdown)
    signals.task_revoked.connect(on_task_revoked, weak=False, dispatch_uid="darkroom-cancel")
