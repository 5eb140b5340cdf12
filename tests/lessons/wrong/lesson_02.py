"""Typical wrong answers to lesson 2: what, the solution's text, what stands there, the verdict."""

RETURN = "return unbroadcast(to_a, a_shape), unbroadcast(to_b, b_shape)"

WRONG = [
    ("not summed", RETURN, "return to_a, to_b", "shape of the result: what was stretched"),
    ("exchanged", RETURN, "return unbroadcast(to_b, a_shape), unbroadcast(to_a, b_shape)",
     "the one of the other input"),
    ("everything to a", "to_a = np.where(condition, grad, 0)", "to_a = grad", "were not chosen"),
    ("mean", "    missing = grad.ndim - len(shape)\n",
     "    grad = grad * np.prod(shape) / max(1, grad.size)\n    missing = grad.ndim - len(shape)\n",
     "Their uses add up"),
    ("float32", "    to_a = np.where", "    grad = grad.astype(np.float32)\n    to_a = np.where",
     "a few digits only"),
    ("no keepdims", "grad.sum(axis=stretched, keepdims=True)", "grad.sum(axis=stretched)",
     "stays when it is summed"),
    ("one gradient", RETURN, "return unbroadcast(to_a, a_shape)", "expected two gradients"),
    ("reshaped", RETURN, "return np.resize(to_a, a_shape), np.resize(to_b, b_shape)", "expected"),
    ("summed where sizes differ", "    missing = grad.ndim - len(shape)\n",
     "    if grad.size == np.prod(shape):\n        return grad\n"
     "    missing = grad.ndim - len(shape)\n",
     r"has shape \(1, 3\), expected \(3,\): it still has the shape of the result"),
    ("a mask times the gradient", "to_b = np.where(condition, 0, grad)",
     "to_b = grad * ~condition", "0 times infinity is not 0"),
    ("infinity made a number", "to_a = np.where(condition, grad, 0)",
     "to_a = np.nan_to_num(grad * condition)", r"is 1\.797\d+e\+308 at \(0,\), expected inf"),
    ("negated integers", "to_b = np.where(condition, 0, grad)",
     "to_b = grad * ~condition.astype(int)", "keep the condition boolean"),
    ("minus", "to_b = np.where(condition, 0, grad)", "to_b = np.where(condition, 0, -grad)",
     "sign turned round"),
    ("one sum for all", RETURN, "return np.full(a_shape, to_a.sum()), np.full(b_shape, to_b.sum())",
     "each one adds up its own"),
    ("nothing for b", "to_b = np.where(condition, 0, grad)", "to_b = np.zeros_like(grad)",
     "0 everywhere"),
    ("in place", "to_a = np.where(condition, grad, 0)", "grad *= 1.5; to_a = grad * condition",
     "writes into its arguments"),
    ("from the package", "    missing = grad.ndim - len(shape)\n",
     "    from tinygrad_edu.tape import unbroadcast as theirs\n    return theirs(grad, shape)\n"
     "    missing = 0\n", "without the package"),
]  # fmt: skip
