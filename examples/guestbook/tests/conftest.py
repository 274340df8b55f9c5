import io
import socket
from datetime import datetime, timezone

import pytest

from guestbook.store import Entry
from guestbook.web import Guestbook


class Shelf:
    """A store in memory, which can be told to fail."""

    def __init__(self):
        self.entries = []
        self.error = None

    def _open(self):
        if self.error:
            raise self.error

    def newest(self, limit):
        self._open()
        return self.entries[::-1][:limit]

    def add(self, author, message):
        self._open()
        self.entries.append(Entry(author, message, datetime(2026, 5, 4, tzinfo=timezone.utc)))

    def check(self):
        self._open()


class Visitor:
    """Asks the app as a WSGI server would."""

    def __init__(self, app):
        self._app = app

    def ask(self, method, path, body=b"", length=None):
        answer = {}

        def start_response(status, headers):
            answer.update(status=int(status.split()[0]), headers=dict(headers))

        environ = {
            "REQUEST_METHOD": method,
            "PATH_INFO": path,
            "CONTENT_LENGTH": str(len(body)) if length is None else length,
            "wsgi.input": io.BytesIO(body),
        }
        answer["body"] = b"".join(self._app(environ, start_response)).decode()
        return answer

    def sign(self, body):
        return self.ask("POST", "/entries", body)


@pytest.fixture
def shelf():
    return Shelf()


@pytest.fixture
def visitor(shelf):
    return Visitor(Guestbook(shelf, "v1"))


@pytest.fixture
def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]
