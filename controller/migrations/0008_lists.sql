-- Lists of a million rows: each sort that has an index ends with the id, as pages do. What is sorted by
-- otherwise is read in full.
CREATE INDEX vm_by_account ON vm (account_id, id);
CREATE INDEX vm_in_order_of_names ON vm (name, id);
CREATE INDEX vm_by_state_and_name ON vm (state, name, id);
CREATE INDEX volume_by_account ON volume (account_id, id);
CREATE INDEX volume_in_order_of_names ON volume (name, id);
CREATE INDEX volume_by_state ON volume (state, id);
DROP INDEX host_by_connection;
CREATE INDEX host_by_connection ON host (connection, id);
