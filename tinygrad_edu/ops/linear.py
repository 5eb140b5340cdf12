"""Products: matrix product, linear layer, einsum."""

import re
import string
from collections.abc import Sequence

import numpy as np

from ..kernels import empty, matmul, switch, zeros
from ..kernels.blocks import row_units, rows_of
from ..kernels.normalize import column_sums


class Matmul:
    """a @ b with NumPy's rules: (..., m, k) @ (..., k, n), and vectors on either side.

    A vector is a matrix with one row (left) or one column (right), and that axis leaves the result.
    """

    @staticmethod
    def forward(ctx, a, b):
        need_a, need_b = ctx.needs_input_grad
        ctx.save_for_backward(a if need_b else None, b if need_a else None)
        out = matmul(as_row(a), as_column(b))
        ctx.matrix_shape = out.shape  # (..., m, n)
        lead = out.shape[:-2]
        return out.reshape(lead + out.shape[-2:][a.ndim == 1 : 1 if b.ndim == 1 else 2])

    @staticmethod
    def backward(ctx, grad):
        a, b = ctx.saved_tensors
        shape_a, shape_b = ctx.input_shapes
        grad = grad.reshape(ctx.matrix_shape)
        grad_a = grad_b = None
        if b is not None:
            grad_a = matmul(grad, as_column(b).swapaxes(-1, -2))
            grad_a = grad_a[..., 0, :] if len(shape_a) == 1 else grad_a
        if a is not None:
            if len(shape_b) <= 2:  # one matrix for the whole batch: one tall product
                grad_b = matmul(rows_of(as_row(a)).T, rows_of(grad)).reshape(shape_b)
            else:
                grad_b = matmul(as_row(a).swapaxes(-1, -2), grad)
        return grad_a, grad_b


def as_row(a: np.ndarray) -> np.ndarray:
    return a[None, :] if a.ndim == 1 else a


def as_column(b: np.ndarray) -> np.ndarray:
    return b[:, None] if b.ndim == 1 else b


class Linear:
    """x (..., K) @ weight (N, K).T + bias (N,) + residual (..., N) -> (..., N)

    A large weight is used some rows at a time, which are some columns of the result.
    """

    by_rows = 1

    @staticmethod
    def forward(ctx, x, weight, bias, residual):
        need_x, need_weight = ctx.needs_input_grad[:2]
        ctx.save_for_backward(x if need_weight else None, weight if need_x else None)
        rows, (n, k) = rows_of(x), weight.shape
        units = row_units(n, k * weight.dtype.itemsize)
        more = {} if bias is None else {"bias": bias}
        if residual is not None:
            more["residual"] = rows_of(residual)
        if len(units) == 1:
            out = matmul(rows, weight.rows(0, n).T, **more)
        else:
            out = empty((len(rows), n), np.result_type(x, weight.dtype))
            for start, stop in units:
                part = {name: x[..., start:stop] for name, x in more.items()}
                matmul(rows, weight.rows(start, stop).T, out=out[:, start:stop], **part)
        return out.reshape(*x.shape[:-1], n)

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        n, k = ctx.input_shapes[1]
        rows, grad_x, dweight = rows_of(grad), None, ctx.row_gradient(1)
        for start, stop in row_units(n, k * grad.itemsize):
            part = rows[:, start:stop]
            if weight is not None and grad_x is None:
                grad_x = matmul(part, weight.rows(start, stop))
            elif weight is not None:
                matmul(part, weight.rows(start, stop), out=grad_x, accumulate=True)
            if dweight is not None:
                dweight.add_rows(start, matmul(part.T, rows_of(x)))
        if grad_x is not None:
            grad_x = grad_x.reshape(*grad.shape[:-1], k)
        grad_bias = column_sums(rows) if ctx.needs_input_grad[2] else None
        return grad_x, dweight and dweight.rest(), grad_bias, grad


class Einsum:
    """Einstein summation. `terms` are the operands' letters, `result` the output's.

    The gradient of an operand is again an einsum, of the output's gradient with all other
    operands; letters that appear in this operand alone were summed over, so it is spread along
    them, and a letter that repeats in it picked a diagonal, so it is written back to a diagonal.
    """

    @staticmethod
    def forward(ctx, *arrays, terms, result):
        ctx.terms, ctx.result = terms, result
        ctx.save_for_backward(*arrays)
        return contract(terms, arrays, result)

    @staticmethod
    def backward(ctx, grad):
        arrays = ctx.saved_tensors
        size = sizes(ctx.terms, ctx.input_shapes)
        grads = []
        for i, term in enumerate(ctx.terms):
            if not ctx.needs_input_grad[i]:
                grads.append(None)
                continue
            letters = "".join(dict.fromkeys(term))
            others = [j for j in range(len(arrays)) if j != i]
            sources = [ctx.result, *(ctx.terms[j] for j in others)]
            known = "".join(c for c in letters if any(c in source for source in sources))
            part = contract(sources, [grad, *(arrays[j] for j in others)], known)
            have = dict(zip(known, part.shape, strict=True))  # 1 where another was broadcast
            part = part.reshape([have.get(c, 1) for c in letters])
            out = zeros([size[c] for c in term], grad.dtype)
            diagonal = np.einsum(f"{term}->{letters}", out) if term else out  # 0-d has no views
            if not switch.off:
                diagonal[...] = part
            grads.append(out)
        return tuple(grads)


def contract(terms: Sequence[str], arrays: Sequence[np.ndarray], result: str) -> np.ndarray:
    """np.einsum into memory from `empty`."""
    size = sizes(terms, [array.shape for array in arrays])
    out = empty([size[c] for c in result], np.result_type(*arrays))
    if not switch.off:
        spelled = f"{','.join(terms)}->{result}"
        np.einsum(spelled, *arrays, out=out, optimize=len(arrays) > 1)
    return out


def sizes(terms: Sequence[str], shapes: Sequence[tuple[int, ...]]) -> dict[str, int]:
    """Each letter's length. Where some have length 1 they are broadcast."""
    size: dict[str, int] = {}
    for term, shape in zip(terms, shapes, strict=True):
        for c, n in zip(term, shape, strict=True):
            if size.get(c, 1) == 1:
                size[c] = n
    return size


def parse_einsum(subscripts: str, shapes: list[tuple[int, ...]]) -> tuple[list[str], str]:
    """Spells out "..." and a missing "->" in letters: ("...ij,jk", shapes) -> (["Aij", "jk"], ...).

    Raises ValueError if the subscripts do not fit the shapes.
    """
    text = subscripts.replace(" ", "")
    left, arrow, right = text.partition("->")
    terms = left.split(",")
    for term in (*terms, right):
        if not re.fullmatch(r"[a-zA-Z]*(\.\.\.)?[a-zA-Z]*", term):
            raise ValueError(
                f"einsum {subscripts!r}: {term!r} is not letters with at most one '...' among them"
            )
    if len(terms) != len(shapes):
        raise ValueError(f"einsum {subscripts!r} names {len(terms)} operands, got {len(shapes)}")
    unused = [c for c in string.ascii_letters if c not in text]
    longest = 0
    for term, shape in zip(terms, shapes, strict=True):
        named = len(term.replace("...", ""))
        extra = len(shape) - named
        if extra < 0 or (extra > 0 and "..." not in term):
            raise ValueError(f"einsum {subscripts!r}: {term!r} names {named} axes of shape {shape}")
        longest = max(longest, extra if "..." in term else 0)
    ellipsis = "".join(unused[:longest])
    if not arrow:
        once = sorted(c for c in set(left) - set(".,") if left.count(c) == 1)
        right = ("..." if "..." in left else "") + "".join(once)
    spelled = []
    for term, shape in zip(terms, shapes, strict=True):
        count = len(shape) - len(term.replace("...", ""))
        spelled.append(term.replace("...", ellipsis[longest - count :] if count else ""))
    result = right.replace("...", ellipsis)
    unknown = set(result) - set("".join(spelled))
    if unknown or len(set(result)) != len(result):
        raise ValueError(f"einsum {subscripts!r}: the output {right!r} repeats or invents letters")
    size = sizes(spelled, shapes)
    for term, shape in zip(spelled, shapes, strict=True):
        for c, n in zip(term, shape, strict=True):
            if n not in (1, size[c]):
                raise ValueError(
                    f"einsum {subscripts!r}: axis {c!r} is {size[c]} in one operand and {n} in "
                    f"another (shapes {', '.join(map(str, shapes))})"
                )
    return spelled, result
