"""Matrix multiplication: which way to compute a product, and the workspace it needs.

    small                          direct: hardly anything packed; the smallest on one thread
    few rows (or few columns)      thin: B is streamed once
    everything else                blocked: packed panels, each thread on pieces of C
    a batch                        each product as above, the products shared out among the threads

The choice, and where a sum over k is cut, depend on shapes and strides alone; where C is cut
depends on the number of threads, too, but changes no bit of the result. Transposing is exchanging
strides. C must be contiguous along its rows; if it is along its columns, the transposed problem
C.T = B.T @ A.T is solved instead.

Importing this compiles nothing; the first product does.
"""

import functools
import math
import threading

import numpy as np

from .. import elementwise, switch
from ..allocator import ALIGNMENT, RECYCLER, aligned_block, empty, is_counted
from ..launch import Blocks, most_threads, threads
from ..pool import POOL
from . import entries
from .blocked import BIAS, GELU, KEEP, RESIDUAL
from .checks import check_arrays, check_bias, check_extra, check_out
from .microkernel import CPU

SMALL = 1 << 20  # multiply-adds up to which waking a second thread costs more than it helps
MEDIUM = 1 << 22  # the same of packing A, as all of it is in L2 anyway
DIRECT_DEPTH = 2048  # terms of a sum up to which A is not packed: they bound the room for a sliver
THIN_ALONE = 1 << 17  # elements of B up to which a second thread costs more for few rows of A
BATCH = 8  # products from which each is left to one thread
FEW = 8  # rows up to which a product is limited by reading B
DONE, SHARED = 1, 2  # what `short` says
KC = 768  # depth of a panel: the deeper, the less often a tile of C is loaded and stored
MC = 72  # float32 rows of A packed at a time, in L2; more write C to more pages than a TLB has
B_BYTES = KC * KC * 4  # packed B, in L3: the more columns, the less often A is packed
BLOCKED, DIRECT, THIN = entries.matmul_blocked, entries.matmul_direct, entries.matmul_thin  # ways

FLOAT32, FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)
KEPT_BYTES = 1 << 24  # workspace up to this size is kept from call to call
COUNTED_BYTES = 1 << 16  # ... up to this one even where somebody counts memory
_local = threading.local()  # workspace, one per calling thread


def matmul(
    a, b, out=None, *, transpose_a=False, transpose_b=False,
    bias=None, gelu=False, keep=None, residual=None, accumulate=False,
):  # fmt: skip
    """out (+)= a @ b: (..., m, k) @ (..., k, n) -> (..., m, n), and what can be done on the way.

    a, b          float32 or float64, both the same; any strides; leading axes broadcast as in
                  NumPy, and a single axis is a row (a) or a column (b)
    transpose_a   a is given as (..., k, m); no copy is made. transpose_b likewise: (..., n, k)
    bias          added to the product; broadcasts to it, most often (n,)
    gelu          GELU (tanh form) of the sum so far; `keep`, like out, receives what went into it
    residual      added last; shaped like out
    accumulate    add to out instead of overwriting it (not with gelu or residual)
    Raises TypeError for other dtypes, ValueError for shapes that do not fit. The order of a sum
    depends on shapes and strides only, so the bits do; NaN and infinity propagate.
    """
    check_arrays(a, b)
    dtype = a.dtype
    if (dtype is not b.dtype and dtype != b.dtype) or dtype.char not in "fd" or not dtype.isnative:
        raise TypeError(
            f"matmul needs two float32 or two float64 arrays, got {a.dtype} and {b.dtype}; "
            "convert one with astype"
        )
    if transpose_a:
        a = a.swapaxes(-1, -2)
    if transpose_b:
        b = b.swapaxes(-1, -2)
    if gelu or keep is not None or residual is not None:
        if accumulate:
            raise ValueError("matmul: accumulate=True does not go with gelu, keep or residual")
        others = [x for x in (a, b, bias, residual, out) if x is not None]
        if keep is not None and any(np.may_share_memory(keep, x) for x in others):
            kept = np.empty(keep.shape, keep.dtype)  # keep is written while others are read
            out = matmul(a, b, out, bias=bias, gelu=gelu, keep=kept, residual=residual)
            np.copyto(keep, kept)
            return out
        if a.ndim != 2 or b.ndim != 2:
            return _apart(a, b, out, bias, gelu, keep, residual)
    if a.ndim < 2 or b.ndim < 2:
        return _vectors(a, b, out, bias, accumulate)
    m, k = a.shape[-2:]
    n = b.shape[-1]
    if b.shape[-2] != k:
        raise ValueError(
            f"matmul: inner sizes differ: {a.shape} @ {b.shape}; "
            f"{k} columns against {b.shape[-2]} rows"
        )
    flat = a.ndim == 2 and b.ndim == 2
    shape = (m, n) if flat else (*np.broadcast_shapes(a.shape[:-2], b.shape[:-2]), m, n)
    if out is None:
        if accumulate:
            raise ValueError("matmul: accumulate=True adds to `out`, which was not given")
        out = empty(shape, dtype)
    else:
        check_out(out, shape, a, b, bias)
        others = (a, b, bias, keep, residual)
        if out.size and any(x is not None and np.may_share_memory(out, x) for x in others):
            # out is read while it is written: go through a copy
            result = matmul(a, b, bias=bias, gelu=gelu, keep=keep, residual=residual)
            np.add(out, result, out=out) if accumulate else np.copyto(out, result)
            return out
    if bias is not None:
        bias = check_bias(bias, shape, a.dtype)
    check_extra(out, keep, residual)
    if k == 0 or 0 in shape:
        if not accumulate:
            out[...] = 0
        if bias is not None:
            np.add(out, bias, out=out)
        _after(out, gelu, keep, residual)
    elif flat:
        _flat(a, b, out, bias, accumulate, gelu, keep, residual)
    else:
        _batch(a, b, out, bias, accumulate)
    return out


def _flat(a, b, out, bias, add, gelu, keep, residual):
    """One product of two matrices; of keep and residual the kernel can take one along."""
    if keep is None is residual and not gelu:
        _product(a, b, out, bias, add)
        return
    extra = residual if keep is None else keep
    todo = GELU * gelu + (0 if extra is None else RESIDUAL if keep is None else KEEP)
    rows = all(_contiguous(x, 1) for x in (out, extra) if x is not None)
    if todo and (not rows or out.shape[1] <= FEW < out.shape[0]):
        _product(a, b, out, bias, add)
        _after(out, gelu, keep, residual)
        return
    _product(a, b, out, bias, add, extra, todo)
    if keep is not None and residual is not None:
        np.add(out, residual, out=out)


def _apart(a, b, out, bias, gelu, keep, residual):
    """Products that are not of two matrices: what follows them is done afterwards, on a result of
    its own, so that `out` may be one of the arrays that are read."""
    if a.ndim < 2 or b.ndim < 2:
        raise ValueError(
            f"matmul: gelu, keep and residual go with matrices, got {a.shape} @ {b.shape}"
        )
    result = matmul(a, b, bias=bias)
    check_extra(result, keep, residual)
    if out is None:
        return _after(result, gelu, keep, residual)
    check_out(out, result.shape, a, b, bias)
    np.copyto(out, _after(result, gelu, keep, residual))
    return out


def _after(out, gelu, keep, residual):
    """The same in passes of their own, where the kernel cannot take them along."""
    if keep is not None:
        np.copyto(keep, out)
    if gelu:
        np.copyto(out, elementwise.gelu(out, tanh=True))
    if residual is not None:
        np.add(out, residual, out=out)
    return out


def quick(a, b, out=None):
    """a @ b of two matrices if that takes less time than choosing how, else None.

    Compiled code looks at types, dtypes, shapes and strides; here is only what it cannot know.
    """
    dtype, workers = a.dtype, threads()
    if out is None:
        (m, _), (k, n) = a.shape, b.shape
        if m > FEW and (n <= FEW or m * n * k > (MEDIUM if workers == 1 else SMALL)):
            return None
    if switch.off or is_counted() or type(a) is not np.ndarray:
        return None
    kernels = _local.__dict__.get(id(dtype)) or _quick_kernels(dtype)
    if kernels is None:
        return None
    if out is None:
        out = RECYCLER.empty((m, n), dtype)
    here, space, blocks, task = kernels
    found = here(
        id(a), id(b), id(out), space, blocks.address, workers, POOL.ready(workers), task
    )  # fmt: skip
    if found == SHARED:
        from .short import few_columns

        task = few_columns.address(dtype.char)
        _local.__dict__[id(dtype)] = here, space, blocks, task
        found = here(id(a), id(b), id(out), space, blocks.address, workers, POOL.address, task)
    return out if found else None


def _quick_kernels(dtype):
    """What `quick` needs, but for the task of products that threads share, which comes with the
    first of them; the workspace is this thread's, as the kernels let other threads run."""
    if dtype is not FLOAT32 and dtype is not FLOAT64:
        return None
    from . import short

    space = _aligned(64 * DIRECT_DEPTH * most_threads(), dtype)
    _local.__dict__[id(dtype)] = short.here[dtype.char], space, Blocks(1), 0
    return _local.__dict__[id(dtype)]


def _vectors(a, b, out, bias, accumulate):
    if a.ndim == 0 or b.ndim == 0:
        raise ValueError("matmul: a scalar operand; multiply with * instead")
    row, column = a.ndim == 1, b.ndim == 1
    a, b = (a[None, :] if row else a), (b[:, None] if column else b)
    shape = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    shape += (() if row else a.shape[-2:-1]) + (() if column else b.shape[-1:])
    if out is None and not accumulate:
        out = empty(shape, a.dtype)
    if out is not None and out.shape != shape:
        raise ValueError(f"matmul: out has shape {out.shape}, the product {shape}")

    def expand(x):  # put back the axes that vectors do not have
        x = np.broadcast_to(x, shape) if x is not out else x
        x = x[..., None] if column else x
        return np.expand_dims(x, -2) if row else x

    view = None if out is None else expand(out)
    matmul(a, b, view, bias=None if bias is None else expand(bias), accumulate=accumulate)
    return out[()] if shape == () else out


def _space(count, dtype):
    """At least `count` elements of workspace, with whatever is left over in them.

    It is kept from call to call, unless it is large, or not small and somebody counts memory.
    """
    nbytes = count * dtype.itemsize
    if nbytes > COUNTED_BYTES and (nbytes > KEPT_BYTES or is_counted()):
        return empty((count,), dtype, "workspace")
    spaces = _local.__dict__
    space = spaces.get(dtype.char)
    if space is None or space.size < count:
        space = spaces[dtype.char] = _aligned(count, dtype)
    return space


def _aligned(count, dtype):
    return aligned_block(count * dtype.itemsize).view(dtype)


def _ceil(x, y):
    return -(-x // y)


def _cuts(m, n, k, size, workers):
    """The rows and columns of a piece of C, and the panels (mc, kc, nc) that it is made from.

    C is cut into pieces so that there is least to pack; with workers = 0 it stays in one.
    """
    mr, nr = CPU.mr, CPU.nv * CPU.vector_bytes // size

    def split(length, most, unit):  # equal parts, multiples of unit, none above most
        return _ceil(_ceil(length, _ceil(length, most)), unit) * unit

    if workers:  # one piece each: nobody is done before all are
        cuts = [(i, workers // i) for i in range(1, workers + 1) if workers % i == 0]
        down, across = min(cuts, key=lambda cut: (cut[1] * m + cut[0] * n, -cut[0]))
        m, n = split(m, _ceil(m, down), mr), split(n, _ceil(n, across), nr)
    kc = split(k, KC, 1)
    mc = split(m, max(mr, MC * 4 // size), mr)
    nc = split(n, max(nr, B_BYTES // (kc * size) // nr * nr), nr)
    return m, n, mc, kc, nc


def _thin_columns(n, k, workers):
    """Of a piece of a thin product: a megabyte of B, but an even number of pieces."""
    if workers == 1:
        return n
    return max(256, _ceil(_ceil(n, 2 * _ceil(n * k, 1 << 19)), 64) * 64)


def _unpacked_room(m, n, k, way):
    """Elements: a sliver of B; if thin, 32 rows of one, all of A, or half the sum of one row."""
    return max(64 * 32, m * k, n if m == 1 else 0) if way is THIN else 64 * k


@functools.lru_cache(4096)
def _plan(way, m, n, k, size, workers, count):
    """How `count` products are shared out: the pieces, the workspace of all threads in elements,
    and what tasks read: the cuts, and a thread's room for A and for B."""
    if way is THIN:
        rows, columns, mc, kc, nc = m, _thin_columns(n, k, workers), 0, 0, 0
    else:
        rows, columns, mc, kc, nc = _cuts(m, n, k, size, workers if count == 1 else 0)
    line = ALIGNMENT // size  # what starts on a cache line needs no vector from two of them
    rooms = _ceil(mc * kc, line) * line, kc * nc
    if way is not BLOCKED:
        rooms = 0, _unpacked_room(m, columns, k, way)
    pieces = count * _ceil(m, rows) * _ceil(n, columns)
    return pieces, sum(rooms) * workers, (rows, columns, k, mc, kc, nc, *rooms)


def _contiguous(x, axis):
    return x.strides[axis] == x.itemsize or x.shape[axis] == 1


def _way(work, k):
    """How a product of `work` multiply-adds is computed, unless as a thin one."""
    return DIRECT if work <= MEDIUM and k <= DIRECT_DEPTH else BLOCKED


def _product(a, b, out, bias, add, extra=None, todo=0):
    """One product of two matrices, none of them empty; `todo`, with `extra`: see `finish`."""
    (m, k), n = a.shape, b.shape[1]
    rows = _contiguous(out, 1)
    if n <= FEW < m or (not rows and _contiguous(out, 0)):
        a, b, out, bias, m, n = b.T, a.T, out.T, None if bias is None else bias.T, n, m
        rows = _contiguous(out, 1)
    size, dtype = a.itemsize, a.dtype
    k_step, n_step = b.strides
    thin = m <= FEW and (n_step == size or k_step == size)
    if not rows and (not thin or n_step == size):  # only dot products can store anywhere
        result = np.empty(out.shape, dtype)
        _product(a, b, result, bias, False)
        np.add(out, result, out=out) if add else np.copyto(out, result)
        return
    work = m * n * k
    way = THIN if thin else _way(work, k)
    alone = way is not BLOCKED and (n * k <= THIN_ALONE if thin else work <= SMALL)
    _launch(a, b, out, bias, add, way, extra, todo, 1 if alone else threads())


def _launch(a, b, out, bias, add, way, extra, todo, workers):
    """On so many threads; arrays are matrices, or batches (b0, b1, rows, columns).

    Where rows and columns are cut changes no bit.
    """
    (m, k), n, dtype = a.shape[-2:], b.shape[-1], a.dtype
    count = out.size // (m * n)
    pieces, room, numbers = _plan(way, m, n, k, dtype.itemsize, workers, count)
    room = _space(room, dtype)
    bias, todo = (out, todo) if bias is None else (bias, todo + BIAS)
    extra = out if extra is None else extra
    operands = id(a), id(b), id(out), id(bias), id(extra)
    way.each([(pieces, (room,), (*operands, todo, add, *numbers), ())], workers)


def _view(x, shape):
    """x with leading axes `shape`, or None if that takes a copy."""
    try:
        return None if x is None else np.reshape(x, shape + x.shape[-2:], copy=False)
    except ValueError:
        return None


def _batch(a, b, out, bias, add):
    """Leading axes: rows of one matrix if b is one, else a batch of up to two axes, else a loop."""
    lead, (m, n), k = out.shape[:-2], out.shape[-2:], a.shape[-1]
    if b.ndim == 2 and a.shape[:-2] == lead and (bias is None or bias.shape[:-1] == (1,)):
        rows = [_view(x[..., None, :], (-1,)) for x in (a, out)]  # (..., m, k) -> (rows, 1, k)
        if rows[0] is not None and rows[1] is not None:
            _product(rows[0][:, 0], b, rows[1][:, 0], bias, add)
            return
    a, b = (np.broadcast_to(x, lead + x.shape[-2:]) for x in (a, b))
    bias = None if bias is None else np.broadcast_to(bias, out.shape)
    work, count = m * n * k, math.prod(lead)
    way = _way(work, k)
    if _contiguous(out, -1) and ((way is DIRECT and work <= SMALL) or count >= BATCH):
        for shape in ((1, count), lead):
            views = [_view(x, shape) for x in (a, b, out, bias)] if len(shape) == 2 else [None]
            if all(view is not None for view in views[:3]) and (
                bias is None or views[3] is not None
            ):
                _launch(*views, add, way, None, 0, threads())
                return
    one = _batch if len(lead) > 1 else _product
    for i in range(lead[0]):
        one(a[i], b[i], out[i], None if bias is None else bias[i], add)
