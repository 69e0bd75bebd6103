"""Telling systemd that the camera loop is ready, alive and stopping: the datagrams of ``sd_notify(3)``, without a library."""

from __future__ import annotations

import logging
import math
import os
import socket
import time
from collections.abc import Mapping

log = logging.getLogger("alpose.monitor")


class Service:
    """The service manager that started this process, where one did; otherwise every call does nothing.

    systemd gives the address of its socket in ``NOTIFY_SOCKET`` (``Type=notify``), and in ``WATCHDOG_USEC`` the time
    after which it takes a silent process for hung (``WatchdogSec=``). A socket that cannot be reached costs no frame: it
    is logged once.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        address = environment.get("NOTIFY_SOCKET", "")
        # A leading @ stands for the zero byte of an abstract address.
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) if self._address else None
        if self._socket is not None:
            self._socket.setblocking(False)
        self._every_s = _watchdog_s(environment) / 2
        self._sent_s = -math.inf
        self._ready = False

    def alive(self, status: str = "") -> None:
        """The loop has come round: the first call says that the service is ready, later ones feed the watchdog in time."""
        now = time.monotonic()
        if not self._ready:
            self._ready = True
            self._send("READY=1")
        if status:
            self._send(f"STATUS={status}")
        if math.isfinite(self._every_s) and now - self._sent_s >= self._every_s:
            self._sent_s = now
            self._send("WATCHDOG=1")

    def stopping(self) -> None:
        """The loop has ended, and what was flagged is being written."""
        self._send("STOPPING=1")

    def close(self) -> None:
        """Close the socket."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, message: str) -> None:
        if self._socket is None:
            return
        try:
            self._socket.sendto(message.encode(), self._address)
        except BlockingIOError:
            pass  # systemd is behind, and the next message comes soon
        except OSError as error:
            log.warning("systemd's socket %r cannot be reached (%s): it is told nothing more", self._address, error)
            self.close()


def _watchdog_s(environment: Mapping[str, str]) -> float:
    """The time after which systemd takes this process for hung; infinite where it does not watch."""
    try:
        mine = int(environment.get("WATCHDOG_PID", os.getpid())) == os.getpid()
        return int(environment["WATCHDOG_USEC"]) * 1e-6 if mine else math.inf
    except (KeyError, ValueError):
        return math.inf
