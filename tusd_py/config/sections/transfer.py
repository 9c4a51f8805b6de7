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
        description="what starts a transfer: the last byte, the application's commit, or only a request",
    )
    workers: int = Field(
        default=1, ge=0, le=16, description='worker processes of "serve"; 0: run "tusd-py worker" elsewhere'
    )
    concurrency: int = Field(default=4, ge=1, le=256, description="uploads that one worker moves at once")
    bandwidth_limit: Annotated[Bytes, AfterValidator(_line_speed)] = Field(
        default=0, ge=0, description="bytes per second that one worker process sends; 0: no limit"
    )
    max_retries: int = Field(default=5, ge=0, description="retries before an upload is transfer_failed")
    retry_delay: PositiveSeconds = Field(default=60, description="wait before the first retry")
    retry_backoff: FiniteFloat = Field(default=2.0, ge=1, description="factor by which the wait grows")
    retry_max_delay: PositiveSeconds = Field(default=3600, description="longest wait between retries")
    lease: Annotated[Seconds, Field(ge=1)] = Field(
        default=60, description="after this time without a sign of life, the job of a worker goes to another"
    )
    poll_interval: PositiveSeconds = Field(
        default=5, description="how often to look for jobs, in case a NOTIFY was lost"
    )
    delete_local: bool = Field(default=True, description="remove the staged copy once the upload is stored")
    delete_local_after: Seconds = Field(default=0, ge=0, description="how long to keep it first")
    eager: bool = Field(default=True, description="send durable parts to S3 while the upload is still being received")
    eager_above: Annotated[Bytes, Field(ge=0)] = Field(default=64 * MIB, description="only uploads larger than this")
    requeue_failed_after: Seconds = Field(
        default=0, ge=0, description="queue failed transfers again after this time; 0: never"
    )
