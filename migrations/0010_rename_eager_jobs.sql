-- The word of the configuration, transfer.eager, in the queue as well.
-- Not safe with the previous release, which knows the old names: stop all its servers first.

ALTER TABLE jobs RENAME COLUMN wants TO min_offset;
ALTER TABLE jobs DROP CONSTRAINT jobs_kind_check;
UPDATE jobs SET kind = 'eager' WHERE kind = 'ahead';
ALTER TABLE jobs ADD CONSTRAINT jobs_kind_check CHECK (kind IN ('transfer', 'eager', 'remove'));
