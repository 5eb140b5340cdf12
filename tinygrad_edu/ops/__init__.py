"""The catalogue of ops. Each is a class with `forward` and `backward` side by side, on arrays.

    forward(ctx, *arrays, **parameters) -> array, or a tuple of arrays
    backward(ctx, *gradients of the outputs) -> one gradient per positional argument

`ctx` carries what backward needs from one to the other: `save_for_backward(*arrays)` and
`saved_tensors`, `needs_input_grad` (one bool per positional argument), `input_shapes`, and any
attribute an op likes to set. Ops know nothing of Tensors. Their inputs broadcast as in NumPy; the
engine sums gradients back over broadcast axes, casts dtypes and checks what comes out.
"""

from .elementwise import (
    Abs,
    Add,
    Clip,
    Divide,
    Dropout,
    Exp,
    Gelu,
    Log,
    Maximum,
    Minimum,
    Multiply,
    Negate,
    Power,
    Relu,
    Sigmoid,
    Sqrt,
    Subtract,
    Tanh,
    Where,
)
from .fused import (
    Attention,
    CrossEntropy,
    Embedding,
    LayerNorm,
    LinearCrossEntropy,
    SelfAttention,
)
from .linear import Einsum, Linear, Matmul
from .movement import (
    Cast,
    Concatenate,
    Index,
    MergeHeads,
    Permute,
    Reshape,
    Split,
    SplitHeads,
    Stack,
)
from .reduce import LogSoftmax, Max, Mean, Min, Softmax, Sum, Variance

CATALOGUE = (
    Abs, Add, Attention, Cast, Clip, Concatenate, CrossEntropy, Divide, Dropout, Einsum, Embedding,
    Exp, Gelu, Index, LayerNorm, Linear, LinearCrossEntropy, Log, LogSoftmax, Matmul, Max, Maximum,
    Mean, MergeHeads, Min, Minimum, Multiply, Negate, Permute, Power, Relu, Reshape, SelfAttention,
    Sigmoid, Softmax, Split, SplitHeads, Sqrt, Stack, Subtract, Sum, Tanh, Variance, Where,
)  # fmt: skip
