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

-- Which deployment's end took a release away, and what that gave back.
ALTER TABLE releases ADD COLUMN retired_by INTEGER REFERENCES deployments (id);
ALTER TABLE releases ADD COLUMN freed INTEGER;

-- Before there were resolutions, a later success showed that somebody had looked.
INSERT INTO resolutions (deployment, by, reason, at)
SELECT s.id, 'refit', 'deployment ' || min(d.id) || ' succeeded after it', min(d.finished_at)
FROM deployments AS s
JOIN deployments AS d ON d.app = s.app AND d.environment = s.environment AND d.id > s.id AND d.status = 'succeeded'
WHERE s.status = 'stuck' GROUP BY s.id;
