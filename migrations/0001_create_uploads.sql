-- The tables of the main job: uploads, the queue that moves them, and what happened.
-- Safe with the previous release because there is none.

CREATE TABLE uploads (
    id             uuid        PRIMARY KEY,
    -- SHA-256 of the token in the tus URL: reading this table gives nobody the right to write.
    token_hash     bytea       NOT NULL UNIQUE CHECK (octet_length(token_hash) = 32),
    owner          text,
    -- The node whose disk holds the staging file; only its processes may touch it.
    node           text        NOT NULL,
    state          text        NOT NULL CHECK (state IN (
        'created', 'uploading', 'completed', 'transferring', 'stored', 'transfer_failed',
        'rejected', 'expired', 'removing', 'removed')),
    upload_length  bigint      CHECK (upload_length >= 0),
    upload_offset  bigint      NOT NULL CHECK (upload_offset >= 0),
    -- CRC-64/NVME of the first upload_offset bytes, as a signed 64-bit number.
    crc64nvme      bigint,
    -- In which protocol bytes are appended. In tus reaching the length completes an upload; in the other
    -- one (Resumable Uploads for HTTP) the client says so, and all bytes may be here before that.
    protocol       text        NOT NULL DEFAULT 'tus' CHECK (protocol IN ('tus', 'rufh')),
    -- Digests that all bytes together must have, as promised at creation: "sha256 <base64>, …".
    whole_checksum text,
    -- Upload-Metadata and Upload-Concat exactly as sent: HEAD echoes them.
    metadata       text,
    concat         text        CHECK (concat IN ('partial', 'final')),
    concat_header  text,
    -- Whose rules hold for it, and what begins its transfer: both as configured when it was created.
    profile        text        NOT NULL DEFAULT 'default',
    trigger        text        NOT NULL DEFAULT 'complete' CHECK (trigger IN ('complete', 'commit', 'manual')),
    filename       text,
    content_type   text,
    -- Rendered once; every attempt of a transfer writes the same key. In the order of its bytes, which is
    -- that of a store's listing: the two are compared side by side.
    object_key     text        COLLATE "C" NOT NULL UNIQUE,
    multipart_id   text,
    etag           text,
    version_id     text,
    -- Of the whole object, where they are wanted: known once it is stored.
    sha256         bytea       CHECK (octet_length(sha256) = 32),
    md5            bytea       CHECK (octet_length(md5) = 16),
    local_present  boolean     NOT NULL DEFAULT true,
    remote_present boolean     NOT NULL DEFAULT false,
    hold           boolean     NOT NULL DEFAULT false,
    error          text,
    -- Since when it is known that bytes are missing which should be there.
    missing_at     timestamptz,
    created_at     timestamptz NOT NULL DEFAULT now(),
    updated_at     timestamptz NOT NULL DEFAULT now(),
    expires_at     timestamptz,
    completed_at   timestamptz,
    -- When the application said that it wants to keep it.
    committed_at   timestamptz,
    stored_at      timestamptz,
    -- Since when nobody may use it any more; its row goes some time after.
    gone_at        timestamptz,
    CHECK ((gone_at IS NOT NULL) = (state IN ('rejected', 'expired', 'removing', 'removed'))),
    CHECK (upload_length IS NULL OR upload_offset <= upload_length),
    CHECK (state NOT IN ('completed', 'transferring', 'stored', 'transfer_failed')
           OR upload_offset IS NOT DISTINCT FROM upload_length)
)
-- Offsets move often. As long as no index names upload_offset, updated_at or expires_at, such an
-- update finds room on its own page and touches no index (HOT).
WITH (fillfactor = 70);

CREATE INDEX uploads_created ON uploads (created_at DESC);
CREATE INDEX uploads_owner ON uploads (owner, created_at DESC);
-- Everything that still has somewhere to go: a small part of a large table.
CREATE INDEX uploads_unsettled ON uploads (state, created_at) WHERE state IN (
    'created', 'uploading', 'completed', 'transferring', 'transfer_failed', 'removing');
CREATE INDEX uploads_purgeable ON uploads (stored_at) WHERE state = 'stored' AND local_present;
CREATE INDEX uploads_gone ON uploads (gone_at) WHERE gone_at IS NOT NULL;

-- A final upload is an ordered list of partial ones; no byte is copied.
CREATE TABLE upload_parts (
    final_id uuid    NOT NULL REFERENCES uploads (id) ON DELETE CASCADE,
    position integer NOT NULL CHECK (position >= 0),
    part_id  uuid    NOT NULL REFERENCES uploads (id),
    PRIMARY KEY (final_id, position)
);
CREATE INDEX upload_parts_part ON upload_parts (part_id);

CREATE TABLE jobs (
    id          bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    upload_id   uuid        NOT NULL REFERENCES uploads (id) ON DELETE CASCADE,
    -- 'ahead' sends what is durable of an upload that is still being received.
    kind        text        NOT NULL CHECK (kind IN ('transfer', 'ahead', 'remove')),
    node        text        NOT NULL,
    -- Bytes to move. A worker claims no more large jobs than it can run.
    length      bigint      NOT NULL DEFAULT 0,
    state       text        NOT NULL DEFAULT 'queued' CHECK (state IN (
        'queued', 'running', 'retry_wait', 'succeeded', 'failed', 'cancelled')),
    -- Claims so far, which fences a late worker out, and how many of them ended in an error:
    -- a worker that was killed does not use up a retry.
    attempt     integer     NOT NULL DEFAULT 0,
    failures    integer     NOT NULL DEFAULT 0,
    -- From when a worker may claim the job: its due time while it waits, the end of the lease while
    -- it runs. One column, so that one index finds new, overdue and abandoned jobs alike.
    due_at      timestamptz NOT NULL DEFAULT now(),
    worker      text,
    -- Set while a worker holds the lease: it may record nothing more, nor renew, and stops by itself.
    cancel_requested boolean NOT NULL DEFAULT false,
    bytes_done  bigint      NOT NULL DEFAULT 0,
    -- A job 'ahead' rests until so many bytes are durable.
    wants       bigint      NOT NULL DEFAULT 0,
    error_code  text,
    last_error  text,
    created_at  timestamptz NOT NULL DEFAULT now(),
    started_at  timestamptz,
    finished_at timestamptz
)
WITH (fillfactor = 70);

CREATE INDEX jobs_due ON jobs (node, due_at) WHERE state IN ('queued', 'running', 'retry_wait');
CREATE INDEX jobs_upload ON jobs (upload_id);
-- At most one live job of a kind per upload, whoever asks for it.
CREATE UNIQUE INDEX jobs_live ON jobs (upload_id, kind) WHERE state IN ('queued', 'running', 'retry_wait');

CREATE TABLE job_attempts (
    job_id      bigint      NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    attempt     integer     NOT NULL,
    worker      text        NOT NULL,
    outcome     text        NOT NULL CHECK (outcome IN ('succeeded', 'retry', 'failed', 'lost', 'cancelled')),
    error_code  text,
    error       text,
    started_at  timestamptz NOT NULL,
    finished_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (job_id, attempt)
);

-- Parts that the store has acknowledged: a killed worker's successor continues behind them.
CREATE TABLE transfer_parts (
    upload_id   uuid    NOT NULL REFERENCES uploads (id) ON DELETE CASCADE,
    part_number integer NOT NULL CHECK (part_number > 0),
    part_length bigint  NOT NULL CHECK (part_length >= 0),
    etag        text    NOT NULL,
    crc64nvme   bigint,
    PRIMARY KEY (upload_id, part_number)
);

-- Facts for the outside world, committed together with the change that they tell of.
CREATE TABLE events (
    id         bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    upload_id  uuid        NOT NULL,
    kind       text        NOT NULL,
    payload    jsonb       NOT NULL DEFAULT '{}',
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX events_upload ON events (upload_id, id);
CREATE INDEX events_age ON events (created_at);
