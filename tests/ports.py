"""Ports for processes that have to agree on one before they start."""

import contextlib
import os
import socket


def free_port() -> int:
    """A port below those that Linux hands out by itself, so that no process beside this one is given it meanwhile."""
    for port in range(20_000 + os.getpid() % 10_000, 32_768):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port
    raise OSError("no port is free")
