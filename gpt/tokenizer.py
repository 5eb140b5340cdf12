"""Text to token ids and back, in three sizes of token, all kept in one file format.

A tokenizer is a numbered list of strings and a rule that cuts text into them. `CharTokenizer`
numbers the characters of a corpus, `ByteTokenizer` numbers the 256 bytes of UTF-8, and
`BPETokenizer` glues bytes that often stand together into longer tokens (byte-pair encoding, done by
the `tokenizers` library). All three are written as a Hugging Face `tokenizer.json`: the first two
are byte-pair encodings that happen to have no merges, so other programs read the same ids and text.
"""

import difflib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .disk import write_atomically
from .errors import UserError

Chunks = Callable[[], Iterator[str]]  # a corpus: each call starts reading it from the beginning


def _byte_alphabet() -> list[str]:
    """GPT-2's printable character for each byte: itself if it prints, else from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spare = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(spare)) for byte in range(256)]


_BYTE_VOCABULARY = {character: byte for byte, character in enumerate(_byte_alphabet())}


class Tokenizer:
    """What the three have in common: a vocabulary, its id type, and the file."""

    kind: str
    vocab_size: int

    @property
    def dtype(self) -> np.dtype:
        """The smallest little-endian id type that holds the vocabulary: uint16, else uint32."""
        return np.dtype("<u2" if self.vocab_size <= 2**16 else "<u4")

    def encode(self, text: str) -> np.ndarray:
        """Token ids of the text, shape (tokens,). UserError for what the vocabulary lacks."""
        raise NotImplementedError

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of any sequence or array of ids. UserError for an id outside the vocabulary."""
        raise NotImplementedError

    def vocabulary(self) -> dict[str, int]:
        """Every token as `tokenizer.json` spells it, with its id."""
        raise NotImplementedError

    def to_json(self) -> str:
        """The text of this tokenizer's `tokenizer.json`."""
        raise NotImplementedError

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes `tokenizer.json`; whoever looks sees the old file or the whole new one."""
        write_atomically(path, self.to_json().encode())

    def _checked(self, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """The ids as a flat integer array, every one of them inside the vocabulary."""
        array = np.asarray(ids).reshape(-1)
        if array.size == 0:
            return np.zeros(0, np.int64)  # an empty list would become float64
        if array.dtype.kind not in "iu":
            raise TypeError(f"decode takes integer ids, not {array.dtype}")
        wrong = np.flatnonzero((array < 0) | (array >= self.vocab_size))
        if wrong.size:
            raise UserError(
                f"token id {array[wrong[0]]} at position {wrong[0]} is outside the vocabulary; "
                f"this {self.kind} tokenizer has ids 0 to {self.vocab_size - 1}"
            )
        return array


class CharTokenizer(Tokenizer):
    """One token per Unicode character; a character's id is its place in `characters`."""

    kind = "char"

    def __init__(self, characters: Iterable[str]) -> None:
        self.characters = "".join(characters)
        self.vocab_size = len(self.characters)
        self._points = _code_points(self.characters)
        # id of each code point, -1 for unknown; the slot at the end stands for all that lie above
        self._id_of = np.full(int(self._points.max(initial=0)) + 2, -1, np.int32)
        self._id_of[self._points] = np.arange(self.vocab_size)

    def encode(self, text: str) -> np.ndarray:
        points = _code_points(text)
        ids = self._id_of[np.minimum(points, len(self._id_of) - 1)]
        if ids.size and ids.min() < 0:
            position = int(np.argmax(ids < 0))
            known = self.characters if self.vocab_size <= 80 else self.characters[:80] + "..."
            raise UserError(
                f"{_named(text[position])} at position {position} is not in the vocabulary; "
                f"this char tokenizer knows {self.vocab_size} characters: {known!r}"
            )
        return ids.astype(self.dtype)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        return self._points[self._checked(ids)].tobytes().decode("utf-32-le", "surrogatepass")

    def vocabulary(self) -> dict[str, int]:
        return {character: i for i, character in enumerate(self.characters)}

    def to_json(self) -> str:
        # No pre-tokenizer: the text is one long word, cut into characters for want of merges.
        return _without_merges(self.vocabulary(), None, {"type": "Fuse"})


class ByteTokenizer(Tokenizer):
    """One token per byte of UTF-8; the id is the byte. Bytes that are no UTF-8 decode to U+FFFD."""

    kind = "byte"
    vocab_size = 256

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(_utf8(text), np.uint8).astype(self.dtype)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        return self._checked(ids).astype(np.uint8).tobytes().decode("utf-8", "replace")

    def vocabulary(self) -> dict[str, int]:
        return dict(_BYTE_VOCABULARY)

    def to_json(self) -> str:
        byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
        byte_level["use_regex"] = False  # words matter to merges alone
        return _without_merges(self.vocabulary(), byte_level, byte_level)


class BPETokenizer(Tokenizer):
    """Byte-pair encoding by the `tokenizers` library, ours or any `tokenizer.json` with merges."""

    kind = "bpe"

    def __init__(self, json_text: str) -> None:
        """Raises UserError without the library, and its own exception for a text it cannot read."""
        self._bpe = _library().Tokenizer.from_str(json_text)
        self._bpe.no_truncation()
        self._bpe.no_padding()
        # Ids may have gaps in foreign files, so the count of tokens is not enough.
        self.vocab_size = 1 + max(self.vocabulary().values(), default=-1)

    @classmethod
    def train(cls, chunks: Iterator[str], vocab_size: int) -> "BPETokenizer":
        """Learn up to `vocab_size` tokens: 256 bytes, then merges seen at least twice."""
        library = _library()
        bpe = library.Tokenizer(library.models.BPE())
        # Words are cut by GPT-2's regular expression; merges stay within a word.
        bpe.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
        bpe.decoder = library.decoders.ByteLevel()
        trainer = library.trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=2,
            initial_alphabet=list(_BYTE_VOCABULARY),
            show_progress=False,
        )
        bpe.train_from_iterator(chunks, trainer)
        return cls(bpe.to_str())

    def encode(self, text: str) -> np.ndarray:
        _utf8(text)  # the library's own complaint names no character
        return np.array(self._bpe.encode(text, add_special_tokens=False).ids, self.dtype)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        return self._bpe.decode(self._checked(ids).tolist(), skip_special_tokens=False)

    def vocabulary(self) -> dict[str, int]:
        return self._bpe.get_vocab(with_added_tokens=True)

    def to_json(self) -> str:
        return self._bpe.to_str(pretty=True)


KINDS = (CharTokenizer.kind, ByteTokenizer.kind, BPETokenizer.kind)


def train(kind: str, chunks: Chunks, vocab_size: int | None = None) -> Tokenizer:
    """Make a tokenizer for a corpus; the same corpus gives the same tokenizer.

    `chunks()` starts a pass over the corpus and yields it piece by piece, so it never has to be in
    memory whole. `vocab_size` (1024 when None) is an upper bound and matters to "bpe" alone.
    UserError for an unknown kind, a corpus without text, a vocabulary too small to hold the bytes,
    and "bpe" without the `tokenizers` library.
    """
    if kind == "byte":
        return ByteTokenizer()
    if kind == "char":
        characters = set()
        for chunk in chunks():
            characters.update(chunk)
        if not characters:
            raise UserError("no text to take characters from; a char tokenizer needs at least one")
        return CharTokenizer(sorted(characters))
    if kind == "bpe":
        size = 1024 if vocab_size is None else vocab_size
        if size <= 256:
            raise UserError(
                f"a vocabulary of {size} tokens is too small for bpe; "
                "it holds the 256 bytes and at least one merge: ask for 257 or more"
            )
        return BPETokenizer.train(chunks(), size)
    nearest = difflib.get_close_matches(str(kind).lower(), KINDS, n=1, cutoff=0)[0]
    raise UserError(
        f"no tokenizer is called {kind!r}; did you mean {nearest!r}? ({', '.join(KINDS)})"
    )


def load(path: str | os.PathLike[str]) -> Tokenizer:
    """Open a `tokenizer.json`; its content tells the kind.

    UserError, naming the path, for a file that is missing, not JSON, or no byte-pair encoding.
    """
    expected = "expected a Hugging Face tokenizer.json with a byte-pair encoding"
    try:
        text = Path(path).read_text(encoding="utf-8")
        content = json.loads(text)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; {expected}") from None
    except (ValueError, RecursionError):
        raise UserError(f"{path}: not JSON; {expected}") from None
    model = content.get("model") if isinstance(content, dict) else None
    if not (
        isinstance(model, dict)
        and isinstance(vocabulary := model.get("vocab"), dict)
        and all(isinstance(i, int) for i in vocabulary.values())
        and isinstance(merges := model.get("merges"), list)
        and isinstance(content.get("pre_tokenizer"), dict | None)
    ):
        raise UserError(f"{path}: no vocabulary with merges in it; {expected}")
    if not merges and not content.get("added_tokens") and not content.get("normalizer"):
        before = content.get("pre_tokenizer") or {}
        byte_level = before.get("type") == "ByteLevel" and not before.get("add_prefix_space")
        if byte_level and vocabulary == _BYTE_VOCABULARY:
            return ByteTokenizer()
        in_order = sorted(vocabulary, key=vocabulary.get)
        dense = [vocabulary[token] for token in in_order] == list(range(len(in_order)))
        if in_order and dense and not before and all(len(token) == 1 for token in in_order):
            return CharTokenizer(in_order)
    try:
        return BPETokenizer(text)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except Exception as error:  # the library raises nothing more specific
        raise UserError(f"{path}: {str(error).partition(chr(10))[0]}; {expected}") from None


def _library() -> Any:
    try:
        import tokenizers
    except ImportError:
        raise UserError(
            "byte-pair encoding needs the `tokenizers` library, which is not installed; "
            "run: pip install 'tinygrad_edu[bpe]' (char and byte work without it)"
        ) from None
    return tokenizers


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")


def _utf8(text: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(
            f"{_named(text[error.start])} at position {error.start} is a lone surrogate, which "
            "UTF-8 cannot spell; give text that is valid Unicode"
        ) from None


def _named(character: str) -> str:
    return f"character {character!r} (U+{ord(character):04X})"


def _without_merges(
    vocabulary: Mapping[str, int], pre_tokenizer: dict | None, decoder: dict
) -> str:
    """A `tokenizer.json` whose tokens never combine."""
    model = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None}
    model |= {"end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False}
    model |= {"ignore_merges": False, "vocab": vocabulary, "merges": []}
    content = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": []}
    content |= {"normalizer": None, "pre_tokenizer": pre_tokenizer, "post_processor": None}
    content |= {"decoder": decoder, "model": model}
    return json.dumps(content, ensure_ascii=False, indent=2) + "\n"
