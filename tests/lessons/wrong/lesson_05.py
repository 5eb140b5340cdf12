"""Typical wrong answers to lesson 5: what, the solution's text, what stands there, the verdict."""

LINEAR_BYTES = "nbytes = FLOAT * (rows * inputs + inputs * outputs + rows * outputs)"
ADAMW = """    flops = 14 * parameters
    nbytes = FLOAT * 7 * parameters  # reads w, g, m and v; writes w, m and v
    return flops, nbytes, max(flops / peak, nbytes / bandwidth)"""


def adamw(last):
    return ADAMW.replace("max(flops / peak, nbytes / bandwidth)", last)


WRONG = [
    ("a multiply-add as one", "flops = 2 * rows", "flops = rows", "multiply-add is two"),
    ("one addition less", "flops = 2 * rows * inputs *", "flops = (2 * inputs - 1) * rows *",
     "as many additions in it as multiplications"),
    ("bytes before FLOPs", LINEAR_BYTES,
     LINEAR_BYTES + "; nbytes, flops = flops, nbytes", "FLOPs come first"),
    ("four for each", "flops = 8 * rows", "flops = 4 * rows", "has 8 for each element"),
    ("input forgotten", LINEAR_BYTES, "nbytes = FLOAT * (inputs * outputs + rows * outputs)",
     "x has to be read"),
    ("the gradient written", "FLOAT * 7 * parameters", "FLOAT * 8 * parameters", "g stays as"),
    ("the result not written", LINEAR_BYTES,
     "nbytes = FLOAT * (rows * inputs + inputs * outputs)", "has to be written"),
    ("the weight forgotten", LINEAR_BYTES,
     "nbytes = FLOAT * (rows * inputs + rows * outputs)", "weight has to be read"),
    ("numbers for bytes", "FLOAT = 4", "FLOAT = 1", "numbers, not bytes"),
    ("float64", "FLOAT = 4", "FLOAT = 8", "those of a float64"),
    ("gain and bias forgotten", "(2 * rows * width + 2 * width)", "(2 * rows * width)", "gain and"),
    ("bias forgotten", "(2 * rows * width + 2 * width)", "(2 * rows * width + width)", "gain and"),
    ("update read only", "FLOAT * 7 * parameters", "FLOAT * 4 * parameters", "crosses"),
    ("sum of times", ADAMW, adamw("flops / peak + nbytes / bandwidth"), "go on at once"),
    ("the faster", ADAMW, adamw("min(flops / peak, nbytes / bandwidth)"), "not the faster"),
    ("memory alone", ADAMW, adamw("nbytes / bandwidth"), "not the faster"),
    ("milliseconds", ADAMW, adamw("1e3 * max(flops / peak, nbytes / bandwidth)"), "milliseconds"),
    ("two numbers", ADAMW, ADAMW.replace("flops, nbytes, max", "nbytes, max"), "three numbers"),
]  # fmt: skip
