"""Typical wrong answers to lesson 10: what, the solution's text, what stands there, the verdict."""

FLOPS = "flops = chip_hours * 3600 * rate"
DAYS = "chip_hours / chips / 24"
PASS = "2 * rate / (2 * bandwidth) if streams else 0"

WRONG = [
    ("achieved forgotten", FLOPS, "flops = chip_hours * 3600 * peak", "`achieved` is missing"),
    ("hours for seconds", FLOPS, "flops = chip_hours * rate", "3600 is missing"),
    ("chips twice", FLOPS, "flops = chip_hours * 3600 * rate * chips", "counted twice"),
    ("no root", "math.sqrt(flops / (6 * 20))", "flops / (6 * 20)", "take the root"),
    ("6 forgotten", "(6 * 20)", "20", "a factor is missing"),
    ("forward alone", "(6 * 20)", "(2 * 20)", "way forward alone"),
    ("a recompute", "(6 * 20)", "(8 * 20)", "for a recompute"),
    ("chips shared out", FLOPS, FLOPS + " / chips", "loses the others"),
    ("a spent fortune", FLOPS, FLOPS + " * dollars", "four times the money .* buys 4 times"),
    ("a token each", '"tokens": 20 * parameters', '"tokens": parameters', "20 for each"),
    ("rounded", DAYS, "round(chip_hours / chips / 24)", "do not round"),
    ("three chips", DAYS, "chip_hours / 24 / 3", "costs 2.667e.04 dollars, and there are 1e.04"),
    ("hours for days", DAYS, "chip_hours / chips", "those are hours"),
    ("one chip's days", DAYS, "chip_hours / 24", "days of a single chip"),
    ("weights alone", "16 * parameters > memory", "2 * parameters > memory", "not the weights"),
    ("all memory", "parameters > memory", "parameters > memory * chips", "memory of one chip"),
    ("no gradient", "16 * parameters > memory", "12 * parameters > memory", "the gradient's"),
    ("it fits", "parameters > memory", "parameters < memory", "the other way round"),
    ("at the peak", PASS, "2 * peak / (2 * bandwidth) if streams else 0", "rate achieved"),
    ("bits", PASS, "2 * rate / (2 * bandwidth * 8) if streams else 0", "not in bits"),
    ("both ways", PASS, "2 * rate / (6 * bandwidth) if streams else 0", "those of both ways"),
    ("way back", PASS, "2 * rate / (4 * bandwidth) if streams else 0", "4 are those of the way"),
    ("the model's size", PASS, "parameters * " + PASS, "the model's size cancels"),
    ("one operation", PASS, "2 * rate / bandwidth if streams else 0", "two operations"),
    ("always streaming", PASS, "2 * rate / (2 * bandwidth)", "0 exactly where nothing streams"),
    ("the state streams", PASS, "16 * rate / (2 * bandwidth) if streams else 0", "the state's"),
    ("not a number", DAYS, "str(chip_hours)", "expected a number"),
    ("nan", DAYS, "float('nan')", "days is nan"),
    ("places for keys", "    return {\n", "    return {1: parameters}\n    {\n", "which has 1"),
    ("a key forgotten", '        "streams": streams,\n', "", "no 'streams' in the dictionary"),
]
