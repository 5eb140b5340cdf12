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
    ("a token each", '"tokens": 20 * parameters', '"tokens": parameters', "20 for each"),
    ("hours for days", DAYS, "chip_hours / chips", "those are hours"),
    ("one chip's days", DAYS, "chip_hours / 24", "days of a single chip"),
    ("weights alone", "16 * parameters > memory", "2 * parameters > memory", "not the weights"),
    ("at the peak", PASS, "2 * peak / (2 * bandwidth) if streams else 0", "rate achieved"),
    ("one operation", PASS, "2 * rate / bandwidth if streams else 0", "two operations"),
    ("always streaming", PASS, "2 * rate / (2 * bandwidth)", "0 exactly where nothing streams"),
    ("the state streams", PASS, "16 * rate / (2 * bandwidth) if streams else 0", "the state's"),
    ("a key forgotten", '        "streams": streams,\n', "", "no 'streams' in the dictionary"),
]
