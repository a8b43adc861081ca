"""Files and folders written so that a crash loses nothing."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from fedmed_cli.errors import ConflictError


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)  # Windows flushes what is open for writing
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_folder(path: Path) -> None:
    if os.name != "nt":  # Windows cannot open a folder; its renames are journalled.
        _sync(path)


def sync_tree(top: Path) -> None:
    """Have a finished folder on disk with all it holds: cheaper at once than file by file."""
    paths = sorted(top.rglob("*"))
    for path in paths:
        if path.is_file():
            _sync(path)
    for folder in (top, *(path for path in paths if path.is_dir())):
        sync_folder(folder)


@contextlib.contextmanager
def syncing(folder: Path) -> Iterator[None]:
    """Bring what `folder` holds so far to the disk while the caller computes."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        synced = pool.submit(sync_tree, folder)
        yield
        synced.result()


def write_new(path: Path, data: bytes | memoryview) -> None:
    """Write a new file inside a folder that is being built; `new_folder` brings it to the disk."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    try:
        write_all(handle, data)
    finally:
        os.close(handle)


def write_all(handle: int, data: bytes | memoryview) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(handle, left) :]


def make_folders(path: Path) -> None:
    """Make a folder and those above it, durably."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    for folder in reversed(missing):
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def write_file(path: Path, data: bytes | memoryview) -> None:
    """Write a file atomically and durably: readers see the old bytes or the new ones, never a part."""
    make_folders(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.unlink(missing_ok=True)
        write_new(temporary, data)
        _sync(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_in_place(path: Path, data: bytes | memoryview) -> None:
    """Write a file durably under its own name from the first byte, in place of what is there: readers check it.

    For folders in which nothing else may appear, not even for a moment. A link is replaced, not followed.
    """
    path.unlink(missing_ok=True)
    write_new(path, data)
    _sync(path)
    sync_folder(path.parent)


@contextlib.contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder beside `target` to fill: brought to the disk and renamed to `target` at the end, removed at an error.

    ConflictError where `target` exists already.
    """
    if target.exists():
        raise ConflictError(f"{target} exists already")
    make_folders(target.parent)
    staged = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))
    try:
        staged.chmod(0o777 & ~_umask())
        yield staged
        sync_tree(staged)
        os.rename(staged, target)
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise
    sync_folder(target.parent)


def write_folder(target: Path, files: dict[str, bytes | memoryview]) -> None:
    """Write a folder of files (names may hold `/`) beside `target` and rename it whole.

    ConflictError where `target` exists already.
    """
    with new_folder(target) as staged:
        for name, data in files.items():
            path = staged / name
            path.parent.mkdir(parents=True, exist_ok=True)
            write_new(path, data)


def end_of_last_line(handle: int, end: int) -> int:
    """The offset behind the last line feed of an open file of `end` bytes, read backwards in pieces."""
    while end:
        start = max(0, end - 65536)
        os.lseek(handle, start, os.SEEK_SET)
        found = os.read(handle, end - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


@contextlib.contextmanager
def private_files() -> Iterator[None]:
    """Meanwhile this process writes files of mode 0600 and folders of 0700, for its user alone (not on Windows)."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
