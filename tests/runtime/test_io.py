"""Files are whole or not there, and every stored dataclass is read back, or refused with its file and field."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from alpose.runtime import io
from alpose.runtime.errors import ConfigError, DataError, DataNotFoundError
from alpose.runtime.io import from_json, parse_json, read_json, to_json, write_atomically, write_folder_atomically


@dataclass(frozen=True, slots=True)
class Inner:
    """A part."""

    share: float
    name: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"share must lie in [0, 1], got {self.share}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outer:
    """Every kind of field that a stored dataclass has."""

    kind: Literal["a", "b"]
    parts: tuple[Inner, ...]
    size: tuple[int, int]
    counts: Mapping[str, int | None]
    flag: bool
    place: Path
    either: int | tuple[int, ...] = 3
    free: dict[str, Any] = field(default_factory=dict)


WHOLE: dict[str, Any] = {
    "kind": "a", "parts": [{"share": 0.5, "name": None}, {"share": 1, "name": "x"}], "size": [3, 4],
    "counts": {"lsp": 1, "mpii": None}, "flag": True, "place": "there/it is", "either": [1, 2], "free": {"a": [1]},
}  # fmt: skip


def test_a_dataclass_goes_to_json_and_back() -> None:
    made = from_json(Outer, WHOLE)
    assert made.parts == (Inner(0.5), Inner(1, "x"))
    assert (made.size, made.either, made.place) == ((3, 4), (1, 2), Path("there/it is"))
    assert to_json(made) == WHOLE
    assert from_json(Outer, {key: value for key, value in WHOLE.items() if key not in ("either", "free")}).either == 3


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("kind", "c", "file.kind must be one of a, b, got 'c'"),
        ("parts", {}, "file.parts must be a list"),
        ("parts", [{"share": "x"}], r"file.parts\[0\].share must be a number, got 'x'"),
        ("parts", [{"share": 2.0}], r"file.parts\[0\]: share must lie in \[0, 1\], got 2.0"),
        ("parts", [{"share": 0.0}, {}], r"file.parts\[1\]: missing share"),
        ("parts", [{"share": 0.0, "more": 1}], r"file.parts\[0\]: unknown more"),
        ("parts", [3], r"file.parts\[0\]: expected an object"),
        ("size", [1], "file.size must be a list of 2"),
        ("size", [1, True], r"file.size\[1\] must be a whole number"),
        ("counts", {"lsp": 0.5}, r"file.counts.lsp must be a whole number, got '0.5' \(or null\)"),
        ("counts", [], "file.counts must be an object"),
        ("flag", 1, "file.flag must be true or false"),
        ("place", 3, "file.place must be"),
        ("either", "x", r"file.either must be a whole number, got 'x' or file.either must be a list"),
    ],
)
def test_a_wrong_value_is_refused_with_its_place(key: str, value: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        from_json(Outer, WHOLE | {key: value}, "file")


def test_what_is_not_an_object_is_refused() -> None:
    with pytest.raises(DataError, match="Outer: expected an object"):
        from_json(Outer, [1])


def test_arrays_and_numpy_numbers_are_plain_values() -> None:
    assert to_json({"a": np.arange(3), 2: np.float32(0.5), "c": (Path("x"), None)}) == {
        "a": [0, 1, 2],
        "2": 0.5,
        "c": ["x", None],
    }


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_text_in_any_unicode_encoding_is_read(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.json").write_bytes('{"Größe": 1}'.encode(encoding))
    assert read_json(tmp_path / "a.json") == {"Größe": 1}


@pytest.mark.parametrize("content", [b"{", b"\xff\xff{}", b"[" * 100_000])
def test_a_damaged_file_is_refused_with_its_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.json is not readable as JSON"):
        read_json(tmp_path / "a.json")
    with pytest.raises(DataNotFoundError, match=r"b\.json does not exist"):
        read_json(tmp_path / "b.json")


@pytest.mark.parametrize(("content", "said"), [
    (b'{"a": 1, "a": 2}', "a key stands twice"), (b"NaN", "not a JSON number"), (b"1e999", "beyond what a float holds"),
    (b"9223372036854775808", "does not fit 64 bits"), (b"\xff", "not readable"), (b"[" * 100_000, "not readable"),
])  # fmt: skip
def test_strict_json_refuses_what_readers_understand_differently(content: bytes, said: str) -> None:
    with pytest.raises(DataError, match=said):
        parse_json(content)


def test_json_that_cannot_be_said_leaves_the_old_file(tmp_path: Path) -> None:
    path = io.write_json(tmp_path / "deep" / "a.json", {"a": 1})
    assert path.read_bytes() == b'{\n "a": 1\n}\n'
    for value in (float("nan"), object()):
        with pytest.raises(DataError, match="not plain JSON"):
            io.write_json(path, {"a": value})
    assert read_json(path) == {"a": 1}
    assert [entry.name for entry in path.parent.iterdir()] == ["a.json"]


def test_a_file_is_on_the_disk_before_it_has_its_name_and_the_name_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    fsync, replace = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        events.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    def renamed(source: Path, target: Path) -> None:
        events.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    write_atomically(tmp_path / "a", b"1")
    assert events == ["file", "rename", "folder"]


def test_an_interrupted_writer_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a", b"old")

    def interrupted() -> None:
        with io.replacing(tmp_path / "a") as temporary:
            temporary.write_bytes(b"ne")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()} == {"a": b"old"}


def test_what_killed_writers_left_is_removed_when_it_is_old(tmp_path: Path) -> None:
    old, young, other = (tmp_path / name for name in (".a.1.tmp", ".a.2.tmp", ".b.1.tmp"))
    for path in (old, young, other):
        path.write_bytes(b"x")
    for path in (old, other):
        os.utime(path, (time.time() - 7200,) * 2)
    io.remove_abandoned(tmp_path, "a")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".a.2.tmp", ".b.1.tmp"]


def test_a_folder_replaces_another_only_on_request(tmp_path: Path) -> None:
    write_folder_atomically(tmp_path / "f", {"a": b"1", "b": b"2"})
    with pytest.raises(ConfigError, match="nothing was replaced"):
        write_folder_atomically(tmp_path / "f", {"a": b"3"})
    assert (tmp_path / "f" / "a").read_bytes() == b"1"
    write_folder_atomically(tmp_path / "f", {"a": b"3"}, replace=True)
    assert [entry.name for entry in (tmp_path / "f").iterdir()] == ["a"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["f"]
