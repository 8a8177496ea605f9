-- A server numbers events by a sequence, which goes on where the counter row ended: its lock was held until the
-- commit was on the disk, by one transaction after the other (docs/decisions/0035). The row goes: whoever still
-- counts by it waits for this and then fails, instead of giving numbers twice.
CREATE SEQUENCE IF NOT EXISTS event_cursor MINVALUE 0;
WITH gone AS (DELETE FROM counter WHERE name = 'event_cursor' RETURNING value)
SELECT setval('event_cursor', value) FROM gone;
