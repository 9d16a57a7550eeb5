"""`darkroom cancel`: cancel a job."""

from __future__ import annotations

from darkroom.jobs import State, read_value
from darkroom.ledger.calls import Receipt

from darkroom_cli.client import Client
from darkroom_cli.exits import DONE, FAILED
from darkroom_cli.terminal.output import Output


def cancel(client: Client, job_id: str, output: Output) -> int:
    """Cancel the job and print the outcome. A repeated cancel has the same receipt and the current state."""
    answer = client.cancel(job_id)
    output.record(answer)
    receipt, state = read_value(Receipt, answer["receipt"]), read_value(State, answer["status"])
    if receipt is Receipt.INTERRUPTING and state is State.CANCELLED:
        output.result(f"The job {job_id} is cancelled.")
        return DONE
    match receipt:
        case Receipt.DEQUEUED:
            output.result(f"The job {job_id} was pending and will not run.")
        case Receipt.INTERRUPTING:
            output.result(f"The job {job_id} is running and will be stopped.")
        case Receipt.TOO_LATE:
            output.error(f"The job {job_id} cannot be cancelled: it is {state}.")
            return FAILED
        case _:  # of a later version
            output.result(f"The job {job_id} is {state}; the server's receipt is {receipt}.")
    return DONE
