-- Lists of uploads in pages that skip none of those made in one moment, each state read by an index.
-- Safe with the previous release: its lists have the same order and find it in these indexes.

DROP INDEX uploads_created;
DROP INDEX uploads_owner;
CREATE INDEX uploads_created ON uploads (created_at DESC, id DESC);
CREATE INDEX uploads_owner ON uploads (owner, created_at DESC, id DESC);
-- Beside uploads_unsettled, which has the other states.
CREATE INDEX uploads_settled ON uploads (state, created_at DESC, id DESC)
    WHERE state IN ('stored', 'rejected', 'expired', 'removed');
-- What is gone is rare among an owner's uploads, or all of them.
CREATE INDEX uploads_owner_gone ON uploads (owner, state, created_at DESC, id DESC)
    WHERE state IN ('rejected', 'expired', 'removed');
