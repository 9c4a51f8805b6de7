-- RFC 9530's name for digests of the whole upload.

ALTER TABLE uploads RENAME COLUMN whole_checksum TO repr_digest;
