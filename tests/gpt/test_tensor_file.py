"""Checkpoints in pieces: the bytes of whole arrays, little memory, damage named, all or nothing."""

import errno
import json
import os
import shutil
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.numpy

import tinygrad_edu as tg
from gpt import GPT, GPTConfig, disk, gpt2_layout
from gpt.checkpoint import checkpoint_of, restore
from gpt.config import TrainConfig
from gpt.errors import UserError
from gpt.run_folder import RunFolder
from gpt.tensor_file import LazyTensor, TensorFile, equal, lazy, transposed
from tinygrad_edu.storage import ArrayStorage, born_in, placed

SMALL = GPTConfig(vocab_size=19, block_size=8, n_layer=2, n_head=2, n_embd=12)
NO_BIAS = GPTConfig(vocab_size=19, block_size=8, n_layer=2, n_head=2, n_embd=12, bias=False)
DATA = SimpleNamespace(name="a text", fingerprint="1234")
MB = 1 << 20


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr(disk.Calls, "fsync", staticmethod(lambda _: None))


class Elsewhere(ArrayStorage):
    """Numbers that come and go in pieces of an awkward size, each gone when the next is made."""

    piece = 7

    def chunks(self, kind):
        flat = (self.array if kind == "weight" else self.state[kind]).reshape(-1)
        buffer = np.empty(self.piece, self.dtype)
        for start in range(0, self.size, self.piece):
            piece = buffer[: min(self.piece, self.size - start)]
            piece[:] = flat[start : start + self.piece]
            yield piece
            buffer.fill(99)

    def fill(self, kind, chunks, dtype=None):
        flat = (self.array if kind == "weight" else self.state[kind]).reshape(-1)
        for start, piece in placed(chunks, self.size):
            flat[start : start + piece.size] = piece


class FarAway(Elsewhere):
    piece = 100_003


def trained(config=SMALL, storage=ArrayStorage, seed=0, steps=3):
    """A model and an optimizer whose every number depends on the seed."""
    with born_in(storage):
        model = GPT(config, np.random.default_rng(seed))
    optimizer = tg.optim.AdamW(model.parameters(), 1e-3)
    rng = np.random.default_rng(seed)
    for parameter in model.parameters():
        parameter.assign([rng.standard_normal(parameter.shape, np.float32)])
        for kind in optimizer.state_names:
            parameter.storage.fill(kind, [rng.standard_normal(parameter.shape, np.float32)])
    optimizer.steps = steps
    return model, optimizer


def numbers(model, optimizer):
    """Every number of a run, in bytes."""
    kinds = ("weight", *optimizer.state_names)
    parameters = model.parameters()
    return [b"".join(map(bytes, p.storage.chunks(kind))) for p in parameters for kind in kinds]


def commit(path, model, optimizer):
    folder = RunFolder(path)
    folder.open_new()
    folder.commit(optimizer.steps, *checkpoint_of(model, optimizer, DATA, TrainConfig()))
    return folder


def whole_layout(model):
    """GPT-2's arrays, as one would make them if memory were no matter."""
    out = {}
    for name, parameter in model.named_parameters():
        array = parameter.data.T if name.endswith(gpt2_layout.TRANSPOSED) else parameter.data
        out[name] = np.ascontiguousarray(array)
        if not model.config.bias and "wte" not in name and "wpe" not in name:
            out[name.replace("weight", "bias")] = np.zeros(array.shape[-1], np.float32)
    return out


def files_of(path):
    return {name: (path / name).read_bytes() for name in os.listdir(path)}


@pytest.fixture
def folder(tmp_path):
    """A saved model."""
    trained()[0].save(tmp_path / "model")
    return tmp_path / "model"


def rewrite(folder, change=None, **replaced):
    """Writes model.safetensors anew, with `change` made to its tensors."""
    path = folder / "model.safetensors"
    tensors = safetensors.numpy.load_file(path) | replaced
    if change:
        tensors = change(tensors)
    safetensors.numpy.save_file(tensors, path, {"format": "pt"})
    return tensors


# The same bytes.


@pytest.mark.parametrize("storage", [ArrayStorage, Elsewhere])
@pytest.mark.parametrize("config", [SMALL, NO_BIAS])
def test_a_saved_model_has_the_librarys_bytes(tmp_path, config, storage):
    model, _ = trained(config, storage)
    model.save(tmp_path)
    expected = safetensors.numpy.save(whole_layout(model), {"format": "pt"})
    assert (tmp_path / "model.safetensors").read_bytes() == expected
    again = GPT.load(tmp_path)
    for a, b in zip(model.parameters(), again.parameters(), strict=True):
        np.testing.assert_array_equal(a.data, b.data)


@pytest.mark.parametrize("bias", [0, np.True_])
def test_a_model_of_numpys_numbers_is_saved_as_any_other(tmp_path, bias):
    """A vocabulary as large as `ids.max() + 1` is one of NumPy's numbers."""
    shape = map(np.int64, (11, 8, 1, 2, 4))
    model = GPT(GPTConfig(*shape, dropout=np.float32(0.25), bias=bias))
    model.save(tmp_path)
    assert GPT.load(tmp_path).config == model.config


@pytest.mark.parametrize("config", [SMALL, NO_BIAS])
def test_runs_of_any_storage_write_the_files_of_whole_arrays_and_resume_each_other(
    tmp_path, config
):
    written = {}
    for storage in (ArrayStorage, Elsewhere):
        model, optimizer = trained(config, storage)
        commit(tmp_path / storage.__name__, model, optimizer)
        written[storage] = files_of(tmp_path / storage.__name__)
    model, state, info = checkpoint_of(*trained(config), DATA, TrainConfig())
    plain = RunFolder(tmp_path / "plain")
    plain.open_new()
    plain.commit(3, whole_layout(trained(config)[0]), {k: np.array(v) for k, v in state.items()},
                 info)  # fmt: skip
    assert written[ArrayStorage] == written[Elsewhere] == files_of(tmp_path / "plain")
    expected = numbers(*trained(config))
    for writer, reader in ((ArrayStorage, Elsewhere), (Elsewhere, ArrayStorage)):
        model, optimizer = trained(config, reader, seed=1, steps=0)
        found = RunFolder(tmp_path / writer.__name__).read()
        restore(found, model, optimizer, DATA, tmp_path)
        assert numbers(model, optimizer) == expected and optimizer.steps == 3


def test_a_committed_file_is_laid_out_as_ever(tmp_path):
    tensors = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.array([1.5]),
        "c": np.arange(3) > 1,
    }
    folder = RunFolder(tmp_path / "run")
    folder.open_new()
    folder.commit(1, tensors, {}, {})
    header = (
        b'{"__metadata__": {"format": "pt"}, '
        b'"b": {"dtype": "F64", "shape": [1], "data_offsets": [0, 8]}, '
        b'"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [8, 32]}, '
        b'"c": {"dtype": "BOOL", "shape": [3], "data_offsets": [32, 35]}}'
    )
    header += b" " * (-len(header) % 8)
    expected = len(header).to_bytes(8, "little") + header
    expected += b"".join(tensors[name].tobytes() for name in "bac")
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == expected


def test_a_tensor_that_gives_too_few_numbers_leaves_the_old_checkpoint(tmp_path):
    folder = commit(tmp_path / "run", *trained())
    before = files_of(folder.path)
    for count in (3, 5):
        wrong = LazyTensor((2, 2), np.dtype(np.float32), lambda n=count: iter([np.zeros(n, "f4")]))
        with pytest.raises(ValueError, match=rf"w gave {count} elements, its shape \(2, 2\) has 4"):
            folder.commit(4, {"w": wrong}, {}, {})
    assert files_of(folder.path) == before


# Little memory.


def peak(function):
    """The most memory that `function` had in use, and its result."""
    tracemalloc.start()
    try:
        result = function()
        return tracemalloc.get_traced_memory()[1], result
    finally:
        tracemalloc.stop()


def test_a_matrix_is_gone_before_the_next_is_made(tmp_path):
    matrix = lazy(np.zeros((1 << 10, 1 << 11), np.float32))  # 8 MB
    tensors = {name: transposed(matrix) for name in "abc"}
    folder = RunFolder(tmp_path / "run")
    folder.open_new()
    assert peak(lambda: folder.commit(1, tensors, tensors, {}))[0] < 9 * MB


def test_neither_writing_nor_reading_holds_more_than_a_matrix(tmp_path):
    config = GPTConfig(vocab_size=8192, block_size=64, n_layer=2, n_head=4, n_embd=384)
    model, optimizer = trained(config, FarAway)
    assert 3 * sum(p.size for p in model.parameters()) * 4 > 64 * MB
    expected = numbers(model, optimizer)
    other, its_optimizer = trained(config, FarAway, seed=1)
    matrix = 384 * 4 * 384 * 4  # bytes of the largest that is transposed
    embedding = 8192 * 384 * 4
    limit = matrix + 4 * MB
    assert limit < embedding

    used, folder = peak(lambda: commit(tmp_path / "run", model, optimizer))
    assert used < limit
    used, found = peak(folder.read)
    assert used < 4 * MB
    used, _ = peak(lambda: restore(found, other, its_optimizer, DATA, tmp_path))
    assert used < limit
    assert numbers(other, its_optimizer) == expected
    used, _ = peak(lambda: model.save(tmp_path / "saved"))
    assert used < limit
    shutil.copy(tmp_path / "saved" / "model.safetensors", tmp_path)
    _, tensors = gpt2_layout.read(tmp_path / "saved")
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"]
    used, _ = peak(lambda: gpt2_layout.from_layout(tensors, other, tmp_path))
    assert used < limit


@pytest.mark.parametrize("piece", [1, 2, 5, 6, 7, 12, 13, 30, 100])
def test_transposing_and_comparing_do_not_depend_on_the_pieces(piece):
    matrix = np.arange(30, dtype=np.float32).reshape(6, 5)

    def cut(array):
        flat = array.reshape(-1)
        parts = [flat[i : i + piece] for i in range(0, flat.size, piece)]
        return LazyTensor(array.shape, array.dtype, lambda: iter([flat[:0], *parts]))

    turned = transposed(cut(matrix))
    assert turned.shape == (5, 6)
    np.testing.assert_array_equal(np.asarray(turned), matrix.T)
    assert equal(cut(matrix), lazy(matrix)) and equal(lazy(matrix), cut(matrix))
    assert equal(cut(matrix), lazy(matrix.astype(np.float16)))
    assert not equal(cut(matrix), lazy(matrix.T))
    for place in range(30):
        changed = matrix.copy()
        changed.reshape(-1)[place] += 1
        assert not equal(cut(matrix), lazy(changed))
    assert equal(lazy(np.zeros((0, 3))), cut(np.zeros((0, 3))))
    assert transposed(lazy(np.zeros((0, 3)))).tobytes() == b""
    assert transposed(lazy(np.zeros((3, 0)))).tobytes() == b""


# Reading.


@pytest.mark.parametrize("most", [1, 2, 3, 7, 1000])
def test_short_reads_lose_nothing(tmp_path, monkeypatch, most):
    folder = commit(tmp_path / "run", *trained())
    expected = numbers(*trained())
    real = disk.Calls.pread
    monkeypatch.setattr(
        disk.Calls, "pread", staticmethod(lambda d, n, at: real(d, min(n, most), at))
    )
    model, optimizer = trained(seed=1)
    restore(folder.read(), model, optimizer, DATA, tmp_path)
    assert numbers(model, optimizer) == expected


def test_a_system_without_pread_reads_the_same(folder, monkeypatch):
    monkeypatch.setattr(disk.Calls, "pread", staticmethod(disk._seek_and_read))
    for a, b in zip(GPT.load(folder).parameters(), trained()[0].parameters(), strict=True):
        np.testing.assert_array_equal(a.data, b.data)


def test_whichever_read_fails_the_checkpoint_is_right_or_the_user_is_told(tmp_path, monkeypatch):
    folder = commit(tmp_path / "run", *trained())
    expected = numbers(*trained())
    real = disk.Calls.pread
    for n in range(1, 1000):
        made = []

        def pread(*arguments, n=n, made=made):
            made.append(arguments)
            if len(made) == n:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return real(*arguments)

        monkeypatch.setattr(disk.Calls, "pread", staticmethod(pread))
        model, optimizer = trained(seed=1)
        try:
            restore(folder.read(), model, optimizer, DATA, tmp_path)
        except UserError as error:
            assert "Input/output error" in str(error) and "\n" not in str(error)
            continue
        assert numbers(model, optimizer) == expected
        break
    assert 80 < n < 999 and len(made) < n


def test_what_was_read_outlives_its_files_until_it_is_closed(tmp_path):
    folder = commit(tmp_path / "run", *trained())
    first = folder.read()
    other, optimizer = trained(seed=1, steps=4)
    folder.commit(4, *checkpoint_of(other, optimizer, DATA, TrainConfig()))
    if os.name != "nt":
        assert not (folder.path / "model-0000003.safetensors").exists()
    restore(first, other, optimizer, DATA, tmp_path)
    assert numbers(other, optimizer) == numbers(*trained())
    with pytest.raises(ValueError, match="was closed: open it again"):
        np.asarray(first.model["transformer.wte.weight"])


def test_files_close_when_nobody_refers_to_them(folder):
    file = TensorFile(folder / "model.safetensors")
    close, tensors = file.close, file.tensors()
    del file
    assert close.alive
    np.asarray(tensors["transformer.wte.weight"])
    del tensors
    assert not close.alive


def test_a_file_cut_short_while_it_is_read_names_the_tensor(tmp_path):
    folder = commit(tmp_path / "run", *trained())
    found = folder.read()
    os.truncate(folder.path / "state-0000003.safetensors", 2000)
    with pytest.raises(UserError, match=r"tensor v\.transformer\.ln_f\.bias is cut short"):
        np.asarray(found.state["v.transformer.ln_f.bias"])


def test_a_truncated_checkpoint_names_the_tensor(tmp_path):
    folder = commit(tmp_path / "run", *trained())
    path = folder.path / "model-0000003.safetensors"
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    for name, tensor in json.loads(data[8:start]).items():
        if name != "__metadata__":
            path.write_bytes(data[: start + tensor["data_offsets"][1] - 1])
            with pytest.raises(UserError, match=rf"cut short, .*, in tensor {name}; restore"):
                folder.read()
    path.write_bytes(data[: start - 1])
    with pytest.raises(UserError, match="in its header"):
        folder.read()


def test_a_truncated_model_of_others_names_the_tensor(folder):
    path = folder / "model.safetensors"
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    for name, tensor in json.loads(data[8:start]).items():
        if name != "__metadata__":
            path.write_bytes(data[: start + tensor["data_offsets"][1] - 1])
            with pytest.raises(UserError, match=rf"safetensors: tensor {name} ends at"):
                GPT.load(folder)
    for length in (0, 7, 8, start - 1):
        path.write_bytes(data[:length])
        with pytest.raises(UserError, match=r"its header of .* does not fit into a file"):
            GPT.load(folder)
    path.write_bytes(data + b"x")
    with pytest.raises(UserError, match="accounts for"):
        GPT.load(folder)


F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("header", "size", "complaint"),
    [
        ("{", 0, "is not JSON"),
        (b"\xff{}", 0, "is not JSON"),
        ("[" * 100_000, 0, "is not JSON"),
        ([F32], 8, "is not a JSON object"),
        ({"w": F32["shape"]}, 8, "does not give dtype, shape and data_offsets of w"),
        ({"w": {"dtype": "F32", "shape": [2]}}, 8, "does not give .* of w"),
        ({"w": F32 | {"shape": [2.0]}}, 8, "does not give .* of w"),
        ({"w": F32 | {"shape": [True, 2]}}, 8, "does not give .* of w"),
        ({"w": F32 | {"shape": [-1, -2]}}, 8, "does not give .* of w"),
        ({"w": F32 | {"data_offsets": [0, 4, 8]}}, 8, "does not give .* of w"),
        ({"w": F32 | {"dtype": 32}}, 8, "does not give .* of w"),
        ({"w": F32 | {"dtype": "F8_E4M3"}}, 8, "gives w the dtype F8_E4M3, which is none of F64"),
        ({"w": F32 | {"shape": [3]}}, 8, r"gives w 8 bytes, which F32 \(3,\) is not"),
        ({"w": F32 | {"shape": [1 << 70]}}, 8, "gives w 8 bytes"),
        ({"w": F32 | {"data_offsets": [8, 0]}}, 8, "gives w -8 bytes"),
        ({"w": F32 | {"data_offsets": [4, 12]}}, 12, "has w begin at 4, where 0 is due"),
        ({"w": F32, "x": F32}, 8, "has x begin at 0, where 8 is due"),
        ({"w": F32, "x": F32 | {"data_offsets": [12, 20]}}, 20, "has x begin at 12, where 8"),
        ({"w": F32}, 7, "tensor w ends at"),
        ({"w": F32}, 9, "accounts for"),
    ],
)
def test_a_damaged_header_is_the_users_to_know(folder, header, size, complaint):
    text = header if isinstance(header, (bytes, str)) else json.dumps(header)
    text = text if isinstance(text, bytes) else text.encode()
    data = len(text).to_bytes(8, "little") + text + bytes(size)
    (folder / "model.safetensors").write_bytes(data)
    with pytest.raises(UserError, match=rf"model\.safetensors cannot be read .*{complaint}") as e:
        GPT.load(folder)
    assert "\n" not in str(e.value)


def test_a_header_without_end_is_not_read(folder):
    path = folder / "model.safetensors"
    with path.open("wb") as file:
        file.write((1 << 30).to_bytes(8, "little"))
        file.truncate((1 << 30) + 8)  # a hole: takes no room
    with pytest.raises(UserError, match="is longer than the 100000000 allowed"):
        GPT.load(folder)


# Other people's files.


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int8])
def test_other_precisions_become_the_models(folder, dtype):
    tensors = rewrite(folder, lambda t: {k: (3 * v).astype(dtype) for k, v in t.items()})
    model = GPT.load(folder)
    for name, array in whole_layout(model).items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, tensors[name].astype(np.float32), name)


def test_bfloat16_is_the_upper_half_of_float32(folder):
    path = folder / "model.safetensors"
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    halves = np.frombuffer(data[start:], "<u4") >> 16
    header = json.loads(data[8:start])
    for name, entry in header.items():
        if name != "__metadata__":
            entry |= {"dtype": "BF16", "data_offsets": [n // 2 for n in entry["data_offsets"]]}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + halves.astype("<u2").tobytes())
    expected = whole_layout(trained()[0])
    for name, array in whole_layout(GPT.load(folder)).items():
        cut = (expected[name].view(np.uint32) & 0xFFFF0000).view(np.float32)
        np.testing.assert_array_equal(array, cut, name)


def test_shards_masks_and_short_names(folder):
    path = folder / "model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    path.unlink()
    tensors = {name.removeprefix("transformer."): array for name, array in tensors.items()}
    tensors["h.0.attn.bias"] = np.tril(np.ones((1, 1, 8, 8), bool))
    tensors["h.0.attn.masked_bias"] = np.array(-1e4, np.float32)
    tensors["lm_head.weight"] = tensors["wte.weight"].copy()
    index = {}
    for i in range(3):
        index |= dict.fromkeys(sorted(tensors)[i::3], f"model-{i}-of-3.safetensors")
        part = {name: tensors[name] for name in sorted(tensors)[i::3]}
        safetensors.numpy.save_file(part, folder / f"model-{i}-of-3.safetensors")
    where = folder / "model.safetensors.index.json"
    where.write_text(json.dumps({"metadata": {}, "weight_map": index}))
    for a, b in zip(GPT.load(folder).parameters(), trained()[0].parameters(), strict=True):
        np.testing.assert_array_equal(a.data, b.data)
    (folder / "model-1-of-3.safetensors").unlink()
    with pytest.raises(UserError, match=r"model-1-of-3\.safetensors cannot be read: No such file"):
        GPT.load(folder)
    for text in ("{", "[]", "{}", '{"weight_map": 1}', '{"weight_map": {"w": 1}}'):
        where.write_text(text)
        with pytest.raises(UserError, match="has no weight_map"):
            GPT.load(folder)


def test_every_difference_is_named_and_nothing_is_changed(folder):
    embedding = safetensors.numpy.load_file(folder / "model.safetensors")["transformer.wte.weight"]
    embedding[-1, -1] += 1
    rewrite(
        folder,
        lambda t: {k: v for k, v in t.items() if k != "transformer.ln_f.bias"},
        **{
            "transformer.wpe.weight": np.zeros((9, 12), np.float32),
            "transformer.h.0.attn.c_attn.weight": np.zeros((36, 12), np.float32),
            "transformer.h.0.mlp.c_fc.weight": np.zeros(3, np.float32),
            "lm_head.weight": embedding,
            "extra": np.zeros(1),
        },
    )
    model, optimizer = trained(seed=1)
    before = numbers(model, optimizer)
    _, tensors = gpt2_layout.read(folder)
    with pytest.raises(UserError) as error:
        gpt2_layout.from_layout(tensors, model, folder)
    for part in (
        "transformer.wpe.weight has shape (9, 12), the config says (8, 12)",
        "c_attn.weight has shape (12, 36), the config says (36, 12)",
        "c_fc.weight has shape (3,), the config says (48, 12)",
        "transformer.ln_f.bias is missing",
        "transformer.extra is not a tensor of this model",
        "lm_head.weight differs from transformer.wte.weight",
    ):
        assert part in str(error.value)
    with pytest.raises(UserError, match=r"missing; and 20 more$"):
        gpt2_layout.from_layout({}, model, folder)
    assert numbers(model, optimizer) == before


def test_a_bias_that_is_not_zero_where_there_should_be_none(tmp_path):
    trained(NO_BIAS)[0].save(tmp_path)
    rewrite(tmp_path, **{"transformer.ln_f.bias": np.eye(12, dtype=np.float32)[-1]})
    with pytest.raises(UserError, match=r"transformer\.ln_f\.bias is not zero, though"):
        GPT.load(tmp_path)


def test_state_that_does_not_fit_changes_nothing(tmp_path):
    folder = commit(tmp_path / "run", *trained())
    model, optimizer = trained(seed=1)
    before = numbers(model, optimizer)
    found = folder.read()
    whole = dict(found.state)
    name = "m.transformer.wpe.weight"
    for state in (
        {k: v for k, v in whole.items() if k != name},
        whole | {name: lazy(np.zeros((3, 4), np.float32))},
        whole | {"velocity.transformer.wpe.weight": whole[name]},
    ):
        found.state = state
        with pytest.raises(UserError, match=r"another optimizer's state \(\w+\.transformer\.wpe"):
            restore(found, model, optimizer, DATA, tmp_path)
    assert numbers(model, optimizer) == before


def test_a_graph_notices_that_its_weights_were_loaded(folder):
    model = trained(seed=1)[0]
    _, loss = model(np.zeros((1, 4), int), np.zeros((1, 4), int))
    gpt2_layout.from_layout(gpt2_layout.read(folder)[1], model, folder)
    with pytest.raises(RuntimeError, match="was replaced since"):
        loss.backward()
