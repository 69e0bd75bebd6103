"""What systemd hears, at the other end of a real datagram socket."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from alpose.runtime.camera.systemd import Service

pytestmark = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="systemd's socket is a Unix socket")


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.settimeout(0)
        yield listening


def heard(manager: socket.socket) -> list[str]:
    messages = []
    while True:
        try:
            messages.append(manager.recv(4096).decode())
        except BlockingIOError:
            return messages


def test_it_is_ready_once_and_alive_in_time(manager: socket.socket) -> None:
    service = Service(
        {"NOTIFY_SOCKET": manager.getsockname(), "WATCHDOG_USEC": "200000", "WATCHDOG_PID": str(os.getpid())}
    )
    began = time.monotonic()
    while time.monotonic() - began < 0.35:
        service.alive()
        time.sleep(0.01)
    service.alive("12 frames")
    service.stopping()
    service.close()
    messages = heard(manager)
    assert messages[0] == "READY=1"
    assert messages.count("READY=1") == 1
    assert 3 <= messages.count("WATCHDOG=1") <= 5, "one at once, then one each half of the interval"
    assert "STATUS=12 frames" in messages
    assert messages[-1] == "STOPPING=1"


@pytest.mark.parametrize("more", [{}, {"WATCHDOG_USEC": "100000", "WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": "soon"}])
def test_a_watchdog_that_is_not_for_this_process_is_not_fed(manager: socket.socket, more: dict[str, str]) -> None:
    service = Service({"NOTIFY_SOCKET": manager.getsockname(), **more})
    service.alive()
    assert heard(manager) == ["READY=1"]
    service.close()


def test_an_abstract_address_is_understood() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(f"\0alpose-{os.getpid()}")
        listening.settimeout(5)
        service = Service({"NOTIFY_SOCKET": f"@alpose-{os.getpid()}"})
        service.alive()
        assert listening.recv(100) == b"READY=1"
        service.close()


def test_a_socket_that_is_gone_costs_one_line_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    service = Service({"NOTIFY_SOCKET": str(tmp_path / "gone"), "WATCHDOG_USEC": "1"})
    with caplog.at_level(logging.WARNING, "alpose.monitor"):
        for _ in range(3):
            service.alive("still here")
    assert len(caplog.records) == 1


def test_without_systemd_nothing_is_opened() -> None:
    service = Service({})
    service.alive()
    service.stopping()
    service.close()
