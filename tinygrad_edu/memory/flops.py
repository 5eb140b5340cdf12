"""Floating-point operations of an op, and the bytes it moves, from the shapes of its inputs.

A multiply-add counts two. Only products have operations: those of everything else are below a
percent of a transformer's step.
"""

import math

import numpy as np

from ..kernels.attention import QUERIES

ATTENTION = ("Attention", "SelfAttention")
BACKWARD = {"Matmul": 2, "Linear": 2, "LinearCrossEntropy": 3} | dict.fromkeys(ATTENTION, 2.5)


def known_as(op: type) -> str:
    """The name under which an op is found here: that of its class, but not of a user's own."""
    return "Function" if getattr(op, "is_guarded", False) else op.__name__


def op_flops(op: str, phase: str, shapes: tuple, keeps_logits: bool = False) -> int:
    """`shapes`: those of the op's inputs, None for what is not an array; `phase`: forward or
    backward. The loss makes its logits again in backward unless it kept them, attention its
    scores."""
    if op in ("Linear", "LinearCrossEntropy"):
        forward = 2 * math.prod(shapes[0][:-1]) * math.prod(shapes[1])
    elif op == "Matmul":
        a, b = shapes[:2]
        batch = math.prod(np.broadcast_shapes(a[:-2], b[:-2]))
        rows, columns = (a[-2] if len(a) > 1 else 1), (b[-1] if len(b) > 1 else 1)
        forward = 2 * batch * rows * a[-1] * columns
    elif op in ATTENTION:
        q, k, v = attending(op, shapes)
        (*batch, t, d), s, e = q, k[-2], v[-1]
        forward = math.prod(batch) * t * s * (d + e)  # causal: half of 2 t s (d + e)
    else:
        return 0
    if phase == "forward":
        return forward
    return int(forward * (BACKWARD[op] - (keeps_logits and op == "LinearCrossEntropy")))


def attending(op: str, shapes: tuple) -> tuple:
    """The shapes of q, k and v; of SelfAttention with heads side by side, which counts the same."""
    if op == "Attention":
        return shapes[:3]
    b, t, c = shapes[0]
    return ((b, t, c // 3),) * 3


def rows_of_weight(op: str, shapes: tuple) -> int:
    """How many rows (tokens) meet the weight of this op; 0 if it has none."""
    return math.prod(shapes[0][:-1]) if op in ("Linear", "LinearCrossEntropy") else 0


# Bytes moved by what is not a product, as multiples of the op's largest input: (forward, backward).
PASSES = {"LayerNorm": (2, 3), "Gelu": (2, 3), "Add": (3, 0), "Split": (0, 2), "Dropout": (2, 2)}
VIEWS = ("Reshape", "Permute", "SplitHeads", "MergeHeads", "Checkpoint")
PASSES |= dict.fromkeys(VIEWS, (0, 0))
ELSE = (2, 3)


def op_bytes(op: str, phase: str, shapes: tuple) -> int:
    """Bytes, in float32, that an op reads and writes in the chip's memory."""
    backward = phase == "backward"
    if op in BACKWARD:
        return 4 * operands(op, shapes, backward)
    largest = max((math.prod(shape) for shape in shapes if shape is not None), default=0)
    passes = PASSES.get(op, ELSE)[backward]
    if op == "Embedding":  # its largest input is the table, of which it reads some rows
        largest = math.prod(shapes[1]) * shapes[0][1]
    return 4 * passes * largest


def operands(op: str, shapes: tuple, backward: bool) -> int:
    """Values that products read and write. Backward is two products, for two gradients."""
    if op in ATTENTION:  # q, k, v and the output; backward also their gradients
        q, k, v = attending(op, shapes)
        out = (*q[:-1], v[-1])
        return sum(math.prod(shape) for shape in (q, k, v, out)) * (1 + backward)
    first, second = math.prod(shapes[0]), math.prod(shapes[1])
    if op == "Matmul":
        result = op_flops(op, "forward", shapes) // (2 * shapes[0][-1]) if shapes[0][-1] else 0
    else:
        result = math.prod(shapes[0][:-1]) * shapes[1][0]
    if op == "LinearCrossEntropy":  # its logits are written and read, then read and written again
        result *= 2
    residual = result if op == "Linear" and len(shapes) > 3 and shapes[3] and not backward else 0
    return (first + second + result) * (1 + backward) + residual


def whole_blocks(op: str, shapes: tuple) -> float:
    """What attention takes, by what causal attention needs: the time of whole blocks of queries.

    The kernel leaves out part of a block, but what it keeps takes longer per operation.
    """
    t, s = (shape[-2] for shape in attending(op, shapes)[:2])
    if not t * s:
        return 1.0
    ends = range(QUERIES, t + QUERIES, QUERIES)  # each block sees the keys up to its last query
    return 2 * sum(QUERIES * max(0, min(end, t) + s - t) for end in ends) / (t * s)
