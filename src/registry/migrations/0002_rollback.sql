-- A rollback that somebody asked for; its deployment does the work. Automatic ones are told by the journal of the deployment that failed.
CREATE TABLE rollbacks (
    deployment INTEGER PRIMARY KEY REFERENCES deployments (id),
    kind       TEXT    NOT NULL,               -- previous, specific, undo
    target     INTEGER NOT NULL REFERENCES releases (deployment),
    reason     TEXT    NOT NULL,
    forced     INTEGER NOT NULL,
    backup     TEXT,                           -- the backup set to put back; NULL: data stays as it is
    checks     TEXT    NOT NULL                -- JSON: the safety checks, as they were when it was asked for
) STRICT;

-- What was said to a deployment that asked for approval: the first word counts.
CREATE TABLE approvals (
    deployment INTEGER PRIMARY KEY REFERENCES deployments (id),
    approved   INTEGER NOT NULL,
    by         TEXT    NOT NULL,
    reason     TEXT,
    at         INTEGER NOT NULL
) STRICT;

-- A person has looked at a stuck deployment.
CREATE TABLE resolutions (
    deployment INTEGER PRIMARY KEY REFERENCES deployments (id),
    by         TEXT    NOT NULL,
    reason     TEXT    NOT NULL,
    at         INTEGER NOT NULL
) STRICT;

-- A worker looks for what waits every second; stuck ones are looked for with every push.
CREATE INDEX deployments_unfinished ON deployments (app, environment, status) WHERE finished_at IS NULL;
CREATE INDEX deployments_stuck ON deployments (app, environment) WHERE status = 'stuck';

-- Bytes that retention gave back at the end of the deployment.
ALTER TABLE deployments ADD COLUMN freed INTEGER;
