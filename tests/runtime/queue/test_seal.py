from __future__ import annotations

import stat
import sys
from pathlib import Path

import pytest

from alpose.runtime import signature
from alpose.runtime.errors import ConfigError, DataNotFoundError, MissingExtraError, SignatureError
from alpose.runtime.queue.seal import BOX_BYTES, generate_key, opener, public_key_of, seal, sealer, unseal


@pytest.fixture
def key(tmp_path: Path) -> Path:
    pytest.importorskip("nacl")
    generate_key(tmp_path / "fleet")
    return tmp_path / "fleet"


def test_the_private_key_opens_what_the_public_one_sealed(key: Path) -> None:
    public = key.with_name("fleet.pub")
    picture = bytes(range(256)) * 20

    box = seal(picture, public)

    assert len(box) == len(picture) + BOX_BYTES
    assert picture[:16] not in box
    assert unseal(box, key) == picture
    assert unseal(seal(picture, public.read_text()), key) == picture
    assert seal(picture, public) != box  # each box has a key of its own
    assert unseal(seal(b"", public), key) == b""


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
    path = tmp_path / "key"
    path.write_text(f"x25519 {bytes(private).hex()}{public.hex()}\n")
    path.chmod(0o600)

    assert unseal(box, path) == b"a picture"


def test_key_files_are_private_and_never_written_over(key: Path) -> None:
    private, public = key.read_text(), key.with_name("fleet.pub").read_text()

    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert private.startswith("x25519 ")
    assert private.strip().endswith(public.strip()[7:])
    with pytest.raises(ConfigError, match=r"fleet exists: a key is never written over"):
        generate_key(key)
    with pytest.raises(DataNotFoundError, match="make the folder of the key first"):
        generate_key(key.parent / "no" / "key")
    assert key.read_text() == private
    key.chmod(0o640)
    with pytest.raises(ConfigError, match=r"can be read by others \(mode 0640\)"):
        opener(key)


def test_the_wrong_key_and_damage_are_a_clear_error(key: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    generate_key(other)
    box = seal(b"picture", key.with_name("fleet.pub"))

    with pytest.raises(SignatureError, match=r"55 sealed bytes do not open with .*other: they were sealed to another"):
        unseal(box, other)
    for damaged in (box[:-1], box[:20], b"", bytes([box[0] ^ 1]) + box[1:]):
        with pytest.raises(SignatureError, match="do not open"):
            unseal(damaged, key)


def test_a_device_holds_nothing_that_opens(key: Path) -> None:
    """Neither the sealer nor the public file, given in place of the private one, opens a box."""
    public = key.with_name("fleet.pub")

    with pytest.raises(ConfigError, match="is a public key: opening needs the private one"):
        opener(public)
    with pytest.raises(ConfigError, match="is a private key: a device gets the public one alone"):
        sealer(key)


def test_keys_that_frames_would_be_lost_to_are_refused(key: Path, tmp_path: Path) -> None:
    signing = tmp_path / "signing"
    digits = signature.generate_key(signing)

    for wrong in (digits, signing, signing.with_name("signing.pub")):
        with pytest.raises(
            ConfigError, match="is a key for signing bundles: frames sealed to it could never be opened"
        ):
            sealer(wrong)
    with pytest.raises(ConfigError, match="is no private key for sealed frames"):
        opener(signing)
    for wrong in ("x25519 12", "", "x25519", "fleet"):
        with pytest.raises(ConfigError, match="is no public key for sealing"):
            sealer(wrong)
    with pytest.raises(ConfigError, match="is no point of X25519"):
        sealer("x25519 " + "0" * 64)
    with pytest.raises(DataNotFoundError):
        sealer(tmp_path / "nowhere.pub")
    with pytest.raises(DataNotFoundError):
        sealer("nowhere.pub")
    private = key.read_text()
    key.write_text(private[:-2] + ("0" if private[-2] != "0" else "1") + "\n")
    with pytest.raises(ConfigError, match="its two halves do not belong together"):
        opener(key)


def test_spelling_of_a_public_key_is_forgiven(key: Path) -> None:
    public = key.with_name("fleet.pub").read_text()

    assert public_key_of(f"  {public.upper()}\n") == public.strip()[7:]
    assert public_key_of(str(key.with_name("fleet.pub"))) == public.strip()[7:]


def test_without_pynacl_nothing_is_sealed_or_left_open(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [*sys.modules]:
        if name.split(".")[0] == "nacl":
            monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "nacl", None)

    with pytest.raises(MissingExtraError, match=r"sealing and opening frames needs pynacl.*alpose\[crypto\]"):
        sealer("x25519 " + "ab" * 32)
