"""Sizes in bytes, as people write and read them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinygrad_edu.memory import parse_size, show_size


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("1", 1), ("512", 512), ("7B", 7), ("1kB", 1000), ("1KB", 1000), ("1KiB", 1024),
        ("200MB", 200 * 10**6), ("200MiB", 200 << 20), ("1.5GB", 1_500_000_000),
        (" 2 GiB ", 2 << 30), (".5mb", 500_000), ("3.TB", 3 * 10**12), ("1PiB", 1 << 50),
        ("1e9", 10**9), ("1.5E+3 kB", 1_500_000),
        (4096, 4096), (1e6, 10**6), (np.int64(12), 12), (np.float32(64), 64), (12.9, 12),
    ],
)  # fmt: skip
def test_what_is_a_size(text, nbytes):
    size = parse_size(text)
    assert size == nbytes and type(size) is int


@pytest.mark.parametrize(
    "text",
    [
        "", "MB", "-1", "-1MB", "1 MBit", "1e-6", "1e400", "5e", "0x10", "12,5MB",
        "1.2.3", "lots", "1EB", "nan",
        "0", "0MB", "0.1", 0, -5, 0.5, float("nan"), float("inf"), 2**63, True, None, [1], 1j,
    ],
)  # fmt: skip
def test_what_is_not_a_size_is_refused_by_name(text):
    with pytest.raises(ValueError, match="the budget"):
        parse_size(text, "the budget")


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 B"), (1, "1 B"), (999, "999 B"), (999.6, "1.00 kB"), (1000, "1.00 kB"),
        (9994, "9.99 kB"), (9996, "10.0 kB"), (99_940, "99.9 kB"), (99_960, "100 kB"),
        (999_499, "999 kB"), (999_500, "1.00 MB"), (9_437_184, "9.44 MB"), (2e9, "2.00 GB"),
        (48e12, "48.0 TB"), (5e15, "5000 TB"), (-2500, "-2.50 kB"),
    ],
)  # fmt: skip
def test_a_size_is_shown_with_three_digits(nbytes, text):
    assert show_size(nbytes) == text


@given(st.integers(1, 999 * 10**12))
def test_what_is_shown_can_be_read_and_is_close(nbytes):
    shown = show_size(nbytes)
    assert abs(parse_size(shown) - nbytes) <= 0.005 * nbytes
    digits = shown.split()[0].replace(".", "")
    assert len(digits) == 3 or nbytes < 100
