-- Everything is TEXT or BIGINT, so that one SQL text serves SQLite and PostgreSQL.
-- Ids are UUIDs as text, times are milliseconds since the epoch, sizes are bytes, flags are 0 or 1.
-- Forward only: a later migration first adds, and a later release removes what nobody uses any more.

-- Numbers that go up: event_cursor, generation.
CREATE TABLE counter (
    name  TEXT PRIMARY KEY,
    value BIGINT NOT NULL
);
INSERT INTO counter (name, value) VALUES ('event_cursor', 0), ('generation', 0);

-- Running controllers; the ring is made of the rows whose heartbeat is young enough.
CREATE TABLE controller (
    id           TEXT PRIMARY KEY,
    address      TEXT NOT NULL,
    version      TEXT NOT NULL,
    generation   BIGINT NOT NULL,
    started_at   BIGINT NOT NULL,
    heartbeat_at BIGINT NOT NULL
);

CREATE TABLE account (
    id         TEXT PRIMARY KEY,
    name       TEXT NOT NULL UNIQUE,
    kind       TEXT NOT NULL,
    created_at BIGINT NOT NULL
);

CREATE TABLE token (
    id            TEXT PRIMARY KEY,
    name          TEXT NOT NULL,
    account_id    TEXT NOT NULL REFERENCES account (id),
    secret_sha256 TEXT NOT NULL UNIQUE,
    expires_at    BIGINT,
    created_at    BIGINT NOT NULL
);
CREATE INDEX token_by_account ON token (account_id, id);

CREATE TABLE zone (
    id          TEXT PRIMARY KEY,
    name        TEXT NOT NULL UNIQUE,
    description TEXT NOT NULL,
    created_at  BIGINT NOT NULL
);

CREATE TABLE cluster (
    id                TEXT PRIMARY KEY,
    name              TEXT NOT NULL UNIQUE,
    zone_id           TEXT NOT NULL REFERENCES zone (id),
    description       TEXT NOT NULL,
    cpu_overcommit    TEXT NOT NULL,
    memory_overcommit TEXT NOT NULL,
    created_at        BIGINT NOT NULL
);
CREATE INDEX cluster_by_zone ON cluster (zone_id);

CREATE TABLE instance_type (
    id         TEXT PRIMARY KEY,
    name       TEXT NOT NULL UNIQUE,
    vcpus      BIGINT NOT NULL,
    memory     BIGINT NOT NULL,
    created_at BIGINT NOT NULL
);

CREATE TABLE host (
    id                TEXT PRIMARY KEY,
    name              TEXT NOT NULL UNIQUE,
    cluster_id        TEXT NOT NULL REFERENCES cluster (id),
    address           TEXT NOT NULL,
    admin_state       TEXT NOT NULL,
    connection        TEXT NOT NULL,
    connection_reason TEXT,
    arch              TEXT NOT NULL,
    vcpus_total       BIGINT NOT NULL,
    vcpus_reserved    BIGINT NOT NULL,
    memory_total      BIGINT NOT NULL,
    memory_reserved   BIGINT NOT NULL,
    facts             TEXT NOT NULL,
    boot_id           TEXT,
    agent_id          TEXT,
    last_seen_at      BIGINT,
    created_at        BIGINT NOT NULL,
    version           BIGINT NOT NULL
);
CREATE INDEX host_by_cluster ON host (cluster_id, connection, admin_state);
CREATE INDEX host_by_connection ON host (connection);

CREATE TABLE join_token (
    id            TEXT PRIMARY KEY,
    secret_sha256 TEXT NOT NULL UNIQUE,
    cluster_id    TEXT NOT NULL REFERENCES cluster (id),
    expires_at    BIGINT NOT NULL,
    used_by       TEXT,
    created_at    BIGINT NOT NULL
);

CREATE TABLE storage (
    id         TEXT PRIMARY KEY,
    name       TEXT NOT NULL UNIQUE,
    kind       TEXT NOT NULL,
    cluster_id TEXT NOT NULL REFERENCES cluster (id),
    path       TEXT NOT NULL,
    created_at BIGINT NOT NULL
);
CREATE INDEX storage_by_cluster ON storage (cluster_id);

-- What a host has of a storage. reserved is what volumes there may grow to.
CREATE TABLE storage_host (
    storage_id TEXT NOT NULL REFERENCES storage (id),
    host_id    TEXT NOT NULL REFERENCES host (id),
    total      BIGINT NOT NULL,
    available  BIGINT NOT NULL,
    reserved   BIGINT NOT NULL,
    PRIMARY KEY (storage_id, host_id)
);
CREATE INDEX storage_host_by_host ON storage_host (host_id);

CREATE TABLE image (
    id           TEXT PRIMARY KEY,
    name         TEXT NOT NULL,
    account_id   TEXT NOT NULL REFERENCES account (id),
    state        TEXT NOT NULL,
    source       TEXT NOT NULL,
    format       TEXT,
    sha256       TEXT,
    size         BIGINT,
    virtual_size BIGINT,
    firmware     TEXT NOT NULL,
    created_at   BIGINT NOT NULL,
    version      BIGINT NOT NULL,
    UNIQUE (account_id, name)
);

-- Hosts that have an image in their cache.
CREATE TABLE image_host (
    image_id TEXT NOT NULL REFERENCES image (id),
    host_id  TEXT NOT NULL REFERENCES host (id),
    PRIMARY KEY (image_id, host_id)
);
CREATE INDEX image_host_by_host ON image_host (host_id);

CREATE TABLE network (
    id              TEXT PRIMARY KEY,
    name            TEXT NOT NULL,
    account_id      TEXT NOT NULL REFERENCES account (id),
    cluster_id      TEXT NOT NULL REFERENCES cluster (id),
    kind            TEXT NOT NULL,
    cidr            TEXT NOT NULL,
    gateway         TEXT NOT NULL,
    service_address TEXT NOT NULL,
    dns             TEXT NOT NULL,
    mtu             BIGINT NOT NULL,
    next_ip         BIGINT NOT NULL,
    state           TEXT NOT NULL,
    created_at      BIGINT NOT NULL,
    UNIQUE (account_id, name)
);
CREATE INDEX network_by_cluster ON network (cluster_id);

CREATE TABLE vm (
    id               TEXT PRIMARY KEY,
    name             TEXT NOT NULL,
    account_id       TEXT NOT NULL REFERENCES account (id),
    state            TEXT NOT NULL,
    state_since      BIGINT NOT NULL,
    hostname         TEXT NOT NULL,
    vcpus            BIGINT NOT NULL,
    memory           BIGINT NOT NULL,
    instance_type_id TEXT,
    image_id         TEXT NOT NULL REFERENCES image (id),
    root_volume_id   TEXT NOT NULL,
    firmware         TEXT NOT NULL,
    host_id          TEXT REFERENCES host (id),
    -- Whether vcpus and memory of the host are reserved for it.
    holds_compute    BIGINT NOT NULL,
    ssh_keys         TEXT NOT NULL,
    user_data        TEXT,
    deleted_at       BIGINT,
    created_at       BIGINT NOT NULL,
    generation       BIGINT NOT NULL,
    version          BIGINT NOT NULL
);
CREATE UNIQUE INDEX vm_by_name ON vm (account_id, name) WHERE deleted_at IS NULL;
CREATE INDEX vm_by_host ON vm (host_id, id);
CREATE INDEX vm_by_state ON vm (state, id);
CREATE INDEX vm_by_image ON vm (image_id);
CREATE INDEX vm_by_deleted_at ON vm (deleted_at) WHERE deleted_at IS NOT NULL;

CREATE TABLE nic (
    id         TEXT PRIMARY KEY,
    vm_id      TEXT NOT NULL REFERENCES vm (id),
    network_id TEXT NOT NULL REFERENCES network (id),
    position   BIGINT NOT NULL,
    mac        TEXT NOT NULL UNIQUE,
    ip         TEXT NOT NULL,
    UNIQUE (network_id, ip)
);
CREATE INDEX nic_by_vm ON nic (vm_id, position);
CREATE INDEX nic_by_ip ON nic (ip);

CREATE TABLE volume (
    id         TEXT PRIMARY KEY,
    name       TEXT NOT NULL,
    account_id TEXT NOT NULL REFERENCES account (id),
    kind       TEXT NOT NULL,
    state      TEXT NOT NULL,
    size       BIGINT NOT NULL,
    format     TEXT NOT NULL,
    storage_id TEXT NOT NULL REFERENCES storage (id),
    host_id    TEXT REFERENCES host (id),
    vm_id      TEXT REFERENCES vm (id),
    device     TEXT,
    image_id   TEXT REFERENCES image (id),
    created_at BIGINT NOT NULL,
    version    BIGINT NOT NULL,
    UNIQUE (account_id, name)
);
CREATE INDEX volume_by_vm ON volume (vm_id);
CREATE UNIQUE INDEX volume_by_device ON volume (vm_id, device);
CREATE INDEX volume_by_host ON volume (host_id);
CREATE INDEX volume_by_storage ON volume (storage_id);
CREATE INDEX volume_by_image ON volume (image_id);

-- Accepted work and its journal: data holds the command and what its steps have found.
CREATE TABLE job (
    id               TEXT PRIMARY KEY,
    kind             TEXT NOT NULL,
    state            TEXT NOT NULL,
    resource_kind    TEXT NOT NULL,
    resource_id      TEXT NOT NULL,
    account_id       TEXT NOT NULL,
    request_id       TEXT NOT NULL,
    traceparent      TEXT NOT NULL,
    -- The step that is next (running) or is to be undone next (rolling_back).
    step             BIGINT NOT NULL,
    steps            TEXT NOT NULL,
    data             TEXT NOT NULL,
    progress         BIGINT NOT NULL,
    cancel_requested BIGINT NOT NULL,
    error            TEXT,
    rolled_back      TEXT NOT NULL,
    cleanup_owed     TEXT NOT NULL,
    created_at       BIGINT NOT NULL,
    started_at       BIGINT,
    finished_at      BIGINT,
    deadline_at      BIGINT NOT NULL,
    generation       BIGINT NOT NULL
);
CREATE INDEX job_by_resource ON job (resource_id, id);
CREATE INDEX job_open ON job (state, id) WHERE finished_at IS NULL;
CREATE INDEX job_by_state ON job (state, id);
CREATE INDEX job_by_account ON job (account_id, id);
CREATE INDEX job_by_finished_at ON job (finished_at);

-- Undoing that failed and is owed: tried again until it succeeds.
CREATE TABLE cleanup (
    id          TEXT PRIMARY KEY,
    job_id      TEXT NOT NULL,
    kind        TEXT NOT NULL,
    step        TEXT NOT NULL,
    resource_id TEXT NOT NULL,
    data        TEXT NOT NULL,
    attempts    BIGINT NOT NULL,
    next_at     BIGINT NOT NULL,
    last_error  TEXT NOT NULL,
    created_at  BIGINT NOT NULL
);
CREATE INDEX cleanup_by_next_at ON cleanup (next_at);

CREATE TABLE event (
    cursor        BIGINT PRIMARY KEY,
    path          TEXT NOT NULL,
    resource_kind TEXT NOT NULL,
    resource_id   TEXT NOT NULL,
    account_id    TEXT,
    content       TEXT NOT NULL,
    at            BIGINT NOT NULL
);
CREATE INDEX event_by_resource ON event (resource_id, cursor);
CREATE INDEX event_by_account ON event (account_id, cursor);
CREATE INDEX event_by_at ON event (at);

CREATE TABLE setting (
    key        TEXT PRIMARY KEY,
    value      TEXT NOT NULL,
    updated_at BIGINT NOT NULL
);

-- Answers to mutations that carried an Idempotency-Key.
CREATE TABLE idempotency (
    account_id   TEXT NOT NULL,
    key          TEXT NOT NULL,
    request_hash TEXT NOT NULL,
    reply        TEXT NOT NULL,
    created_at   BIGINT NOT NULL,
    PRIMARY KEY (account_id, key)
);
CREATE INDEX idempotency_by_created_at ON idempotency (created_at);
