import psycopg2
import pytest
from doubles import Connection

from guestbook import migrate
from guestbook.migrate import Migration, MigrationError

FIRST = Migration("0001_first", "CREATE TABLE first ()")
SECOND = Migration("0002_second", "CREATE TABLE second ()")


def test_the_apps_own_migrations_are_numbered_without_gaps():
    names = [migration.name for migration in migrate.available()]
    assert [name.split("_")[0] for name in names] == [f"{n:04}" for n in range(1, len(names) + 1)]


def test_files_are_taken_in_order(tmp_path):
    (tmp_path / "0002_second.sql").write_text(SECOND.sql)
    (tmp_path / "0001_first.sql").write_text(FIRST.sql)
    (tmp_path / "notes.txt").write_text("not a migration")
    assert migrate.available(tmp_path) == [FIRST, SECOND]


def test_only_what_is_missing_is_pending():
    assert migrate.pending([FIRST, SECOND], {}) == [FIRST, SECOND]
    assert migrate.pending([FIRST, SECOND], {FIRST.name: FIRST.checksum}) == [SECOND]
    # A rollback runs an older version of the app, which does not know the newest migration.
    assert migrate.pending([FIRST], {m.name: m.checksum for m in (FIRST, SECOND)}) == []


def test_a_changed_migration_is_refused():
    with pytest.raises(MigrationError, match="0001_first was changed"):
        migrate.pending([FIRST], {FIRST.name: "other"})


def test_upgrade_locks_then_applies_each_with_its_row(capsys):
    connection = Connection({"SELECT name": [(FIRST.name, FIRST.checksum)]})
    assert migrate.upgrade(connection, [FIRST, SECOND]) == [SECOND.name]
    statements = connection.statements()
    assert statements[:2] == ["SELECT set_config('lock_timeout', %s, false)", "SELECT pg_advisory_lock(%s)"]
    assert FIRST.sql not in statements
    assert statements[-2] == SECOND.sql
    assert connection.executed[-1][1] == (SECOND.name, SECOND.checksum)
    assert connection.committed == 1
    assert "applied 0002_second" in capsys.readouterr().out


def test_a_failed_migration_is_undone_and_ends_the_run():
    connection = Connection({FIRST.sql: psycopg2.ProgrammingError("no such type")})
    with pytest.raises(MigrationError, match="0001_first failed and was undone: no such type"):
        migrate.upgrade(connection, [FIRST, SECOND])
    assert (connection.committed, connection.rolled_back) == (0, 1)
    assert SECOND.sql not in connection.statements()


def test_a_held_lock_is_not_waited_for_long():
    busy = psycopg2.errors.LockNotAvailable("canceling statement due to lock timeout")
    with pytest.raises(MigrationError, match="another migration is running"):
        migrate.upgrade(Connection({"pg_advisory_lock": busy}), [FIRST])
    with pytest.raises(MigrationError, match="something holds a table"):
        migrate.upgrade(Connection({FIRST.sql: busy}), [FIRST])


@pytest.mark.parametrize(
    ("answers", "version"),
    [
        ({"to_regclass": [(None,)]}, "none"),
        ({"to_regclass": [("schema_migrations",)], "max(name)": [(None,)]}, "none"),
        ({"to_regclass": [("schema_migrations",)], "max(name)": [("0002_second",)]}, "0002_second"),
    ],
)
def test_the_version_is_the_last_applied_name(answers, version):
    assert migrate.version(Connection(answers)) == version


def test_the_command_prints_the_version(monkeypatch, capsys):
    connection = Connection({"to_regclass": [(None,)]})
    monkeypatch.setenv("DATABASE_URL", "postgresql://db/guestbook")
    monkeypatch.setattr(psycopg2, "connect", lambda *_, **__: connection)
    migrate.main(["version"])
    assert capsys.readouterr().out == "none\n"
    assert connection.closed


def test_the_command_says_what_is_wrong(monkeypatch):
    monkeypatch.delenv("DATABASE_URL", raising=False)
    with pytest.raises(SystemExit, match="migrate: DATABASE_URL is not set"):
        migrate.main(["upgrade"])

    def refuse(*_, **__):
        raise psycopg2.OperationalError("connection refused\n")

    monkeypatch.setenv("DATABASE_URL", "postgresql://db/guestbook")
    monkeypatch.setattr(psycopg2, "connect", refuse)
    with pytest.raises(SystemExit, match="cannot be reached: connection refused"):
        migrate.main(["upgrade"])
