from __future__ import annotations

import hashlib
import importlib.util
import json
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alpose.runtime.bundle import Bundle, check_files
from alpose.runtime.errors import BundleError, ConfigError, DataNotFoundError, MissingExtraError, SignatureError
from alpose.runtime.signature import Signature, generate_key, public_key_of, sign, verify

needs_pynacl = pytest.mark.skipif(importlib.util.find_spec("nacl") is None, reason="pynacl is not installed")
MANIFEST = b'{"kind": "alpose bundle"}\n'


@pytest.fixture
def key(tmp_path: Path) -> Path:
    generate_key(tmp_path / "key")
    return tmp_path / "key"


@needs_pynacl
def test_what_a_key_signed_its_public_half_verifies(key: Path) -> None:
    public = (key.parent / "key.pub").read_text().strip()

    assert verify(MANIFEST, sign(MANIFEST, key), public) == public
    assert verify(MANIFEST, sign(MANIFEST, key), key.with_name("key.pub")) == public
    assert verify(MANIFEST, sign(MANIFEST, key), f" {public.upper()}\n") == public


@needs_pynacl
def test_key_files_are_hex_text_and_the_private_one_is_private(tmp_path: Path) -> None:
    public = generate_key(tmp_path / "key")

    assert (tmp_path / "key.pub").read_text() == f"{public}\n"
    private = (tmp_path / "key").read_text()
    assert len(private) == 129
    assert bytes.fromhex(private)[32:].hex() == public
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600


@needs_pynacl
def test_a_known_signature() -> None:
    """RFC 8032, section 7.1, test 2: another implementation made it."""
    public = "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c"
    signature = (
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
        "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
    )
    said = Signature(hashlib.sha256(b"\x72").hexdigest(), public, signature).to_bytes()

    assert verify(b"\x72", said, public) == public


@needs_pynacl
def test_a_key_is_never_written_over(tmp_path: Path) -> None:
    generate_key(tmp_path / "key")
    before = (tmp_path / "key").read_text()

    with pytest.raises(ConfigError, match=r"key exists: a key is never written over"):
        generate_key(tmp_path / "key")
    (tmp_path / "other.pub").write_text("precious")
    with pytest.raises(ConfigError, match=r"other\.pub exists"):
        generate_key(tmp_path / "other")
    assert (tmp_path / "key").read_text() == before
    assert not (tmp_path / "other").exists()
    with pytest.raises(DataNotFoundError, match="make the folder of the key first"):
        generate_key(tmp_path / "no" / "key")


@needs_pynacl
def test_every_refusal_has_its_own_message(key: Path, tmp_path: Path) -> None:
    public, other = (key.parent / "key.pub").read_text().strip(), generate_key(tmp_path / "other")
    good = sign(MANIFEST, key)
    forged = Signature(hashlib.sha256(b"evil").hexdigest(), public, Signature.from_bytes(good).signature).to_bytes()
    damaged = good[:-2] + (b"1" if good[-2:-1] == b"0" else b"0") + b"\n"
    refusals: dict[str, tuple[bytes, bytes | None, str]] = {
        "is unsigned": (MANIFEST, None, public),
        f"is signed by key {public[:8]}.*only trusts key {other[:8]}": (MANIFEST, good, other),
        "was changed after it was signed": (MANIFEST + b" ", good, public),
        "the signature is wrong": (b"evil", forged, public),
        r"bundle\.sig is damaged, its checksum differs": (MANIFEST, damaged, public),
        r"bundle\.sig is no signature file": (MANIFEST, b"", public),
    }  # fmt: skip
    for message, (manifest, signature, trusted) in refusals.items():
        with pytest.raises(SignatureError, match=message):
            verify(manifest, signature, trusted)


@needs_pynacl
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda key: key.with_name("key.pub"), "is a public key: signing needs the private one"),
        (lambda key: write(key.with_name("text"), "hello"), "is no private key: 128 hex digits"),
        (lambda key: write(key.with_name("bytes"), "\xff"), "cannot be read as a key"),
        (
            lambda key: write(key.with_name("mixed"), key.read_text()[:64] + "0" * 64),
            "two halves do not belong together",
        ),
        (
            lambda key: write(key.with_name("open"), key.read_text(), 0o640),
            r"read by others \(mode 0640\): run chmod 600",
        ),
    ],
)
def test_what_is_no_private_key_does_not_sign(make: Callable[[Path], Path], message: str, key: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        sign(MANIFEST, make(key))


def write(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_bytes(text.encode("latin-1"))
    path.chmod(mode)
    return path


def test_what_is_no_public_key_is_refused_before_anything_is_checked(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the public key is a private key"):
        public_key_of("ab" * 64)
    with pytest.raises(ConfigError, match="64 hex digits are wanted"):
        public_key_of("key")
    with pytest.raises(DataNotFoundError, match=r"key\.pub does not exist"):
        public_key_of("key.pub")
    with pytest.raises(ConfigError, match=r"key\.pub is no public key"):
        public_key_of(write(tmp_path / "key.pub", "ssh-ed25519 AAAA"))
    with pytest.raises(DataNotFoundError, match=r"nokey\.pub does not exist"):
        public_key_of(tmp_path / "nokey.pub")


SAID = Signature("12" * 32, "ab" * 32, "cd" * 64)


def test_a_signature_file_reads_back_as_it_was() -> None:
    assert Signature.from_bytes(SAID.to_bytes()) == SAID


@given(st.integers(0, len(SAID.to_bytes()) - 1), st.integers(1, 255))
def test_a_flipped_byte_of_a_signature_file_shows_without_a_key(place: int, mask: int) -> None:
    content = bytearray(SAID.to_bytes())
    content[place] ^= mask

    with pytest.raises(SignatureError, match=r"bundle\.sig is"):
        Signature.from_bytes(bytes(content))


def test_without_pynacl_nothing_passes_unchecked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "nacl.signing", None)

    for signature in (None, SAID.to_bytes()):
        with pytest.raises(MissingExtraError, match=r"pip install 'alpose\[crypto\]'"):
            verify(MANIFEST, signature, "ab" * 32)
    with pytest.raises(MissingExtraError, match="crypto"):
        generate_key(tmp_path / "key")
    with pytest.raises(MissingExtraError, match="crypto"):
        sign(MANIFEST, write(tmp_path / "key", "ab" * 64))
    assert not list(tmp_path.glob("*.pub"))


# --- whole folders. What is signed here is no manifest: a trusted key comes before any reading of it.


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "driver.alpose"
    folder.mkdir()
    content = json.dumps({"kind": "something else"}).encode()
    for name in ("model.onnx", "golden.npz", "card.html"):
        (folder / name).write_bytes(b"x")
    (folder / "bundle.json").write_bytes(content)
    (folder / "bundle.sha256").write_text(hashlib.sha256(content).hexdigest() + "\n")
    return folder


def change_manifest(folder: Path) -> None:
    content = (folder / "bundle.json").read_bytes() + b" "
    (folder / "bundle.json").write_bytes(content)
    (folder / "bundle.sha256").write_text(hashlib.sha256(content).hexdigest() + "\n")


@needs_pynacl
def test_a_configured_key_refuses_a_bundle_before_its_manifest_is_read(folder: Path, key: Path) -> None:
    trusted = key.with_name("key.pub")

    with pytest.raises(SignatureError, match=r"driver\.alpose: the bundle is unsigned"):
        Bundle.open(folder, trusted)
    assert {check.name: check.verdict for check in check_files(folder, trusted)}["bundle.sig"] == "FAILED"

    (folder / "bundle.sig").write_bytes(sign((folder / "bundle.json").read_bytes(), key))
    with pytest.raises(BundleError, match="kind must be 'alpose bundle', got 'something else'"):
        Bundle.open(folder, trusted)

    other = generate_key(folder.parent / "other")
    with pytest.raises(SignatureError, match=r"driver\.alpose: the bundle is signed by key"):
        Bundle.open(folder, other)

    change_manifest(folder)
    with pytest.raises(SignatureError, match=r"driver\.alpose: bundle\.json was changed after it was signed"):
        Bundle.open(folder, trusted)


@needs_pynacl
def test_a_stale_signature_is_noticed_also_without_a_key(folder: Path, key: Path) -> None:
    (folder / "bundle.sig").write_bytes(sign((folder / "bundle.json").read_bytes(), key))
    change_manifest(folder)

    bad = {check.name for check in check_files(folder) if check.problem}

    assert bad == {"bundle.sig", "bundle.json"}
