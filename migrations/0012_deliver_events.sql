-- Events with an order of their own for each upload, and jobs that deliver them to endpoints.
-- Not safe with the previous release, which records events without a sequence: stop all its servers first.

SET LOCAL statement_timeout = '1h';

-- In no index: see uploads' fillfactor.
ALTER TABLE uploads
    -- How many events there were of this upload. Raised by the statement that makes the fact, under the lock
    -- of the row: so there is neither a gap nor a tie.
    ADD COLUMN event_sequence bigint NOT NULL DEFAULT 0,
    -- Every byte is here, and the application has not yet said that the upload may be completed.
    ADD COLUMN finishing boolean NOT NULL DEFAULT false;

-- Nothing has ever read the old ones.
DROP TABLE events;
CREATE TABLE events (
    id         bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    -- The same on every delivery.
    event_id   uuid        NOT NULL DEFAULT gen_random_uuid() UNIQUE,
    -- No foreign key: an event outlives its upload.
    upload_id  uuid        NOT NULL,
    kind       text        NOT NULL,
    sequence   bigint      NOT NULL,
    -- Facts of the change itself, such as the code of an error.
    payload    jsonb       NOT NULL DEFAULT '{}',
    -- The upload's columns as this change left them.
    snapshot   jsonb       NOT NULL,
    owner      text,
    profile    text        NOT NULL,
    -- Whoever reads the events of all uploads stops before the oldest transaction that is still running: an
    -- event that is committed late would come before what has been read already.
    xid        xid8        NOT NULL DEFAULT pg_current_xact_id(),
    created_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (upload_id, sequence)
);
CREATE INDEX events_order ON events (xid, id);
CREATE INDEX events_age ON events (created_at);

-- Whose events these are, where no public URL is configured: part of the source of CloudEvents.
CREATE TABLE database_identity (id uuid PRIMARY KEY DEFAULT gen_random_uuid());
INSERT INTO database_identity DEFAULT VALUES;

-- The endpoints that are configured, for the statements that record events.
CREATE TABLE webhook_endpoints (
    name       text        PRIMARY KEY,
    kinds      text[]      NOT NULL,
    -- Empty: the uploads of all profiles.
    profiles   text[]      NOT NULL DEFAULT '{}',
    created_at timestamptz NOT NULL DEFAULT now(),
    -- Since when it is in no configuration. Its deliveries are kept for a while, as it may come back.
    removed_at timestamptz,
    -- Since when it wants nothing more (410 Gone).
    paused_at  timestamptz,
    error      text,
    -- Which worker tells it of progress, and until when.
    progress_worker text,
    progress_until  timestamptz
);

ALTER TABLE jobs DROP CONSTRAINT jobs_kind_check;
ALTER TABLE jobs ADD CONSTRAINT jobs_kind_check CHECK (kind IN ('transfer', 'eager', 'remove', 'finish', 'deliver'));
-- Deliveries outlive the uploads that they tell of. What deletes an upload deletes its other jobs itself.
ALTER TABLE jobs DROP CONSTRAINT jobs_upload_id_fkey;
ALTER TABLE jobs
    -- Of a delivery: to whom, the first event that is not delivered yet, and the last one there is.
    ADD COLUMN endpoint       text,
    ADD COLUMN next_sequence  bigint,
    ADD COLUMN until_sequence bigint,
    ADD CONSTRAINT jobs_delivery_check CHECK (
        (kind = 'deliver') = (endpoint IS NOT NULL AND next_sequence IS NOT NULL AND until_sequence IS NOT NULL));

DROP INDEX jobs_due;
CREATE INDEX jobs_due ON jobs (staging_id, due_at)
    WHERE state IN ('queued', 'running', 'retry_wait') AND kind <> 'deliver';
DROP INDEX jobs_live;
CREATE UNIQUE INDEX jobs_live ON jobs (upload_id, kind)
    WHERE state IN ('queued', 'running', 'retry_wait') AND kind <> 'deliver';
-- One live delivery per upload and endpoint: it sends the upload's events in their order.
CREATE UNIQUE INDEX jobs_live_deliveries ON jobs (upload_id, endpoint)
    WHERE state IN ('queued', 'running', 'retry_wait') AND kind = 'deliver';
CREATE INDEX jobs_due_deliveries ON jobs (endpoint, due_at)
    WHERE state IN ('queued', 'running', 'retry_wait') AND kind = 'deliver';

-- Events that could not be delivered in time.
CREATE TABLE dead_letters (
    endpoint  text        NOT NULL,
    event_id  uuid        NOT NULL,
    upload_id uuid        NOT NULL,
    sequence  bigint      NOT NULL,
    kind      text        NOT NULL,
    error     text        NOT NULL,
    died_at   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (endpoint, event_id)
);
CREATE INDEX dead_letters_age ON dead_letters (died_at);
