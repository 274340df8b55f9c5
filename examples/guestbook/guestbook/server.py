"""The HTTP server: a thread a request, one request a connection, an end on SIGTERM.

On SIGTERM it takes no more connections, lets the requests in progress finish, and returns.
"""

import signal
import sys
import threading
from socketserver import ThreadingMixIn
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer


class Server(ThreadingMixIn, WSGIServer):
    # A short queue of the kernel would refuse visitors in a burst.
    request_queue_size = 128
    # `server_close` waits for the threads, each of which ends by `Handler.timeout` at the latest.
    daemon_threads = False
    block_on_close = True

    def server_bind(self):
        super().server_bind()
        self.base_environ["SERVER_NAME"] = "guestbook"

    def handle_error(self, request, client_address):
        error = sys.exc_info()[1]
        # A visitor who left is no event.
        if not isinstance(error, (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)


class Handler(WSGIRequestHandler):
    # Seconds that a visitor may stay silent.
    timeout = 5

    def address_string(self):
        return self.client_address[0]

    def log_message(self, format, *args):
        print(f"{self.address_string()} {format % args}", flush=True)


def make(app, port, host="0.0.0.0"):
    server = Server((host, port), Handler)
    server.set_app(app)
    return server


def serve(server, signals=(signal.SIGTERM, signal.SIGINT)):
    """Returns when one of the signals came and every request in progress was answered."""

    def stop(*_):
        # `shutdown` waits for the loop that this very thread runs.
        threading.Thread(target=server.shutdown, daemon=True).start()

    for number in signals:
        signal.signal(number, stop)
    try:
        server.serve_forever(poll_interval=0.1)
    finally:
        server.server_close()
