"""The live page: served for real, and looked at in a real browser where there is one."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alpose.runtime import Control, Monitor, Queue
from alpose.runtime.bundle.keys import SEALING, generate_key
from alpose.runtime.errors import ConfigError
from alpose.runtime.queue.images import decode
from alpose.runtime.telemetry import live as live_module
from alpose.runtime.telemetry.live import HISTORY_S, MOST_STREAMS, LivePage
from alpose.runtime.telemetry.web import address

from ...fakes import scripted

FRAME_HW3 = np.full((480, 960, 3), 100, dtype=np.uint8)
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


def get(page: LivePage, path: str = "", host: str | None = None) -> tuple[int, bytes, Any]:
    at = page.url.removeprefix("http://").rstrip("/")
    connection = http.client.HTTPConnection(at, timeout=10)
    connection.request("GET", f"/{path}", headers={"Host": host} if host else {})
    answer = connection.getresponse()
    content = answer.status, answer.read(), answer.headers
    connection.close()
    return content


def state(page: LivePage, path: str = "state.json") -> Any:
    status, data, _ = get(page, path)
    assert status == 200
    return json.loads(data)


@contextmanager
def running(monitor: Monitor, look: Callable[[], object]) -> Iterator[None]:
    """A camera's thread at 50 frames a second."""
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.02):
            look()

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def moving(place: int) -> dict[str, Any]:
    return {"failure_probability": 0.9 if place % 10 == 0 else 0.1, "scores": np.ones(3, np.float32),
            "keypoints": np.array([[8, 2], [4, 14], [12, 14]], np.float32)}  # fmt: skip


def test_the_page_tells_what_the_monitor_knows(make: Callable[..., Monitor], tmp_path: Path) -> None:
    monitor = make(tmp_path / "q.db", "Threshold(0.5) | Control(rate=0.0001)", scripted.Scripted(moving), camera="seat")
    with monitor.serve(0) as page:
        before = state(page)
        for _ in range(20):
            monitor(FRAME_HW3)
        monitor.flush()
        now = state(page)

    assert page.url.startswith("http://127.0.0.1:")
    assert before["stream"] is None
    assert now["stats"]["counts"]["frames_total{decision=flagged}"] == 2
    assert now["stats"]["bundle"] == "driver"
    assert now["stats"]["camera"] == "seat"
    assert now["stats"]["threshold"] == 0.5
    assert now["stream"]["failure_probability"] == pytest.approx(0.1)
    assert sum(bin_[3] for bin_ in now["stream"]["history"]) == 2, "flagged frames in the curve"
    assert max(bin_[2] for bin_ in now["stream"]["history"]) == pytest.approx(0.9)
    assert now["kept"] == [], "at most two seconds old"


FAR = np.array([[2.0, 2.0], [12.0, 2.0], [12.0, 12.0]], dtype=np.float32)


def test_an_empty_room_has_no_probability(make: Callable[..., Monitor], tmp_path: Path) -> None:
    """Nobody, then somebody, then nobody again: nothing of the empty room is shown as a probability, kept frames neither."""
    script = scripted.Scripted(
        lambda n: {"failure_probability": 0.4, "scores": 0.95 if n == 1 else 0.02, "keypoints": FAR}
    )
    monitor = make(tmp_path / "q.db", Control(rate=1.0), script, track=True)
    with monitor.serve(0) as page:
        shown = []
        for _ in range(2):
            monitor(FRAME_HW3)
            shown.append(state(page)["stream"])
        assert monitor.flush()
        with Queue(tmp_path / "q.db", readonly=True) as queue:
            kept = queue.peek()
    empty, there = shown
    assert (empty["occupied"], empty["failure_probability"], empty["predicted_loss"]) == (False, None, None)
    assert empty["history"][0][1:3] == [None, None]
    assert there["occupied"]
    assert there["failure_probability"] == pytest.approx(0.4)
    assert kept[0].occupied is False
    assert kept[0].probability_text == "nobody"
    assert page_row(kept[0]) == {"occupied": False, "failure_probability": None}


def page_row(record: Any) -> dict[str, Any]:
    row = live_module._row(record)
    return {name: row[name] for name in ("occupied", "failure_probability")}


def test_everybody_on_a_frame_is_a_stream_and_who_leaves_has_no_probability(make: Callable[..., Monitor]) -> None:
    monitor = make(engine=scripted.Scripted(lambda n: {"failure_probability": 0.2 + 0.5 * (n == 1)}))
    one, other = (100.0, 50.0, 300.0, 400.0), (500.0, 50.0, 700.0, 400.0)
    with monitor.serve(0) as page:
        monitor.people(FRAME_HW3, [one, other])
        both = state(page), state(page, "state.json?stream=person-1")["stream"]
        monitor.people(FRAME_HW3, [one])
        gone = state(page, "state.json?stream=person-2")["stream"]
        first = state(page)["stream"]
        monitor.people(FRAME_HW3, [])
        nobody = state(page)["stream"], state(page, "state.json?stream=person-1")["stream"]

    assert both[0]["streams"] == ["everybody", "person-1", "person-2"]
    assert (both[0]["stream"]["name"], both[0]["stream"]["people"]) == ("everybody", 2)
    assert both[0]["stream"]["failure_probability"] == pytest.approx(0.7), "of whoever is most likely wrong"
    assert both[1]["failure_probability"] == pytest.approx(0.2)
    assert (gone["occupied"], gone["failure_probability"]) == (False, None)
    assert (first["people"], first["failure_probability"]) == (1, pytest.approx(0.2))
    assert (nobody[0]["people"], nobody[0]["occupied"], nobody[0]["failure_probability"]) == (0, False, None)
    assert (nobody[1]["occupied"], nobody[1]["failure_probability"]) == (False, None)


def test_a_picture_of_a_camera_that_is_watched_for_everybody_comes_with_nobody_on_it(
    make: Callable[..., Monitor],
) -> None:
    monitor = make(engine=scripted.Scripted(moving))
    with monitor.serve(0) as page:
        monitor.people(FRAME_HW3, [(100.0, 50.0, 300.0, 400.0)])
        with running(monitor, lambda: monitor.people(FRAME_HW3, [])):
            for name in ("everybody", "person-1"):
                status, data, _ = get(page, f"picture?stream={name}")
                assert status == 200
                assert np.ptp(decode(data).astype(int)) < 12, "nobody is drawn"


def test_the_last_kept_frames_come_from_the_queue(make: Callable[..., Monitor], tmp_path: Path) -> None:
    monitor = make(
        tmp_path / "q.db", "Threshold(0.5)", scripted.Scripted(lambda n: {"failure_probability": 0.5 + n / 99})
    )
    for _ in range(10):
        monitor(FRAME_HW3)
    monitor.flush()
    with monitor.serve(0) as page:
        rows = state(page)["kept"]
        pictures = [get(page, f"kept/{row['id']}") for row in rows]
        assert get(page, "kept/" + "0" * 32)[0] == 404
        assert get(page, "kept/../state.json")[0] == 404

    assert [round(99 * (row["failure_probability"] - 0.5)) for row in rows] == [9, 8, 7, 6, 5, 4, 3, 2], "newest first"
    assert all(row["reasons"] and row["flagged"] for row in rows)
    for status, data, headers in pictures:
        assert status == 200
        assert headers["Content-Type"] == "image/jpeg"
        assert decode(data).shape == (160, 320, 3)


@pytest.mark.parametrize("settings", [{"store": "keypoints"}, {"seal": True}])
def test_of_a_frame_that_is_sealed_or_not_stored_only_the_pose_is_shown(
    settings: dict[str, Any], make: Callable[..., Monitor], tmp_path: Path
) -> None:
    if settings.pop("seal", False):
        pytest.importorskip("nacl")
        generate_key(tmp_path / "fleet", SEALING)
        settings["seal_to"] = tmp_path / "fleet.pub"
    with Queue(tmp_path / "q.db", **settings) as queue:
        monitor = make(queue, "Threshold(0.0)", scripted.Scripted(moving))
        monitor(np.full((480, 960, 3), 255, dtype=np.uint8))
        monitor.flush()
        with monitor.serve(0) as page:
            (row,) = state(page)["kept"]
            picture_hw3 = decode(get(page, f"kept/{row['id']}")[1])
        monitor.close()
    assert picture_hw3.shape == (160, 320, 3)
    assert np.median(picture_hw3) < 40, "nothing of the white picture"
    assert picture_hw3.max() > 150, "and a pose"


def test_a_picture_is_of_the_next_frame_small_and_with_everybody_on_it(make: Callable[..., Monitor]) -> None:
    monitor = make(None, None, scripted.Scripted(moving))
    boxes = [(10, 40, 410, 440), (540, 40, 940, 440)]
    with monitor.serve(0) as page, running(monitor, lambda: monitor.batch([FRAME_HW3] * 2, boxes, ["left", "right"])):
        while not state(page)["streams"]:
            time.sleep(0.01)
        status, data, headers = get(page, "picture?stream=right")
        assert get(page, "picture?stream=nobody")[0] == 404
        assert state(page, "state.json?stream=right")["stream"]["name"] == "right"
    picture_hw3 = decode(data).astype(int)
    drawn = np.any(np.abs(picture_hw3 - 100) > 60, axis=2)

    assert status == 200
    assert headers["Cache-Control"] == "no-store"
    assert picture_hw3.shape == (240, 480, 3)
    assert drawn[:, :210].any()
    assert drawn[:, 270:].any()
    assert not drawn[:, 220:260].any(), "between the two people there is nothing to draw"


@pytest.mark.parametrize("frame_format", ["rgb", "bgr", "grey", "nv12", "yuyv"])
def test_every_format_is_shown(frame_format: str, make: Callable[..., Monitor]) -> None:
    shape = {"grey": (480, 960), "nv12": (720, 960), "yuyv": (480, 960, 2)}.get(frame_format, (480, 960, 3))
    monitor = make(None, None, scripted.Scripted(moving), frame_format=frame_format)
    with monitor.serve(0) as page, running(monitor, lambda: monitor(np.full(shape, 128, np.uint8))):
        while not state(page)["streams"]:
            time.sleep(0.01)
        data = get(page, "picture")[1]
    assert decode(data).shape == (240, 480, 3)


def test_a_frame_is_copied_only_while_somebody_looks(
    make: Callable[..., Monitor], monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = []
    copy = LivePage._copy

    def counted(page: LivePage, frame: Any) -> Any:
        copied.append(frame)
        return copy(page, frame)

    monkeypatch.setattr(LivePage, "_copy", counted)
    monitor = make(None, None, scripted.Scripted(moving))
    with monitor.serve(0) as page:
        for _ in range(50):
            monitor(FRAME_HW3)
        assert not copied
        with running(monitor, lambda: monitor(FRAME_HW3)):
            assert get(page, "picture")[0] == 200
            assert len(copied) == 1


def test_several_who_look_share_one_picture(make: Callable[..., Monitor]) -> None:
    monitor = make(None, None, scripted.Scripted(moving))
    seen: list[bytes] = []
    with monitor.serve(0) as page, running(monitor, lambda: monitor(FRAME_HW3)):
        while not state(page)["streams"]:
            time.sleep(0.01)
        clients = [threading.Thread(target=lambda: seen.append(get(page, "picture")[1])) for _ in range(4)]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
    assert len(seen) == 4
    assert len(set(map(id, seen))) == 4
    assert len(set(seen)) <= 2


def test_a_camera_that_stands_still_holds_up_no_request(
    make: Callable[..., Monitor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_module, "PICTURE_WAIT_S", 0.05)
    monitor = make(None, None, scripted.Scripted(moving))
    monitor(FRAME_HW3)
    with monitor.serve(0) as page:
        monitor(FRAME_HW3)
        assert get(page, "picture")[0] == 404
        monitor(FRAME_HW3)
        assert state(page)["stream"]["age_s"] < 5


def test_what_is_remembered_is_bounded(make: Callable[..., Monitor], monkeypatch: pytest.MonkeyPatch) -> None:
    monitor = make(None, None, scripted.Scripted(moving))
    clock_s = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock_s[0])
    with monitor.serve(0) as page:
        for place in range(HISTORY_S + 50):
            clock_s[0] = place + 0.5
            monitor.batch([FRAME_HW3] * 2, None, ["always", f"{place}"])
        now = page.state("always")
    assert len(now["streams"]) <= MOST_STREAMS
    assert {"always", str(HISTORY_S + 49)} <= set(now["streams"])
    assert len(now["stream"]["history"]) == HISTORY_S
    assert now["stream"]["history"][0][0] == HISTORY_S - 1


def test_a_fault_of_the_page_is_counted_and_the_camera_goes_on(
    make: Callable[..., Monitor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monitor = make(None, None, scripted.Scripted(moving))
    with monitor.serve(0):
        monkeypatch.setattr(live_module._Stream, "see", lambda *_: 1 / 0)
        assert monitor(FRAME_HW3).failure_probability == pytest.approx(0.9)
        assert monitor.stats().errors == {"live page": 1}


def test_it_listens_on_the_loopback_and_refuses_names_of_others(
    make: Callable[..., Monitor], caplog: pytest.LogCaptureFixture
) -> None:
    monitor = make(None, None, scripted.Scripted(moving))
    with monitor.serve(0) as page:
        assert page._server._server.server_address[0] == "127.0.0.1"
        port = page._server.port
        for host in (f"127.0.0.1:{port}", "localhost", f"[::1]:{port}", socket.gethostname(), "192.0.2.7"):
            assert get(page, host=host)[0] == 200, host
        for host in ("evil.example", f"127.0.0.1.evil.example:{port}", "localhost.evil.example"):
            assert get(page, "picture", host=host)[0] == 403, host
        policy = get(page)[2]["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "without a password" not in caplog.text
    with monitor.serve("0.0.0.0:0") as page:
        assert "whoever reaches this address sees the camera's pictures without a password" in caplog.text
        assert get(page)[0] == 200


def test_one_page_a_monitor_which_ends_with_it(make: Callable[..., Monitor]) -> None:
    monitor = make(None, None, scripted.Scripted(moving))
    page = monitor.serve(0)
    with pytest.raises(ConfigError, match=re.escape(f"served already, on {page.url}")):
        monitor.serve(0)
    page.close()
    page = monitor.serve(page._server.port)
    with pytest.raises(ConfigError, match="the port is taken"):
        make(None, None, scripted.Scripted(moving)).serve(page._server.port)
    monitor.close()
    with pytest.raises(OSError, match="refused"):
        get(page)
    with pytest.raises(ConfigError, match="was closed"):
        monitor.serve(0)
    assert not [one for one in threading.enumerate() if one is page._server._thread]


@pytest.mark.parametrize(
    ("text", "found"),
    [("8080", ("127.0.0.1", 8080)), (0, ("127.0.0.1", 0)), ("0.0.0.0:80", ("0.0.0.0", 80)),
     ("[::1]:8080", ("::1", 8080)), ("car-17.local:1", ("car-17.local", 1)), ("localhost:8080", ("localhost", 8080))],
)  # fmt: skip
def test_addresses(text: str | int, found: tuple[str, int]) -> None:
    assert address(text) == found


@pytest.mark.parametrize("text", ["", "http", ":8080", "70000", "-1", "1.5", "localhost:", "http://localhost:80/"])
def test_an_address_that_is_none_says_what_to_write(text: str) -> None:
    with pytest.raises(ConfigError, match=r"write a port, as 8080|not known"):
        address(text)


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here")
@pytest.mark.parametrize("size", ["1280,1000", "390,844"])
def test_a_browser_shows_it(size: str, make: Callable[..., Monitor], tmp_path: Path) -> None:
    monitor = make(tmp_path / "q.db", "Threshold(0.5)", scripted.Scripted(moving), camera="<b>seat</b>")
    with monitor.serve(0) as page, running(monitor, lambda: monitor(FRAME_HW3)):
        monitor.flush()
        time.sleep(0.5)
        done = subprocess.run(
            [str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'browser'}",
             f"--window-size={size}", "--virtual-time-budget=4000", "--enable-logging=stderr", "--dump-dom", page.url],
            capture_output=True, text=True, timeout=120, check=True,
        )  # fmt: skip
    page_text = done.stdout
    assert '<h1 id="name">driver</h1>' in page_text
    assert re.search(r'<span id="status" class="good">[\d.]+ frames/s', page_text)
    assert re.search(r'class="number \w+" id="probability">0\.[19]0<', page_text)
    assert re.search(r'<img id="camera"[^>]*src="blob:', page_text)
    assert page_text.count("<figure>") >= 1
    assert "&lt;b&gt;seat" in page_text, "a name is text"
    assert "<b>seat" not in page_text
    assert "CONSOLE" not in done.stderr, "no error of a script, nothing that the policy refused"
