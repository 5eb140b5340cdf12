"""Writing files so that a crash at any instant leaves the old file or the whole new one.

Write under a temporary name, flush to the medium, rename into place, flush the folder. Every call
to the operating system that can fail goes through `calls`, so that a test can make the n-th fail.
"""

import contextlib
import errno
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

BINARY = getattr(os, "O_BINARY", 0)  # Windows


def _seek_and_read(descriptor: int, length: int, offset: int) -> bytes:
    """Windows has no pread."""
    os.lseek(descriptor, offset, os.SEEK_SET)
    return os.read(descriptor, length)


class Calls:
    """The operating system."""

    open = staticmethod(os.open)
    read = staticmethod(os.read)
    pread = staticmethod(getattr(os, "pread", _seek_and_read))
    write = staticmethod(os.write)
    fsync = staticmethod(os.fsync)
    truncate = staticmethod(os.ftruncate)
    replace = staticmethod(os.replace)
    link = staticmethod(os.link)
    unlink = staticmethod(os.unlink)


calls = Calls()


@contextlib.contextmanager
def opened(path: Path, flags: int) -> Iterator[int]:
    descriptor = calls.open(path, flags | BINARY, 0o666)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def write(descriptor: int, data: Any) -> None:
    """All of `data`, however few bytes at a time the system takes."""
    rest = memoryview(data)
    while rest:
        written = calls.write(descriptor, rest[: 1 << 26])
        if written <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        rest = rest[written:]


def chunks(path: Path) -> Iterator[bytes]:
    with opened(path, os.O_RDONLY) as descriptor:
        while chunk := calls.read(descriptor, 1 << 20):
            yield chunk


def read_at(descriptor: int, start: int, length: int) -> bytes:
    """`length` bytes from `start` on, however few at a time the system gives; fewer at the end."""
    parts = []
    while length > 0 and (part := calls.pread(descriptor, length, start)):
        parts.append(part)
        start, length = start + len(part), length - len(part)
    return b"".join(parts)


def write_new(path: Path, chunks: Iterable[Any]) -> None:
    with opened(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as descriptor:
        for chunk in chunks:
            write(descriptor, chunk)
            del chunk  # before the next is made: there may be room for one
        calls.fsync(descriptor)


def sync_folder(folder: Path) -> None:
    """Makes renames and removals in `folder` survive a power cut, where the system can."""
    if os.name == "nt":
        return
    with opened(folder, os.O_RDONLY) as descriptor:
        try:
            calls.fsync(descriptor)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system without it
                raise


def remove(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        calls.unlink(path)


def partial_name(path: Path) -> Path:
    """A temporary name beside `path`; it keeps the suffix, which some writers go by."""
    return path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")


def content(chunks: Iterable[Any]) -> Callable[[Path], None]:
    """`chunks` as something `write_atomically` can write."""
    return lambda path: write_new(path, chunks)


def write_atomically(path: str | os.PathLike[str], data: bytes | Callable[[Path], None]) -> None:
    """Writes a file so that whoever looks, after any crash, sees the old one or the whole new one.

    `data` is the content, or a function that writes it to the path it is given. OSError leaves the
    old file as it was.
    """
    path = Path(path)
    partial = partial_name(path)
    try:
        remove(partial)  # not truncate: it may be a second name of a file that is needed
        if callable(data):
            data(partial)
            with opened(partial, os.O_RDWR) as descriptor:
                calls.fsync(descriptor)
        else:
            write_new(partial, [data])
        calls.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            calls.unlink(partial)
        raise
    sync_folder(path.parent)


def sha256(path: Path) -> str:
    whole = hashlib.sha256()
    for chunk in chunks(path):
        whole.update(chunk)
    return whole.hexdigest()
