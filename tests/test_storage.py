"""What every storage promises, for plain arrays and for those that stream: the same bits."""

import contextlib
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinygrad_edu.kernels import update
from tinygrad_edu.locks import locks
from tinygrad_edu.memory import Chip, ExternalMemory, external_file
from tinygrad_edu.storage import CHUNK, WEIGHT, ArrayStorage, new_storage

several = settings(max_examples=40, deadline=None)
SHAPES = [(), (0,), (1,), (7,), (5, 3), (0, 4), (4, 0), (6, 2, 2)]
NEGATIVE_ZERO = np.float32(-0.0)
ODD_NAN = np.array([0x7FC0BEEF], np.uint32).view(np.float32)[0]


@contextlib.contextmanager
def streaming(path=None):
    with Chip("50MB", ExternalMemory(path), poison=True):
        yield


@pytest.fixture(params=["array", "RAM", "file"])
def make(request, tmp_path):
    """make(shape) -> a storage of that shape, holding 0, 1, 2, ..."""
    place = {"array": contextlib.nullcontext, "RAM": streaming}.get(request.param)
    with place() if place else streaming(tmp_path / "w"):

        def made(shape, dtype=np.float32, numbers=None):
            storage = new_storage(shape, np.dtype(dtype))
            numbers = np.arange(storage.size) if numbers is None else numbers
            storage.fill(WEIGHT, [np.asarray(numbers, dtype)])
            return storage

        assert isinstance(made(()), ArrayStorage) == (request.param == "array")
        yield made


def bits(array):
    return np.asarray(array).shape, np.asarray(array).dtype, np.asarray(array).tobytes()


def same(a, b):
    assert bits(a) == bits(b)


def values(shape, seed=0, dtype=np.float32):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


def everything(storage, kind):
    nothing = np.zeros(0, storage.dtype_of(kind))
    return np.concatenate([nothing, *(p.copy() for p in storage.chunks(kind))])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_what_is_filled_in_comes_out(make, shape, dtype):
    want = values(shape, 1, dtype)
    storage = make(shape, dtype)
    storage.fill(WEIGHT, [want])
    same(storage.read(), want)
    same(storage.look(), want)
    same(everything(storage, WEIGHT), want.reshape(-1))
    assert (storage.shape, storage.dtype, storage.size) == (shape, np.dtype(dtype), want.size)
    assert not storage.has_grad and storage.grad is None


@pytest.mark.parametrize("cuts", [[], [1], [0, 0, 3], [1, 2, 3, 11], [12]])
def test_filling_takes_pieces_of_any_size(make, cuts):
    want = values((4, 3), 2)
    storage = make((4, 3))
    storage.fill(WEIGHT, iter(np.split(want.reshape(-1), cuts)))
    same(storage.read(), want)
    storage.make_state(("m",))
    storage.fill("m", np.split(want.reshape(-1), cuts))
    same(storage.state_array("m"), want)


def test_filling_across_the_cuts_of_the_medium(make):
    count = 2 * CHUNK + 12_345
    want = np.arange(count, dtype=np.float32)
    storage = make((count,), numbers=np.zeros(count))
    storage.fill(WEIGHT, [want[:3], want[3:CHUNK], want[CHUNK:-1], want[-1:]])
    same(storage.look(), want)
    same(everything(storage, WEIGHT), want)
    storage.add_grad(np.ones(count, np.float32))
    storage.add_grad(want)
    same(storage.grad, want + np.float32(1))
    assert storage.grad_squares() == update.sums_of_squares([want + np.float32(1)])[0]


@pytest.mark.parametrize("count", [0, 11, 13, 100])
def test_too_few_or_too_many_elements_raise(make, count):
    storage = make((4, 3))
    with pytest.raises(ValueError, match="12"):
        storage.fill(WEIGHT, [np.zeros(count // 2), np.zeros(count - count // 2)])


def test_rows_are_those_of_the_array(make):
    storage, want = make((6, 2)), np.arange(12, dtype=np.float32).reshape(6, 2)
    table, ids = storage.by_rows(), np.array([[5, 0, 5], [2, 2, 3]])
    assert (table.shape, table.dtype, table.ndim, len(table)) == ((6, 2), want.dtype, 2, 6)
    for start, stop in ((0, 6), (0, 1), (2, 5), (5, 6)):
        same(table.rows(start, stop), want[start:stop])
    same(table.take(ids), want[ids])
    same(table.take(np.zeros((0, 2), np.int64)), np.zeros((0, 2, 2), np.float32))
    same(make((3, 0)).by_rows().take(np.array([1, 2])), np.zeros((2, 0), np.float32))


# Gradients. A contribution is whole, or rows from a place on, or some rows picked.
contributions = st.lists(
    st.tuples(
        st.sampled_from(["whole", "rows", "in order", "picked", "scale"]),
        st.integers(0, 4), st.integers(1, 4), st.integers(0, 9),
    ),
    max_size=6,
)  # fmt: skip


@pytest.mark.parametrize("path", [None, "file"])
@several
@given(contributions)
def test_gradients_are_the_same_bits_wherever_they_are_kept(tmp_path_factory, path, found):
    path = path and tmp_path_factory.mktemp("w") / "w"
    plain = ArrayStorage((5, 3), np.dtype(np.float32))
    plain.fill(WEIGHT, [np.zeros(15)])
    with streaming(path):
        streamed = new_storage((5, 3), np.dtype(np.float32))
        streamed.fill(WEIGHT, [np.zeros(15)])
        total, filled = np.zeros((5, 3), np.float64), 0  # `filled`: rows in order so far
        for kind, start, count, seed in found:
            block = values((5, 3), seed)
            for storage in (plain, streamed):
                if kind == "whole":
                    storage.add_grad(block)
                elif kind == "rows":
                    storage.add_grad_rows(start, block[start : start + count].copy())
                elif kind == "in order":
                    start = filled % 5
                    storage.add_grad_rows(start, block[start : start + count].copy())
                elif kind == "picked":
                    rows = np.unique([start, count])
                    storage.add_grad_picked(rows, block[rows])
                else:
                    storage.scale_grad(0.5 + seed)
            if kind == "whole":
                total += block
            elif kind in ("rows", "in order"):
                total[start : start + count] += block[start : start + count]
                filled = start + count if kind == "in order" else filled
            elif kind == "picked":
                total[rows] += block[rows]
            elif plain.has_grad:
                total *= 0.5 + seed
        assert plain.has_grad == streamed.has_grad
        if plain.has_grad:
            same(plain.grad, streamed.grad)
            np.testing.assert_allclose(plain.grad, total, rtol=1e-5, atol=1e-4)
            assert plain.grad_squares() == streamed.grad_squares()


def test_rows_in_order_then_more(make):
    storage, a, b = make((4, 2)), values((4, 2), 1), values((4, 2), 2)
    for start in (0, 1, 3):
        storage.add_grad_rows(start, a[start : {0: 1, 1: 3, 3: 4}[start]].copy())
    same(storage.grad, a)
    storage.add_grad_rows(2, b[2:].copy())  # out of order: the gradient is complete already
    storage.add_grad_rows(0, b[:2].copy())
    same(storage.grad, a + b)
    storage.add_grad_picked(np.array([1, 3]), a[[1, 3]])
    want = a + b
    want[[1, 3]] += a[[1, 3]]
    same(storage.grad, want)


@pytest.mark.parametrize("first", ["rows out of order", "rows in order", "picked"])
def test_what_a_gradient_lacks_is_zero(make, first):
    storage, block, want = make((4, 2)), values((4, 2)), np.zeros((4, 2), np.float32)
    if first == "picked":
        storage.add_grad_picked(np.array([0, 3]), block[[0, 3]])
        want[[0, 3]] += block[[0, 3]]
    else:
        start = 0 if first == "rows in order" else 2
        storage.add_grad_rows(start, block[start : start + 2].copy())
        want[start : start + 2] += block[start : start + 2]
    same(storage.grad, want)
    storage.add_grad(block)
    same(storage.grad, want + block)


def test_a_first_contribution_keeps_its_bits(make):
    block = np.full((3, 2), NEGATIVE_ZERO)
    block[1] = ODD_NAN
    whole, rows, picked = make((3, 2)), make((3, 2)), make((3, 2))
    whole.add_grad(block)
    rows.add_grad_rows(0, block[:2].copy())
    rows.add_grad_rows(2, block[2:].copy())
    picked.add_grad_picked(np.array([0, 1]), block[:2])  # added to zeros: 0 + -0 is 0
    same(whole.grad, block)
    same(rows.grad, block)
    same(picked.grad, block + np.float32(0))
    whole.add_grad(np.zeros((3, 2), np.float32))
    same(whole.grad, block + np.float32(0))


def test_the_gradient_is_dropped_and_begun_again(make):
    storage, block = make((3, 2)), values((3, 2))
    storage.add_grad_rows(0, block[:1].copy())
    storage.scale_grad(3.0)
    storage.drop_grad()
    assert not storage.has_grad and storage.grad is None
    storage.add_grad_rows(2, block[2:].copy())
    want = np.zeros((3, 2), np.float32)
    want[2] += block[2]
    same(storage.grad, want)
    storage.grad = block
    same(storage.grad, block)
    storage.grad = None
    assert not storage.has_grad


def test_scaling_is_that_of_the_array_in_its_own_precision(make):
    storage, a, b = make((40,)), values((40,), 1), values((40,), 2)
    storage.scale_grad(7.0)  # no gradient: nothing to scale
    storage.add_grad(a)
    storage.scale_grad(1 / 3)
    storage.scale_grad(0.7)
    want = a * np.float32(1 / 3) * np.float32(0.7)
    assert storage.grad_squares() == update.sums_of_squares([want])[0]
    same(storage.grad, want)
    storage.add_grad(b)
    same(storage.grad, want + b)


def test_a_partial_gradient_is_complete_once_it_is_scaled(make):
    storage, a = make((4, 1)), values((4, 1))
    storage.add_grad_rows(0, a[:2].copy())
    storage.scale_grad(0.3)
    storage.add_grad_rows(2, a[2:].copy())
    want = np.zeros((4, 1), np.float32)
    want[:2] = a[:2] * np.float32(0.3)
    want[2:] += a[2:]
    same(storage.grad, want)


def test_squares_do_not_depend_on_where_they_are_summed(make):
    count = 3 * CHUNK // 2 + 17
    grad = values((count,), 3)
    storage = make((count,), numbers=np.zeros(count))
    storage.add_grad(grad)
    assert storage.grad_squares() == update.sums_of_squares([grad])[0]
    storage.scale_grad(0.1)
    assert storage.grad_squares() == update.sums_of_squares([grad * np.float32(0.1)])[0]
    assert make((0,)).size == 0


def test_state_is_zeros_and_replaces_that_of_an_earlier_optimizer(make):
    storage = make((3, 2))
    assert storage.state_names() == ()
    storage.make_state(("m", "v"))
    assert storage.state_names() == ("m", "v")
    same(storage.state_array("m"), np.zeros((3, 2), np.float32))
    storage.fill("m", [np.ones(6)])
    same(storage.state_array("m"), np.ones((3, 2), np.float32))
    storage.make_state(("m",))
    assert storage.state_names() == ("m",)
    same(storage.state_array("m"), np.zeros((3, 2), np.float32))
    storage.make_state(())
    assert storage.state_names() == ()


NUMBERS = {"lr": 0.1, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.01}


@pytest.mark.parametrize("shape", [*SHAPES, (CHUNK + 77,)], ids=str)
@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_an_update_is_that_of_the_arrays(make, shape, scale):
    storage = make(shape, numbers=np.zeros(shape))
    data, grad = values(shape, 1), values(shape, 2)
    m, v = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    storage.fill(WEIGHT, [data])
    storage.make_state(("m", "v"))
    for step in (1, 2):
        storage.drop_grad()
        storage.add_grad(grad)
        storage.scale_grad(scale)
        storage.update(update.adamw, ("m", "v"), step=step, **NUMBERS)
        update.adamw(data, np.asarray(grad * np.float32(scale)), m, v, step=step, **NUMBERS)
        same(storage.read(), data)
        same(storage.state_array("m"), m)
        same(storage.state_array("v"), v)


def test_state_of_short_dtypes_is_float32(make):
    count = CHUNK + 77  # more than one chunk of a file, of the weight as of the state
    storage = make((count,), np.float16, np.zeros(count))
    data, grad = values((count,), 1, np.float16), np.full(count, 1e-4, np.float16)
    m, v = np.zeros(count, np.float32), np.zeros(count, np.float32)
    storage.fill(WEIGHT, [data])
    storage.make_state(("m", "v"))
    storage.add_grad(grad)
    for step in (1, 2):
        storage.update(update.adamw, ("m", "v"), step=step, **NUMBERS)
        update.adamw(data, grad, m, v, step=step, **NUMBERS)
    same(storage.read(), data)
    assert v.all()
    for kind, array in (("m", m), ("v", v)):
        same(storage.state_array(kind), array)
        same(everything(storage, kind), array)
        storage.fill(kind, [-array[:5], -array[5:]])
        same(storage.state_array(kind), -array)


class Slow(external_file.Calls):
    """Writes that are late, as those of a disk may be."""

    @staticmethod
    def write(descriptor, buffer, offset):
        time.sleep(0.005)
        return external_file.Calls.write(descriptor, buffer, offset)


def test_updates_one_after_the_other_with_one_gradient(make, monkeypatch):
    monkeypatch.setattr(external_file, "calls", Slow())
    storage = make((9,))
    storage.make_state(("m", "v"))
    storage.add_grad(values((9,)))
    data = np.arange(9, dtype=np.float32)
    m, v = np.zeros(9, np.float32), np.zeros(9, np.float32)
    for step in range(1, 9):
        storage.update(update.adamw, ("m", "v"), step=step, **NUMBERS)
        update.adamw(data, values((9,)), m, v, step=step, **NUMBERS)
    same(storage.look(), data)
    same(storage.state_array("v"), v)


def test_an_array_that_is_lent_keeps_the_old_numbers_while_a_graph_needs_it(make):
    storage = make((3,))
    lent = storage.read()
    if storage.lockable() is not None:  # nobody else could write it
        locks.lock(lent)
    storage.add_grad(np.ones(3, np.float32))
    storage.update(update.sgd, (), lr=1.0, momentum=0.0, weight_decay=0.0)
    same(lent, np.arange(3, dtype=np.float32))
    same(storage.read(), np.arange(3, dtype=np.float32) - 1)
    if storage.lockable() is not None:
        locks.unlock(lent)
