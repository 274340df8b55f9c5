#!/usr/bin/env python3
"""Asks http://127.0.0.1:PORT/ until the answer holds TEXT, and prints when that was, in milliseconds since 1970.

    await-answer.py PORT TEXT

One process for the whole wait, so that asking costs little of what is measured. An answer that takes longer than a tenth of a
second is given up and asked for again: a connection that was taken by a version that is being stopped may hang.
"""

import socket
import sys
import time

PATIENCE_S = 60
ANSWER_S = 0.1
PAUSE_S = 0.005


def answer(port: int) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=ANSWER_S) as connection:
        connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
        got = b""
        while chunk := connection.recv(4096):
            got += chunk
        return got


def main() -> int:
    port, text = int(sys.argv[1]), sys.argv[2].encode()
    began = time.monotonic()
    while time.monotonic() - began < PATIENCE_S:
        try:
            if text in answer(port):
                print(int(time.time() * 1000))
                return 0
        except OSError:
            pass
        time.sleep(PAUSE_S)
    print(f"`{sys.argv[2]}` never answered on port {port}", file=sys.stderr)
    return 1


sys.exit(main())
