# An app for `under_load.rs`: it tells which version it is in the header `side`, and writes down the name of every POST that arrives.
import base64
import hashlib
import http.server
import os
import signal
import time

VERSION = open("/app/version").read().strip()
POSTS = os.open("/seen/posts", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
SUMS = {}


def sum_of(size):
    if size not in SUMS:
        total = 0
        for _ in range(size):
            total = (total * 31 + 1) % 2**64
        SUMS[size] = total
    return SUMS[size]


class App(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def begin(self, status, *headers):
        self.send_response(status)
        for name, value in (("side", VERSION), *headers):
            self.send_header(name, value)
        self.end_headers()

    def answer(self, text):
        self.begin(200, ("content-length", str(len(text))))
        self.wfile.write(text.encode())

    def do_GET(self):
        if self.path == "/ws":
            self.talk()
        elif self.path == "/version":
            self.answer(VERSION)
        elif self.path.startswith("/slow/"):
            self.slowly(int(self.path.removeprefix("/slow/")))
        else:
            self.answer(f"GET {self.path}")

    def do_POST(self):
        size = int(self.headers["content-length"])
        body = self.rfile.read(size)
        os.write(POSTS, f"{self.headers['name']}\n".encode())
        good = body == b"\1" * size
        self.answer(f"{size} {sum_of(size)}" if good else "another body")

    def slowly(self, pieces):
        self.begin(200, ("transfer-encoding", "chunked"))
        piece = f"{VERSION}\n".encode()
        for _ in range(pieces):
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            time.sleep(0.02)
        self.wfile.write(b"0\r\n\r\n")

    def talk(self):
        """Echoes short text messages of RFC 6455, until the other end closes."""
        key = self.headers["sec-websocket-key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        accept = base64.b64encode(hashlib.sha1(key.encode()).digest()).decode()
        self.begin(101, ("upgrade", "websocket"), ("connection", "upgrade"), ("sec-websocket-accept", accept))
        self.close_connection = True
        while head := self.rfile.read(2):
            mask = self.rfile.read(4)
            text = bytes(byte ^ mask[i % 4] for i, byte in enumerate(self.rfile.read(head[1] & 127)))
            self.wfile.write(bytes((head[0], len(text))) + text)
            if head[0] & 15 == 8:
                break

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 256


signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
for size in (10, 100_000, 300_000):
    sum_of(size)
Server(("0.0.0.0", 8080), App).serve_forever()
