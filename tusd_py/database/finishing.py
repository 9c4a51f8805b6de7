"""The end of what has all its bytes and waits for the application's word.

The finish job is locked before its upload, as every job is.
"""

from __future__ import annotations

from typing import Final

from tusd_py.database.pool import Statement
from tusd_py.database.statements import (
    FOLLOW_COMPLETION,
    IN_RECEIVING,
    LIVE,
    NEXT_EVENT,
    RECORDED_COLUMNS,
    record_attempt,
)

# Whoever has an answer completes the upload, the job's holder or not: the second finds it complete. So the job ends
# with the upload and not by its own fence. Counting the jobs locks them, before the upload is looked for.
# A partial upload may be used for as long as it could be after its last byte, however long that took.
COMPLETE: Final = Statement(f"""
WITH job AS MATERIALIZED (
    SELECT id, state, attempt, worker, started_at FROM jobs
     WHERE upload_id = :upload_id AND kind = 'finish' AND state IN {LIVE} FOR NO KEY UPDATE
), changed AS (
    UPDATE uploads SET state = 'completed', finishing = false, completed_at = now(), updated_at = now(),
                       expires_at = now() + (expires_at - updated_at), {NEXT_EVENT}
     WHERE id = :upload_id AND finishing AND state IN {IN_RECEIVING} AND (SELECT count(*) FROM job) >= 0
    RETURNING {RECORDED_COLUMNS}
), ended AS (
    UPDATE jobs SET state = 'succeeded', finished_at = now(), last_error = NULL, error_code = NULL
      FROM job, changed WHERE jobs.id = job.id
), history AS (
    {record_attempt("'succeeded'", "job WHERE state = 'running' AND EXISTS (SELECT FROM changed)", worker="worker")}
), {FOLLOW_COMPLETION}
SELECT changed.*, EXISTS (SELECT FROM queued) AS wake_workers FROM changed
""")  # noqa: S608 -- only constants of this package are inserted, here and below
# A job that somebody holds is being asked about at this moment.
FINISH_SOON: Final = Statement("""
UPDATE jobs SET due_at = least(due_at, now() + make_interval(secs => :delay_seconds))
 WHERE upload_id = :upload_id AND kind = 'finish' AND state IN ('queued', 'retry_wait')
""")
