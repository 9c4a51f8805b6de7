"""The transfers of an upload and their history as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tusd_py.ports import AttemptView, TransferView


def transfer_view(transfer: TransferView | None, sent_bytes: int = 0) -> dict[str, Any]:
    """Return how the latest transfer of an upload stands; before there is one, what was sent early of it."""
    return {
        "transfer": {"id": transfer.id, "state": transfer.state} if transfer else None,
        "transfer_id": transfer.id if transfer else None,
        "attempts": transfer.attempts if transfer else 0,
        "bytes_transferred": transfer.bytes_done if transfer else sent_bytes,
        "last_error": transfer.last_error if transfer else None,
        "error_code": transfer.error_code if transfer else None,
        "next_attempt_at": transfer.next_attempt_at if transfer else None,
    }


def attempt_view(attempt: AttemptView, *, operator: bool) -> dict[str, Any]:
    """Return one attempt; the worker's name and the whole error are for operators."""
    view: dict[str, Any] = {
        "transfer_id": attempt.job_id,
        "kind": attempt.kind,
        "attempt": attempt.number,
        "outcome": attempt.outcome,
        "error_code": attempt.error_code,
        "started_at": attempt.started_at,
        "finished_at": attempt.finished_at,
    }
    return view | {"worker": attempt.worker, "error": attempt.error} if operator else view
