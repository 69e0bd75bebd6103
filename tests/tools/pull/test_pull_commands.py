"""``alpose-harvest pull``, ``status`` and ``unseal``: what they say, what they leave alone, and how they end."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from alpose.runtime.bundle.keys import SEALING, generate_key, sealer
from alpose.runtime.errors import ConfigError, DataNotFoundError
from alpose.runtime.queue import Queue, images
from alpose.runtime.queue.record import Picture
from alpose.runtime.skeleton import LSP
from alpose.tools.batch import Batch, Choice
from alpose.tools.commands.pull import NOT_WHOLE, pull, status, unseal
from alpose.tools.inbox import Inbox
from alpose.tools.screen import plain

from ..queues import BUNDLE, fill, make_record


def call(command: Any, *words: object, code: int = 0, **options: Any) -> Result:
    done = CliRunner().invoke(command, [str(word) for word in words], catch_exceptions=False, **options)
    assert done.exit_code == code, done.output
    return done


def everything(folder: Path) -> dict[str, str]:
    """Every file with its hash; of databases what they say, since looking may rewrite their logs."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".db":
            with closing(sqlite3.connect(path)) as db:
                found[str(path)] = hashlib.sha256("\n".join(db.iterdump()).encode()).hexdigest()
        elif path.is_file() and not path.name.endswith(("-wal", "-shm")):
            found[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def choose(folder: Path, ids: list[str], name: str = "week-1") -> None:
    with Inbox(folder) as inbox:
        choices = tuple(Choice(id=id_, rank=rank, reason="", stream="value", select_probability=None)
                        for rank, id_ in enumerate(ids, start=1))  # fmt: skip
        inbox.add_batch(
            Batch(name=name, created="2026-01-01", strategy="top", budget=9, choices=choices, counted={}), []
        )


def seal_queue(path: Path, public: Path, count: int = 3) -> list[str]:
    rng, seal = np.random.default_rng(0), sealer(public)
    with Queue(path) as queue:
        queue.add_bundle(BUNDLE, "driver", {"skeleton": LSP.to_json()})
        ids = []
        for _ in range(count):
            record = make_record(queue, rng)
            pictures = []
            for position in (0, -1):
                image = images.encode(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8))
                pictures.append(Picture.of(seal(image.data), width=64, height=48, captured_ns=1, sealed=True,
                                           position=position))  # fmt: skip
            queue.put(record, pictures)
            ids.append(record.id)
    return ids


def test_two_phases_and_a_second_time_changes_nothing(tmp_path: Path) -> None:
    ids = fill(tmp_path / "q.db", 6)
    inbox = tmp_path / "inbox"
    first = call(pull, tmp_path / "q.db", "--into", inbox, "--images", "none")
    assert "6 new, 0 known, 0 refused, 0 fetched" in first.output
    choose(inbox, ids[2:4])
    second = call(pull, tmp_path / "q.db", "--into", inbox, "--images", "week-1")
    assert "0 new, 6 known, 0 refused, 2 fetched" in second.output
    assert len(list(inbox.rglob("*.jpg"))) == 2
    before = everything(inbox / "frames")
    third = json.loads(call(pull, tmp_path / "q.db", "--into", inbox, "--images", "week-1", "--json").output)
    assert third["sources"][0]["fetched"] == 0
    assert everything(inbox / "frames") == before


def test_delete_says_what_it_did_and_asks_for_nothing(tmp_path: Path) -> None:
    fill(tmp_path / "q.db", 4)
    said = call(pull, tmp_path / "q.db", "--into", tmp_path / "inbox", "--delete")
    assert "4 fetched, 4 acknowledged, 4 deleted" in said.output
    with Queue(tmp_path / "q.db", readonly=True) as queue:
        assert queue.info().records == 0


@pytest.mark.parametrize("began", ["nothing", "manifests", "two pictures", "all"])
@pytest.mark.parametrize("images_", ["all", "none", "week-1"])
@pytest.mark.parametrize("answer", [(), ("--acknowledge",), ("--delete",)])
def test_a_dry_run_changes_nothing_and_comes_true(
    tmp_path: Path, began: str, images_: str, answer: tuple[str, ...]
) -> None:
    queues, inbox = tmp_path / "queues", tmp_path / "inbox"
    queues.mkdir()
    ids = fill(queues / "q.db", 5)
    with Queue(queues / "q.db") as queue:
        queue.put(make_record(queue, np.random.default_rng(9), store="keypoints"), [])
    if began == "nothing" and images_ == "week-1":
        with pytest.raises(DataNotFoundError, match="no batch"):
            call(pull, queues, "--into", inbox, "--images", images_, "--dry-run")
        assert not inbox.exists()
        return
    if began != "nothing":
        call(pull, queues, "--into", inbox, "--images", "none")
        choose(inbox, ids[1:4])
        choose(inbox, ids[:2], name="two")
    if began == "two pictures":
        call(pull, queues, "--into", inbox, "--images", "two", "--acknowledge")
    if began == "all":
        call(pull, queues, "--into", inbox)

    words = (queues, "--into", inbox, "--images", images_, *answer, "--json")
    before = everything(tmp_path)
    (planned,) = json.loads(call(pull, *words, "--dry-run").output)["sources"]
    assert everything(tmp_path) == before
    assert inbox.exists() == (began != "nothing")
    (done,) = json.loads(call(pull, *words).output)["sources"]

    assert {name: planned[name] for name in ("new", "known", "refused")} == {
        name: done[name] for name in ("new", "known", "refused")}  # fmt: skip
    assert planned["would_fetch"] == done["fetched"]
    assert planned["would_delete"] == done["deleted"]
    assert planned["would_acknowledge"] == done["acknowledged"]


def test_one_source_that_fails_does_not_hold_up_the_others(tmp_path: Path) -> None:
    fill(tmp_path / "good.db", 3)
    (tmp_path / "bad.db").write_bytes(b"SQLite format 3\0" + b"x" * 4096)
    said = call(pull, tmp_path / "bad.db", tmp_path / "gone.db", tmp_path / "good.db", "--into", tmp_path / "inbox",
                code=NOT_WHOLE)  # fmt: skip
    assert "ENDED EARLY" in said.output
    assert "gone.db names no queue" in said.output
    assert "good.db: 3 new" in said.output


class Vanishing(BaseHTTPRequestHandler):
    """Has a file, and after the first looks at it has none."""

    looks = 0

    def do_GET(self) -> None:
        type(self).looks += 1
        there = self.looks <= 1
        self.send_response(200 if there else 404)
        self.send_header("Content-Length", "4096" if there else "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_secrets_are_never_said(tmp_path: Path, caplog: pytest.LogCaptureFixture, dry: tuple[str, ...]) -> None:
    """Whether a server is not there, or goes away: what its client says of it names the URL, password and all."""
    pytest.importorskip("aiohttp")
    fill(tmp_path / "q.db", 1)
    Vanishing.looks = 0
    with ThreadingHTTPServer(("127.0.0.1", 0), Vanishing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        urls = [f"http://user:hunter2@127.0.0.1:{port}/q.db?token=hunter3" for port in (9, server.server_port)]
        said = call(pull, *urls, tmp_path / "q.db", "--into", tmp_path / "inbox", *dry, code=NOT_WHOLE)
        server.shutdown()
    assert "user@127.0.0.1:9" in said.output
    assert "ENDED EARLY" in said.output
    assert "hunter" not in said.output + caplog.text


def test_sealed_pictures_are_opened_with_the_key_and_stay_sealed_without(tmp_path: Path) -> None:
    pytest.importorskip("nacl")
    key, other = tmp_path / "fleet", tmp_path / "other"
    generate_key(key, SEALING)
    generate_key(other, SEALING)
    ids = seal_queue(tmp_path / "q.db", tmp_path / "fleet.pub")
    inbox = tmp_path / "inbox"

    said = call(pull, tmp_path / "q.db", "--into", inbox)
    assert "3 frames stay sealed" in said.output
    assert json.loads(call(status, inbox, "--json").output)["sealed"] == 3
    wrong = call(unseal, inbox, "--key", other, code=1)
    assert "0 frames opened, 3 stay sealed" in wrong.output
    assert call(unseal, inbox, code=2).output.count("ALPOSE_FLEET_KEY")
    with pytest.raises(ConfigError):
        call(pull, tmp_path / "q.db", "--into", tmp_path / "never", "--key", tmp_path / "fleet.pub")
    assert not (tmp_path / "never").exists()
    call(pull, tmp_path / "q.db", "--into", inbox, "--key", other, code=NOT_WHOLE)

    (inbox / "frames" / ids[0][-2:] / f"{ids[0]}.jpg.sealed").write_bytes(b"damaged")
    half = call(unseal, inbox, "--key", key, code=1)
    assert "2 frames opened, 1 stay sealed" in half.output
    with Inbox(inbox) as opened:
        assert opened.sealed() == [ids[0]]
        for position in (0, -1):
            path = opened.image(ids[1], position)
            assert path is not None
            assert images.decode(path.read_bytes()).shape == (48, 64, 3)
        opened.lost(ids[0])
    call(pull, tmp_path / "q.db", "--into", inbox, env={"ALPOSE_FLEET_KEY": str(key)})
    with Inbox(inbox) as opened:
        assert opened.sealed() == []
    assert "0 frames opened, 0 stay sealed" in call(unseal, inbox, "--key", key).output


def test_a_box_that_holds_no_picture_is_not_put_beside_the_others(tmp_path: Path) -> None:
    """Anybody can seal to a public key."""
    pytest.importorskip("nacl")
    generate_key(tmp_path / "fleet", SEALING)
    with Queue(tmp_path / "q.db") as queue:
        queue.add_bundle(BUNDLE, "driver", {"skeleton": LSP.to_json()})
        box = sealer(tmp_path / "fleet.pub")(b"#!/bin/sh")
        queue.put(make_record(queue, np.random.default_rng(0)),
                  [Picture.of(box, width=64, height=48, captured_ns=1, sealed=True)])  # fmt: skip
    said = call(pull, tmp_path / "q.db", "--into", tmp_path / "inbox", "--key", tmp_path / "fleet", code=NOT_WHOLE)
    assert "neither JPEG nor PNG" in said.output
    assert not list((tmp_path / "inbox").rglob("*.jpg"))


def test_status_has_a_row_a_device_and_lists_what_was_refused(tmp_path: Path) -> None:
    fill(tmp_path / "a.db", 3, device="car-1")
    fill(tmp_path / "b.db", 2, device="car-2", seed=1)
    with closing(sqlite3.connect(tmp_path / "b.db")) as db, db:
        db.execute(
            "UPDATE record SET manifest = replace(manifest, 'car-2', 'car-3') WHERE seq = (SELECT min(seq) FROM record)"
        )
    inbox = tmp_path / "inbox"
    call(pull, tmp_path, "--into", inbox)
    rows = [line.split() for line in call(status, inbox).output.splitlines()]
    assert ["car-1", "3", "3", "0", "3"] in [row[:5] for row in rows]
    assert ["all", "4", "4", "0", "4"] in [row[:5] for row in rows]
    value = json.loads(call(status, inbox, "--json").output)
    assert [row["device"] for row in value["devices"]] == ["car-1", "car-2"]
    assert "sha256" in value["refused"][0]["problem"]
    with pytest.raises(DataNotFoundError):
        call(status, tmp_path / "nothing")


def test_a_terminal_is_not_steered_by_what_a_record_says() -> None:
    assert plain("a\x1b[2J\nb\u202e") == "a�[2J�b�"
