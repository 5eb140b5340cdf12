"""The three tokenizers: round trips, the file as other programs see it, and every complaint."""

import json
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt import disk
from gpt.errors import UserError
from gpt.tokenizer import BPETokenizer, ByteTokenizer, CharTokenizer, load, train

CODE = "def area(width, height):\n    return width * height\n\n\nprint(area(3, 4))\n" * 20
MIXED = 'naïve "日本" \U0001f600\u0301 \0\t\r\n\u2028 don\'t é'

any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


def make(kind, text=CODE + MIXED):
    if kind == "bpe":
        pytest.importorskip("tokenizers")
    return train(kind, lambda: iter([text]), 300)


@pytest.fixture(params=["char", "byte", "bpe"])
def tokenizer(request):
    return make(request.param)


def test_a_text_comes_back_as_it_was(tokenizer):
    ids = tokenizer.encode(CODE + MIXED)
    assert ids.dtype == np.uint16 and ids.ndim == 1
    assert tokenizer.decode(ids) == CODE + MIXED
    assert int(ids.max()) < tokenizer.vocab_size


def test_nothing_encodes_to_nothing_and_back(tokenizer):
    assert tokenizer.encode("").shape == (0,)
    assert tokenizer.encode("").dtype == np.uint16
    assert tokenizer.decode([]) == ""


def test_decode_takes_any_sequence_of_integers(tokenizer):
    ids = tokenizer.encode("print")
    for same in (ids, ids.astype(np.int64), ids.tolist(), tuple(ids.tolist()), list(ids)):
        assert tokenizer.decode(same) == "print"
    with pytest.raises(TypeError, match="float64"):
        tokenizer.decode([1.5])


def test_an_id_outside_the_vocabulary_is_named(tokenizer):
    beyond = tokenizer.vocab_size
    with pytest.raises(UserError, match=rf"token id {beyond} at position 2 .* 0 to {beyond - 1}"):
        tokenizer.decode([0, 1, beyond])
    with pytest.raises(UserError, match="token id -1 at position 0"):
        tokenizer.decode([-1])


def test_char_ids_number_the_sorted_characters():
    char = make("char", "hello")
    assert char.characters == "ehlo" and char.vocab_size == 4
    assert char.encode("hello").tolist() == [1, 0, 2, 2, 3]
    assert char.decode([2, 3, 2]) == "lol"


def test_char_names_what_it_does_not_know():
    char = make("char", "hello")
    with pytest.raises(UserError) as caught:
        char.encode("hellö")
    message = str(caught.value)
    assert "'ö' (U+00F6) at position 4" in message
    assert "4 characters: 'ehlo'" in message and "\n" not in message
    for stranger in ("a", "\0", "\U0010ffff", "\ud800"):  # between, below, far above, no character
        with pytest.raises(UserError, match=rf"U\+{ord(stranger):04X}\) at position 1"):
            char.encode("h" + stranger)


def test_a_long_char_vocabulary_is_quoted_in_part():
    char = CharTokenizer(map(chr, range(0x4E00, 0x5E00)))
    with pytest.raises(UserError) as caught:
        char.encode("x")
    assert "4096 characters" in str(caught.value) and "...'" in str(caught.value)
    assert len(str(caught.value)) < 250


def test_byte_ids_are_the_bytes():
    byte = ByteTokenizer()
    assert byte.encode("aé\0").tolist() == [0x61, 0xC3, 0xA9, 0]
    assert byte.decode([0x61, 0xC3, 0x28]) == "a\ufffd("
    assert byte.vocab_size == 256


@pytest.mark.parametrize("kind", ["byte", "bpe"])
def test_a_lone_surrogate_is_named(kind):
    with pytest.raises(UserError, match=r"'\\udc80' \(U\+DC80\) at position 2.*lone surrogate"):
        make(kind).encode("ab\udc80")


def test_bpe_merges_what_stands_together():
    bpe = make("bpe")
    assert 256 < bpe.vocab_size <= 300
    assert len(bpe.encode(CODE)) < len(CODE) / 2
    assert bpe.decode(bpe.encode("完全 unseen text")) == "完全 unseen text"


def test_training_twice_gives_the_same_tokenizer(tokenizer):
    again = make(tokenizer.kind)
    assert again.to_json() == tokenizer.to_json()


def test_training_reads_a_corpus_in_any_pieces():
    whole, pieces = train("char", lambda: iter([MIXED])), train("char", lambda: iter(MIXED))
    assert whole.characters == pieces.characters == "".join(sorted(set(MIXED)))
    assert train("byte", lambda: iter([])).vocab_size == 256


def test_a_large_vocabulary_has_wide_ids():
    assert CharTokenizer(map(chr, range(2**16))).dtype == np.uint16
    wide = CharTokenizer(map(chr, range(0x10000, 0x20001)))
    assert wide.dtype == np.uint32
    assert wide.encode("\U00020000").tolist() == [2**16]
    assert wide.decode([2**16]) == "\U00020000"


# --- The file ---


def test_load_gives_back_what_was_saved(tokenizer, tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text("an older file")
    tokenizer.save(path)
    loaded = load(str(path))
    assert type(loaded) is type(tokenizer) and loaded.kind == tokenizer.kind
    assert loaded.vocabulary() == tokenizer.vocabulary()
    assert loaded.encode(MIXED).tolist() == tokenizer.encode(MIXED).tolist()
    assert [file.name for file in tmp_path.iterdir()] == ["tokenizer.json"]
    assert loaded.to_json() == tokenizer.to_json() == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failing_save_leaves_the_old_file(tokenizer, tmp_path, monkeypatch, step):
    path = tmp_path / "tokenizer.json"
    path.write_text("an older file")

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(disk.Calls, step, staticmethod(full))
    with pytest.raises(OSError, match="No space"):
        tokenizer.save(path)
    assert path.read_text() == "an older file"
    assert [file.name for file in tmp_path.iterdir()] == ["tokenizer.json"]


def test_the_tokenizers_library_reads_our_files_alike(tokenizer, tmp_path):
    library = pytest.importorskip("tokenizers")
    tokenizer.save(tmp_path / "tokenizer.json")
    theirs = library.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert theirs.get_vocab_size() == tokenizer.vocab_size
    for text in (CODE, MIXED, CODE + MIXED, " ", "\n\n  "):
        ids = theirs.encode(text).ids
        assert ids == tokenizer.encode(text).tolist()
        assert theirs.decode(ids) == tokenizer.decode(ids) == text


@settings(max_examples=60, deadline=None)
@given(text=any_text)
def test_the_tokenizers_library_agrees_on_any_text(text):
    library = pytest.importorskip("tokenizers")
    for tokenizer in (ByteTokenizer(), CharTokenizer(sorted(set(text) | {"a"}))):
        theirs = library.Tokenizer.from_str(tokenizer.to_json())
        ids = tokenizer.encode(text).tolist()
        assert theirs.encode(text).ids == ids
        assert theirs.decode(ids) == tokenizer.decode(ids) == text


@settings(max_examples=60, deadline=None)
@given(ids=st.lists(st.integers(0, 255), max_size=12))
def test_the_tokenizers_library_agrees_on_broken_utf8(ids):
    library = pytest.importorskip("tokenizers")
    theirs = library.Tokenizer.from_str(ByteTokenizer().to_json())
    assert theirs.decode(ids) == ByteTokenizer().decode(ids)


def test_a_file_saved_by_the_tokenizers_library_keeps_its_kind(tokenizer, tmp_path):
    library = pytest.importorskip("tokenizers")
    path = tmp_path / "tokenizer.json"
    library.Tokenizer.from_str(tokenizer.to_json()).save(str(path))
    assert load(path).kind == tokenizer.kind
    assert load(path).vocabulary() == tokenizer.vocabulary()


def test_a_file_in_the_layout_of_gpt2_opens(tmp_path):
    """No type in the model, merges as one string, a post-processor, an added token past a gap."""
    pytest.importorskip("tokenizers")
    content = json.loads(make("bpe").to_json())
    vocab = len(content["model"]["vocab"])
    del content["model"]["type"]
    content["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]
    content["post_processor"] = {"type": "ByteLevel", "add_prefix_space": True}
    content["post_processor"]["trim_offsets"] = False
    content["truncation"] = {"max_length": 2, "strategy": "LongestFirst", "stride": 0}
    end = {"id": vocab, "content": "<|endoftext|>", "single_word": False, "lstrip": False}
    content["added_tokens"] = [end | {"rstrip": False, "normalized": True, "special": True}]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    gpt2 = load(tmp_path / "tokenizer.json")
    assert isinstance(gpt2, BPETokenizer) and gpt2.vocab_size == vocab + 1
    assert gpt2.encode(CODE).tolist() == make("bpe").encode(CODE).tolist()
    assert gpt2.decode([vocab]) == "<|endoftext|>"


# --- Complaints ---


def test_an_unknown_kind_is_answered_with_the_nearest():
    for wrong, nearest in (
        ("bytes", "byte"),
        ("character", "char"),
        ("bpee", "bpe"),
        ("BPE", "bpe"),
    ):
        with pytest.raises(UserError, match=f"{wrong!r}; did you mean {nearest!r}") as caught:
            train(wrong, lambda: iter(["x"]))
        assert "char, byte, bpe" in str(caught.value)


def test_a_vocabulary_without_room_for_a_merge_is_refused():
    for size in (256, 0, -1):
        with pytest.raises(UserError, match=f"vocabulary of {size} tokens.*257"):
            train("bpe", lambda: iter(["x"]), size)


def test_characters_of_an_empty_corpus_are_refused():
    with pytest.raises(UserError, match="no text"):
        train("char", lambda: iter(["", ""]))


def test_without_the_library_bpe_says_what_to_install(monkeypatch, tmp_path):
    merged = {"model": {"vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(merged))
    make("char", "ab").save(tmp_path / "char.json")
    ByteTokenizer().save(tmp_path / "byte.json")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UserError, match=r"pip install 'tinygrad_edu\[bpe\]'"):
        train("bpe", lambda: iter(["x"]))
    with pytest.raises(UserError, match=r"tokenizer.json: .*tinygrad_edu\[bpe\]"):
        load(tmp_path / "tokenizer.json")
    assert load(tmp_path / "char.json").encode("ba").tolist() == [1, 0]
    assert load(tmp_path / "byte.json").encode("ba").tolist() == [98, 97]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("not json {", "not JSON"),
        ("", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[1, 2]", "no vocabulary with merges"),
        ('{"vocab_size": 3}', "no vocabulary with merges"),
        ('{"model": {"type": "WordLevel", "vocab": {"a": 0}}}', "no vocabulary with merges"),
        ('{"model": {"vocab": {"a": "0"}, "merges": []}}', "no vocabulary with merges"),
        ('{"model": {"vocab": {"a": 0}, "merges": []}, "pre_tokenizer": 3}', "no vocabulary with"),
        ('{"model": {"vocab": {"a": 0}, "merges": [["x", "y"]]}}', "expected a Hugging Face"),
    ],
)
def test_a_foreign_file_is_refused_by_name(tmp_path, content, complaint):
    pytest.importorskip("tokenizers")
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(UserError, match=complaint) as caught:
        load(path)
    assert str(path) in str(caught.value) and "expected a Hugging Face" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_or_binary_file_is_refused_by_name(tmp_path):
    with pytest.raises(UserError, match=r"nowhere.json: No such file.*tokenizer.json"):
        load(tmp_path / "nowhere.json")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="binary: not JSON"):
        load(tmp_path / "binary")


@pytest.mark.parametrize("ids", [{"a": 0, "b": 2}, {"a": 0, "b": 0}])
def test_characters_with_gaps_are_no_char_tokenizer(tmp_path, ids):
    pytest.importorskip("tokenizers")
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({"model": {"type": "BPE", "vocab": ids, "merges": []}}))
    assert load(path).kind == "bpe"
    assert load(path).vocab_size == max(ids.values()) + 1
