-- RFC 9530's name for digests of the whole upload.
-- Not safe with the previous release, which knows the old name: stop all its servers first.

ALTER TABLE uploads RENAME COLUMN whole_checksum TO repr_digest;
