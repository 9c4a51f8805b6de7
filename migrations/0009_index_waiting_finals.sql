-- What finals that are not stored yet will take in the store is added up before another one is accepted.
-- Safe with the previous release: an index.

CREATE INDEX uploads_waiting_finals ON uploads (place_id)
 WHERE concat = 'final' AND state IN ('created', 'uploading', 'completed', 'transferring', 'transfer_failed');
