"""Keys: ed25519 to sign bundles, X25519 to seal the pictures that a device keeps, and a device's own secret for MACs.

A key file is one line of hex text: 128 digits for a private key (its secret and its public half), 64 for a public one,
so that neither can be taken for the other. Keys for sealing have the word ``x25519`` before the digits, because a picture
sealed to a signing key could never be opened. Private files have mode 0600, and no file is ever overwritten.

``bundle.sig`` names what was signed and by whom, and ends with a checksum of itself, so that damage is noticed without
pynacl and without a key. A sealed picture is a libsodium sealed box (XSalsa20-Poly1305), made with a throwaway key: the
device holds nothing that opens it again. A box proves no origin, since anybody can seal to a public key.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import importlib
import os
import re
import secrets
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError, DataNotFoundError, MissingExtraError, SignatureError
from ..io import write_new

MAX_BYTES = 4096
"""Larger files are neither keys nor signatures."""

BOX_BYTES = 48
"""A sealed box is longer than its content by this."""


@dataclass(frozen=True, slots=True)
class KeyKind:
    """What a key is for."""

    word: str
    """Stands before the digits in a key file."""
    purpose: str
    feature: str
    """What cannot be done without pynacl."""

    def generate(self) -> Any:
        """A new private key of pynacl."""
        return (
            _nacl("public", self).PrivateKey.generate() if self.word else _nacl("signing", self).SigningKey.generate()
        )

    def private(self, secret: bytes) -> Any:
        """The private key of pynacl with these 32 bytes."""
        return _nacl("public", self).PrivateKey(secret) if self.word else _nacl("signing", self).SigningKey(secret)


SIGNING = KeyKind("", "signing bundles", "signing and checking bundles")
SEALING = KeyKind("x25519 ", "sealing frames", "sealing and opening frames")

_KEY = re.compile(r"(?P<word>x25519 )?(?P<digits>[0-9a-f]{64}|[0-9a-f]{128})")
_SIGNATURE = re.compile(
    rb"alpose signature 1\n"
    rb"manifest sha256 (?P<manifest>[0-9a-f]{64})\n"
    rb"ed25519 key (?P<key>[0-9a-f]{64})\n"
    rb"ed25519 signature (?P<signature>[0-9a-f]{128})\n"
    rb"checksum sha256 (?P<checksum>[0-9a-f]{64})\n"
)


# --- Key files


def generate_key(path: Path, kind: KeyKind = SIGNING) -> str:
    """Make a key pair: the private key at ``path`` (mode 0600), the public key at ``path`` + ``.pub``.

    Returns:
        the public key as its file has it. A private key for sealing belongs on the server, never on a device.

    Raises:
        ConfigError: one of the files exists; then nothing is written.
        OSError: the disk is full, or cannot be written to; then neither file is there.
        MissingExtraError: pynacl is not installed.
    """
    key = kind.generate()
    digits = _public_half(key)
    public_path = path.with_name(f"{path.name}.pub")
    for part in (path, public_path):
        if part.exists():
            raise ConfigError(f"{part} exists: a key is never written over. Give another name, or move it away")
    write_new(public_path, f"{kind.word}{digits}\n".encode(), 0o644)
    try:
        write_new(path, f"{kind.word}{bytes(key).hex()}{digits}\n".encode(), 0o600)
    except BaseException:
        public_path.unlink()
        raise
    return f"{kind.word}{digits}"


def public_key_of(source: str | Path, kind: KeyKind = SIGNING) -> str:
    """The 64 hex digits of a public key, from its text or from the path of a ``.pub`` file.

    Raises:
        ConfigError: it is not a public key of this kind.
        DataNotFoundError: the file does not exist.
    """
    if isinstance(source, Path) or source.strip().endswith(".pub"):
        text, where = _read_text(Path(source)), str(source)
    else:
        text, where = source, "the public key" if kind is SIGNING else "the seal key"
    digits = _digits(text.strip().lower(), where, kind)
    if len(digits) == 128:
        raise ConfigError(f"{where} is a private key: give the public one alone, the file that ends with .pub")
    return digits


def short(key: str) -> str:
    """Enough of a key to compare by eye."""
    return f"{key[:8]}…{key[-8:]}"


def require_private(path: Path) -> None:
    """:class:`ConfigError` where users other than the owner can read a private key."""
    mode = stat.S_IMODE(path.stat().st_mode)
    if os.name == "posix" and mode & 0o077:
        raise ConfigError(f"{path} can be read by others (mode {mode:04o}): run chmod 600 on it, or make a new key")


def _private_key(path: Path, kind: KeyKind) -> Any:
    text = _read_text(path)
    digits = _digits(text, str(path), kind)
    if len(digits) == 64:
        raise ConfigError(f"{path} is a public key: {kind.purpose} needs the private one, the file without .pub")
    require_private(path)
    key = kind.private(bytes.fromhex(digits[:64]))
    if _public_half(key) != digits[64:]:
        raise ConfigError(f"{path} is damaged: its two halves do not belong together. Restore it from a backup")
    return key


def _digits(text: str, where: str, kind: KeyKind) -> str:
    """The digits of a key file's text; a key of the other kind gets its own message."""
    found = _KEY.fullmatch(text)
    if found is None:
        wanted = f"{kind.word}and hex digits" if kind.word else "hex digits"
        raise ConfigError(
            f"{where} is not a key for {kind.purpose}: {wanted} are expected, 64 of a public key or 128 of a private one, "
            "or the path of a .pub file"
        )
    if (found["word"] or "") != kind.word:
        other = SIGNING if kind is SEALING else SEALING
        lost = ": frames sealed to it could never be opened" if kind is SEALING else ""
        raise ConfigError(f"{where} is a key for {other.purpose}{lost}. Make one for {kind.purpose}")
    return found["digits"]


def _public_half(key: Any) -> str:
    return bytes(key.verify_key if hasattr(key, "verify_key") else key.public_key).hex()


def _read_text(path: Path) -> str:
    try:
        with open(path, encoding="ascii") as file:
            return file.read(MAX_BYTES).strip()
    except FileNotFoundError:
        raise DataNotFoundError(f"{path} does not exist: it should hold a key") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} cannot be read as a key: it is no text") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read as a key: {error}") from error


def _nacl(part: str, kind: KeyKind) -> Any:
    try:
        return importlib.import_module(f"nacl.{part}")
    except ImportError:
        raise MissingExtraError("pynacl", kind.feature, "crypto") from None


# --- Signatures of bundles


@dataclass(frozen=True, slots=True)
class Signature:
    """What a ``bundle.sig`` says. Nothing of it is trusted before :func:`verify`."""

    manifest_sha256: str
    key: str
    """The signer's public key, hex."""
    signature: str

    def to_bytes(self) -> bytes:
        """The file."""
        body = (
            f"alpose signature 1\nmanifest sha256 {self.manifest_sha256}\n"
            f"ed25519 key {self.key}\ned25519 signature {self.signature}\n"
        ).encode()
        return body + f"checksum sha256 {hashlib.sha256(body).hexdigest()}\n".encode()

    @classmethod
    def from_bytes(cls, content: bytes) -> Signature:
        """Read the file; :class:`SignatureError` when it is damaged."""
        match = _SIGNATURE.fullmatch(content)
        if match is None:
            raise SignatureError(
                "bundle.sig is not a signature file of alpose, or it is damaged: sign the bundle again, or get it again"
            )
        value = cls(*(match[name].decode() for name in ("manifest", "key", "signature")))
        if value.to_bytes() != content:
            raise SignatureError("bundle.sig is damaged, its checksum differs: sign the bundle again, or get it again")
        return value


def sign(manifest: bytes, key: Path) -> bytes:
    """The bytes of ``bundle.sig`` for the bytes of a ``bundle.json``; ``key`` is a private key file."""
    signing = _private_key(key, SIGNING)
    signature = bytes(signing.sign(manifest).signature).hex()
    return Signature(hashlib.sha256(manifest).hexdigest(), _public_half(signing), signature).to_bytes()


def verify(manifest: bytes, signature: bytes | None, public_key: str | Path) -> str:
    """Check a manifest's bytes against its signature and the trusted key.

    Args:
        manifest: the bytes of ``bundle.json``.
        signature: the bytes of ``bundle.sig``, or None where there is none.
        public_key: 64 hex digits, or the path of a ``.pub`` file.

    Returns:
        The trusted key as hex.

    Raises:
        SignatureError: unsigned, damaged, signed by another key, changed after signing, or forged; each says so.
        ConfigError: the trusted key is not a key for signing.
        MissingExtraError: pynacl is not installed. A bundle is then never passed unchecked.
    """
    trusted = public_key_of(public_key)
    nacl = _nacl("signing", SIGNING)
    if signature is None:
        raise SignatureError(
            f"the bundle is unsigned, and this runtime only takes bundles that key {short(trusted)} signed. "
            "Sign it on export, or configure no public key"
        )
    said = Signature.from_bytes(signature)
    if said.key != trusted:
        raise SignatureError(
            f"the bundle is signed by key {short(said.key)}, and this runtime only trusts key {short(trusted)}. "
            "Get the bundle from its owner, or configure the right public key"
        )
    if said.manifest_sha256 != hashlib.sha256(manifest).hexdigest():
        raise SignatureError(
            "bundle.json was changed after it was signed: its sha256 is not the one in bundle.sig. "
            "Get the bundle from its owner again"
        )
    from nacl.exceptions import BadSignatureError

    try:
        nacl.VerifyKey(bytes.fromhex(trusted)).verify(manifest, bytes.fromhex(said.signature))
    except BadSignatureError:
        raise SignatureError(
            f"the signature is wrong: key {short(trusted)} did not make it for this bundle.json. "
            "Do not use this bundle, and get it from its owner again"
        ) from None
    return trusted


# --- Sealed pictures


def sealer(public_key: str | Path) -> Callable[[bytes], bytes]:
    """A function that seals bytes to a public key. Anything wrong with the key is raised here, before the first frame.

    Raises:
        ConfigError: not a public key for sealing.
        DataNotFoundError: its file does not exist.
        MissingExtraError: pynacl is not installed. A frame is then never kept unsealed instead.
    """
    digits = public_key_of(public_key, SEALING)
    nacl = _nacl("public", SEALING)
    box = nacl.SealedBox(nacl.PublicKey(bytes.fromhex(digits)))
    try:
        box.encrypt(b"")
    except Exception as error:  # libsodium's own, without a name: points of low order
        raise ConfigError(f"the seal key {short(digits)} is not a point of X25519 that can be sealed to") from error
    return lambda data: bytes(box.encrypt(data))


def opener(private_key: Path) -> Callable[[bytes], bytes]:
    """A function that opens boxes with a private key file; it raises :class:`SignatureError` where it cannot.

    Raises:
        ConfigError: not a private key for sealing, or one that others can read.
        DataNotFoundError: the file does not exist.
        MissingExtraError: pynacl is not installed.
    """
    key = _private_key(private_key, SEALING)
    from nacl.exceptions import CryptoError

    box, public = _nacl("public", SEALING).SealedBox(key), _public_half(key)

    def open_box(data: bytes) -> bytes:
        try:
            return bytes(box.decrypt(data))
        except (CryptoError, TypeError):
            raise SignatureError(
                f"{len(data)} sealed bytes do not open with {private_key}: they were sealed to another key than "
                f"{short(public)}, or they are damaged. Look for the private key of that fleet"
            ) from None

    return open_box


# --- What this device made


def device_mac(content: bytes) -> bytes:
    """The bytes of a ``.mac`` file: a HMAC-SHA256 of the content with this device's own key, which is made if missing."""
    return f"{hmac.new(_device_key(make=True), content, 'sha256').hexdigest()}\n".encode()


def check_device_mac(content: bytes, mac: bytes) -> None:
    """:class:`SignatureError` where ``mac`` was not made for this content with this device's own key."""
    key = _device_key(make=False)
    expected = f"{hmac.new(key, content, 'sha256').hexdigest()}\n".encode() if key else b""
    if not key or not hmac.compare_digest(expected, mac):
        raise SignatureError(
            f"it has no MAC of this device's key {device_key_path()}, and the bundle was opened with a public key: what "
            "this device did not make itself is not loaded beside a signed bundle"
        )


def device_key_path() -> Path:
    """Where this device's own key is: in ``$ALPOSE_STATE``, or ``alpose`` in ``$XDG_STATE_HOME`` or ``~/.local/state``."""
    if own := os.environ.get("ALPOSE_STATE"):
        return Path(own) / "device.key"
    state = os.environ.get("XDG_STATE_HOME")
    return (Path(state) if state else Path.home() / ".local" / "state") / "alpose" / "device.key"


def _device_key(*, make: bool) -> bytes:
    """32 secret bytes that never leave the device; empty where there are none and none are to be made."""
    path = device_key_path()
    if make and not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with contextlib.suppress(FileExistsError):  # another process was here first
            write_new(path, f"{secrets.token_hex(32)}\n".encode(), 0o600)
    if not path.exists():
        return b""
    text = _read_text(path)
    if not re.fullmatch(r"[0-9a-f]{64}", text):
        raise ConfigError(f"{path} is not this device's key: remove it, and build the engines of signed bundles again")
    require_private(path)
    return bytes.fromhex(text)
