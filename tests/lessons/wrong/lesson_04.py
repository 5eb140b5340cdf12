"""Typical wrong answers to lesson 4: what, the solution's text, what stands there, the verdict."""

ROOM = "packed = np.zeros((panels, depth, width), b.dtype)"
ROUND_UP = "panels = -(-n // width)  # rounded up"
PIECE = "piece = b[:, p * width : (p + 1) * width]"
COPY = "packed[p, :, : piece.shape[1]] = piece"
A = "return pack_b(a.T, height)"
RETURN = "    return packed\n"

WRONG = [
    ("edge dropped", ROUND_UP, "panels = n // width", "last panel is missing.*rounds down"),
    ("always one more", ROUND_UP, "panels = n // width + 1", "a panel too many"),
    ("padding not written", ROOM, ROOM.replace("zeros", "empty"), "np.empty. gives memory"),
    ("always float64", ROOM, "packed = np.zeros((panels, depth, width))", "is float64, the matrix"),
    (
        "reshape instead of a copy",
        RETURN,
        "    flat = np.zeros(packed.size, b.dtype)\n    flat[: b.size] = b.ravel()\n"
        "    return flat.reshape(packed.shape)\n",
        "`reshape` cuts memory",
    ),
    ("A not turned", A, "return pack_b(a.T, height).swapaxes(1, 2)", "k must come before the rows"),
    (
        "A turned without a copy",
        A,
        "return np.ascontiguousarray(pack_b(a.T, height).swapaxes(1, 2)).swapaxes(1, 2)",
        "strides.*nothing was packed",
    ),
    (
        "the last panel moved back",
        PIECE,
        "piece = b[:, max(0, min(p * width, n - width)) :][:, :width]",
        "moves the last panel back",
    ),
    (
        "the last column repeated",
        PIECE,
        "piece = b[:, np.minimum(np.arange(p * width, (p + 1) * width), n - 1)]",
        "repeats the last column",
    ),
    (
        "memory read as if it were whole",
        PIECE,
        "b = b if b.base is None else b.base.ravel()[: b.size].reshape(b.shape); " + PIECE,
        "do not rely on how its numbers lie",
    ),
    ("panels behind k", RETURN, "    return packed.swapaxes(0, 1).copy()\n", "panels come first"),
    ("an array of one number", RETURN, "    return np.array(5.0)\n", "expected .2, 5, 3."),
    ("no return", RETURN, "", "is a `return` missing"),
]
