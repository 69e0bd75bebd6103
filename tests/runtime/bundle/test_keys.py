from __future__ import annotations

import hashlib
import importlib.util
import json
import stat
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alpose.runtime.bundle import Bundle, check_files
from alpose.runtime.bundle.keys import (
    BOX_BYTES,
    SEALING,
    SIGNING,
    KeyKind,
    Signature,
    generate_key,
    opener,
    public_key_of,
    sealer,
    sign,
    verify,
)
from alpose.runtime.errors import BundleError, ConfigError, DataNotFoundError, MissingExtraError, SignatureError

from ...fakes import disk

needs_pynacl = pytest.mark.skipif(importlib.util.find_spec("nacl") is None, reason="pynacl is not installed")
both_kinds = pytest.mark.parametrize("kind", [SIGNING, SEALING], ids=["signing", "sealing"])
MANIFEST = b'{"kind": "alpose bundle"}\n'


@pytest.fixture
def key(tmp_path: Path) -> Path:
    generate_key(tmp_path / "key")
    return tmp_path / "key"


@pytest.fixture
def fleet(tmp_path: Path) -> Path:
    generate_key(tmp_path / "fleet", SEALING)
    return tmp_path / "fleet"


def write(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_bytes(text.encode("latin-1"))
    path.chmod(mode)
    return path


def use(path: Path, kind: KeyKind) -> object:
    """Use a private key file for what it is for."""
    return sign(MANIFEST, path) if kind is SIGNING else opener(path)


# --- key files of both kinds


@needs_pynacl
@both_kinds
def test_a_key_pair_is_hex_text_and_the_private_file_is_private(kind: KeyKind, tmp_path: Path) -> None:
    public, path = generate_key(tmp_path / "key", kind), tmp_path / "key"

    assert path.with_name("key.pub").read_text() == f"{public}\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    private = path.read_text()
    assert private.startswith(kind.word)
    digits = private.removeprefix(kind.word).strip()
    assert len(digits) == 128
    assert digits[64:] == public.removeprefix(kind.word)
    for spelling in (public, f"  {public.upper()}\n", path.with_name("key.pub"), str(path.with_name("key.pub"))):
        assert public_key_of(spelling, kind) == digits[64:]


@needs_pynacl
@both_kinds
def test_a_key_is_never_written_over(kind: KeyKind, tmp_path: Path) -> None:
    generate_key(tmp_path / "key", kind)
    before = (tmp_path / "key").read_text()

    with pytest.raises(ConfigError, match=r"key exists: a key is never written over"):
        generate_key(tmp_path / "key", kind)
    (tmp_path / "other.pub").write_text("precious")
    with pytest.raises(ConfigError, match=r"other\.pub exists"):
        generate_key(tmp_path / "other", kind)
    assert (tmp_path / "key").read_text() == before
    assert not (tmp_path / "other").exists()


@needs_pynacl
@both_kinds
@pytest.mark.parametrize("free_bytes", [0, 4096])
def test_on_a_full_disk_neither_half_of_a_pair_is_left(kind: KeyKind, tmp_path: Path, free_bytes: int) -> None:
    (tmp_path / "full").mkdir()
    with disk.mounted(tmp_path / "full", "size=32k"):
        (tmp_path / "full" / "keys").mkdir()
        disk.fill(tmp_path / "full", free_bytes=free_bytes)
        with pytest.raises(OSError, match=r"No space left on device: .*key"):
            generate_key(tmp_path / "full" / "keys" / "key", kind)
        assert not list((tmp_path / "full" / "keys").iterdir())


@needs_pynacl
def test_a_folder_that_is_missing_is_made_for_a_key(tmp_path: Path) -> None:
    generate_key(tmp_path / "some" / "where" / "key")
    assert stat.S_IMODE((tmp_path / "some" / "where" / "key").stat().st_mode) == 0o600


@needs_pynacl
@both_kinds
def test_only_an_undamaged_private_key_of_its_kind_is_used(kind: KeyKind, tmp_path: Path) -> None:
    generate_key(tmp_path / "key", kind)
    other = SIGNING if kind is SEALING else SEALING
    generate_key(tmp_path / "other", other)
    text = (tmp_path / "key").read_text().strip()
    flipped = text[:-1] + ("0" if text[-1] != "0" else "1")
    refused = {
        tmp_path / "key.pub": "is a public key: .* needs the private one",
        tmp_path / "other": f"is a key for {other.purpose}.*Make one for {kind.purpose}",
        write(tmp_path / "text", "hello"): f"is not a key for {kind.purpose}: ",
        write(tmp_path / "bytes", "\xff"): "cannot be read as a key",
        write(tmp_path / "mixed", flipped): "two halves do not belong together",
        write(tmp_path / "open", text, 0o640): r"read by others \(mode 0640\): run chmod 600",
    }
    for path, message in refused.items():
        with pytest.raises(ConfigError, match=message):
            use(path, kind)
    with pytest.raises(DataNotFoundError):
        use(tmp_path / "nowhere", kind)


@pytest.mark.parametrize(
    ("source", "kind", "message"),
    [
        ("ab" * 64, SIGNING, "the public key is a private key: give the public one alone"),
        ("x25519 " + "ab" * 64, SEALING, "the seal key is a private key: give the public one alone"),
        ("key", SIGNING, "hex digits are expected, 64 of a public key"),
        ("x25519 12", SEALING, "is not a key for sealing"),
        ("", SEALING, "is not a key for sealing"),
        ("ab" * 32, SEALING, "is a key for signing bundles: frames sealed to it could never be opened"),
        ("ab" * 64, SEALING, "is a key for signing bundles: frames sealed to it could never be opened"),
        ("x25519 " + "ab" * 32, SIGNING, "is a key for sealing frames. Make one for signing bundles"),
    ],
)
def test_what_is_not_a_public_key_of_its_kind_is_refused(source: str, kind: KeyKind, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        public_key_of(source, kind)


@both_kinds
def test_a_public_key_file_must_exist_and_hold_a_key(kind: KeyKind, tmp_path: Path) -> None:
    with pytest.raises(DataNotFoundError, match=r"key\.pub does not exist"):
        public_key_of("key.pub", kind)
    with pytest.raises(DataNotFoundError, match="nokey does not exist"):
        public_key_of(tmp_path / "nokey", kind)
    with pytest.raises(ConfigError, match=r"key\.pub is not a key for"):
        public_key_of(write(tmp_path / "key.pub", "ssh-ed25519 AAAA"), kind)


def test_without_pynacl_nothing_passes_unchecked_or_unsealed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [*sys.modules]:
        if name.split(".")[0] == "nacl":
            monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "nacl", None)

    for signature in (None, SAID.to_bytes()):
        with pytest.raises(MissingExtraError, match=r"pip install 'alpose\[crypto\]'"):
            verify(MANIFEST, signature, "ab" * 32)
    for kind in (SIGNING, SEALING):
        with pytest.raises(MissingExtraError, match=r"pynacl.*alpose\[crypto\]"):
            generate_key(tmp_path / "key", kind)
    with pytest.raises(MissingExtraError, match="crypto"):
        sign(MANIFEST, write(tmp_path / "key", "ab" * 64))
    with pytest.raises(MissingExtraError, match="sealing and opening frames needs pynacl"):
        sealer("x25519 " + "ab" * 32)
    assert not list(tmp_path.glob("*.pub"))


# --- signatures


@needs_pynacl
def test_what_a_key_signed_its_public_half_verifies(key: Path) -> None:
    public = key.with_name("key.pub").read_text().strip()

    for trusted in (public, key.with_name("key.pub"), f" {public.upper()}\n"):
        assert verify(MANIFEST, sign(MANIFEST, key), trusted) == public


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
        r"bundle\.sig is not a signature file": (MANIFEST, b"", public),
    }  # fmt: skip
    for message, (manifest, signature, trusted) in refusals.items():
        with pytest.raises(SignatureError, match=message):
            verify(manifest, signature, trusted)


SAID = Signature("12" * 32, "ab" * 32, "cd" * 64)


def test_a_signature_file_reads_back_as_it_was() -> None:
    assert Signature.from_bytes(SAID.to_bytes()) == SAID


@given(st.integers(0, len(SAID.to_bytes()) - 1), st.integers(1, 255))
def test_a_flipped_byte_of_a_signature_file_shows_without_a_key(place: int, mask: int) -> None:
    content = bytearray(SAID.to_bytes())
    content[place] ^= mask

    with pytest.raises(SignatureError, match=r"bundle\.sig is"):
        Signature.from_bytes(bytes(content))


# --- sealed pictures


@needs_pynacl
def test_the_private_key_opens_what_the_public_one_sealed(fleet: Path) -> None:
    public = fleet.with_name("fleet.pub")
    seal, unseal = sealer(public), opener(fleet)
    picture = bytes(range(256)) * 20
    box = seal(picture)

    assert len(box) == len(picture) + BOX_BYTES
    assert picture[:16] not in box
    assert unseal(box) == picture
    assert unseal(sealer(public.read_text())(picture)) == picture
    assert seal(picture) != box  # each box has a key of its own
    assert unseal(seal(b"")) == b""


def test_a_box_made_by_its_specification_opens(tmp_path: Path) -> None:
    """So that a server needs no alpose to read them: any libsodium does."""
    pytest.importorskip("nacl")
    from nacl.bindings import crypto_box_afternm, crypto_box_beforenm, crypto_generichash_blake2b_salt_personal
    from nacl.public import PrivateKey

    private = PrivateKey(bytes(range(32)))
    public = bytes(private.public_key)
    throwaway = PrivateKey(bytes(range(32, 64)))
    # https://doc.libsodium.org/public-key_cryptography/sealed_boxes: a throwaway key, then a box; its nonce hashes both keys.
    nonce = crypto_generichash_blake2b_salt_personal(bytes(throwaway.public_key) + public, digest_size=24)
    shared = crypto_box_beforenm(public, bytes(throwaway))
    box = bytes(throwaway.public_key) + crypto_box_afternm(b"a picture", nonce, shared)

    assert opener(write(tmp_path / "key", f"x25519 {bytes(private).hex()}{public.hex()}\n"))(box) == b"a picture"


@needs_pynacl
def test_the_wrong_key_and_damage_are_a_clear_error(fleet: Path, tmp_path: Path) -> None:
    generate_key(tmp_path / "other", SEALING)
    box = sealer(fleet.with_name("fleet.pub"))(b"picture")

    with pytest.raises(SignatureError, match=r"55 sealed bytes do not open with .*other: they were sealed to another"):
        opener(tmp_path / "other")(box)
    for damaged in (box[:-1], box[:20], b"", bytes([box[0] ^ 1]) + box[1:]):
        with pytest.raises(SignatureError, match="do not open"):
            opener(fleet)(damaged)


@needs_pynacl
def test_a_point_that_cannot_be_sealed_to_is_refused_before_the_first_frame() -> None:
    with pytest.raises(ConfigError, match="is not a point of X25519"):
        sealer("x25519 " + "0" * 64)


# --- whole folders. What is signed here is not a manifest: the trusted key is checked before it is read.


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "driver.alpose"
    folder.mkdir()
    for name in ("model.onnx", "golden.npz", "card.html"):
        (folder / name).write_bytes(b"x")
    write_manifest(folder, json.dumps({"kind": "something else"}).encode())
    return folder


def write_manifest(folder: Path, content: bytes) -> None:
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

    write_manifest(folder, (folder / "bundle.json").read_bytes() + b" ")
    with pytest.raises(SignatureError, match=r"driver\.alpose: bundle\.json was changed after it was signed"):
        Bundle.open(folder, trusted)
    # Without a key the damage shows all the same.
    assert {check.name for check in check_files(folder) if check.problem} == {"bundle.sig", "bundle.json"}
