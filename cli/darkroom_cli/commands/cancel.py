"""`darkroom cancel`: ask for a job's end."""

from __future__ import annotations

from darkroom.jobs import State, read_value
from darkroom.ledger.calls import Receipt

from darkroom_cli.client import Client
from darkroom_cli.exits import DONE, FAILED
from darkroom_cli.terminal.output import Output


def cancel(client: Client, job_id: str, output: Output) -> int:
    """Ask, and report what it did. Asked again, the server answers as the first time; the state is the current one."""
    answer = client.cancel(job_id)
    output.record(answer)
    receipt, state = Receipt(answer["receipt"]), read_value(State, answer["status"])
    if receipt is Receipt.INTERRUPTING and state is State.CANCELLED:
        output.result(f"The job {job_id} is cancelled.")
        return DONE
    match receipt:
        case Receipt.DEQUEUED:
            output.result(f"The job {job_id} waited, and will not run.")
        case Receipt.INTERRUPTING:
            output.result(f"The job {job_id} runs, and is being stopped.")
        case Receipt.TOO_LATE:
            output.complain(f"It is too late: the job {job_id} is {state}.")
            return FAILED
    return DONE
