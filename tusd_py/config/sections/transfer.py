"""`[transfer]`: the worker that moves finished uploads to the store."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import AfterValidator, BeforeValidator, Field, FiniteFloat

from tusd_py.config.sections.base import MIB, PositiveSeconds, Section, empty_is_none
from tusd_py.config.units import Bytes, Seconds

Trigger = Literal["complete", "commit", "manual"]
OptionalTrigger = Annotated[Trigger | None, BeforeValidator(empty_is_none)]
MIN_BANDWIDTH: Final = 64 * 2**10
"""Bytes per second. On a slower line the store takes a waiting connection for a dead one."""


def _line_speed(value: int) -> int:
    if 0 < value < MIN_BANDWIDTH:
        raise ValueError("at least 64KiB (per second) is needed, or 0 for no limit")
    return value


class TransferConfig(Section):
    """The worker that moves finished uploads to the store."""

    trigger: Trigger = Field(
        default="complete",
        description="what begins a transfer: the last byte, the application's commit, or only a request for it",
    )
    workers: int = Field(
        default=1, ge=0, le=16, description='worker processes of "serve"; 0: run "tusd-py worker" elsewhere'
    )
    concurrency: int = Field(default=4, ge=1, le=256, description="uploads one worker moves at once")
    bandwidth_limit: Annotated[Bytes, AfterValidator(_line_speed)] = Field(
        default=0, ge=0, description="bytes per second that one worker process sends; 0: no limit"
    )
    max_retries: int = Field(default=5, ge=0, description="tries after the first before transfer_failed")
    retry_delay: PositiveSeconds = Field(default=60, description="wait before the first retry")
    retry_backoff: FiniteFloat = Field(default=2.0, ge=1, description="factor by which the wait grows")
    retry_max_delay: PositiveSeconds = Field(default=3600, description="longest wait between tries")
    lease: Annotated[Seconds, Field(ge=1)] = Field(
        default=60, description="a job of a worker that is silent for so long goes to another"
    )
    poll_interval: PositiveSeconds = Field(default=5, description="safety net beside NOTIFY")
    delete_local: bool = Field(default=True, description="remove the staged copy once the upload is stored")
    delete_local_after: Seconds = Field(default=0, ge=0, description="and keep it for so long first")
    eager: bool = Field(
        default=True, description="send parts to S3 that are durable while the upload is still being received"
    )
    eager_above: Annotated[Bytes, Field(ge=0)] = Field(
        default=64 * MIB, description="only uploads longer than this, in bytes"
    )
    requeue_failed_after: Seconds = Field(
        default=0, ge=0, description="try failed transfers again after so long; 0: by hand"
    )
