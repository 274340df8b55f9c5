#!/usr/bin/env python3
"""Switches a proxy between two upstreams, evenly over a time, and prints how long the calls took.

  gate-switch.py gate SOCKET COUNT SECONDS PORT PORT        the gate's control socket
  gate-switch.py hold SOCKET COUNT SECONDS PORT PORT        one pause of a second, in the middle
  gate-switch.py haproxy SOCKET COUNT SECONDS PORT PORT     HAProxy's runtime API
  gate-switch.py caddy ADMIN-URL COUNT SECONDS PORT PORT    Caddy's admin API
  gate-switch.py nginx CONF-FILE COUNT SECONDS PORT PORT    a new configuration and a reload
"""
import json
import pathlib
import socket
import subprocess
import sys
import time
import urllib.request

kind, place, count, seconds = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
ports = [int(port) for port in sys.argv[5:7]]


def unix(path):
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(path)
    return connection


def ask(connection, **verb):
    connection.sendall(json.dumps({"v": 1, **verb}).encode() + b"\n")
    answer = b""
    while not answer.endswith(b"\n"):
        answer += connection.recv(65536)
    answer = json.loads(answer)
    assert answer["ok"], answer
    return answer


def switch_gate(port, number):
    ask(control, do="switch", name="bench/one", side={"id": str(port), "upstream": f"127.0.0.1:{port}"})


def switch_haproxy(port, number):
    with unix(place) as connection:
        connection.sendall(f"set server app/one addr 127.0.0.1 port {port}\n".encode())
        connection.recv(4096)


def switch_caddy(port, number):
    url = f"{place}/config/apps/http/servers/one/routes/0/handle/0/upstreams"
    body = json.dumps([{"dial": f"127.0.0.1:{port}"}]).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"}, method="PATCH")
    urllib.request.urlopen(request).read()


def switch_nginx(port, number):
    conf = pathlib.Path(place)
    old = ports[(ports.index(port) + 1) % 2]
    conf.write_text(conf.read_text().replace(f"server 127.0.0.1:{old}", f"server 127.0.0.1:{port}"))
    subprocess.run(["nginx", "-c", place, "-e", "stderr", "-s", "reload"], check=True, stderr=subprocess.DEVNULL)


if kind in ("gate", "hold"):
    control = unix(place)
if kind == "hold":
    time.sleep(seconds / 2)
    ask(control, do="pause", name="bench/one")
    time.sleep(1)
    released = ask(control, do="resume", name="bench/one")["released"]
    print(f"held={released}")
    sys.exit()

switch = {"gate": switch_gate, "haproxy": switch_haproxy, "caddy": switch_caddy, "nginx": switch_nginx}[kind]
took = []
began = time.monotonic()
for number in range(1, count + 1):
    time.sleep(max(0.0, began + seconds * number / (count + 1) - time.monotonic()))
    before = time.monotonic()
    switch(ports[number % 2], number)
    took.append((time.monotonic() - before) * 1000)
took.sort()
print(f"switches={count} call_median_ms={took[len(took) // 2]:.2f} call_p99_ms={took[int(len(took) * 0.99)]:.2f}")
