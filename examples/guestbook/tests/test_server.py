import os
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from guestbook import server, settings
from guestbook.web import Guestbook


@pytest.fixture
def listening(shelf):
    made = server.make(Guestbook(shelf, "v1"), 0, "127.0.0.1")
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield f"http://127.0.0.1:{made.server_port}"
    made.shutdown()
    made.server_close()
    thread.join()


def test_a_form_travels_through_http(listening):
    body = b"author=Ada&message=Hello"
    with urllib.request.urlopen(f"{listening}/entries", data=body, timeout=10) as answer:
        # The redirect was followed.
        assert answer.url == f"{listening}/"
        assert "Hello" in answer.read().decode()


def test_an_unknown_page_is_404(listening):
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{listening}/nothing", timeout=10)
    assert refused.value.code == 404


def start(**environ):
    return subprocess.Popen(
        [sys.executable, "-m", "guestbook"],
        cwd=Path(__file__).parents[1],
        env={"PATH": os.environ["PATH"], "PYTHONUNBUFFERED": "1", **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_the_program_starts_without_its_database_and_ends_on_sigterm(free_port):
    # Nothing listens on port 1: the app starts all the same and says so on its health page.
    process = start(DATABASE_URL="postgresql://nobody@127.0.0.1:1/none", PORT=str(free_port))
    try:
        assert "listens" in process.stdout.readline()
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"http://127.0.0.1:{free_port}/health", timeout=10)
        assert refused.value.code == 503
        assert '"unreachable"' in refused.value.read().decode()
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=30)
        assert process.returncode == 0
        assert output.endswith("stopped\n")
    finally:
        process.kill()
        process.wait()


def test_the_program_refuses_to_start_without_settings():
    process = start()
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "DATABASE_URL is not set" in errors


@pytest.mark.parametrize("port", ["", "0", "65536", "http", "-1", "²"])
def test_a_port_must_be_a_port(port):
    with pytest.raises(settings.SettingsError, match="PORT"):
        settings.load({"DATABASE_URL": "postgresql://db/guestbook", "PORT": port})


def test_settings_have_defaults():
    loaded = settings.load({"DATABASE_URL": "postgresql://db/guestbook"})
    assert (loaded.port, loaded.version) == (8000, "unknown")
