"""A small HTTP server for what a monitor shows: metrics, and the live page. Nothing but the standard library.

It answers ``GET`` alone, on its own threads. A client has a few seconds for its whole request, few are answered at the same
time, and one that hangs holds up nobody: a device must not be brought down through it.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import ConfigError
from ..logs import RateLimitedLog

S = TypeVar("S", bound="WebServer")

if TYPE_CHECKING:
    from http.server import ThreadingHTTPServer

LOOPBACK = "127.0.0.1"

REQUEST_S = 5.0
"""So long a client may take to send its request, and to take the answer."""

MOST_CONNECTIONS = 8
"""Clients that are answered at the same time; more are turned away at once, so that nobody can use up the memory."""

_log = RateLimitedLog(logging.getLogger("alpose.monitor"))


@dataclass(frozen=True, slots=True)
class Content:
    """What a path holds now."""

    data: bytes
    media_type: str
    headers: Mapping[str, str] = field(default_factory=dict)


Answer = Callable[[str, Mapping[str, str]], Content | None]
"""Takes a path and the parameters after its ``?``, on a thread of the server; None where there is nothing."""


class WebServer:
    """Serves until it is closed.

    Args:
        answer: gives the content of a path; what it raises is logged, and answered with status 500.
        port: 0 lets the system choose.
        host: address to listen on. There is neither a password nor encryption: anything but the loopback shows the
            content to whoever reaches the device.
        what: what is served, in messages: ``metrics``.
        check_host: refuse requests to a host name that is not this device's. A web page of somebody else could otherwise let
            its own name point at the loopback, and have a browser on this device read the answers for it.

    Raises:
        ConfigError: the port is taken, or may not be used.
    """

    def __init__(self, answer: Answer, port: int, host: str = LOOPBACK, *, what: str, check_host: bool = False) -> None:
        if isinstance(port, bool) or not isinstance(port, int) or not 0 <= port <= 65535:
            raise ConfigError(f"a port for {what} is a number from 0 to 65535, got {port!r}")
        try:
            self._server = _make_server(answer, port, host, check_host)
        except OSError as error:
            raise ConfigError(f"{what} cannot be served on {host} port {port}: {_advice(error)}") from error
        self._thread = threading.Thread(target=self._server.serve_forever, name=f"alpose-{what}-server", daemon=True)
        self._thread.start()
        self.host, self.port = host, int(self._server.server_port)

    @property
    def address(self) -> str:
        """Where it is, for a browser on this device: ``http://127.0.0.1:9464``."""
        host = {"0.0.0.0": LOOPBACK, "::": "::1", "": LOOPBACK}.get(self.host, self.host)
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    def close(self) -> None:
        """Stop, and free the port. Safe to call twice."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()

    def __enter__(self: S) -> S:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def address(text: str | int) -> tuple[str, int]:
    """Host and port of ``8080`` (the loopback), ``0.0.0.0:8080`` or ``[::1]:8080``; :class:`ConfigError` for anything else."""
    host, colon, port = str(text).strip().rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not port.isascii() or not port.isdecimal() or int(port) > 65535 or (colon and not host):
        raise ConfigError(
            f"{text!r} is not an address to serve on: write a port, as 8080, for this device alone, or HOST:PORT, as "
            "0.0.0.0:8080, for whoever reaches the device"
        )
    return host or LOOPBACK, int(port)


def is_loopback(host: str) -> bool:
    """Whether only programs on this device can reach it."""
    return host in ("localhost", "::1") or host.startswith("127.")


def _make_server(answer: Answer, port: int, host: str, check_host: bool) -> ThreadingHTTPServer:
    # A tenth of a second, for those who want nothing by HTTP.
    import socket
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
    from urllib.parse import parse_qsl

    places = threading.BoundedSemaphore(MOST_CONNECTIONS)
    names = {"localhost", host.lower(), *_names_of_this_device()} if check_host else None

    class Handler(BaseHTTPRequestHandler):
        timeout = REQUEST_S
        server_version = "alpose"

        def do_GET(self) -> None:
            if names is not None and not _is_ours(self.headers.get("Host", ""), names):
                self.send_error(403, explain="This name is not one of this device: use its address.")
                return
            path, _, query = self.path.partition("?")
            try:
                content = answer(path, dict(parse_qsl(query)))
            except Exception as error:  # the camera and its app must not notice
                _log.error(f"web {path}", "%s could not be answered: %r", path, error)
                self.send_error(500)
                return
            if content is None:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Type", content.media_type)
            self.send_header("Content-Length", str(len(content.data)))
            for name, value in content.headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content.data)

        def log_message(self, format: str, *args: object) -> None:
            """Requests are not logged."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False  # a client that hangs must not hold up the end
        allow_reuse_address = True
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

        def process_request(self, request: Any, client_address: Any) -> None:
            if not places.acquire(blocking=False):
                self.shutdown_request(request)
                return
            super().process_request(request, client_address)

        def process_request_thread(self, request: Any, client_address: Any) -> None:
            # A deadline for the whole exchange: a client that sends a byte now and then would never time out otherwise.
            timer = threading.Timer(2 * REQUEST_S, _cut_off, (request,))
            timer.daemon = True
            timer.start()
            try:
                super().process_request_thread(request, client_address)
            finally:
                timer.cancel()
                places.release()

        def handle_error(self, request: Any, client_address: Any) -> None:
            """A client that went away is nobody's concern."""

    return Server((host, port), Handler)


def _names_of_this_device() -> set[str]:
    import socket

    name = socket.gethostname().lower()
    return {name, name.partition(".")[0], f"{name.partition('.')[0]}.local"}


def _is_ours(host: str, names: set[str]) -> bool:
    """Whether a request's ``Host`` is an address, which no name server can forge, or a name of this device."""
    from ipaddress import ip_address

    name = host.partition("]")[0].removeprefix("[") if host.startswith("[") else host.partition(":")[0]
    with contextlib.suppress(ValueError):
        ip_address(name)
        return True
    return name.lower() in names


def _cut_off(request: Any) -> None:
    with contextlib.suppress(OSError):
        request.shutdown(2)  # socket.SHUT_RDWR


def _advice(error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return "the port is taken. Close the other program, choose another port, or 0 for any that is free"
    if error.errno == errno.EACCES:
        return "ports below 1024 belong to the system. Choose a higher one"
    return f"{error.strerror or error}. Check that the address is one of this device"
