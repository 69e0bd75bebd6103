"""Sealed frames: whoever takes a device's disk finds no picture that he can open.

A picture is put into a libsodium sealed box (X25519, XSalsa20-Poly1305) for the public key of the fleet. The box is
made with a key of its own that is thrown away at once: the device holds nothing that opens it again. It also hides who
made it, so it proves no origin, and a picture's sha256 in its record is of the box. The record beside it, with the
picture's size and time, stays readable: nobody could choose what to fetch otherwise.

Key files are as those of :mod:`alpose.runtime.signature`, with the word ``x25519`` before the digits: a frame sealed to
the digits of a signing key could never be opened by anybody.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from .. import keyfile
from ..errors import ConfigError, MissingExtraError, SignatureError

if TYPE_CHECKING:
    from nacl.public import PrivateKey

BOX_BYTES = 48
"""By which a box is longer than what it holds."""

WORD = "x25519 "


def generate_key(path: Path) -> str:
    """Make a key pair: the private key at ``path`` (mode 0600), the public key at ``path`` + ``.pub``.

    The private one belongs on the server, never on a device. Existing files are never written over. Returns the public
    key as its file has it.
    """
    key = _nacl().PrivateKey.generate()
    public = bytes(key.public_key).hex()
    keyfile.write_pair(path, f"{WORD}{bytes(key).hex()}{public}", f"{WORD}{public}")
    return f"{WORD}{public}"


def public_key_of(source: str | Path) -> str:
    """A public key as 64 hex digits, from ``x25519 <digits>`` or from the path of a ``.pub`` file."""
    text, where = keyfile.given(source, "the seal key")
    key = text.strip().lower()
    if re.fullmatch(rf"{WORD}[0-9a-f]{{128}}", key):
        raise ConfigError(f"{where} is a private key: a device gets the public one alone, the file that ends with .pub")
    if re.fullmatch(r"[0-9a-f]{64}|[0-9a-f]{128}", key):
        raise ConfigError(
            f"{where} is a key for signing bundles: frames sealed to it could never be opened. Make one for sealing"
        )
    if not re.fullmatch(rf"{WORD}[0-9a-f]{{64}}", key):
        raise ConfigError(
            f"{where} is no public key for sealing: {WORD}and 64 hex digits are wanted, or the path of a .pub file"
        )
    return key[len(WORD) :]


def sealer(public_key: str | Path) -> Callable[[bytes], bytes]:
    """What seals to a public key; whatever is wrong with the key is raised here, before the first frame.

    Raises:
        ConfigError: no public key for sealing.
        DataNotFoundError: its file does not exist.
        MissingExtraError: pynacl is not installed. A frame is then never kept unsealed instead.
    """
    digits = public_key_of(public_key)
    nacl = _nacl()
    box = nacl.SealedBox(nacl.PublicKey(bytes.fromhex(digits)))
    try:
        box.encrypt(b"")
    except Exception as error:  # libsodium's own, without a name: points of low order
        raise ConfigError(
            f"the seal key {keyfile.short(digits)} is no point of X25519 that can be sealed to"
        ) from error
    return lambda data: bytes(box.encrypt(data))


def opener(private_key: Path) -> Callable[[bytes], bytes]:
    """What opens boxes with a private key file; the function raises :class:`SignatureError` where it cannot.

    Raises:
        ConfigError: no private key for sealing, or one that others can read.
        DataNotFoundError: the file does not exist.
        MissingExtraError: pynacl is not installed.
    """
    key = _read_private_key(private_key)
    from nacl.exceptions import CryptoError

    box, public = _nacl().SealedBox(key), bytes(key.public_key).hex()

    def open_box(data: bytes) -> bytes:
        try:
            return bytes(box.decrypt(data))
        except (CryptoError, TypeError):
            raise SignatureError(
                f"{len(data)} sealed bytes do not open with {private_key}: they were sealed to another key than "
                f"{keyfile.short(public)}, or they are damaged. Look for the private key of that fleet"
            ) from None

    return open_box


def seal(data: bytes, public_key: str | Path) -> bytes:
    """One picture; for many see :func:`sealer`."""
    return sealer(public_key)(data)


def unseal(data: bytes, private_key: Path) -> bytes:
    """One picture; for many see :func:`opener`."""
    return opener(private_key)(data)


def _read_private_key(path: Path) -> PrivateKey:
    nacl = _nacl()
    text = keyfile.read_text(path)
    if re.fullmatch(rf"{WORD}[0-9a-f]{{64}}", text):
        raise ConfigError(f"{path} is a public key: opening needs the private one, the file without .pub")
    if not re.fullmatch(rf"{WORD}[0-9a-f]{{128}}", text):
        raise ConfigError(f"{path} is no private key for sealed frames: {WORD}and 128 hex digits are wanted")
    keyfile.check_private(path)
    digits = text[len(WORD) :]
    key: PrivateKey = nacl.PrivateKey(bytes.fromhex(digits[:64]))
    if bytes(key.public_key).hex() != digits[64:]:
        raise ConfigError(f"{path} is damaged: its two halves do not belong together. Restore it from a backup")
    return key


def _nacl() -> ModuleType:
    try:
        import nacl.public
    except ImportError:
        raise MissingExtraError("pynacl", "sealing and opening frames", "crypto") from None
    return nacl.public
