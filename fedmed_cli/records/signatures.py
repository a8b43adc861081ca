"""Ed25519 signatures and keys in OpenSSH's forms, so that `ssh-keygen` makes and checks them as well.

A signature is an "SSH SIGNATURE" as in OpenSSH's PROTOCOL.sshsig: version 1, namespace "fedmed", SHA-512.
A public key is one line, `ssh-ed25519 AAAA…`; a private key is a file that `ssh-keygen -t ed25519` writes too.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import stat
import struct
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from fedmed_cli.errors import ConflictError, InputError, TrustError, UsageError
from fedmed_cli.records.codec import read_file

NAMESPACE = "fedmed"
HASH = "sha512"
ALGORITHM = "ssh-ed25519"
MAX_KEY_BYTES = 20_000
MAX_SIGNATURE_BYTES = 2_000
_MAGIC = b"SSHSIG"
_VERSION = 1
_BEGIN, _END = "-----BEGIN SSH SIGNATURE-----", "-----END SSH SIGNATURE-----"
_LINE_LENGTH = 70  # characters of base64 in a line, as ssh-keygen writes them


@dataclass(frozen=True)
class Signer:
    """A private key in memory, and its public key line."""

    private: Ed25519PrivateKey
    public: str

    @classmethod
    def of(cls, private: Ed25519PrivateKey) -> Signer:
        return cls(private, _public_line(private.public_key()))

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.public)


# --- the wire form ----------------------------------------------------------------------------------


def _string(data: bytes) -> bytes:
    """An SSH string: its length as an unsigned 32-bit big-endian number, then its bytes."""
    return struct.pack(">I", len(data)) + data


def _read_string(data: bytes, position: int) -> tuple[bytes, int]:
    """The SSH string at `position` and where the next field begins; ValueError where it is cut off."""
    if len(data) < position + 4:
        raise ValueError("is cut off")
    (length,) = struct.unpack_from(">I", data, position)
    end = position + 4 + length
    if len(data) < end:
        raise ValueError("is cut off")
    return data[position + 4 : end], end


def _public_line(public: Ed25519PublicKey) -> str:
    return public.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()


def _key_blob(public_line: str) -> bytes:
    return base64.b64decode(public_line.split(" ")[1])


def _bytes_to_sign(message: bytes) -> bytes:
    """What is really signed: the magic, the namespace, the name of the hash and the hash of the message."""
    return b"".join(
        [
            _MAGIC,
            _string(NAMESPACE.encode()),
            _string(b""),
            _string(HASH.encode()),
            _string(hashlib.sha512(message).digest()),
        ]
    )


def armor(blob: bytes) -> bytes:
    """The text of a `.sig` file around the bytes of a signature."""
    text = base64.b64encode(blob).decode()
    lines = [text[start : start + _LINE_LENGTH] for start in range(0, len(text), _LINE_LENGTH)]
    return ("\n".join([_BEGIN, *lines, _END]) + "\n").encode()


def sign(signer: Signer, message: bytes) -> bytes:
    """The armoured signature of a message: the bytes of a `.sig` file, always the same for the same message."""
    blob = b"".join(
        [
            _MAGIC,
            struct.pack(">I", _VERSION),
            _string(_key_blob(signer.public)),
            _string(NAMESPACE.encode()),
            _string(b""),
            _string(HASH.encode()),
            _string(_string(ALGORITHM.encode()) + _string(signer.private.sign(_bytes_to_sign(message)))),
        ]
    )
    return armor(blob)


def verify(
    message: bytes,
    signature: bytes,
    name: str,
    hint: str = "the record or its signature was changed after it was signed; ask for both again",
) -> str:
    """The public key line of whoever signed `message`; `name` is how errors call the signature.

    InputError where it is not a signature in the one form that we and ssh-keygen write, TrustError where it does
    not hold. That it holds says nothing about whose key it is.
    """
    if len(signature) > MAX_SIGNATURE_BYTES:
        raise InputError(f"{name}: expected at most {MAX_SIGNATURE_BYTES:,} bytes, found {len(signature):,}")
    lines = signature.decode("ascii", "replace").split("\n")
    if len(lines) < 4 or lines[0] != _BEGIN or lines[-2:] != [_END, ""]:
        raise InputError(f"{name}: is not an SSH signature")
    try:
        blob = base64.b64decode("".join(lines[1:-2]), validate=True)
    except (binascii.Error, ValueError):
        raise InputError(f"{name}: is not base64") from None
    if armor(blob) != signature:  # another spelling of the same signature is another file
        raise InputError(f"{name}: is not written as ssh-keygen writes signatures")
    try:
        public, raw = _parse_signature(blob)
    except ValueError as error:
        raise InputError(f"{name}: {error}") from None
    try:
        public.verify(raw, _bytes_to_sign(message))
    except InvalidSignature:
        raise TrustError(
            f"{name}: the signature does not hold for {name.removesuffix('.sig').rsplit('/', 1)[-1]}",
            hint=hint,
        ) from None
    return _public_line(public)


def _parse_signature(blob: bytes) -> tuple[Ed25519PublicKey, bytes]:
    """The key and the raw signature of an unarmoured signature; ValueError says what is not as we expect it."""
    if blob[:6] != _MAGIC:
        raise ValueError("is not an SSH signature: its magic is missing")
    if len(blob) < 10:
        raise ValueError("is cut off")
    (version,) = struct.unpack_from(">I", blob, 6)
    if version != _VERSION:
        raise ValueError(f"expected signature version {_VERSION}, found {version}")
    fields, position = [], 10
    for _ in range(5):
        field, position = _read_string(blob, position)
        fields.append(field)
    if position != len(blob):
        raise ValueError("has bytes after its end")
    key, namespace, reserved, hash_name, signature = fields
    if namespace != NAMESPACE.encode():
        raise ValueError(f"expected namespace {NAMESPACE!r}, found {namespace[:40].decode('latin-1')!a}")
    if reserved:
        raise ValueError("uses a reserved field")
    if hash_name != HASH.encode():
        raise ValueError(f"expected hash {HASH!r}, found {hash_name[:40].decode('latin-1')!a}")
    algorithm, position = _read_string(signature, 0)
    raw, position = _read_string(signature, position)
    if algorithm != ALGORITHM.encode() or position != len(signature) or len(raw) != 64:
        raise ValueError(f"expected a signature of kind {ALGORITHM}")
    return _parse_key(key), raw


def _parse_key(blob: bytes) -> Ed25519PublicKey:
    algorithm, position = _read_string(blob, 0)
    raw, position = _read_string(blob, position)
    if algorithm != ALGORITHM.encode() or position != len(blob) or len(raw) != 32:
        raise ValueError(f"expected a key of kind {ALGORITHM}, found {algorithm[:40].decode('latin-1')!a}")
    return Ed25519PublicKey.from_public_bytes(raw)


# --- keys -------------------------------------------------------------------------------------------


def parse_public(text: str, name: str) -> str:
    """A public key line without its comment; InputError unless it is one Ed25519 key in OpenSSH's form."""
    parts = text.strip().split(" ")
    if "\n" in text.strip() or len(parts) < 2 or parts[0] != ALGORITHM:
        raise InputError(
            f"{name}: is not a public key of kind {ALGORITHM} in one line",
            hint="'fedmed keys show' prints one; a file of it ends with .pub",
        )
    try:
        blob = base64.b64decode(parts[1], validate=True)
        line = _public_line(_parse_key(blob))
    except (binascii.Error, ValueError) as error:
        reason = "is not base64" if isinstance(error, binascii.Error) else str(error)
        raise InputError(f"{name}: {reason}") from None
    if line != f"{ALGORITHM} {parts[1]}":
        raise InputError(f"{name}: is not written as ssh-keygen writes keys")
    return line


def read_public(path: Path) -> str:
    """The public key line in a file; InputError as `parse_public` raises it."""
    return parse_public(read_file(path, MAX_KEY_BYTES).decode("utf-8", "replace"), str(path))


def _key_digest(public: str) -> bytes:
    return hashlib.sha256(_key_blob(public)).digest()


def fingerprint(public: str) -> str:
    """SHA256:… of a public key line, as `ssh-keygen -l` shows it."""
    return "SHA256:" + base64.b64encode(_key_digest(public)).decode().rstrip("=")


def fingerprint_digits(public: str) -> str:
    """The same fingerprint as eight groups of five digits, for two people on the telephone (132 bits)."""
    digits = f"{int.from_bytes(_key_digest(public)) % 10**40:040d}"
    return " ".join(digits[start : start + 5] for start in range(0, 40, 5))


def create(path: Path, passphrase: str | None, comment: str) -> Signer:
    """Make a private key at `path` (mode 0600) and its public key beside it (`.pub`).

    ConflictError where one of the two exists.
    """
    signer = Signer.of(Ed25519PrivateKey.generate())
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if passphrase:
        encryption = serialization.BestAvailableEncryption(passphrase.encode())
    data = signer.private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, encryption)
    line = f"{signer.public} {comment}".strip() + "\n"
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    for target in (path, public_path(path)):
        if os.path.lexists(target):
            raise ConflictError(f"{target} exists already", hint="a new key needs another name: --key FILE")
    for target, content, mode in ((path, data, 0o600), (public_path(path), line.encode(), 0o644)):
        handle = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    return signer


def public_path(path: Path) -> Path:
    return path.with_name(path.name + ".pub")


def is_encrypted(data: bytes) -> bool:
    """Whether a private key file asks for a passphrase."""
    try:
        body = base64.b64decode(b"".join(data.strip().split(b"\n")[1:-1]), validate=True)
        cipher, _ = _read_string(body, len(b"openssh-key-v1\0"))
    except (binascii.Error, ValueError):
        return False
    return body.startswith(b"openssh-key-v1\0") and cipher != b"none"


def check_mode(path: Path) -> None:
    """InputError where others may read a private key."""
    if os.name != "nt" and stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise InputError(
            f"{path}: others may read this private key (mode {stat.S_IMODE(path.stat().st_mode):04o}, expected 0600)",
            hint=f"chmod 600 {path}; if others could see it, make a new one",
        )


def load(path: Path, passphrase: str | None) -> Signer:
    """Read a private key. InputError where it is none, others may read it, or the passphrase is wrong."""
    data = read_file(path, MAX_KEY_BYTES)
    check_mode(path)
    if passphrase is None and is_encrypted(data):
        raise InputError(f"{path}: is protected by a passphrase, and none was given")
    try:
        private = serialization.load_ssh_private_key(data, passphrase.encode() if passphrase else None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        reason = "or the passphrase is wrong" if passphrase else "expected one that 'fedmed keys new' wrote"
        raise InputError(f"{path}: is not a usable private key in OpenSSH's form, {reason}") from None
    if not isinstance(private, Ed25519PrivateKey):
        raise InputError(f"{path}: is a private key of another kind, expected {ALGORITHM}")
    return Signer.of(private)


def refuse_inside(path: Path, workspace: Path) -> None:
    """UsageError where a private key would lie in a federation's folder, which is copied and sent around."""
    here = path.resolve()
    folder = next((folder for folder in here.parents if (folder / "federation.toml").exists()), None)
    if folder is None and workspace.resolve() in here.parents and (workspace / ".fedmed").exists():
        folder = workspace
    if folder is None:
        return
    raise UsageError(
        f"{path}: lies in the workspace {folder}, and a private key never does",
        hint="omit --key for the default place, or name a file outside",
    )
