-- The app has always refused longer ones; now the database does too. NOT VALID: rows from before are not read, so the table
-- is locked for a moment only.
ALTER TABLE entries
    ADD CONSTRAINT entries_message_length CHECK (length(message) BETWEEN 1 AND 1000) NOT VALID;
