"""A real Label Studio on this machine: its server, its API, its page."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

START_S = 300
"""The first start lays out its database, which is slow on a small machine."""


@dataclass(frozen=True)
class Studio:
    """A running server and the account that it was started with."""

    url: str
    user: str
    password: str
    token: str

    def api(self, method: str, path: str, body: Any = None) -> Any:
        request = urllib.request.Request(  # noqa: S310  # our own server
            self.url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Token {self.token}", "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
            return json.loads(answer.read() or b"null")

    def project(self, folder: Path) -> int:
        """What the README of an export says: a project, its storage, its interface, its tasks."""
        interface = (folder / "interface.xml").read_text()
        number = int(self.api("POST", "/api/projects", {"title": folder.name, "label_config": interface})["id"])
        self.api("POST", "/api/storages/localfiles", {"project": number, "path": str(folder / "images"),
                                                      "use_blob_urls": True, "title": "images"})  # fmt: skip
        self.api("POST", f"/api/projects/{number}/import", json.loads((folder / "tasks.json").read_text()))
        return number

    def tasks(self, project: int) -> list[dict[str, Any]]:
        """The tasks as the data manager shows them: the order of work."""
        found = self.api("GET", f"/api/tasks?project={project}&page_size=100")
        return list(found["tasks"] if isinstance(found, dict) else found)

    def wait_for_annotation(self, task: int, seconds: float = 30) -> None:
        ends = time.monotonic() + seconds
        while not self.api("GET", f"/api/tasks/{task}")["annotations"]:
            if time.monotonic() > ends:
                raise TimeoutError(f"task {task} has no annotation")
            time.sleep(0.3)


@contextmanager
def running(data: Path, documents: Path, log: Path) -> Iterator[Studio]:
    """Start the server with an empty database of its own; it may serve the files below ``documents``."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    studio = Studio(f"http://localhost:{port}", "annotator@example.org", secrets.token_hex(8), secrets.token_hex(20))
    settings = {
        "LABEL_STUDIO_BASE_DATA_DIR": str(data),
        "LABEL_STUDIO_USERNAME": studio.user,
        "LABEL_STUDIO_PASSWORD": studio.password,
        "LABEL_STUDIO_USER_TOKEN": studio.token,
        "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN": "true",
        "LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED": "true",
        "LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT": str(documents),
        "COLLECT_ANALYTICS": "false",
        "LATEST_VERSION_CHECK": "false",
        "SENTRY_DSN": "",
        "FRONTEND_SENTRY_DSN": "",
    }
    command = [str(Path(sys.executable).with_name("label-studio")), "start", "--no-browser", "--port", str(port)]
    with log.open("wb") as output:
        server = subprocess.Popen(command, env=os.environ | settings, stdout=output, stderr=output,
                                  start_new_session=True)  # fmt: skip
    try:
        ends = time.monotonic() + START_S
        while True:
            try:
                studio.api("GET", "/api/current-user/whoami")
                break
            except (urllib.error.URLError, ConnectionError, TimeoutError) as error:
                if server.poll() is not None or time.monotonic() > ends:
                    raise RuntimeError(f"Label Studio does not start ({error}):\n{log.read_text()[-3000:]}") from error
                time.sleep(0.5)
        yield studio
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()
