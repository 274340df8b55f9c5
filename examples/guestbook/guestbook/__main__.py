"""`python3 -m guestbook`: serves until told to stop."""

import sys

from . import server, settings
from .store import Store
from .web import Guestbook


def main():
    try:
        chosen = settings.load()
    except settings.SettingsError as error:
        sys.exit(str(error))
    app = Guestbook(Store(chosen.database_url), chosen.version)
    listening = server.make(app, chosen.port)
    print(f"guestbook {chosen.version} listens on port {chosen.port}", flush=True)
    server.serve(listening)
    print("stopped", flush=True)


if __name__ == "__main__":
    main()
