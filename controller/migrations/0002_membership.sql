-- Several controllers: their states and what they have let go of, the history of the ring, who runs
-- a job, and the authority that all of them share.

-- joining, active or draining; the ring is made of the active ones.
ALTER TABLE controller ADD COLUMN state TEXT NOT NULL DEFAULT 'joining';
-- The newest generation of the ring for which it has let go of what it does not own any more.
ALTER TABLE controller ADD COLUMN settled BIGINT NOT NULL DEFAULT 0;

-- What it says of itself, as JSON.
ALTER TABLE controller ADD COLUMN report TEXT NOT NULL DEFAULT '{}';

-- One row for each change of the ring.
CREATE TABLE ring_change (
    generation BIGINT PRIMARY KEY,
    at         BIGINT NOT NULL,
    -- The active controllers from then on, as a JSON list of ids.
    members    TEXT NOT NULL
);

-- The controller that runs it; nobody else may while that one is a member. NULL: nobody does.
ALTER TABLE job ADD COLUMN controller_id TEXT;

-- The certificate authority that all controllers of a cluster share: at most one row.
CREATE TABLE authority (
    id       BIGINT PRIMARY KEY CHECK (id = 1),
    cert_pem TEXT NOT NULL,
    key_pem  TEXT NOT NULL
);
