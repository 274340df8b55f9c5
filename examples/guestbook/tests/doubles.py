"""Stands in for psycopg2 where no database is: a connection that answers from a script and remembers what it was asked."""


class Cursor:
    def __init__(self, connection):
        self._connection = connection
        self._rows = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return False

    def execute(self, sql, parameters=()):
        self._connection.executed.append((" ".join(sql.split()), parameters))
        for part, answer in self._connection.answers.items():
            if part in sql:
                if isinstance(answer, Exception):
                    raise answer
                self._rows = list(answer)
                return
        self._rows = []

    def fetchall(self):
        return self._rows

    def fetchone(self):
        return self._rows[0] if self._rows else None


class Connection:
    """`answers` maps a part of a statement to its rows, or to the exception it raises."""

    def __init__(self, answers=None):
        self.answers = answers or {}
        self.executed = []
        self.committed = 0
        self.rolled_back = 0
        self.closed = False
        self.autocommit = False

    def cursor(self):
        return Cursor(self)

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind:
            self.rolled_back += 1
        else:
            self.committed += 1
        return False

    def close(self):
        self.closed = True

    def statements(self):
        return [sql for sql, _ in self.executed]
