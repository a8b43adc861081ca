"""A bundle: one adapter folder as one file, the same bytes wherever it is made.

It is an uncompressed tar archive (POSIX ustar) of flat, plain files in the order of their names, with no
owner, no time and no padding but the format's own, so any `tar` unpacks it. Without compression there is no
ratio to abuse; float32 weights shrink by 8 % at best.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Mapping
from pathlib import Path

from fedmed_cli.errors import InputError

BUNDLE_SUFFIX = ".fedmed.tar"
_BLOCK = 512
_END = bytes(2 * _BLOCK)
_MAX_FILES = 16
MAX_OVERHEAD_BYTES = 2 * _BLOCK * (_MAX_FILES + 1)  # a header and padding for each file, and the end
_NAME = re.compile(rb"([A-Za-z0-9][A-Za-z0-9._-]{0,98})\0{1,99}")
_SIZE = re.compile(rb"[0-7]{11}\0")


def is_bundle(path: Path) -> bool:
    """Whether a path names a bundle: a plain file with the suffix of one."""
    return path.name.endswith(BUNDLE_SUFFIX) and path.is_file()


def header(name: str, size: int) -> bytes:
    """The block before a file of that name and size."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644
    return info.tobuf(tarfile.USTAR_FORMAT)


def pack(files: Mapping[str, bytes]) -> bytes:
    """The bundle of these files, by name."""
    parts = []
    for name in sorted(files):
        parts += [header(name, len(files[name])), files[name], bytes(-len(files[name]) % _BLOCK)]
    return b"".join([*parts, _END])


def unpack(data: bytes, name: str) -> dict[str, bytes]:
    """The files of a bundle by name; `name` is how errors call it.

    InputError unless `pack` of them gives exactly `data`: so there is one spelling of a bundle, and no room
    for links, folders, devices, absolute or climbing paths, extended headers or anything after the end.
    Whether the names belong in an adapter folder is the gate's question.
    """
    files: dict[str, bytes] = {}
    position, before = 0, ""
    while data[position : position + _BLOCK] != bytes(_BLOCK):
        block = data[position : position + _BLOCK]
        if len(block) < _BLOCK:
            raise InputError(f"{name}: is truncated: it ends at byte {len(data):,} in the middle of a header")
        member, size = _NAME.fullmatch(block[:100]), _SIZE.fullmatch(block[124:136])
        if member is None:
            raise InputError(f"{name}: holds a name that is not a plain file name at byte {position:,}")
        file = member.group(1).decode("ascii")
        if size is None:
            raise InputError(f"{name}: {file} has an unusable size")
        length = int(size.group()[:11], 8)
        if block != header(file, length):
            raise InputError(f"{name}: {file} is not a plain file as 'fedmed pack' writes it")
        if file <= before:
            raise InputError(f"{name}: {file} is listed twice or out of order")
        if len(files) == _MAX_FILES:
            raise InputError(f"{name}: holds more than {_MAX_FILES} files")
        start, end = position + _BLOCK, position + _BLOCK + length
        position = end + -length % _BLOCK
        if end > len(data):
            raise InputError(f"{name}: is truncated: {file} needs {length:,} bytes, {len(data) - start:,} are left")
        if data[end:position].strip(b"\0"):
            raise InputError(f"{name}: hides bytes after {file}")
        files[file], before = data[start:end], file
    if data[position:] != _END:
        raise InputError(f"{name}: expected {len(_END)} zero bytes at its end, found others")
    return files
