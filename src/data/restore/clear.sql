-- Empties the database, of everything that a dump of it brings, in the transaction that loads the dump.
-- Not touched: the schema `public` itself (its owner and rights are the database's own setup, and a user who may not drop it may still
-- own what is in it), extensions that another role owns, and what belongs to an extension or to PostgreSQL.
SET client_min_messages = warning;
SET statement_timeout = 0;
SET idle_in_transaction_session_timeout = 0;
SET lock_timeout = '30s';
SELECT pg_catalog.set_config('search_path', 'pg_catalog', false);
SELECT set_config(name, '1s', false) FROM pg_settings WHERE name = 'client_connection_check_interval';

-- Whoever is connected would hold locks that this has to wait for. Those that this user may not end are waited for, within lock_timeout.
DO $refit$
DECLARE
    other int;
BEGIN
    FOR other IN
        SELECT pid FROM pg_stat_activity
        WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
    LOOP
        BEGIN
            PERFORM pg_terminate_backend(other);
        EXCEPTION WHEN insufficient_privilege THEN
            NULL;
        END;
    END LOOP;
END
$refit$;

DO $refit$
DECLARE
    commands text[];
    command text;
BEGIN
    -- What is in no schema, then the schemas. Objects below 16384 were made by initdb.
    SELECT array_agg(o.command ORDER BY o.turn) INTO commands
    FROM (
        SELECT 1, 'pg_event_trigger'::regclass, oid, format('DROP EVENT TRIGGER IF EXISTS %I CASCADE', evtname)
        FROM pg_event_trigger
        UNION ALL
        SELECT 2, 'pg_publication'::regclass, oid, format('DROP PUBLICATION IF EXISTS %I CASCADE', pubname)
        FROM pg_publication
        UNION ALL
        SELECT 3, 'pg_extension'::regclass, oid, format('DROP EXTENSION IF EXISTS %I CASCADE', extname)
        FROM pg_extension WHERE extname <> 'plpgsql' AND pg_has_role(extowner, 'USAGE')
        UNION ALL
        SELECT 4, 'pg_foreign_server'::regclass, oid, format('DROP SERVER IF EXISTS %I CASCADE', srvname)
        FROM pg_foreign_server
        UNION ALL
        SELECT 5, 'pg_foreign_data_wrapper'::regclass, oid,
               format('DROP FOREIGN DATA WRAPPER IF EXISTS %I CASCADE', fdwname)
        FROM pg_foreign_data_wrapper
        UNION ALL
        SELECT 6, 'pg_cast'::regclass, oid,
               format('DROP CAST IF EXISTS (%s AS %s) CASCADE', format_type(castsource, NULL), format_type(casttarget, NULL))
        FROM pg_cast
        UNION ALL
        SELECT 7, 'pg_language'::regclass, oid, format('DROP LANGUAGE IF EXISTS %I CASCADE', lanname)
        FROM pg_language
        UNION ALL
        SELECT 8, 'pg_namespace'::regclass, oid, format('DROP SCHEMA IF EXISTS %I CASCADE', nspname)
        FROM pg_namespace WHERE nspname !~ '^pg_' AND nspname NOT IN ('information_schema', 'public')
    ) AS o (turn, class, id, command)
    WHERE o.id >= 16384
      AND NOT EXISTS (
          SELECT FROM pg_depend d WHERE d.classid = o.class AND d.objid = o.id AND d.deptype IN ('e', 'i'));
    FOREACH command IN ARRAY coalesce(commands, '{}') LOOP
        EXECUTE command;
    END LOOP;

    -- What is directly in `public`: every such object depends on its schema.
    SELECT array_agg(format('DROP %s IF EXISTS %s CASCADE', CASE i.type
               WHEN 'statistics object' THEN 'STATISTICS'
               ELSE upper(i.type)
           END, i.identity)) INTO commands
    FROM (
        SELECT DISTINCT d.classid, d.objid
        FROM pg_depend d JOIN pg_namespace n ON d.refclassid = 'pg_namespace'::regclass AND d.refobjid = n.oid
        WHERE n.nspname = 'public' AND d.deptype = 'n' AND d.objsubid = 0
          AND d.classid NOT IN ('pg_extension'::regclass, 'pg_default_acl'::regclass)
          -- The columns of a partition key depend internally on their own table: only what concerns the whole object counts.
          AND NOT EXISTS (
              SELECT FROM pg_depend m
              WHERE m.classid = d.classid AND m.objid = d.objid AND m.objsubid = 0 AND m.deptype IN ('e', 'i'))
    ) AS o, pg_identify_object(o.classid, o.objid, 0) AS i;
    FOREACH command IN ARRAY coalesce(commands, '{}') LOOP
        EXECUTE command;
    END LOOP;
    IF NOT EXISTS (SELECT FROM pg_namespace WHERE nspname = 'public') THEN
        EXECUTE 'CREATE SCHEMA public';
    END IF;

    PERFORM lo_unlink(oid) FROM pg_largeobject_metadata;
END
$refit$;
SET client_min_messages = notice;
