"""Folders on disk that are complete from the moment they have their name.

What a pass over a corpus finds is kept here and found again by key. An entry is built under a
passing name and then renamed, so neither a kill nor a second process can show a half-built one. The
cache may be deleted at any time: it only saves repeating the passes.
"""

import atexit
import functools
import hashlib
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .errors import UserError

FORMAT = 1  # raise it when equal text would be split or tokenised differently
HASHED_BYTES = 16 << 20  # files up to here are verified by hash, larger ones by size


def cache_folder() -> Path:
    """Where tokens are kept: $TINYGRAD_EDU_CACHE, $XDG_CACHE_HOME/tinygrad_edu, ~/.cache/..."""
    if own := os.environ.get("TINYGRAD_EDU_CACHE"):
        return Path(own)
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    # Someone without a home keeps the "~".
    return Path(caches, "tinygrad_edu") if os.path.isabs(caches) else temporary_cache()


@functools.cache
def temporary_cache() -> Path:
    folder = tempfile.mkdtemp(prefix="tinygrad_edu-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def cache_entry(cache: Path, key: list, build: Callable[[Path], dict | None]) -> tuple[Path, dict]:
    """The cache entry of that key and the facts about it; `build` makes both if there is none.

    An entry is built under a passing name and then renamed, so neither a kill nor a second process
    can show a half-built one. It is never changed after that: a damaged entry is stepped over, not
    repaired, because another process may be reading it.
    """
    name = digest([FORMAT, key])[:32]
    found = look_up(cache, name)
    if found[1] is not None:
        return found
    try:
        cache.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f"{name}-partial-", dir=cache))
    except OSError:
        if cache == temporary_cache():
            raise
        return cache_entry(temporary_cache(), key, build)
    try:
        facts = build(work) or {}
        files = {file.name: imprint(file) for file in work.iterdir()}
        index = {"facts": facts, "files": files, "check": digest([facts, files])}
        (work / "index.json").write_text(json.dumps(index), encoding="utf-8")
        while found[1] is None:  # until this or another process has put its folder in place
            found = look_up(cache, name)
            if found[1] is None:
                try:
                    os.rename(work, found[0])
                except OSError:
                    if not os.path.lexists(found[0]):
                        raise
        return found
    except OSError as error:
        way_out = "set TINYGRAD_EDU_CACHE to a folder with room"
        raise UserError(f"{cache}: cannot keep tokens here: {error.strerror}; {way_out}") from None
    finally:
        shutil.rmtree(work, ignore_errors=True)


def look_up(cache: Path, name: str) -> tuple[Path, dict | None]:
    """The first intact entry and its facts; if there is none, the first free name and None."""
    for number in itertools.count():
        entry = cache / f"{name}-{number}"
        if not os.path.lexists(entry):  # before reading it: what appears later is another's, whole
            return entry, None
        try:
            index = json.loads((entry / "index.json").read_text(encoding="utf-8"))
            facts, files = index["facts"], index["files"]
            sound = index["check"] == digest([facts, files])
            if sound and all(imprint(entry / file) == files[file] for file in files):
                return entry, facts
        except (OSError, ValueError, TypeError, KeyError):
            pass
    raise AssertionError("unreachable")


def imprint(file: Path) -> str | int:
    """The hash of a small file, the size of one that would take long to read."""
    with open(file, "rb") as opened:
        size = os.fstat(opened.fileno()).st_size
        small = size <= HASHED_BYTES
        return hashlib.file_digest(opened, "sha256").hexdigest() if small else size


def file_state(file: Path) -> list:
    """What changes when the file does, found without reading it."""
    state = file.stat()
    return [str(file.absolute()), state.st_size, state.st_mtime_ns, state.st_ctime_ns]


def digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
