"""Sizes in bytes, as people write them: "200MB" is 200 x 10^6, "200MiB" is 200 x 2^20."""

import numbers
import re

NUMBER = r"(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?"
UNITS = {"": 1, "b": 1}
UNITS |= {f"{prefix}b": 1000 ** (i + 1) for i, prefix in enumerate("kmgtp")}
UNITS |= {f"{prefix}ib": 1024 ** (i + 1) for i, prefix in enumerate("kmgtp")}


def parse_size(size: int | float | str, what: str = "size") -> int:
    """Bytes, from a number of bytes or text such as "256MB", "1.5 GiB", "1e9"; else ValueError."""
    if isinstance(size, str):
        match = re.fullmatch(rf"\s*({NUMBER})\s*([a-zA-Z]*)\s*", size)
        unit = UNITS.get(match[2].lower()) if match else None
        if unit is None:
            raise ValueError(f'{what} {size!r} is not a size: write bytes, "256MB" or "256MiB"')
        size = float(match[1]) * unit
    if isinstance(size, bool) or not isinstance(size, numbers.Real) or not 1 <= size < 2**63:
        raise ValueError(f'{what} must be at least 1 byte, got {size!r}: write for example "256MB"')
    return int(size)


def show_size(nbytes: float) -> str:
    """ "9.44 MB": three digits and a decimal unit."""
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if abs(nbytes) >= unit * 0.9995:
            value = nbytes / unit
            digits = 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
            return f"{value:.{digits}f} {name}"
    return f"{nbytes:.0f} B"
