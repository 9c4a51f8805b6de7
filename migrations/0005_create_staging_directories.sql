-- Staging directories have ids, kept here and in the directory. A node's name could change, and it did
-- not show that a server had come to the wrong directory or to the wrong database.
-- Not safe with the previous release, which knows nodes by their names: stop all its servers first.

-- A table with millions of uploads takes its time.
SET LOCAL statement_timeout = '1h';

CREATE TABLE staging_directories (
    id         uuid        PRIMARY KEY,
    -- For people: the server that used it last, and where it was. Without a path it stands for the
    -- directory of a node from before directories had ids, which has not taken its id yet.
    node       text        NOT NULL,
    path       text,
    created_at timestamptz NOT NULL DEFAULT now()
);

-- No foreign key: every creation would lock the same row for it.
ALTER TABLE uploads ADD COLUMN staging_id uuid;
-- NULL: it needs no staged byte, and any worker may do it.
ALTER TABLE jobs ADD COLUMN staging_id uuid;

INSERT INTO staging_directories (id, node)
SELECT gen_random_uuid(), node FROM (SELECT DISTINCT node FROM uploads) AS used;
UPDATE uploads SET staging_id = directory.id FROM staging_directories directory WHERE directory.node = uploads.node;
UPDATE jobs SET staging_id = uploads.staging_id FROM uploads
 WHERE uploads.id = jobs.upload_id AND jobs.state IN ('queued', 'running', 'retry_wait');

ALTER TABLE uploads ALTER COLUMN staging_id SET NOT NULL;
-- What is known of the store is found out anew.
DELETE FROM store_outages;
ALTER TABLE store_outages DROP COLUMN node;
ALTER TABLE store_outages ADD COLUMN staging_id uuid PRIMARY KEY;

DROP INDEX jobs_due;
ALTER TABLE uploads DROP COLUMN node;
ALTER TABLE jobs DROP COLUMN node;
CREATE INDEX jobs_due ON jobs (staging_id, due_at) WHERE state IN ('queued', 'running', 'retry_wait');
