"""Lesson 10, solved: money -> chip-hours -> FLOPs -> a model and its tokens."""

import math


def plan_run(dollars, dollars_per_hour, chips, peak, achieved, bandwidth, memory):
    chip_hours = dollars / dollars_per_hour
    rate = peak * achieved
    flops = chip_hours * 3600 * rate
    parameters = math.sqrt(flops / (6 * 20))  # 6 N D with D = 20 N
    streams = 16 * parameters > memory
    return {
        "parameters": parameters,
        "tokens": 20 * parameters,
        "days": chip_hours / chips / 24,
        "streams": streams,
        "pass_tokens": 2 * rate / (2 * bandwidth) if streams else 0,
    }
