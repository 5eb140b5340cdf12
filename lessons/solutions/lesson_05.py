"""Lesson 5, solved: FLOPs, bytes, and the longer of the two times."""

FLOAT = 4  # bytes


def linear(rows, inputs, outputs, peak, bandwidth):
    flops = 2 * rows * inputs * outputs  # a multiply-add is two
    nbytes = FLOAT * (rows * inputs + inputs * outputs + rows * outputs)
    return flops, nbytes, max(flops / peak, nbytes / bandwidth)


def layer_norm(rows, width, peak, bandwidth):
    flops = 8 * rows * width
    nbytes = FLOAT * (2 * rows * width + 2 * width)  # x and y; gain and bias
    return flops, nbytes, max(flops / peak, nbytes / bandwidth)


def adamw(parameters, peak, bandwidth):
    flops = 14 * parameters
    nbytes = FLOAT * 7 * parameters  # reads w, g, m and v; writes w, m and v
    return flops, nbytes, max(flops / peak, nbytes / bandwidth)
