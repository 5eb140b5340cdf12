"""The inner loop of matmul: one small tile of C, held in vector registers for the whole sum over
k.

A CPU core multiplies fastest when its operands are already in registers: two fused multiply-adds
per cycle, each on a whole vector. A tile of `mr` rows by `nv` vectors keeps mr * nv sums in
registers. Each step of k loads nv vectors of B and mr numbers of A (each copied to all lanes),
and from these mr + nv loads makes mr * nv multiply-adds:

    for k:                                        b0        b1
        b0, b1 = B[k, 0:L], B[k, L:2L]     a0 | acc00 += a0 * b0   acc01 += a0 * b1
        for i: acc[i, :] += A[i, k] * b    a1 | acc10 += a1 * b0   acc11 += a1 * b1   ...

Nothing is stored until k is done. What is not in the nearest cache takes up to a hundred
nanoseconds to arrive, so a tile whose operands are packed asks ahead: for A and B some steps of k
before they are needed, and for the part of C that the next tile, the one below, will store to.

Compilers do not find this schedule in plain loops, so the tile is written as LLVM IR: `tile` is a
Numba intrinsic, a function whose body is a piece of IR that we print ourselves. One phi node per
sum makes it a register; LLVM turns the IR into AVX-512, AVX2, NEON or SSE, whichever the CPU has.

The shape of the tile follows the register file. It needs mr * nv sums, nv vectors of B and one of
A at a time, and at least 8 to 10 independent sums, because a multiply-add takes four cycles and
two start in each.
"""

import platform
from collections import namedtuple

import llvmlite.binding as llvm
from llvmlite import ir
from numba import config, types
from numba.core import cgutils
from numba.extending import intrinsic

from ..allocator import ALIGNMENT

I8, I32, I64 = (ir.IntType(bits) for bits in (8, 32, 64))
POINTER = I8.as_pointer()
AHEAD = 32  # steps of k between asking for an element of A or B and using it

Cpu = namedtuple("Cpu", "vector_bytes mr nv fma")


def _cpu():
    """The widest vectors Numba compiles for, and the tile that fills the registers of that size."""
    if config.CPU_FEATURES is not None:  # NUMBA_CPU_FEATURES, or NUMBA_CPU_NAME=generic
        flags = config.CPU_FEATURES.split(",")
        has = {flag[1:] for flag in flags if flag.startswith("+")}
    else:
        has = {name for name, present in llvm.get_host_cpu_features().items() if present}
    if platform.machine().lower() in ("arm64", "aarch64"):
        return Cpu(16, 8, 3, True)  # NEON: 32 registers of 16 bytes
    if "avx512f" in has:
        return Cpu(64, 12, 2, True)  # 32 registers of 64 bytes
    if "avx2" in has and "fma" in has:
        return Cpu(32, 6, 2, True)  # 16 registers of 32 bytes
    return Cpu(16, 4, 2, False)  # SSE2 and anything unknown: multiply, then add


CPU = _cpu()


def bytes_of(scalar):
    return 8 if isinstance(scalar, ir.DoubleType) else 4


class Emit:
    """Short names for the IR that tiles and packing share, for one element type."""

    def __init__(self, builder, scalar):
        self.builder, self.scalar = builder, scalar
        self.size = bytes_of(scalar)
        self.lanes = CPU.vector_bytes // self.size
        self.vector = ir.VectorType(scalar, self.lanes)

    def at(self, pointer, offset):
        """pointer + offset, in bytes."""
        offset = I64(offset) if isinstance(offset, int) else offset
        return self.builder.gep(pointer, [offset])

    def load(self, pointer, lanes=None):
        """A vector (or a scalar, lanes=1) from an address that is only aligned to its elements."""
        kind = {None: self.vector, 1: self.scalar}.get(lanes) or ir.VectorType(self.scalar, lanes)
        return self.builder.load(self.builder.bitcast(pointer, kind.as_pointer()), align=self.size)

    def store(self, value, pointer):
        self.builder.store(
            value, self.builder.bitcast(pointer, value.type.as_pointer()), align=self.size
        )

    def splat(self, value, lanes):
        """The same scalar in every lane."""
        kind = ir.VectorType(value.type, lanes)
        one = self.builder.insert_element(ir.Constant(kind, ir.Undefined), value, I32(0))
        mask = ir.Constant(ir.VectorType(I32, lanes), None)
        return self.builder.shuffle_vector(one, ir.Constant(kind, ir.Undefined), mask)

    def below(self, count, first):
        """Mask of lanes: is first + lane < count?"""
        lane = ir.Constant(ir.VectorType(I64, self.lanes), [first + i for i in range(self.lanes)])
        return self.builder.icmp_signed("<", lane, self.splat(count, self.lanes))

    def call(self, name, result, arguments):
        kind = ir.FunctionType(result, [argument.type for argument in arguments])
        function = cgutils.get_or_insert_function(self.builder.module, kind, name)
        return self.builder.call(function, arguments)

    def _name(self):
        return f"v{self.lanes}f{8 * self.size}"

    def prefetch(self, pointer, write):
        """Ask for the cache line at an address, which need not be valid, without waiting."""
        nearest, data = I32(3), I32(1)
        self.call("llvm.prefetch.p0", ir.VoidType(), [pointer, I32(int(write)), nearest, data])

    def multiply_add(self, a, b, c):
        name = "llvm.fma" if CPU.fma else "llvm.fmuladd"
        return self.call(f"{name}.{self._name()}", self.vector, [a, b, c])

    def masked_load(self, pointer, mask):
        """Lanes outside the mask are zero, and their memory is not touched."""
        zero = ir.Constant(self.vector, None)
        return self.call(
            f"llvm.masked.load.{self._name()}.p0",
            self.vector,
            [pointer, I32(self.size), mask, zero],
        )

    def masked_store(self, value, pointer, mask):
        self.call(
            f"llvm.masked.store.{self._name()}.p0",
            ir.VoidType(),
            [value, pointer, I32(self.size), mask],
        )


def raw(builder, value):
    """A Numba pointer as an untyped LLVM pointer."""
    return builder.bitcast(value, POINTER)


@intrinsic
def pointer(typingctx, array):
    """Address of an array's first element, as a pointer to its element type."""
    kind = types.CPointer(array.dtype)

    def codegen(context, builder, signature, args):
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.bitcast(data, context.get_value_type(kind))

    return kind(array), codegen


@intrinsic
def step(typingctx, pointer, offset):
    """pointer + offset, the offset in bytes."""

    def codegen(context, builder, signature, args):
        moved = builder.gep(raw(builder, args[0]), [args[1]])
        return builder.bitcast(moved, args[0].type)

    return pointer(pointer, types.intp), codegen


@intrinsic
def load(typingctx, pointer):
    def codegen(context, builder, signature, args):
        return builder.load(args[0], align=bytes_of(args[0].type.pointee))

    return pointer.dtype(pointer), codegen


@intrinsic
def store(typingctx, pointer, value):
    def codegen(context, builder, signature, args):
        builder.store(args[1], args[0], align=bytes_of(args[1].type))
        return context.get_dummy_value()

    return types.void(pointer, pointer.dtype), codegen


@intrinsic
def zero(typingctx, pointer):
    """Zero of the type the pointer points to."""

    def codegen(context, builder, signature, args):
        return ir.Constant(context.get_value_type(pointer.dtype), 0.0)

    return pointer.dtype(pointer), codegen


def _constant(of):
    @intrinsic
    def constant(typingctx, pointer):
        def codegen(context, builder, signature, args):
            return I64(of(bytes_of(context.get_value_type(pointer.dtype))))

        return types.intp(pointer), codegen

    return constant


itemsize = _constant(lambda size: size)
lanes = _constant(lambda size: CPU.vector_bytes // size)


@intrinsic(prefer_literal=True)
def tile(typingctx, mr, nv, padded, a, a_row, a_k, b, b_k, k, c, c_row, rows, columns, add):
    """C[:rows, :columns] (+)= A[:mr, :k] @ B[:k, :nv * lanes], the sum over k kept in registers.

    mr, nv, padded   literals: rows and vectors of the tile; does A hold mr rows even if rows < mr?
                     Then it and B lie in the tile's order, and this is one of many tiles
    a, a_row, a_k    pointer, bytes from row to row, bytes from k to k; any strides
    b, b_k           pointer, bytes from k to k; nv * lanes contiguous elements each
    c, c_row         pointer, bytes from row to row; contiguous along columns
    add              add to C instead of overwriting it
    k is at least 1; 1 <= rows <= mr; 1 <= columns <= nv * lanes.
    """
    literals = [literal.literal_value for literal in (mr, nv, padded)]

    def codegen(context, builder, signature, args):
        scalar = context.get_value_type(a.dtype)
        _emit_tile(Emit(builder, scalar), *literals, *args[3:])
        return context.get_dummy_value()

    at = types.intp
    arguments = (mr, nv, padded, a, at, at, b, at, at, c, at, at, at, types.boolean)
    return types.void(*arguments), codegen


def _emit_tile(e, mr, nv, padded, a, a_row, a_k, b, b_k, k, c, c_row, rows, columns, add):
    builder, width = e.builder, nv * e.lanes
    a, b, c = (raw(builder, p) for p in (a, b, c))

    def vectors(row):
        return [e.at(row, v * CPU.vector_bytes) for v in range(nv)]

    a_rows = []  # offsets; past the last row the last one again, whose sums are not stored
    last = builder.sub(rows, I64(1))
    for i in range(mr):
        row = I64(i)
        if not padded and i:
            row = builder.select(builder.icmp_signed("<", last, row), last, row)
        a_rows.append(builder.mul(row, a_row))
    c_rows = [e.at(c, builder.mul(I64(i), c_row)) for i in range(mr)]
    for row in c_rows:  # of the tile below, if there is one
        below = builder.mul(I64(mr if padded else 0), c_row)
        for place in vectors(e.at(row, below)):
            e.prefetch(place, write=True)
    a_ahead, b_ahead = (builder.mul(stride, I64(AHEAD)) for stride in (a_k, b_k))

    before = builder.block
    loop = builder.append_basic_block("tile.k")
    after = builder.append_basic_block("tile.done")
    builder.branch(loop)
    builder.position_at_end(loop)
    left, a_at, b_at = builder.phi(I64), builder.phi(POINTER), builder.phi(POINTER)
    sums = [[builder.phi(e.vector) for _ in range(nv)] for _ in range(mr)]
    b_vectors = [e.load(place) for place in vectors(b_at)]
    if padded:
        later = e.at(b_at, b_ahead)
        lines = range(0, nv * CPU.vector_bytes, ALIGNMENT)
        for place in (e.at(a_at, a_ahead), *(e.at(later, line) for line in lines)):
            e.prefetch(place, write=False)
    total = []
    for i in range(mr):
        a_i = e.splat(e.load(e.at(a_at, a_rows[i]), 1), e.lanes)
        total.append(
            [e.multiply_add(a_i, b_v, s) for b_v, s in zip(b_vectors, sums[i], strict=True)]
        )
    fewer = builder.sub(left, I64(1))
    phis = [(left, k, fewer), (a_at, a, e.at(a_at, a_k)), (b_at, b, e.at(b_at, b_k))]
    zero = ir.Constant(e.vector, None)
    phis += [(sums[i][v], zero, total[i][v]) for i in range(mr) for v in range(nv)]
    for phi, first, following in phis:
        phi.add_incoming(first, before)
        phi.add_incoming(following, loop)
    builder.cbranch(builder.icmp_signed("!=", fewer, I64(0)), loop, after)
    builder.position_at_end(after)

    full = builder.and_(
        builder.icmp_signed("==", rows, I64(mr)), builder.icmp_signed("==", columns, I64(width))
    )
    with builder.if_else(full) as (then, otherwise):
        with then, builder.if_else(add) as (adding, overwriting):
            with adding:
                for row, values in zip(c_rows, total, strict=True):
                    for place, value in zip(vectors(row), values, strict=True):
                        e.store(builder.fadd(e.load(place), value), place)
            with overwriting:
                for row, values in zip(c_rows, total, strict=True):
                    for place, value in zip(vectors(row), values, strict=True):
                        e.store(value, place)
        with otherwise:
            masks = [e.below(columns, v * e.lanes) for v in range(nv)]
            kept = [builder.and_(mask, e.splat(add, e.lanes)) for mask in masks]
            for i in range(mr):
                with builder.if_then(builder.icmp_signed("<", I64(i), rows)):
                    for v, place in enumerate(vectors(c_rows[i])):
                        old = e.masked_load(place, kept[v])
                        e.masked_store(builder.fadd(old, total[i][v]), place, masks[v])
