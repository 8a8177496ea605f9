-- Whether a VM that ran is started again when its host has restarted.
ALTER TABLE vm ADD COLUMN auto_start BIGINT NOT NULL DEFAULT 1;
-- Whether that is still to be done.
ALTER TABLE vm ADD COLUMN start_due BIGINT NOT NULL DEFAULT 0;
