#!/usr/bin/env python3
"""Measures what a receive buffer costs an upload, and what the kernel keeps of an unread one.

    unshare --net python3 benches/receive_buffer.py

Wants root. Two network namespaces are joined by two TUN devices. This program passes their packets
on 50 ms later, which is a round trip of 100 ms, also where the kernel has no netem. The listener
has the option before it listens, as that of `ConnGuard::bind`.
"""

import array
import collections
import ctypes
import fcntl
import os
import select
import socket
import struct
import subprocess
import sys
import termios
import time

DELAY_SECONDS = 0.05
PORT = 3000
CLONE_NEWNET = 0x40000000
SERVER, CLIENT = "10.9.0.1", "10.9.0.2"
KIB, MIB = 1 << 10, 1 << 20
UPLOAD_SECONDS = 10


def tun(name, address, peer):
    """Opens a TUN device in the present namespace."""
    TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 1, 0x1000
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH14x", name.encode(), IFF_TUN | IFF_NO_PI))
    for line in (
        f"ip address add {address} peer {peer} dev {name}",
        f"ip link set {name} txqueuelen 20000 up",
        "ip link set lo up",
    ):
        subprocess.run(line.split(), check=True)
    return device


def relay(one, other):
    """Passes packets on in both directions, each after the delay."""
    ways = [(one, other, collections.deque()), (other, one, collections.deque())]
    while True:
        dues = [queue[0][0] for _, _, queue in ways if queue]
        wait = max(0.0, min(dues) - time.monotonic()) if dues else None
        ready, _, _ = select.select([one, other], [], [], wait)
        now = time.monotonic()
        for source, _, queue in ways:
            for _ in range(64 if source in ready else 0):
                try:
                    queue.append((now + DELAY_SECONDS, os.read(source, 65536)))
                except BlockingIOError:
                    break
        for _, target, queue in ways:
            while queue and queue[0][0] <= now:
                os.write(target, queue.popleft()[1])


def unread(connection):
    count = array.array("i", [0])
    fcntl.ioctl(connection, termios.FIONREAD, count)
    return count[0]


def serve(sizes, report):
    for size in sizes:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if size:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)
        listener.bind((SERVER, PORT))
        listener.listen()
        os.write(report, b"l")
        connection, _ = listener.accept()
        received, began, rates = 0, time.monotonic(), []
        while (passed := time.monotonic() - began) < UPLOAD_SECONDS:
            received += len(connection.recv(MIB))
            if passed - len(rates) >= 1:
                rates.append(received)
        best = max(after - before for before, after in zip(rates, rates[1:]))
        # It is read no more. What the client sends now stays in the kernel.
        time.sleep(2)
        name = f"{size // KIB} KiB" if size else "by the kernel"
        mean = received / UPLOAD_SECONDS / 1e6
        held = unread(connection) / MIB
        print(f"{name:14} | {mean:5.1f} MB/s | {best / 1e6:5.1f} MB/s | {held:5.2f} MiB", flush=True)
        if "--ss" in sys.argv:
            subprocess.run(["ss", "-tmin", "state", "established"], check=True)
        connection.close()
        listener.close()


def upload(count, reports):
    for _ in range(count):
        os.read(reports, 1)
        with socket.create_connection((SERVER, PORT)) as connection:
            try:
                while True:
                    connection.sendall(bytes(256 * KIB))
            except ConnectionError:
                pass


def main():
    sizes = [64 * KIB, 256 * KIB, None]
    reports, report = os.pipe()
    print("receive buffer | of ten s   | best s     | kept unread")
    server_device = tun("server", SERVER, CLIENT)
    server = os.fork()
    if server == 0:
        serve(sizes, report)
        os._exit(0)
    if ctypes.CDLL(None).unshare(CLONE_NEWNET) != 0:
        sys.exit("no second network namespace")
    client_device = tun("client", CLIENT, SERVER)
    client = os.fork()
    if client == 0:
        upload(len(sizes), reports)
        os._exit(0)
    relaying = os.fork()
    if relaying == 0:
        relay(server_device, client_device)
    os.waitpid(server, 0)
    for process in (client, relaying):
        os.kill(process, 9)
        os.waitpid(process, 0)


main()
