-- While the store is away, or refuses this server, its jobs wait for one probe per node.
-- Safe with the previous release: it does not know the table, and claims as if the store were there.

CREATE TABLE store_outages (
    -- One row for the latest outage of each node.
    node       text             PRIMARY KEY,
    -- The store is there and refuses: somebody has to correct bucket, credentials or permissions.
    blocked    boolean          NOT NULL,
    error_code text             NOT NULL,
    error      text             NOT NULL,
    since      timestamptz      NOT NULL DEFAULT now(),
    -- When the next probe is due, and how many there were: whoever takes one moves this on.
    probe_at   timestamptz      NOT NULL,
    probes     integer          NOT NULL DEFAULT 0,
    -- Kept, so that an error of an attempt that overlapped the outage can still be told apart.
    ended_at   timestamptz
);

ALTER TABLE job_attempts DROP CONSTRAINT job_attempts_outcome_check;
-- 'postponed': the store was away, which uses up no retry.
ALTER TABLE job_attempts ADD CONSTRAINT job_attempts_outcome_check
    CHECK (outcome IN ('succeeded', 'retry', 'postponed', 'failed', 'lost', 'cancelled'));
