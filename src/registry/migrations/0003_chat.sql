-- A request that carried the message went out, and no answer to it was heard: it may have arrived.
ALTER TABLE outbox ADD COLUMN sending_at INTEGER;

-- How often it went out again after that: people may have read it twice.
ALTER TABLE outbox ADD COLUMN doubts INTEGER NOT NULL DEFAULT 0;

-- Settled without being sent: there was nothing to say any more.
ALTER TABLE outbox ADD COLUMN dropped INTEGER NOT NULL DEFAULT 0;

-- Messages in a chat that are edited while their deployment goes on.
CREATE TABLE chat_messages (
    deployment INTEGER NOT NULL REFERENCES deployments (id),
    kind       TEXT    NOT NULL,               -- of the outbox: begun, approval
    chat       INTEGER NOT NULL,
    thread     INTEGER,
    message    INTEGER NOT NULL,
    digest     TEXT    NOT NULL,               -- SHA-256 of what it shows
    shown_at   INTEGER NOT NULL,
    open       INTEGER NOT NULL,               -- it does not show its last word yet
    gone       INTEGER NOT NULL,               -- it was deleted, or can no longer be edited
    PRIMARY KEY (deployment, kind)
) STRICT, WITHOUT ROWID;
CREATE INDEX chat_messages_open ON chat_messages (deployment) WHERE open = 1;
