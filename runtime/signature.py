"""Signatures of bundles: ed25519 over the bytes of ``bundle.json``, which holds the sha256 of the other files.

A key file is plain hex text: 128 digits for a private key (seed and public key), 64 for a public one, so that neither
can be taken for the other. ``bundle.sig`` names what was signed and by whom, and ends with a checksum of itself: damage
is noticed by everyone, also without pynacl and without a key.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from . import keyfile
from .errors import ConfigError, MissingExtraError, SignatureError
from .keyfile import short

if TYPE_CHECKING:
    from nacl.signing import SigningKey

MAX_BYTES = 4096
"""More is no signature file."""

_FORM = re.compile(
    rb"alpose signature 1\n"
    rb"manifest sha256 (?P<manifest>[0-9a-f]{64})\n"
    rb"ed25519 key (?P<key>[0-9a-f]{64})\n"
    rb"ed25519 signature (?P<signature>[0-9a-f]{128})\n"
    rb"checksum sha256 (?P<checksum>[0-9a-f]{64})\n"
)


@dataclass(frozen=True, slots=True)
class Signature:
    """What a ``bundle.sig`` says; none of it is believed before :func:`verify`."""

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
        match = _FORM.fullmatch(content)
        if match is None:
            raise SignatureError(
                "bundle.sig is no signature file of alpose, or it is damaged: sign the bundle again, or get it again"
            )
        value = cls(*(match[name].decode() for name in ("manifest", "key", "signature")))
        if value.to_bytes() != content:
            raise SignatureError("bundle.sig is damaged, its checksum differs: sign the bundle again, or get it again")
        return value


def generate_key(path: Path) -> str:
    """Make a key pair: the private key at ``path`` (mode 0600), the public key at ``path`` + ``.pub``.

    Existing files are never written over. Returns the public key as hex.
    """
    key = _nacl_signing().generate()
    public = bytes(key.verify_key).hex()
    keyfile.write_pair(path, f"{bytes(key).hex()}{public}", public)
    return public


def sign(manifest: bytes, key: Path) -> bytes:
    """The bytes of ``bundle.sig`` for the bytes of a ``bundle.json``; ``key`` is a private key file."""
    signing = _read_private_key(key)
    signature = signing.sign(manifest).signature
    return Signature(
        hashlib.sha256(manifest).hexdigest(), bytes(signing.verify_key).hex(), bytes(signature).hex()
    ).to_bytes()


def verify(manifest: bytes, signature: bytes | None, public_key: str | Path) -> str:
    """Hold a manifest's bytes against its signature and the key that is trusted.

    Args:
        manifest: the bytes of ``bundle.json``.
        signature: the bytes of ``bundle.sig``, or None where there is none.
        public_key: 64 hex digits, or the path of a ``.pub`` file.

    Returns:
        The trusted key as hex.

    Raises:
        SignatureError: unsigned, damaged, signed by another key, changed after signing, or forged; each says so.
        ConfigError: the trusted key is no key.
        MissingExtraError: pynacl is not installed. A bundle is then never passed unchecked.
    """
    trusted = public_key_of(public_key)
    _nacl_signing()
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
    from nacl.signing import VerifyKey

    try:
        VerifyKey(bytes.fromhex(trusted)).verify(manifest, bytes.fromhex(said.signature))
    except BadSignatureError:
        raise SignatureError(
            f"the signature is wrong: key {short(trusted)} did not make it for this bundle.json. "
            "Do not use this bundle, and get it from its owner again"
        ) from None
    return trusted


def public_key_of(source: str | Path) -> str:
    """A public key as 64 hex digits, from such digits or from a ``.pub`` file."""
    text, where = keyfile.given(source, "the public key")
    key = text.strip().lower()
    if re.fullmatch(r"[0-9a-f]{128}", key):
        raise ConfigError(f"{where} is a private key: give the public one, the file that ends with .pub")
    if not re.fullmatch(r"[0-9a-f]{64}", key):
        raise ConfigError(f"{where} is no public key: 64 hex digits are wanted, or the path of a .pub file")
    return key


def _read_private_key(path: Path) -> SigningKey:
    signing = _nacl_signing()
    text = keyfile.read_text(path)
    if re.fullmatch(r"[0-9a-f]{64}", text):
        raise ConfigError(f"{path} is a public key: signing needs the private one, the file without .pub")
    if not re.fullmatch(r"[0-9a-f]{128}", text):
        raise ConfigError(f"{path} is no private key: 128 hex digits are wanted, as generate_key writes them")
    keyfile.check_private(path)
    key = signing(bytes.fromhex(text[:64]))
    if bytes(key.verify_key).hex() != text[64:]:
        raise ConfigError(f"{path} is damaged: its two halves do not belong together. Restore it from a backup")
    return key


def _nacl_signing() -> type[SigningKey]:
    try:
        from nacl.signing import SigningKey
    except ImportError:
        raise MissingExtraError("pynacl", "signing and checking bundles", "crypto") from None
    return SigningKey
