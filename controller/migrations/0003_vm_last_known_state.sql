-- What a VM did when its host last told; only while its state is unknown.
ALTER TABLE vm ADD COLUMN last_known_state TEXT;
