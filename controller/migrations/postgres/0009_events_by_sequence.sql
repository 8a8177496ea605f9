-- A server numbers events by a sequence, which goes on where the counter row ended: its lock was held until the
-- commit was on the disk, by one transaction after the other (docs/decisions/0035).
CREATE SEQUENCE event_cursor MINVALUE 0;
SELECT setval('event_cursor', value) FROM counter WHERE name = 'event_cursor';
