"""Ports for servers that a test starts."""

from __future__ import annotations

import contextlib
import random
import socket


def free_port() -> int:
    """Below the range from which the kernel gives ports to whoever asks for any."""
    while True:
        port = random.randrange(20_000, 30_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
