-- Times are milliseconds since 1970 (UTC), for people only: order is by id and seq.

CREATE TABLE deliveries (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    source      TEXT    NOT NULL,              -- github, hook, reconcile
    delivery    TEXT    NOT NULL,              -- the host's id, unique for its source and app
    app         TEXT    NOT NULL,
    branch      TEXT    NOT NULL,
    commit_id   TEXT    NOT NULL,
    pusher      TEXT,
    forced      INTEGER NOT NULL,
    received_at INTEGER NOT NULL,
    outcome     TEXT,                          -- JSON; NULL until the queue has settled it
    UNIQUE (source, app, delivery)
) STRICT;
CREATE INDEX deliveries_open ON deliveries (id) WHERE outcome IS NULL;

CREATE TABLE deployments (
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    app          TEXT    NOT NULL,
    environment  TEXT    NOT NULL,
    commit_id    TEXT,
    reference    TEXT    NOT NULL,
    triggered    TEXT    NOT NULL,             -- JSON: kind, by, delivery
    status       TEXT    NOT NULL,
    failed_stage TEXT,
    error        TEXT,
    exit_code    INTEGER,
    queued_at    INTEGER NOT NULL,
    started_at   INTEGER,
    finished_at  INTEGER,
    image        TEXT,
    previous     INTEGER REFERENCES deployments (id),
    backup       TEXT,
    subject      TEXT,
    author       TEXT,
    log          TEXT
) STRICT;
CREATE INDEX deployments_by_environment ON deployments (app, environment, id);
CREATE INDEX deployments_open ON deployments (status) WHERE status IN ('queued', 'running');
CREATE INDEX deployments_by_commit ON deployments (app, environment, commit_id);

CREATE TABLE events (
    deployment INTEGER NOT NULL REFERENCES deployments (id),
    seq        INTEGER NOT NULL,
    at         INTEGER NOT NULL,
    body       TEXT    NOT NULL,               -- JSON: pipeline::journal::Event
    PRIMARY KEY (deployment, seq)
) STRICT, WITHOUT ROWID;

-- A release is a deployment that was live and healthy.
CREATE TABLE releases (
    deployment INTEGER PRIMARY KEY REFERENCES deployments (id),
    app         TEXT    NOT NULL,
    environment TEXT    NOT NULL,
    commit_id   TEXT    NOT NULL,
    artefact    TEXT    NOT NULL,
    artefact_name TEXT  NOT NULL,
    runtime     TEXT    NOT NULL,
    instance    TEXT    NOT NULL,              -- JSON: runtime::Instance
    live_since  INTEGER NOT NULL,
    retired_at  INTEGER                        -- its instance and artefact are gone
) STRICT;
CREATE INDEX releases_by_environment ON releases (app, environment, deployment);

CREATE TABLE live (
    app         TEXT NOT NULL,
    environment TEXT NOT NULL,
    deployment  INTEGER NOT NULL REFERENCES releases (deployment),
    PRIMARY KEY (app, environment)
) STRICT, WITHOUT ROWID;

CREATE TABLE outbox (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    deployment INTEGER REFERENCES deployments (id),
    kind       TEXT    NOT NULL,
    body       TEXT    NOT NULL,               -- JSON: notify::Report
    created_at INTEGER NOT NULL,
    attempts   INTEGER NOT NULL DEFAULT 0,
    next_at    INTEGER NOT NULL,
    sent_at    INTEGER,
    error      TEXT,
    UNIQUE (deployment, kind)
) STRICT;
CREATE INDEX outbox_open ON outbox (next_at) WHERE sent_at IS NULL;
