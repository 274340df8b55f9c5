"""Against a real PostgreSQL: `DATABASE_URL=… python3 -m pytest integration --no-cov`. The database must be one to throw away."""

from contextlib import closing

import psycopg2
import pytest

from guestbook import migrate, settings
from guestbook.migrate import Migration, MigrationError
from guestbook.store import Store, StoreError

URL = settings.database_url()


@pytest.fixture
def connection():
    with closing(psycopg2.connect(URL)) as connection:
        with connection, connection.cursor() as cursor:
            cursor.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
        yield connection


def test_an_empty_database_is_migrated_once(connection, capsys):
    names = [migration.name for migration in migrate.available()]
    assert migrate.version(connection) == "none"
    with pytest.raises(StoreError, match="not migrated"):
        Store(URL).check()
    migrate.main(["upgrade"])
    assert migrate.version(connection) == names[-1]
    capsys.readouterr()
    migrate.main(["upgrade"])
    assert capsys.readouterr().out == "nothing to do\n"
    Store(URL).check()


def test_entries_come_back_as_they_were(connection):
    migrate.main(["upgrade"])
    store = Store(URL)
    store.add("Ada", "'; DROP TABLE entries; -- <b> 🎉")
    store.add("Grace", "second")
    assert [(entry.author, entry.message) for entry in store.newest(10)] == [
        ("Grace", "second"),
        ("Ada", "'; DROP TABLE entries; -- <b> 🎉"),
    ]
    assert len(store.newest(1)) == 1


def test_half_a_migration_leaves_nothing(connection):
    broken = Migration("0001_broken", "CREATE TABLE half (id int); SELECT no_such_function()")
    with pytest.raises(MigrationError, match="0001_broken failed and was undone"):
        migrate.upgrade(connection, [broken])
    with connection, connection.cursor() as cursor:
        cursor.execute("SELECT to_regclass('half')")
        assert cursor.fetchone() == (None,)
    assert migrate.version(connection) == "none"


def test_a_second_runner_waits_and_then_gives_up(connection, monkeypatch):
    monkeypatch.setattr(migrate, "LOCK_TIMEOUT", "100ms")
    with closing(psycopg2.connect(URL)) as other:
        with other.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_lock(%s)", (migrate.LOCK,))
        with pytest.raises(MigrationError, match="another migration is running"):
            migrate.upgrade(connection, migrate.available())


def test_a_table_in_use_ends_the_migration(connection, monkeypatch):
    monkeypatch.setattr(migrate, "LOCK_TIMEOUT", "100ms")
    first, *rest = migrate.available()
    with closing(psycopg2.connect(URL)) as early:
        migrate.upgrade(early, [first])
    with closing(psycopg2.connect(URL)) as other, other.cursor() as cursor:
        cursor.execute("SELECT * FROM entries")  # its transaction stays open, and with it the lock
        with closing(psycopg2.connect(URL)) as late:
            with pytest.raises(MigrationError, match="something holds a table"):
                migrate.upgrade(late, [first, *rest])
    assert migrate.version(connection) == first.name
