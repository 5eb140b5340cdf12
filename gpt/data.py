"""Text in, memory-mapped token ids out, with never more than a few megabytes of either in memory.

A corpus is an ordered list of text files with a fixed split into a training and a held-out part. It
is read as a stream of pieces, so every pass over it (finding its text files, training a tokenizer,
tokenising) takes the same memory for a novel as for the whole web. What a pass finds is kept in a
cache folder on disk, and training reads token ids through memory maps of the files there. The cache
may be deleted at any time: it only saves repeating the passes.
"""

import codecs
import functools
import hashlib
import io
import os
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .cache import cache_entry, cache_folder, digest, file_state
from .errors import UserError
from .run_folder import RUN_FILES
from .tokenizer import Tokenizer, load, train

PIECE = 1 << 20  # bytes of a text file, or ids of a token file, looked at in one go
EXPECTED = (
    "--data takes a text file, a folder of text files, or a folder with train.bin and val.bin"
)
# Folders beside the standard library's code that are tests, tables or other people's packages.
NOT_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
NOT_LIBRARY |= {"lib2to3", "idlelib", "encodings", "pydoc_data"}
BINS = ("train.bin", "val.bin")


@dataclass(frozen=True, eq=False)
class Dataset:
    """Token ids to train on and to evaluate on, and where they came from."""

    train: np.ndarray  # (tokens,) uint16 or uint32, memory-mapped and read-only
    val: np.ndarray  # (tokens,) the held-out part, same dtype
    tokenizer: Tokenizer | None  # None for train.bin and val.bin without a tokenizer.json
    vocab_size: int  # the tokenizer's; without one, the largest id + 1
    name: str  # for people: "Python 3.11 standard library", or the path
    fingerprint: str  # hash of both token sequences and the vocabulary


def open_data(
    path: str | os.PathLike[str] | None,
    tokenizer: str = "byte",
    vocab_size: int | None = None,
    *,
    block_size: int,
    cache: Path | None = None,
    tokenizer_file: str | os.PathLike[str] | None = None,
) -> Dataset:
    """Open a corpus, tokenising it the first time. UserError for what cannot be trained on.

    `path` is a text file, a folder of text files, a folder with nanoGPT's `train.bin` and `val.bin`
    (little-endian uint16, used in place with the folder's `tokenizer.json`), or None for the source
    code of this Python's standard library. `tokenizer` ("byte", "char", "bpe") is trained on the
    whole corpus, `vocab_size` is for "bpe"; `tokenizer_file` opens a `tokenizer.json` instead, so
    that a resumed run keeps its ids. Both parts must hold `block_size` + 1 tokens or more.

    Text is UTF-8 with line ends read as newlines, as nanoGPT reads it. A file is split after 90 %
    of its characters. In a folder every tenth text file is held out; fewer than ten are joined and
    split like one file. Hidden files and files that are not text are no part of a folder's corpus.
    """
    cache = Path(cache) if cache is not None else cache_folder()
    given = load(tokenizer_file) if tokenizer_file is not None else None
    root = _existing(path) if path is not None else None
    if root is not None and any(os.path.lexists(root / name) for name in BINS):
        return _open_bins(root, given, cache, block_size)
    corpus = _Corpus(root, str(root)) if root is not None else _standard_library()
    return _open_text(corpus, tokenizer, vocab_size, given, cache, block_size)


def batch(
    tokens: np.ndarray, rng: np.random.Generator, batch_size: int, block_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Windows at uniformly random places: inputs, and targets one token further on.

    `tokens` is (T,) with T > block_size; both results are (batch_size, block_size) int64.
    """
    starts = rng.integers(0, len(tokens) - block_size, size=(batch_size, 1))
    windows = np.asarray(tokens[starts + np.arange(block_size + 1)])  # (batch_size, block_size + 1)
    return windows[:, :-1].astype(np.int64), windows[:, 1:].astype(np.int64)


# --- The corpus: files in a fixed order, a fixed split, a stream of pieces ---


class _NotText(UserError):
    """The file is not UTF-8 text."""


class _Corpus:
    """A text file, or all text files below a folder in the order of their relative paths."""

    def __init__(self, root: Path, name: str, only: str = "", skip: frozenset = frozenset()):
        self.name = name
        self.is_folder = root.is_dir()
        self.files = _files_below(root, only, skip) if self.is_folder else [root]

    @functools.cached_property
    def lengths(self) -> dict[Path, int]:
        """The files that are text, in order, with their characters counted; reads them all."""
        lengths = {}
        for file in self.files:
            try:
                lengths[file] = sum(map(len, _read(file)))
            except _NotText:
                if not self.is_folder:
                    raise
        if not any(lengths.values()):
            raise UserError(f"{self.name}: there is no text in it; {EXPECTED}")
        return lengths

    def whole(self) -> Iterator[str]:
        return _between_lines(_joined(list(self.lengths)))

    def part(self, held_out: bool) -> Iterator[str]:
        files = list(self.lengths)
        if len(files) >= 10:
            mine = [file for i, file in enumerate(files) if (i % 10 == 9) == held_out]
            return _between_lines(_joined(mine))
        length = sum(self.lengths.values()) + len(files) - 1  # with the newlines between files
        cut = int(length * 0.9)
        start, stop = (cut, length) if held_out else (0, cut)
        return _between_lines(_sliced(_joined(files), start, stop))


def _standard_library() -> _Corpus:
    root = Path(sysconfig.get_paths()["stdlib"])
    name = f"Python {sys.version_info.major}.{sys.version_info.minor} standard library"
    if not root.is_dir():
        raise UserError(f"the {name} has no source code in {root}; {EXPECTED}")
    return _Corpus(root, name, ".py", frozenset(NOT_LIBRARY))


def _existing(path: str | os.PathLike[str]) -> Path:
    if not os.fspath(path):
        raise UserError(f"the path of the data is empty; {EXPECTED}")
    try:
        os.stat(path)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; {EXPECTED}") from None
    if not (os.path.isfile(path) or os.path.isdir(path)):  # a pipe can be read only once
        raise UserError(f"{path}: neither a regular file nor a folder; {EXPECTED}")
    return Path(path)


def _files_below(root: Path, only: str, skip: frozenset[str]) -> list[Path]:
    def unreadable(error: OSError) -> None:
        raise UserError(f"{error.filename}: {error.strerror}; make the folder readable") from None

    found = []
    for folder, subfolders, names in os.walk(root, onerror=unreadable):
        if "metrics.jsonl" in names:  # a run, perhaps this one
            if Path(folder) != root:
                subfolders.clear()
                continue
            names = [name for name in names if name not in RUN_FILES]
        subfolders[:] = [name for name in subfolders if name not in skip and name[0] != "."]
        found += [Path(folder, n) for n in names if n.endswith(only) and n[0] != "."]
    files = filter(os.path.isfile, found)  # no dangling links, no pipes
    return sorted(files, key=lambda file: file.relative_to(root).as_posix())


def _read(file: Path) -> Iterator[str]:
    """The text of a UTF-8 file in pieces, with "\\r\\n" and "\\r" read as "\\n"."""
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder("utf-8")(), translate=True)
    offset = 0
    try:
        with open(file, "rb") as opened:
            while block := opened.read(PIECE):
                if (nul := block.find(0)) >= 0:
                    raise _NotText(f"{file}: byte {offset + nul} is NUL, so not text; {EXPECTED}")
                offset += len(block)
                yield decoder.decode(block)
            yield decoder.decode(b"", final=True)
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}; make the file readable") from None
    except UnicodeDecodeError as error:
        # The decoder's object is what it was still holding back, and then the block just read.
        at = offset - len(error.object) + error.start
        wrong = f"byte {at} (0x{error.object[error.start]:02x}) is not UTF-8"
        raise _NotText(f"{file}: {wrong}, save the text as UTF-8; {EXPECTED}") from None


def _joined(files: list[Path]) -> Iterator[str]:
    for i, file in enumerate(files):
        if i > 0:
            yield "\n"
        yield from _read(file)


def _sliced(pieces: Iterator[str], start: int, stop: int) -> Iterator[str]:
    """Characters start to stop of the joined pieces."""
    for piece in pieces:
        if stop <= 0:
            return
        yield piece[max(start, 0) : stop]
        start, stop = start - len(piece), stop - len(piece)


def _between_lines(pieces: Iterator[str]) -> Iterator[str]:
    """The same text, cut only between a visible character and the newline after it.

    Characters and bytes may be cut anywhere. Byte-pair encoding merges within words, and no word of
    GPT-2's pre-tokenizer reaches over such a place, so its tokens too are the same wherever pieces
    end. A line longer than a piece is cut all the same; there, and with a foreign tokenizer that
    cuts words differently, a token or two per piece may differ.
    """
    rest = ""
    for piece in pieces:
        text = rest + piece
        cut = text.rfind("\n")
        while cut > 0 and text[cut - 1].isspace():
            cut = text.rfind("\n", 0, cut)
        if cut <= 0:
            cut = len(text) if len(text) >= PIECE else 0
        if cut:
            yield text[:cut]
        rest = text[cut:]
    yield rest


# --- Token files ---


def _open_text(
    corpus: _Corpus,
    kind: str,
    vocab_size: int | None,
    tokenizer: Tokenizer | None,
    cache: Path,
    block_size: int,
) -> Dataset:
    state = [file_state(file) for file in corpus.files]

    def make_tokenizer(folder: Path) -> None:
        train(kind, corpus.whole, vocab_size).save(folder / "tokenizer.json")

    def make_tokens(folder: Path) -> dict:
        for name in BINS:
            pieces = corpus.part(held_out=name == "val.bin")
            with open(folder / name, "wb") as file:
                file.writelines(_encoded(pieces, tokenizer, corpus.name))
                file.flush()
                os.fsync(file.fileno())  # on disk before the entry gets its name
        return _scan(folder, tokenizer.dtype)

    if tokenizer is None:
        folder, _ = cache_entry(cache, ["tokenizer", state, kind, vocab_size], make_tokenizer)
        tokenizer = load(folder / "tokenizer.json")
    # Keyed by the tokenizer itself, so that a run resumed with its own file finds its tokens again.
    folder, facts = cache_entry(cache, ["tokens", state, tokenizer.to_json()], make_tokens)
    return _dataset(folder, facts, tokenizer, tokenizer.dtype, corpus.name, block_size)


def _encoded(pieces: Iterator[str], tokenizer: Tokenizer, name: str) -> Iterator[bytes]:
    before = 0
    for piece in pieces:
        try:
            yield tokenizer.encode(piece).tobytes()
        except UserError as error:  # only with a tokenizer made for other text
            raise UserError(f"{name}: after {before} characters: {error}") from None
        before += len(piece)


def _open_bins(root: Path, tokenizer: Tokenizer | None, cache: Path, block_size: int) -> Dataset:
    for name, other in (BINS, BINS[::-1]):
        if not os.path.isfile(root / name):
            raise UserError(f"{root}: has {other} but no {name}; put both in the folder")
        if (size := os.path.getsize(root / name)) % 2:
            wrong = f"{size} bytes are not a whole number of uint16 ids"
            raise UserError(f"{root / name}: {wrong}; it is cut short, prepare it again")
    if tokenizer is None and (root / "tokenizer.json").exists():
        tokenizer = load(root / "tokenizer.json")
    state, dtype = [file_state(root / name) for name in BINS], np.dtype("<u2")
    _, facts = cache_entry(cache, ["scan", state], lambda _: _scan(root, dtype))
    if tokenizer is not None and facts["largest"] >= tokenizer.vocab_size:
        raise UserError(
            f"{root}: has the token id {facts['largest']}, but the tokenizer only "
            f"{tokenizer.vocab_size} tokens; take the tokenizer.json that made the ids"
        )
    return _dataset(root, facts, tokenizer, dtype, str(root), block_size)


def _scan(folder: Path, dtype: np.dtype) -> dict[str, Any]:
    """What one pass over the token files tells: their hashes and the largest id."""
    hashes, largest = [], -1
    for name in BINS:
        digest = hashlib.sha256()
        try:
            with open(folder / name, "rb") as file:
                while block := file.read(PIECE * dtype.itemsize):
                    digest.update(block)
                    largest = max(largest, int(np.frombuffer(block, dtype).max()))
        except OSError as error:
            raise UserError(f"{folder / name}: {error.strerror}; make it readable") from None
        hashes.append(digest.hexdigest())
    return {"sha256": hashes, "largest": largest}


def _dataset(
    folder: Path,
    facts: dict[str, Any],
    tokenizer: Tokenizer | None,
    dtype: np.dtype,
    name: str,
    block_size: int,
) -> Dataset:
    counts = [os.path.getsize(folder / name) // dtype.itemsize for name in BINS]
    for part, count in zip(("training", "held-out"), counts, strict=True):
        if count <= block_size:
            fits = min(counts) - 1
            way_out = f"use a context of at most {fits} or" if fits > 0 else "no context fits,"
            raise UserError(
                f"{name}: the {part} part holds {count} tokens, but a context of {block_size} "
                f"needs at least {block_size + 1}; {way_out} give more text"
            )
    tokens = [np.memmap(folder / name, dtype, mode="r") for name in BINS]
    vocabulary = tokenizer.vocabulary() if tokenizer is not None else None
    vocab_size = tokenizer.vocab_size if tokenizer is not None else facts["largest"] + 1
    fingerprint = digest([facts["sha256"], dtype.str, vocabulary])
    return Dataset(*tokens, tokenizer, vocab_size, name, fingerprint)
