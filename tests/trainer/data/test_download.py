from __future__ import annotations

import hashlib
import io
import subprocess
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import cast

import pytest

from alpose.runtime.errors import ConfigError, DataError, DataNotFoundError
from alpose.runtime.io import file_sha256
from alpose.trainer.data.catalog import find
from alpose.trainer.data.download import (
    SOURCES,
    DownloadError,
    Source,
    download,
    fetch,
    images_sha256,
    unpack,
)
from alpose.trainer.data.records import inside


@dataclass
class Site:
    """What the test server serves and how it misbehaves."""

    address: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    drop_after: list[int] = field(default_factory=list)
    """One entry per answer: cut the connection after so many bytes."""
    ranges: bool = True
    status: int | None = None
    asked: list[str | None] = field(default_factory=list)
    """The Range header of every request."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    site: Site


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        site = cast(_Server, self.server).site
        wanted = self.headers.get("Range")
        site.asked.append(wanted)
        content = site.files.get(self.path)
        if site.status is not None or content is None:
            self.send_error(site.status or 404)
            return
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and site.ranges else 0
        if start >= len(content) and start:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        end = start + site.drop_after.pop(0) if site.drop_after else len(content)
        self.wfile.write(content[start:end])

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def site() -> Iterator[Site]:
    server = _Server(("127.0.0.1", 0), _Handler)
    server.site = Site(address=f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield server.site
    server.shutdown()
    server.server_close()
    thread.join(timeout=5)


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


FILES = {"joints.mat": b"joints", "images/im0001.jpg": b"one", "images/im0002.jpg": b"two"}


def little_source(site: Site, files: dict[str, bytes] = FILES) -> Source:
    """A source like LSP's, with the hashes of what FILES holds."""
    site.files["/research/lsp_dataset.zip"] = zipped(files)
    names = ("im0001.jpg", "im0002.jpg")
    listing = "".join(f"{hashlib.sha256(FILES[f'images/{name}']).hexdigest()}  {name}\n" for name in names)
    return replace(
        SOURCES["lsp"],
        archives=(f"{site.address}/research/lsp_dataset.zip",),
        joints_sha256=hashlib.sha256(FILES["joints.mat"]).hexdigest(),
        images_sha256=hashlib.sha256(listing.encode()).hexdigest(),
    )


# --- downloading -------------------------------------------------------------------------------------------


def test_a_dropped_connection_is_continued(site: Site, tmp_path: Path) -> None:
    site.files["/x.zip"] = bytes(range(256)) * 40
    site.drop_after = [1000, 2000]
    download(f"{site.address}/x.zip", tmp_path / "x.zip", pause_s=0)
    assert (tmp_path / "x.zip").read_bytes() == site.files["/x.zip"]
    assert site.asked == [None, "bytes=1000-", "bytes=3000-"]
    assert not (tmp_path / "x.zip.part").exists()


def test_a_server_that_cannot_continue_starts_again(site: Site, tmp_path: Path) -> None:
    site.files["/x.zip"] = b"abcdefgh" * 100
    site.ranges = False
    (tmp_path / "x.zip.part").write_bytes(b"abc")
    download(f"{site.address}/x.zip", tmp_path / "x.zip", pause_s=0)
    assert (tmp_path / "x.zip").read_bytes() == site.files["/x.zip"]


def test_a_part_that_is_complete_or_too_long(site: Site, tmp_path: Path) -> None:
    site.files["/x.zip"] = b"abcdefgh"
    (tmp_path / "x.zip.part").write_bytes(b"abcdefgh")
    download(f"{site.address}/x.zip", tmp_path / "x.zip", pause_s=0)
    assert (tmp_path / "x.zip").read_bytes() == b"abcdefgh"
    (tmp_path / "y.zip.part").write_bytes(b"of another file")
    download(f"{site.address}/x.zip", tmp_path / "y.zip", pause_s=0)
    assert (tmp_path / "y.zip").read_bytes() == b"abcdefgh"


def test_tries_are_bounded_and_the_part_is_kept(site: Site, tmp_path: Path) -> None:
    site.files["/x.zip"] = b"abcdefgh" * 100
    site.drop_after = [10] * 10
    with pytest.raises(DownloadError, match=r"ended after 30 of 800 bytes; 30 bytes are kept"):
        download(f"{site.address}/x.zip", tmp_path / "x.zip", attempts=3, pause_s=0)
    assert len(site.asked) == 3
    assert not (tmp_path / "x.zip").exists()


@pytest.mark.parametrize(("status", "tries"), [(404, 1), (403, 1), (503, 3)])
def test_only_passing_errors_are_tried_again(site: Site, tmp_path: Path, status: int, tries: int) -> None:
    site.status = status
    with pytest.raises(DownloadError, match=str(status)):
        download(f"{site.address}/x.zip", tmp_path / "x.zip", attempts=3, pause_s=0)
    assert len(site.asked) == tries


def test_only_web_addresses(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="only http and https"):
        download("file:///etc/passwd", tmp_path / "x")


# --- fetching a dataset ------------------------------------------------------------------------------------


def test_fetch_places_checks_and_cleans_up(site: Site, tmp_path: Path) -> None:
    source, lines = little_source(site), list[str]()
    folder = fetch(source, tmp_path / "data", report=lines.append, pause_s=0)
    assert folder == tmp_path / "data" / "lsp"
    assert {name: (folder / name).read_bytes() for name in FILES} == FILES
    assert not list((tmp_path / "data" / ".downloads").iterdir())
    assert not list((tmp_path / "data").glob(".unpack*"))
    fetch(source, tmp_path / "data", report=lines.append, pause_s=0)
    assert len(site.asked) == 1, "what is complete is left alone"
    assert "already complete" in lines[-1]


def test_fetch_unwraps_one_more_folder(site: Site, tmp_path: Path) -> None:
    source = little_source(site, {f"lsp_dataset/{name}": content for name, content in FILES.items()})
    assert (fetch(source, tmp_path, pause_s=0) / "joints.mat").read_bytes() == b"joints"


def test_fetch_uses_an_archive_that_lies_there(site: Site, tmp_path: Path) -> None:
    source = little_source(site)
    (tmp_path / ".downloads").mkdir()
    (tmp_path / ".downloads" / "lsp_dataset.zip").write_bytes(site.files["/research/lsp_dataset.zip"])
    fetch(source, tmp_path, pause_s=0)
    assert not site.asked


def test_fetch_refuses_a_wrong_hash_and_says_what_to_place_where(site: Site, tmp_path: Path) -> None:
    source = little_source(site, FILES | {"joints.mat": b"other"})
    with pytest.raises(DownloadError) as caught:
        fetch(source, tmp_path, pause_s=0)
    message = str(caught.value)
    assert "joints.mat: sha256" in message
    assert "expected" in message
    assert f"{tmp_path}/lsp/images/im0001.jpg" in message
    assert f"data verify --dataset lsp --data-root {tmp_path}" in message
    assert not (tmp_path / "lsp").exists()
    assert not (tmp_path / ".downloads" / "lsp_dataset.zip").exists(), "or the next try would use it again"


def test_fetch_refuses_an_error_page(site: Site, tmp_path: Path) -> None:
    source = little_source(site)
    site.files["/research/lsp_dataset.zip"] = b"<html>Moved</html>"
    with pytest.raises(DownloadError, match=r"neither a zip nor a tar.*<html>"):
        fetch(source, tmp_path, pause_s=0)


def test_fetch_refuses_a_member_that_leaves_the_folder(site: Site, tmp_path: Path) -> None:
    source = little_source(site, FILES | {"../evil": b"evil"})
    with pytest.raises(DownloadError, match=r"'\.\./evil' leaves the folder"):
        fetch(source, tmp_path / "data", pause_s=0)
    assert not list(tmp_path.rglob("evil"))


def test_fetch_says_what_to_do_when_nobody_answers(tmp_path: Path) -> None:
    source = replace(SOURCES["lsp"], archives=("http://127.0.0.1:9/lsp_dataset.zip",))
    with pytest.raises(DownloadError, match=r"could not download http(.|\n)*Place the files so that"):
        fetch(source, tmp_path, attempts=1)


def test_fetch_from_a_mirror_and_in_parts(site: Site, tmp_path: Path) -> None:
    site.files["/copy/val2017.zip"] = zipped({"val2017/1.jpg": b"1"})
    folder = fetch(SOURCES["coco"], tmp_path, mirror=f"{site.address}/copy/", only=("val2017.zip",), pause_s=0)
    assert (folder / "val2017" / "1.jpg").exists()
    fetch(SOURCES["coco"], tmp_path, mirror=f"{site.address}/copy", only=("val2017.zip",), pause_s=0)
    assert len(site.asked) == 1
    with pytest.raises(ConfigError, match=r"no archive test2017\.zip; it has"):
        fetch(SOURCES["coco"], tmp_path, only=("test2017.zip",))


# --- archives ----------------------------------------------------------------------------------------------


def tarred(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for member, content in members:
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def test_tar_unpacks_files(tmp_path: Path) -> None:
    unpack(tarred(tmp_path / "a.tar.gz", (tarfile.TarInfo("images/1.jpg"), b"one")), tmp_path / "out")
    assert (tmp_path / "out" / "images" / "1.jpg").read_bytes() == b"one"


@pytest.mark.parametrize("name", ["../evil", "/evil", "images/../../evil"])
def test_tar_members_that_leave_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match="leaves the folder"):
        unpack(tarred(tmp_path / "a.tar.gz", (tarfile.TarInfo(name), b"evil")), tmp_path / "out")
    assert not list(tmp_path.rglob("evil"))


def test_tar_links_are_refused(tmp_path: Path) -> None:
    link = tarfile.TarInfo("images")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc"
    with pytest.raises(DataError, match="not a plain file"):
        unpack(tarred(tmp_path / "a.tar.gz", (link, b"")), tmp_path)


def test_zip_links_are_refused(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("images")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(link, "/etc")
    with pytest.raises(DataError, match="is a link"):
        unpack(tmp_path / "a.zip", tmp_path / "out")


def test_damaged_archives_are_data_errors(tmp_path: Path) -> None:
    content = bytearray(zipped({"joints.mat": b"x" * 1000}))
    content[100] ^= 0xFF
    (tmp_path / "a.zip").write_bytes(content)
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match="damaged"):
        unpack(tmp_path / "a.zip", tmp_path / "out")
    whole = tarred(tmp_path / "b.tar.gz", (tarfile.TarInfo("a"), bytes(range(256)) * 500)).read_bytes()
    (tmp_path / "b.tar.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"damaged|neither"):
        unpack(tmp_path / "b.tar.gz", tmp_path / "out")


def test_an_archive_larger_than_the_disk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.zip").write_bytes(zipped(FILES))
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 3})())
    with pytest.raises(OSError, match="has 3 left"):
        unpack(tmp_path / "a.zip", tmp_path)


def test_inside_keeps_plain_names(tmp_path: Path) -> None:
    assert inside(tmp_path, "images/a b.jpg", tmp_path / "x.json") == tmp_path / "images" / "a b.jpg"
    assert inside(tmp_path, "a..b.jpg", tmp_path / "x.json") == tmp_path / "a..b.jpg"
    with pytest.raises(DataError, match=r"x\.json: the name"):
        inside(tmp_path, "a\0b", tmp_path / "x.json")


def test_images_hash_is_that_of_sha256sum(tmp_path: Path) -> None:
    for name in ("im0002.jpg", "im0001.jpg", "other.png"):
        (tmp_path / name).write_bytes(name.encode())
    environment = {"LC_ALL": "C", "PATH": "/usr/bin:/bin"}
    listing = subprocess.check_output("sha256sum *.jpg", shell=True, cwd=tmp_path, env=environment)
    assert images_sha256(tmp_path) == hashlib.sha256(listing).hexdigest()


# --- where datasets lie ------------------------------------------------------------------------------------


def place(root: Path, *files: str) -> Path:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    return root


def test_find_below_the_root_and_as_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place(tmp_path, "lsp/joints.mat", "lsp/images/im0001.jpg", "lspet/joints.mat", "lspet/images/im00001.jpg")
    place(tmp_path, "mpii-mini/annot/valid.json", "my-coco/annotations/person_keypoints.json")
    assert find("lsp", tmp_path) == tmp_path / "lsp"
    assert find("lspet", tmp_path / "lspet") == tmp_path / "lspet"
    assert find("mpii", tmp_path / "mpii-mini") == tmp_path / "mpii-mini"
    assert find("coco", tmp_path / "my-coco") == tmp_path / "my-coco"
    with pytest.raises(DataNotFoundError, match="the dataset lsp is not in"):
        find("lsp", tmp_path / "lspet")
    monkeypatch.setenv("ALPOSE_DATA", str(tmp_path))
    assert find("lspet", None) == tmp_path / "lspet"
    with pytest.raises(DataNotFoundError):
        find("lspet", tmp_path / "lsp")  # what is given wins over the environment


def test_find_says_what_to_place_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataNotFoundError) as caught:
        find("coco", tmp_path)
    message = str(caught.value)
    assert f"{tmp_path}/coco/annotations/person_keypoints_val2017.json" in message
    assert f"{tmp_path}/.downloads/val2017.zip" in message
    assert "alpose-train data fetch --dataset coco" in message
    monkeypatch.delenv("ALPOSE_DATA", raising=False)
    with pytest.raises(ConfigError, match="--data-root"):
        find("coco", None)


@pytest.mark.real_data
def test_known_hashes_are_those_of_the_real_files(data_root: Path) -> None:
    for name, source in ((name, SOURCES[name]) for name in ("lsp", "lspet")):
        if not (data_root / name).is_dir():
            pytest.skip(f"{data_root / name} does not exist")
        assert file_sha256(data_root / name / "joints.mat") == source.joints_sha256
        assert images_sha256(data_root / name / "images") == source.images_sha256


def _encrypted() -> bytes:
    content = bytearray(zipped({"a.txt": b"x" * 100}))
    for start in (content.find(b"PK\x03\x04") + 6, content.find(b"PK\x01\x02") + 8):
        content[start] |= 1
    return bytes(content)


def _unknown_compression() -> bytes:
    content = bytearray(zipped({"a.txt": b"x" * 100}))
    for start in (content.find(b"PK\x03\x04") + 8, content.find(b"PK\x01\x02") + 10):
        content[start] = 9  # deflate64
    return bytes(content)


def _tar(kind: str, cut: float) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=f"w:{kind}") as archive:  # type: ignore[call-overload]
        info = tarfile.TarInfo("a.bin")
        noise = b"".join(hashlib.sha256(bytes([n])).digest() for n in range(200))
        info.size = len(noise)
        archive.addfile(info, io.BytesIO(noise))
    content = bytearray(buffer.getvalue()[: int(cut * len(buffer.getvalue()))])
    content[len(content) // 2] ^= 0xFF
    return bytes(content)


@pytest.mark.parametrize(
    "content",
    [_encrypted(), _unknown_compression(), *(_tar(kind, cut) for kind in ("gz", "xz", "bz2") for cut in (0.6, 1.0))],
)
def test_an_archive_that_is_damaged_encrypted_or_of_an_unusual_kind_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "odd.archive").write_bytes(content)
    with pytest.raises(DataError, match=r"odd\.archive (cannot be unpacked|is neither)"):
        unpack(tmp_path / "odd.archive", tmp_path / "out")
