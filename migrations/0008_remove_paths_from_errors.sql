-- What the owner of a damaged upload may read named the staged file with its path.
-- Safe with the previous release, which reads the column and no more.

-- It reads the whole table once.
SET LOCAL statement_timeout = '1h';

UPDATE uploads SET error = regexp_replace(error, '[.] [(].*$', '.')
 WHERE error LIKE 'The staged bytes of this upload are %. (%';
