-- Storages that several hosts share: what they have is counted once, here; of a local storage the
-- numbers are those of storage_host.
ALTER TABLE storage ADD COLUMN total BIGINT NOT NULL DEFAULT 0;
ALTER TABLE storage ADD COLUMN available BIGINT NOT NULL DEFAULT 0;
ALTER TABLE storage ADD COLUMN reserved BIGINT NOT NULL DEFAULT 0;
-- Why a host cannot use the storage now; NULL when it can.
ALTER TABLE storage_host ADD COLUMN error TEXT;
