"""Typical wrong answers to lesson 8: what, the solution's text, what stands there, the verdict."""

RETURN = "return 16 * parameters + arrays * array"
PARAMETERS = "parameters = 12 * layers * width**2 + (vocabulary + context) * width"
KEPT = "arrays = 16 * layers + 5  # everything"

WRONG = [
    ("no activations", RETURN, "return 16 * parameters", "activations are missing"),
    ("activations alone", RETURN, "return arrays * array", "activations alone"),
    ("weights only", RETURN, "return 4 * parameters + arrays * array", "16 bytes per"),
    ("one average", RETURN, "return 12 * parameters + arrays * array", "two"),
    ("float64", RETURN, "return 2 * (16 * parameters + arrays * array)", "those of a float64"),
    ("numbers", RETURN, "return (16 * parameters + arrays * array) / 4", "numbers, not bytes"),
    ("one sequence", "array = 4 * batch * context", "array = 4 * context", "every sequence"),
    ("scores kept", RETURN, "return 16 * parameters + arrays * array + (1 if recompute else layers)"
     " * 4 * batch * width // 64 * context**2", "in tiles"),
    ("a layer kept", KEPT, "arrays = 16 + 5  # everything", "a single layer|too little"),
    ("inputs only", KEPT, "arrays = layers  # everything", "all 16 stay"),
    ("nothing on top", KEPT, "arrays = 16 * layers  # everything", "gradients inside the last one"),
    ("arrays forgotten", KEPT, "arrays = 12 * layers + 5  # everything", "12 arrays per layer"),
    ("no MLP", "12 * layers * width", "4 * layers * width", "MLP's weights are missing"),
    ("recompute ignored", "    if recompute:\n", "    if recompute is None:\n", "its input only"),
    ("the layer at hand", "arrays = layers + 16 + 5", "arrays = layers", "its own arrays while"),
    ("its gradients", "arrays = layers + 16 + 5", "arrays = layers + 16", "gradients live, too"),
    ("8 matrices", "12 * layers * width", "8 * layers * width", "has 12 .* not 8"),
    ("no tables", PARAMETERS, "parameters = 12 * layers * width**2", "both tables are missing"),
    ("two token tables", PARAMETERS, PARAMETERS.replace("(vocab", "(2 * vocab"), "counts once"),
    ("no places", PARAMETERS, PARAMETERS.replace(" + context", ""), "position table is missing"),
    ("logits kept", RETURN, RETURN + " + 4 * batch * context * vocabulary", "none are kept"),
    ("state for activations", RETURN, RETURN.replace("+ ", "+ 4 * "), "an activation takes 4"),
    ("one layer's input", "arrays = layers + 16 + 5", "arrays = 16 + 5", "other layers keeps"),
    ("megabytes", RETURN, "return (16 * parameters + arrays * array) / 1e6", "megabytes"),
    ("no number", RETURN, "return float('nan')", "expected a number of bytes"),
]  # fmt: skip
