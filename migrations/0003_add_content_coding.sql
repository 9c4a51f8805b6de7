-- What a creation says of its bytes beside their type: how they are coded, and in which language they are.
-- Downloads and the object in the store repeat it.
-- Safe with the previous release, which neither writes nor reads these columns.

ALTER TABLE uploads
    ADD COLUMN content_encoding text,
    ADD COLUMN content_language text;
