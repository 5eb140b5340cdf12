"""Lesson 4: panels of A and B, in the order in which the inner loop of a product reads them."""

import contextlib
from collections.abc import Callable, Iterator
from types import ModuleType

import numpy as np

from lessons.check import Wrong, call, given, same
from tinygrad_edu.kernels import ladder

# (N, K, size of a panel): whole panels, edges, one panel, less than one, one by one, nothing
SHAPES = ((6, 5, 3), (7, 4, 3), (5, 3, 8), (4, 4, 4), (9, 2, 1), (1, 1, 1), (1, 6, 4), (13, 7, 5),
          (0, 3, 2), (4, 0, 3), (70, 3, 64))  # fmt: skip


def check(answer: ModuleType) -> str:
    pack_b, pack_a = given(answer, "pack_b", "b, width"), given(answer, "pack_a", "a, height")
    for pack in (pack_b, pack_a):
        for n, k, size in SHAPES:
            for dtype in (np.float32, np.float64):
                plain = numbers(k, n, dtype) if pack is pack_b else numbers(n, k, dtype)
                examine(pack, plain, size, pack is pack_b)
        for view, how in views():
            examine(pack, view, 3, pack is pack_b, how)
    products(pack_a, pack_b)
    return (
        "Every number lies where the inner loop wants it next, and a tile that hangs over the edge "
        "multiplies zeros instead of asking where the matrix ends."
    )


def numbers(rows: int, columns: int, dtype: type = np.float32) -> np.ndarray:
    """Different everywhere, and never 0."""
    return np.arange(1, 1 + rows * columns, dtype=dtype).reshape(rows, columns) + dtype(0.25)


def views() -> Iterator[tuple[np.ndarray, str]]:
    large = numbers(12, 14)
    yield large[2:9, 3:11], "a slice of a larger matrix"
    yield large[:7, :5].T, "a transposed view"
    yield large[::2, ::-3], "a view with steps, some of them backwards"


@contextlib.contextmanager
def dirty_memory() -> Iterator[None]:
    """Makes `np.empty` give what it may always give: not zeros."""
    true_empty, true_like = np.empty, np.empty_like

    def dirty(array: np.ndarray) -> np.ndarray:
        if array.dtype.kind == "f":
            array.fill(np.nan)
        return array

    np.empty = lambda *args, **kwargs: dirty(true_empty(*args, **kwargs))
    np.empty_like = lambda *args, **kwargs: dirty(true_like(*args, **kwargs))
    try:
        yield
    finally:
        np.empty, np.empty_like = true_empty, true_like


def expected(matrix: np.ndarray, size: int, of_b: bool) -> np.ndarray:
    """The panels, made one by one as `rows_of_tiles` in the ladder makes them."""
    b = matrix if of_b else matrix.T
    panels = np.zeros((-(-b.shape[1] // size), b.shape[0], size), b.dtype)
    for p, panel in enumerate(panels):
        ladder.pack(b[:, p * size : (p + 1) * size], panel)
    return panels


def examine(pack: Callable, matrix: np.ndarray, size: int, of_b: bool, how: str = "") -> None:
    """One call: what it returns, and whether it is a new array and leaves the matrix alone."""
    name, letter = ("pack_b", "b") if of_b else ("pack_a", "a")
    about = f"{letter} of shape {matrix.shape}" + (f", {how}," if how else "")
    about += f" and {'width' if of_b else 'height'} {size}"
    before = matrix.copy()
    call(pack, matrix, size, about=about)  # Numba compiles only the true `np.empty`
    with dirty_memory():
        got = call(pack, matrix, size, about=about)
    right, what = expected(before, size, of_b), f"`{name}` of {about}"
    if not np.array_equal(matrix, before):
        raise Wrong(f"{what} changes the matrix it is given, which others still need")
    if not isinstance(got, np.ndarray):
        same(got, right, what)
        raise Wrong(f"{what} is {type(got).__name__}, expected one NumPy array of all panels")
    look(got, before, right, size, of_b, what, how)
    if got.dtype != matrix.dtype:
        raise Wrong(
            f"{what} is {got.dtype}, the matrix is {matrix.dtype}: pass its dtype on to "
            "`np.zeros`, whose own is float64, or an inner loop would meet two kinds of numbers"
        )
    if not got.flags.c_contiguous:
        raise Wrong(
            f"{what} has the right numbers at the right indices, but they do not lie side by side "
            f"in memory (strides {got.strides} for shape {got.shape}): it is a view that leaps "
            "about as the matrix did, and nothing was packed. Copy into an array of its own"
        )
    if got.size and np.shares_memory(got, matrix):
        raise Wrong(
            f"{what} shares memory with the matrix: when the matrix changes, so does the panel. "
            "Return a copy"
        )


def look(
    got: np.ndarray, matrix: np.ndarray, right: np.ndarray, size: int, of_b: bool, what: str,
    how: str,
) -> None:  # fmt: skip
    """Raises Wrong, with a guess at what happened, unless `got` is `right`."""
    if got.shape == right.shape and np.array_equal(got, right):
        return
    b = matrix if of_b else matrix.T
    n = b.shape[1]
    panels, whole = len(right), n // size
    turned = right.swapaxes(1, 2)
    axis = "column" if of_b else "row"
    shape = f"{what} has shape {got.shape}, expected {right.shape}: "
    if got.ndim == 2 and got.size == right.size:
        raise Wrong(f"{shape}keep the panels apart, along an axis of their own")
    if got.shape != right.shape:
        if got.shape == (whole, *right.shape[1:]):
            raise Wrong(
                f"{shape}the last panel is missing. {n} {axis}s do not divide by {size}, and "
                "`//` rounds down"
            )
        if got.shape[:1] == (panels + 1,) and n % size == 0:
            raise Wrong(f"{shape}a panel too many, which appears when {size} divides {n}")
        if got.shape == turned.shape:
            raise Wrong(
                f"{shape}k must come before the {axis}s of a panel, because the inner loop steps "
                f"along k and wants the {size} numbers of one step side by side"
            )
        if got.shape == (right.shape[1], panels, size):
            raise Wrong(f"{shape}a panel must be in one piece, so panels come first, then k")
        raise Wrong(shape + "panels, K, and the size of a panel")
    reshaped = np.zeros(right.size, right.dtype)
    reshaped[: matrix.size] = matrix.ravel()
    if np.array_equal(got, reshaped.reshape(right.shape)):
        raise Wrong(
            f"{what} has all numbers in their old order: `reshape` cuts memory where the shape "
            f"says and moves nothing, so pieces of several {axis}s are mixed up: copy each panel"
        )
    if got.shape == turned.shape and np.array_equal(got, turned):
        raise Wrong(f"{what} has k and the {axis}s of a panel in exchanged places")
    wrapped = numbers_at(b, np.arange(panels * size) % max(n, 1), panels, size)
    clipped = numbers_at(b, np.minimum(np.arange(panels * size), n - 1), panels, size)
    starts = np.minimum(np.arange(panels) * size, max(n - size, 0))
    shifted = numbers_at(b, (starts[:, None] + np.arange(size)).ravel() % max(n, 1), panels, size)
    inside = np.broadcast_to(
        (np.arange(panels * size) < n).reshape(panels, 1, size), right.shape
    )  # what is not padding
    if np.array_equal(got[inside], right[inside]):
        padding = got[~inside]
        if np.isnan(padding).any():
            raise Wrong(
                f"{what} is right but for its padding, which was never written: `np.empty` gives "
                "memory with whatever was in it before. Beyond the edge there must be zeros"
            )
        if np.array_equal(got, wrapped):
            raise Wrong(f"{what} begins again with the first {axis} beyond the edge: pad with 0")
        if np.array_equal(got, clipped):
            raise Wrong(f"{what} repeats the last {axis} beyond the edge: pad with 0")
        raise Wrong(f"{what} is right but for its padding: beyond the edge there must be zeros")
    if n >= size and np.array_equal(got, shifted):
        raise Wrong(
            f"{what} moves the last panel back until it fits, so some {axis}s stand in two panels: "
            f"panel p begins at {axis} p * {size}, and what it lacks is 0"
        )
    pieces = right[:whole]
    if whole < panels and np.array_equal(got[:whole], pieces) and not got[whole:].any():
        raise Wrong(f"{what} leaves the last panel empty: it has {n - whole * size} {axis}s yet")
    if how:
        raise Wrong(
            f"{what} is right for a whole matrix and wrong for {how}: index the matrix, and do not "
            "rely on how its numbers lie in memory"
        )
    same(got, right, what)
    same(np.nan_to_num(got, nan=np.inf), right, what)


def numbers_at(b: np.ndarray, columns: np.ndarray, panels: int, size: int) -> np.ndarray:
    """Panels of these columns of b."""
    if not b.size:
        return np.zeros((panels, len(b), size), b.dtype)
    return np.ascontiguousarray(b[:, columns].reshape(len(b), panels, size).swapaxes(0, 1))


def products(pack_a: Callable, pack_b: Callable) -> None:
    """C = A @ B through the panels, tile by tile, as a kernel uses them."""
    rng = np.random.default_rng(4)
    for m, n, k, height, width in ((12, 128, 20, 4, 64), (13, 70, 9, 4, 64), (3, 5, 40, 6, 8)):
        a, b = rng.standard_normal((k, m)).T, rng.standard_normal((k, n))
        left, right = call(pack_a, a, height), call(pack_b, b, width)
        c = np.zeros((len(left) * height, len(right) * width))
        for i, rows in enumerate(left):
            for j, columns in enumerate(right):
                place = c[i * height : (i + 1) * height, j * width : (j + 1) * width]
                for step in range(k):
                    place += rows[step][:, None] * columns[step]
        same(c[:m, :n], a @ b, f"the product of {m} x {k} and {k} x {n}, tile by tile", 1e-9, 1e-9)
