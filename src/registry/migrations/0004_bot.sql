-- A button in a chat: what a press means, who may press it, and until when. Telegram knows only the token.
CREATE TABLE buttons (
    token      TEXT    PRIMARY KEY,
    question   TEXT    NOT NULL,               -- buttons of one question go together: one press settles all of them
    action     TEXT    NOT NULL,               -- JSON: telegram::order::Order
    single     INTEGER NOT NULL,               -- 0: changes nothing, and may be pressed again
    deployment INTEGER REFERENCES deployments (id),
    chat       INTEGER NOT NULL,
    for_user   INTEGER,                        -- NULL: every operator
    made_at    INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    used_at    INTEGER,
    used_by    INTEGER,
    update_id  INTEGER                         -- of the press
) STRICT;
CREATE INDEX buttons_by_deployment ON buttons (deployment, chat) WHERE used_at IS NULL;
CREATE INDEX buttons_by_question ON buttons (question);
CREATE INDEX buttons_by_expiry ON buttons (expires_at);

-- Updates of the Bot API that were taken care of.
CREATE TABLE bot_updates (
    id INTEGER PRIMARY KEY,
    at INTEGER NOT NULL
) STRICT;

-- What a pressed button put into the queue: written with the deployment, so that the press can be carried out again without a second one.
CREATE TABLE bot_orders (
    id         TEXT    PRIMARY KEY,
    deployment INTEGER NOT NULL REFERENCES deployments (id)
) STRICT;
