"""Corpora, splits, the token cache and the complaints; the reference reads everything at once."""

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import sysconfig
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

import gpt.data
from gpt import disk
from gpt.cache import cache_folder
from gpt.data import batch, open_data
from gpt.errors import UserError
from gpt.tokenizer import ByteTokenizer, load, train

LINES = "".join(f"line {i}: naïve {'x' * (i % 7)}\n{'  ' * (i % 3)}\n" for i in range(300))


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def corpus(tmp_path):
    """A function that writes a text file, or a folder from a dict of relative names to contents."""

    def write(content, name="corpus"):
        path = tmp_path / name
        for relative, text in content.items() if isinstance(content, dict) else [("", content)]:
            file = path / relative if relative else path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


@pytest.fixture
def bins(tmp_path):
    def write(train_ids, val_ids):
        folder = tmp_path / "bins"
        folder.mkdir(exist_ok=True)
        for name, ids in (("train.bin", train_ids), ("val.bin", val_ids)):
            if ids is not None:
                np.asarray(ids, "<u2").tofile(folder / name)
        return folder

    return write


def texts(data):
    return data.tokenizer.decode(data.train), data.tokenizer.decode(data.val)


def never(*args, **kwargs):
    raise AssertionError("the cache should have answered")


# --- What is read, and how it is split ---


@pytest.mark.parametrize("length", [10, 11, 19, 1000, 1009])
def test_a_file_is_split_as_nanogpt_splits_it(corpus, cache, length):
    text = (LINES + LINES)[7 : 7 + length]
    cut = int(len(text) * 0.9)
    path = corpus(text)
    for kind in ("byte", "char", "byte"):  # each kind finds its own tokens in the cache
        data = open_data(path, kind, block_size=0, cache=cache)
        assert texts(data) == (text[:cut], text[cut:])


def test_a_file_is_read_with_newlines_as_nanogpt_reads_it(corpus, cache):
    data = open_data(corpus("a\r\nb\rc\n\r\nd" * 20), block_size=1, cache=cache)
    assert "".join(texts(data)) == "a\nb\nc\n\nd" * 20


@pytest.mark.parametrize("count", [1, 9])
def test_a_small_folder_is_split_like_one_file(corpus, cache, count):
    files = {f"{i}.txt": f"text {i} é\n" * 3 for i in range(count)}
    text = "\n".join(files[name] for name in sorted(files))
    cut = int(len(text) * 0.9)
    data = open_data(corpus(files), block_size=1, cache=cache)
    assert texts(data) == (text[:cut], text[cut:])


@pytest.mark.parametrize("count", [10, 19, 23])
def test_every_tenth_file_of_a_folder_is_held_out(corpus, cache, count):
    files = {f"{'ab'[i % 2]}/{i:02}.txt": f"<{i}>" * 2 for i in range(count)}
    names = sorted(files)
    data = open_data(corpus(files), block_size=1, cache=cache)
    held_out = names[9::10]
    train_text, val_text = texts(data)
    assert val_text == "\n".join(files[name] for name in held_out)
    assert train_text == "\n".join(files[name] for name in names if name not in held_out)


def test_a_folder_leaves_out_what_is_hidden_or_not_text(corpus, cache):
    files = {
        ".hidden": "HIDDEN",
        ".git/config": "HIDDEN",
        "b/text": "text" * 9,
        "a/é.md": "mark" * 9,
    }
    files |= {"image.png": b"\x89PNG\0\0", "latin1.txt": b"caf\xe9 au lait", "empty": ""}
    path = corpus(files)
    (path / "dangling").symlink_to(path / "nowhere")
    os.mkfifo(path / "pipe")
    data = open_data(path, block_size=1, cache=cache)
    assert "".join(texts(data)) == "mark" * 9 + "\n" + "text" * 9 + "\n"


def test_the_default_corpus_is_the_code_of_the_standard_library(cache):
    data = open_data(None, block_size=1024, cache=cache)
    root = Path(sysconfig.get_paths()["stdlib"])
    train_text, val_text = texts(data)
    assert data.name.startswith("Python 3.") and data.name.endswith(" standard library")
    for module in ("ast.py", "json/decoder.py", "asyncio/base_events.py"):
        source = (root / module).read_text(encoding="utf-8")
        assert (source in train_text) != (source in val_text)
    for left_out in ("lib2to3/pytree.py", "pydoc_data/topics.py", "encodings/cp037.py"):
        if (root / left_out).exists():
            assert (root / left_out).read_text(encoding="utf-8") not in train_text + val_text
    assert 0.05 < len(data.val) / len(data.train) < 0.2
    assert len(data.train) > 3_000_000


def test_the_standard_library_is_found_again_without_reading_it(cache, monkeypatch):
    first = open_data(None, block_size=64, cache=cache)
    monkeypatch.setattr(gpt.data, "_read", never)
    second = open_data(None, block_size=64, cache=cache)
    assert second.fingerprint == first.fingerprint
    assert np.array_equal(second.val, first.val)


def test_a_standard_library_without_source_is_explained(monkeypatch, tmp_path):
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path / "zip")})
    with pytest.raises(UserError, match=r"standard library has no source code in .*zip; --data"):
        open_data(None, block_size=1, cache=tmp_path)


# --- Streaming ---


@pytest.mark.parametrize("kind", ["byte", "char", "bpe"])
def test_tokens_do_not_depend_on_where_pieces_end(corpus, tmp_path, monkeypatch, kind):
    if kind == "bpe":
        pytest.importorskip("tokenizers")
    path = corpus({f"{i}": LINES[100 * i :] + "\n" * (i % 3) for i in range(4)})
    text = "\n".join((path / str(i)).read_text(encoding="utf-8") for i in range(4))
    cut = int(len(text) * 0.9)
    tokenizer = train(kind, lambda: iter([text]), 300)
    for piece in (64, 101, 1 << 20):
        monkeypatch.setattr(gpt.data, "PIECE", piece)
        data = open_data(path, kind, 300, block_size=1, cache=tmp_path / str(piece))
        assert data.tokenizer.to_json() == tokenizer.to_json()
        assert data.train.tolist() == tokenizer.encode(text[:cut]).tolist()
        assert data.val.tolist() == tokenizer.encode(text[cut:]).tolist()


@pytest.mark.parametrize("piece", [1, 2, 3, 5])
def test_pieces_may_end_inside_a_character_or_a_line_end(corpus, tmp_path, monkeypatch, piece):
    monkeypatch.setattr(gpt.data, "PIECE", piece)
    data = open_data(corpus("é\r\n日本\r\n😀\r" * 9), block_size=1, cache=tmp_path / "c")
    assert "".join(texts(data)) == "é\n日本\n😀\n" * 9


def test_a_line_longer_than_a_piece_is_cut(corpus, cache, monkeypatch):
    monkeypatch.setattr(gpt.data, "PIECE", 16)
    longest = []

    def encode(self, text, original=ByteTokenizer.encode):
        longest.append(len(text))
        return original(self, text)

    monkeypatch.setattr(ByteTokenizer, "encode", encode)
    data = open_data(corpus("x" * 5000 + "\n" + "y" * 100), block_size=1, cache=cache)
    assert "".join(texts(data)) == "x" * 5000 + "\n" + "y" * 100
    assert max(longest) <= 48


@pytest.mark.parametrize("kind", ["byte", "char"])
def test_memory_stays_flat_on_a_large_file(tmp_path, cache, kind):
    megabyte = ("streamed, not held in memory é\n" * 33_000)[: 10**6]
    with open(tmp_path / "large.txt", "w", encoding="utf-8") as file:
        file.writelines([megabyte] * 60)
    size = (tmp_path / "large.txt").stat().st_size
    assert size > 60_000_000
    tracemalloc.start()
    data = open_data(tmp_path / "large.txt", kind, block_size=64, cache=cache)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(data.train) + len(data.val) == (size if kind == "byte" else 60 * 10**6)
    assert peak < 24_000_000


# --- The dataset ---


def test_tokens_are_mapped_read_only(corpus, cache):
    data = open_data(corpus(LINES), block_size=8, cache=cache)
    for tokens in (data.train, data.val):
        assert isinstance(tokens, np.memmap) and tokens.dtype == np.uint16
        with pytest.raises(ValueError, match="read-only"):
            tokens[0] = 1
    assert data.vocab_size == data.tokenizer.vocab_size == 256
    assert data.name == str(corpus(LINES))


def test_a_large_vocabulary_is_kept_in_wide_ids(corpus, cache):
    text = "".join(map(chr, range(0x10000, 0x20100)))
    data = open_data(corpus(text), "char", block_size=8, cache=cache)
    assert data.train.dtype == np.uint32
    assert "".join(texts(data)) == text


def test_the_vocabulary_of_a_bpe_is_as_large_as_asked_for(corpus, cache):
    pytest.importorskip("tokenizers")
    path = corpus(LINES)
    sizes = [open_data(path, "bpe", n, block_size=8, cache=cache).vocab_size for n in (270, 280)]
    assert sizes == [270, 280]


def test_the_fingerprint_is_the_content_s(corpus, cache, tmp_path):
    def fingerprint(path, kind="byte", where=cache):
        return open_data(path, kind, block_size=2, cache=where).fingerprint

    path = corpus(LINES)
    first = fingerprint(path)
    assert fingerprint(path) == first
    assert fingerprint(path, where=tmp_path / "elsewhere") == first
    os.utime(path, (1, 1))
    assert fingerprint(path) == first
    assert fingerprint(path, "char") != first
    os.utime(path, ns=(path.stat().st_atime_ns, 10**18))
    fingerprint(path)
    path.write_text(LINES.replace("line 7", "lime 7"), encoding="utf-8")
    os.utime(path, ns=(path.stat().st_atime_ns, 10**18))  # same size, same mtime
    assert fingerprint(path) != first


def test_the_fingerprint_knows_the_vocabulary(corpus, cache):
    one, two = (open_data(corpus(t * 50), "char", block_size=2, cache=cache) for t in ("ab", "cd"))
    assert np.array_equal(one.train, two.train) and one.fingerprint != two.fingerprint


def test_an_existing_tokenizer_keeps_its_ids(corpus, cache, tmp_path, monkeypatch):
    for kind in ("char", "byte", "bpe"):
        if kind == "bpe":
            pytest.importorskip("tokenizers")
        first = open_data(corpus(LINES), kind, 300, block_size=8, cache=cache)
        first.tokenizer.save(tmp_path / "tokenizer.json")
        with monkeypatch.context() as patch:
            patch.setattr(gpt.data, "_read", never)  # its tokens are in the cache already
            again = open_data(
                corpus_path := first.name,
                block_size=8,
                cache=cache,
                tokenizer_file=tmp_path / "tokenizer.json",
            )
        assert again.tokenizer.kind == kind and again.fingerprint == first.fingerprint
        more = corpus(LINES + "line" * 20)
        assert str(more) == corpus_path
        other = open_data(
            more, block_size=8, cache=cache, tokenizer_file=tmp_path / "tokenizer.json"
        )
        assert other.tokenizer.to_json() == first.tokenizer.to_json()
        assert other.fingerprint != first.fingerprint


def test_text_that_an_existing_tokenizer_cannot_spell_is_named(corpus, cache, tmp_path):
    train("char", lambda: iter([LINES])).save(tmp_path / "tokenizer.json")
    path = corpus(LINES + "ß")
    with pytest.raises(
        UserError, match=r"corpus: after \d+ characters: .*'ß' \(U\+00DF\)"
    ) as caught:
        open_data(path, block_size=8, cache=cache, tokenizer_file=tmp_path / "tokenizer.json")
    assert "\n" not in str(caught.value)


# --- train.bin and val.bin ---


def test_bins_are_used_in_place(bins, cache):
    folder = bins(np.arange(1000) % 65, np.arange(100) % 7)
    data = open_data(str(folder), block_size=8, cache=cache)
    assert data.tokenizer is None and data.vocab_size == 65
    assert data.train.tolist() == [i % 65 for i in range(1000)]
    assert data.val.tolist() == [i % 7 for i in range(100)]
    assert isinstance(data.train, np.memmap) and data.train.dtype == np.uint16
    assert Path(data.train.filename) == folder / "train.bin"
    assert sorted(file.name for file in folder.iterdir()) == ["train.bin", "val.bin"]


def test_bins_are_scanned_once(bins, cache, monkeypatch):
    folder = bins([1, 2, 65535, 4] * 9, [5] * 9)
    monkeypatch.setattr(gpt.data, "PIECE", 4)  # the largest id is found in pieces
    first = open_data(folder, block_size=2, cache=cache)
    assert first.vocab_size == 65536
    with monkeypatch.context() as patch:
        patch.setattr(gpt.data, "_scan", never)
        assert open_data(folder, block_size=2, cache=cache).fingerprint == first.fingerprint
    bins([1, 2, 65535, 3] * 9, [5] * 9)
    assert open_data(folder, block_size=2, cache=cache).fingerprint != first.fingerprint


def test_bins_take_the_tokenizer_beside_them(bins, cache):
    folder = bins([65] * 30, [66] * 30)
    bare = open_data(folder, block_size=2, cache=cache)
    ByteTokenizer().save(folder / "tokenizer.json")
    data = open_data(folder, block_size=2, cache=cache)
    assert data.vocab_size == 256 and texts(data) == ("A" * 30, "B" * 30)
    assert data.fingerprint != bare.fingerprint


def test_a_pickle_beside_the_bins_is_not_read(bins, cache):
    folder = bins([65] * 30, [66] * 30)
    (folder / "meta.pkl").write_bytes(b"cos\nabort\n(tR.")  # would end the process
    assert open_data(folder, block_size=2, cache=cache).vocab_size == 67


def test_bins_of_another_tokenizer_are_refused(bins, cache):
    folder = bins([65, 300] * 30, [66] * 30)
    ByteTokenizer().save(folder / "tokenizer.json")
    with pytest.raises(UserError, match="bins: has the token id 300, but the tokenizer only 256"):
        open_data(folder, block_size=2, cache=cache)


@pytest.mark.parametrize(("missing", "there"), [("train", "val"), ("val", "train")])
def test_one_bin_without_the_other_is_refused(bins, cache, missing, there):
    folder = bins(*([None, [1]] if missing == "train" else [[1], None]))
    with pytest.raises(UserError, match=f"bins: has {there}.bin but no {missing}.bin; put both"):
        open_data(folder, block_size=2, cache=cache)


def test_a_bin_of_odd_size_is_refused(bins, cache):
    folder = bins([1] * 30, [1] * 30)
    (folder / "val.bin").write_bytes(b"\1" * 31)
    with pytest.raises(UserError, match=r"val.bin: 31 bytes are not a whole number of uint16"):
        open_data(folder, block_size=2, cache=cache)


def test_empty_bins_are_too_short(bins, cache):
    with pytest.raises(UserError, match=r"held-out part holds 0 tokens.*no context fits"):
        open_data(bins([1] * 30, []), block_size=2, cache=cache)


# --- The cache ---


def entries(cache):
    return sorted(file.name for file in cache.iterdir())


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("TINYGRAD_EDU_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == tmp_path / ".cache" / "tinygrad_edu"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "tinygrad_edu"
    monkeypatch.setenv("TINYGRAD_EDU_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"


def test_tokens_go_to_the_cache_folder(monkeypatch, corpus, tmp_path):
    monkeypatch.setenv("TINYGRAD_EDU_CACHE", str(tmp_path / "own"))
    data = open_data(corpus(LINES), block_size=2)
    assert tmp_path / "own" in Path(data.train.filename).parents


def test_without_a_writable_cache_a_temporary_one_serves(corpus, tmp_path):
    (tmp_path / "file").write_text("in the way")
    data = open_data(corpus(LINES), block_size=2, cache=tmp_path / "file" / "cache")
    assert "".join(texts(data)) == LINES
    assert Path(data.train.filename).parents[1] == gpt.cache.temporary_cache()


def test_a_full_disk_says_where_to_go(corpus, cache, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(disk.Calls, "fsync", staticmethod(full))
    with pytest.raises(UserError, match=r"cache: .*No space left.*set TINYGRAD_EDU_CACHE"):
        open_data(corpus(LINES), block_size=2, cache=cache)
    assert entries(cache) == []


@pytest.mark.parametrize("victim", ["train.bin", "val.bin", "index.json", "tokenizer.json"])
@pytest.mark.parametrize("damage", ["cut", "longer", "flipped", "gone"])
def test_a_damaged_entry_is_made_again(corpus, cache, victim, damage):
    path = corpus(LINES)
    first = open_data(path, "char", block_size=2, cache=cache)
    before, name = (texts(first), first.fingerprint), f"*/{victim}"
    for file in cache.glob(name):
        content = bytearray(file.read_bytes())
        if damage == "cut":
            del content[-2:]
        elif damage == "longer":
            content += b"  "
        elif damage == "flipped":
            content[len(content) // 2] ^= 1
        file.unlink()
        if damage != "gone":
            file.write_bytes(content)
    second = open_data(path, "char", block_size=2, cache=cache)
    assert (texts(second), second.fingerprint) == before


@pytest.mark.parametrize("index", ["", "[]", "{}", "null", '{"files": 3, "facts": 1, "check": 2}'])
def test_an_index_with_other_content_is_not_trusted(corpus, cache, index):
    path = corpus(LINES)
    open_data(path, block_size=2, cache=cache)
    for file in cache.glob("*/index.json"):
        file.write_text(index)
    assert "".join(texts(open_data(path, block_size=2, cache=cache))) == LINES


def test_facts_that_do_not_match_their_check_are_not_trusted(bins, cache):
    folder = bins([1, 2, 3] * 9, [5] * 9)
    first = open_data(folder, block_size=2, cache=cache)
    (file,) = cache.glob("*/index.json")
    index = json.loads(file.read_text())
    index["facts"]["largest"] = 77
    file.write_text(json.dumps(index))
    second = open_data(folder, block_size=2, cache=cache)
    assert second.vocab_size == first.vocab_size == 6
    assert second.fingerprint == first.fingerprint


def test_what_a_killed_run_leaves_is_not_taken_for_an_entry(corpus, cache, monkeypatch):
    path = corpus(LINES)
    finished = open_data(path, block_size=2, cache=cache)
    good = entries(cache)
    shutil.rmtree(cache)

    class Killed(BaseException):
        pass

    def kill(*args, **kwargs):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", lambda *args, **kwargs: None)  # nobody cleans up
        patch.setattr("os.rename", kill)
        with pytest.raises(Killed):
            open_data(path, block_size=2, cache=cache)
    assert len(entries(cache)) == 1 and not set(entries(cache)) & set(good)
    again = open_data(path, block_size=2, cache=cache)
    assert again.fingerprint == finished.fingerprint and "".join(texts(again)) == LINES


def test_an_entry_that_another_run_finished_first_is_used(corpus, cache, monkeypatch):
    path = corpus(LINES)
    rename, rivals = os.rename, []

    def late(source, target):
        if not rivals:
            rivals.append(Path(target))
            shutil.copytree(source, target)
        rename(source, target)

    monkeypatch.setattr("os.rename", late)
    assert "".join(texts(open_data(path, block_size=2, cache=cache))) == LINES
    assert rivals[0].name in entries(cache)
    assert len(entries(cache)) == 2  # a tokenizer and its tokens, nothing twice, nothing partial


def test_an_entry_that_appears_while_it_is_looked_for_is_used(corpus, cache, monkeypatch):
    path, elsewhere, lexists, asked = corpus(LINES), cache.with_name("other"), os.path.lexists, []
    open_data(path, block_size=2, cache=elsewhere)

    def at_the_second_time(entry):
        rival = elsewhere / Path(entry).name
        if entry in asked and rival.exists() and not lexists(entry):
            shutil.copytree(rival, entry)
        asked.append(entry)
        return lexists(entry)

    monkeypatch.setattr("os.path.lexists", at_the_second_time)
    open_data(path, block_size=2, cache=cache)
    assert entries(cache) == entries(elsewhere)


def _open_in_a_process(path, cache, start, results):
    start.wait()
    results.put(open_data(path, "char", block_size=2, cache=cache).fingerprint)


def test_runs_that_start_together_share_one_entry(corpus, cache):
    context = multiprocessing.get_context("spawn")
    start, results = context.Barrier(3), context.Queue()
    arguments = (corpus(LINES * 50), cache, start, results)
    runs = [context.Process(target=_open_in_a_process, args=arguments) for _ in range(3)]
    for run in runs:
        run.start()
    assert len({results.get(timeout=60) for _ in runs}) == 1
    for run in runs:
        run.join()
    assert len(entries(cache)) == 2


def test_the_temporary_cache_goes_with_the_process():
    show = "import gpt.cache; f = gpt.cache.temporary_cache(); print(f.is_dir(), f, end='')"
    run = subprocess.run([sys.executable, "-c", show], capture_output=True, text=True, check=True)
    there, folder = run.stdout.split(" ", 1)
    assert there == "True" and not Path(folder).exists()


# --- Batches ---


def test_a_batch_is_windows_and_the_same_one_further_on():
    tokens = np.arange(1000, dtype=np.uint16)
    x, y = batch(tokens, np.random.default_rng(1), 12, 8)
    assert x.shape == y.shape == (12, 8) and x.dtype == y.dtype == np.int64
    assert np.array_equal(y, x + 1)
    assert np.array_equal(x, x[:, :1] + np.arange(8))
    assert type(x) is np.ndarray and x.flags.c_contiguous and not np.shares_memory(x, y)


def test_batches_reach_the_first_and_the_last_token_alike():
    tokens = np.arange(12, dtype=np.uint16)
    x, y = batch(tokens, np.random.default_rng(1), 20_000, 8)
    counts = np.bincount(x[:, 0])
    assert len(counts) == 4 and counts.min() > 4700  # starts 0, 1, 2 and 3, one as often as another
    assert y.max() == 11
    x, y = batch(tokens[:9], np.random.default_rng(1), 3, 8)  # the shortest text there can be
    assert x.tolist() == [list(range(8))] * 3


def test_batches_follow_the_generator(corpus, cache):
    data = open_data(corpus(LINES), block_size=8, cache=cache)
    x, _ = batch(data.train, np.random.default_rng(5), 4, 8)
    assert type(x) is np.ndarray
    assert np.array_equal(x, batch(data.train, np.random.default_rng(5), 4, 8)[0])
    assert not np.array_equal(x, batch(data.train, np.random.default_rng(6), 4, 8)[0])


# --- Complaints ---


def complaint(path, cache, block_size=2, **more):
    with pytest.raises(UserError) as caught:
        open_data(path, block_size=block_size, cache=cache, **more)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_missing_path_is_named(tmp_path, cache):
    message = complaint(tmp_path / "nowhere.txt", cache)
    assert "nowhere.txt: No such file" in message
    assert "a text file, a folder of text files, or a folder with train.bin and val.bin" in message
    assert "File name too long" in complaint("x" * 5000, cache)
    assert "path of the data is empty" in complaint("", cache)


def test_a_pipe_is_refused_instead_of_waited_for(tmp_path, cache):
    os.mkfifo(tmp_path / "pipe")
    assert "pipe: neither a regular file nor a folder" in complaint(tmp_path / "pipe", cache)


def test_what_has_no_text_is_named(corpus, cache, tmp_path):
    (tmp_path / "bare").mkdir()
    for path in (
        corpus("", "empty.txt"),
        tmp_path / "bare",
        corpus({"a": "", "b": ""}, "blank"),
        corpus({"a.png": b"\0\1"}, "pictures"),
    ):
        for kind in ("byte", "char"):
            assert f"{path}: there is no text in it; --data" in complaint(
                path, cache, tokenizer=kind
            )


@pytest.mark.parametrize("piece", [4, 1 << 20])
def test_the_byte_that_is_not_text_is_named(corpus, cache, monkeypatch, piece):
    monkeypatch.setattr(gpt.data, "PIECE", piece)
    message = complaint(corpus("naïve \0 text"), cache)
    assert "corpus: byte 7 is NUL" in message and "--data" in message
    message = complaint(corpus("naïve ".encode() + b"caf\xe9 au lait"), cache)
    assert "corpus: byte 10 (0xe9) is not UTF-8" in message and "--data" in message
    assert "byte 9 (0xc3) is not UTF-8" in complaint(corpus(b"cut off: \xc3"), cache)
    assert "byte 1 is NUL" in complaint(corpus("text".encode("utf-16-le")), cache)


def test_a_text_shorter_than_the_context_says_what_fits(corpus, cache):
    path = corpus("x" * 200)
    message = complaint(path, cache, block_size=64)
    assert f"{path}: the held-out part holds 20 tokens" in message
    assert "context of 64 needs at least 65" in message and "at most 19 or give more" in message
    assert open_data(path, block_size=19, cache=cache).vocab_size == 256
    assert "held-out part holds 20" in complaint(path, cache, block_size=20)
    assert "training part holds 180 tokens" in complaint(path, cache, block_size=180)
    assert "no context fits" in complaint(corpus("xy"), cache)


def test_an_unknown_tokenizer_is_refused(corpus, cache):
    assert "did you mean 'byte'" in complaint(corpus(LINES), cache, tokenizer="bytes")
    assert entries(cache) == []


def test_a_broken_tokenizer_file_is_named(corpus, cache, tmp_path):
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": 3}))
    file = tmp_path / "tokenizer.json"
    assert str(file) in complaint(corpus(LINES), cache, tokenizer_file=file)
    with pytest.raises(UserError):
        load(file)


@pytest.mark.parametrize("what", ["file", "member", "bin", "folder"])
def test_what_may_not_be_read_is_named(corpus, bins, cache, monkeypatch, what):
    """Refused by a stand-in, because a test that runs as root may read everything."""

    def refuse(path, *args, **kwargs):
        raise PermissionError(13, "Permission denied", str(path))

    if what == "folder":
        path = secret = corpus({"a.txt": LINES})
        monkeypatch.setattr("os.scandir", refuse)
    else:
        path = bins([1] * 30, [1] * 30) if what == "bin" else corpus(LINES)
        path = corpus({"a.txt": LINES}, "folder") if what == "member" else path
        secret = {"file": path, "member": path / "a.txt", "bin": path / "train.bin"}[what]

        def guarded(file, *args, **kwargs):
            return refuse(file) if Path(file) == secret else open(file, *args, **kwargs)

        monkeypatch.setattr(gpt.data, "open", guarded, raising=False)
    message = complaint(path, cache)
    assert f"{secret}: Permission denied; make" in message
