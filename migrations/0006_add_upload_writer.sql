-- Who may move an upload's offset: every such UPDATE must match this number. It is raised before a staging
-- file is cut, so that an UPDATE of a process that died, and that still waits in here, finds no row.
-- Safe with the previous release: it neither asks for the number nor raises it, and is fenced as little as before.

-- In no index: the offsets' updates stay on their own page (HOT), and adding it rewrites nothing.
ALTER TABLE uploads ADD COLUMN writer bigint NOT NULL DEFAULT 0;
