#!/usr/bin/env python3
"""How long a guest stood still, by its own counter.

The guest sends echo requests at a fixed interval; their sequence number is a counter that only goes on while
the guest runs. Somebody on its segment writes down when each arrived:

    pause.py watch CARD FILE            until it is ended; lines "NANOSECONDS SEQUENCE"
    pause.py last FILE                  when the last one arrived, in nanoseconds since the epoch
    pause.py longest FILE FROM TO       the longest pause between two moments, in milliseconds

A pause is the time between two arrivals, less what the counter says the guest was running meanwhile: a request
that was lost on the way is no pause, and what the guest counted while nothing arrived is none either.
"""

import socket
import statistics
import struct
import sys

ECHO_REQUEST = 8
# The kernel's own time of arrival, which does not depend on when this program is scheduled (linux/socket.h).
SO_TIMESTAMPNS = 35


def watch(card, path):
    sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, card.encode())
    sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
    with open(path, "w", buffering=1, encoding="ascii") as out:
        while True:
            packet, control, _, _ = sock.recvmsg(2048, 256)
            head = (packet[0] & 15) * 4
            if packet[head] != ECHO_REQUEST:
                continue
            seconds, nanos = next(struct.unpack("qq", data[:16]) for _, kind, data in control if kind == SO_TIMESTAMPNS)
            (sequence,) = struct.unpack("!H", packet[head + 6 : head + 8])
            out.write(f"{seconds * 10**9 + nanos} {sequence}\n")


def arrivals(path):
    """Times and counter; the counter has 16 bits on the wire and none here."""
    rows, high = [], 0
    with open(path, encoding="ascii") as lines:
        for line in lines:
            if not line.endswith("\n"):
                break
            time, sequence = map(int, line.split())
            if rows and sequence + high < rows[-1][1] - 0x8000:
                high += 0x10000
            rows.append((time, sequence + high))
    return rows


def longest(rows, begin, end):
    steps = [(b[0] - a[0], b[1] - a[1], b[0], a[0]) for a, b in zip(rows, rows[1:]) if b[1] > a[1]]
    interval = statistics.median(step[0] / step[1] for step in steps)
    within = [time - count * interval for time, count, later, earlier in steps if later >= begin and earlier <= end]
    return max(within) / 1e6


def main(words):
    match words:
        case ["watch", card, path]:
            watch(card, path)
        case ["last", path]:
            rows = arrivals(path)
            print(rows[-1][0] if rows else 0)
        case ["longest", path, begin, end]:
            print(round(longest(arrivals(path), int(begin), int(end))))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
