"""Lesson 6: `masked_softmax`, its shares, its log-sum-exp, and the memory it takes."""

import tracemalloc
import warnings
from types import ModuleType

import numpy as np

from lessons.check import Wrong, call, given, same

CASES = [  # shape of the scores, first, what they are multiplied by
    ((4, 4), 0, 1),
    ((1, 1), 0, 1),
    ((5, 9), 4, 2),  # fewer queries than keys, aligned at the end
    ((3, 8), 2, 1),  # in the middle: keys after the last query
    ((2, 3, 6, 10), 4, 1),
    ((4, 3), 7, 1),  # every query sees all
    ((6, 5), -3, 1),  # the first three see nothing
    ((2, 4), -9, 1),
    ((0, 5), 0, 1),
    ((3, 0), 0, 1),
    ((2, 0, 0), 0, 1),
]

ANOTHER = (  # what follows the last step that was written into the scores
    ": `seen = ...` gives the name to another array, and the scores stay. Write into the view "
    "(out=, -=, /=, [...] =)"
)


def check(answer: ModuleType) -> str:
    function = given(answer, "masked_softmax", "scores, first")
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        rng = np.random.default_rng(6)
        for shape, first, size in CASES:
            scores = size * rng.normal(size=shape)
            try_out(function, scores, first, f"scores of shape {shape}, first={first}")
        check_dtype(function, rng)
        check_large(function, rng)
        check_place(function, rng)
        check_infinite(function, rng)
        check_not_a_number(function, rng)
        check_memory(function, rng)
    return (
        "What a query may not see costs neither a comparison nor a byte, and one number per row, "
        "its log-sum-exp, is enough to make all of its shares again."
    )


def reference(scores: np.ndarray, first: int) -> tuple[np.ndarray, np.ndarray]:
    """Out of place, with a mask, in the dtype of the scores."""
    t, s = scores.shape[-2:]
    hidden = np.arange(s) > first + np.arange(t)[:, None]
    masked = np.where(hidden, -np.inf, scores).astype(scores.dtype)
    top = masked.max(axis=-1, keepdims=True, initial=-np.inf)
    top = np.where(top == -np.inf, 0, top).astype(scores.dtype)
    e = np.exp(masked - top)
    total = e.sum(axis=-1, keepdims=True)
    return e / np.where(total == 0, 1, total), (np.log(total) + top)[..., 0]


def run(function, scores: np.ndarray, first: int, about: str) -> tuple:
    """What the answer gives: shares and lse, which are arrays."""
    got = call(function, scores, first, about=about)
    if got is None:
        raise Wrong("`masked_softmax` gives None: is a `return` missing?")
    if not isinstance(got, (tuple, list)) or len(got) != 2:
        raise Wrong(
            f"`masked_softmax` gives {type(got).__name__}, expected the pair (shares, lse): "
            "backward needs both"
        )
    for what, array in zip(("shares", "lse"), got):
        if not isinstance(array, np.ndarray):
            raise Wrong(f"with {about}, {what} are {type(array).__name__}, expected a NumPy array")
    return tuple(got)


def try_out(function, scores: np.ndarray, first: int, about: str, rtol: float = 1e-9) -> None:
    before = scores.copy()
    shares, lse = run(function, scores, first, about)
    wanted, wanted_lse = reference(before, first)
    if (lse.shape, shares.shape) == (wanted.shape, wanted_lse.shape):
        raise Wrong(f"with {about}, lse comes before the shares: they are asked for first")
    if shares.shape == wanted.shape and not close(shares, wanted, rtol):
        diagnose(shares, wanted, before, first, about)
    same(shares, wanted, f"with {about}, shares", rtol)
    if lse.shape == wanted_lse.shape and not close(lse, wanted_lse, rtol):
        diagnose_lse(lse, wanted_lse, before, first, about)
    elif lse.shape == (*wanted_lse.shape, 1):
        raise Wrong(
            f"with {about}, lse has shape {lse.shape}, expected {wanted_lse.shape}: the axis "
            "of length 1 that `keepdims` leaves has to go in the end"
        )
    same(lse, wanted_lse, f"with {about}, lse", rtol)


def close(a: np.ndarray, b: np.ndarray, rtol: float = 1e-5) -> bool:
    return a.shape == b.shape and np.allclose(a, b, rtol=rtol, atol=1e-7, equal_nan=True)


def diagnose(got: np.ndarray, wanted: np.ndarray, scores: np.ndarray, first: int, about: str):
    """Wrong with the name of the mistake, if the shares are ones that a typical mistake makes."""
    if not got.size:
        return
    with_ = f"with {about}, "
    t, s = scores.shape[-2:]
    sees = np.arange(s) <= first + np.arange(t)[:, None]
    blind = ~sees.any(axis=-1)
    rows = got[..., blind, :]
    if blind.any() and not close(rows, np.zeros_like(rows)):
        if np.isnan(rows).any():
            raise Wrong(
                with_ + "a query that sees no key gets NaN, expected zeros: its sum is 0, and its "
                "maximum is -inf, and neither 0 / 0 nor -inf - -inf is a number"
            )
        if close(rows, np.full_like(rows, 1 / s)):
            raise Wrong(
                with_ + f"a query that sees no key gives each of the {s} keys the same share, "
                "expected zeros: when all scores are hidden by the same large number, subtracting "
                "the maximum brings them back"
            )
        raise Wrong(
            with_ + "a query that sees no key gets other shares than zeros. Does first + i + 1, "
            "when it is negative, count from the end?"
        )
    for other, why in (
        (0, "`first` is not used: query i of the block stands at position first + i, not at i"),
        (first - 1, "a query does not see its own position: it sees keys 0 .. first + i, that too"),
        (first + 1, "a query sees the key after its own position, which is the future"),
        (s, "nothing is masked: query i sees keys 0 .. first + i only"),
        (s - t, "the block is taken to end with the last key, whatever `first` says"),
    ):
        if other != first and close(got, reference(scores, other)[0]):
            raise Wrong(with_ + why)
    flipped = np.where(sees, -np.inf, scores)
    e = np.exp(scores - scores.max(axis=-1, keepdims=True))
    everything = e / e.sum(axis=-1, keepdims=True)
    lowered = scores - np.where(sees, scores, -np.inf).max(axis=-1, keepdims=True, initial=-np.inf)
    zeroed = np.exp(np.where(sees, scores, 0))
    columns = np.exp(np.where(sees, scores, -np.inf))
    for wrong, why in (
        (
            np.where(sees, everything, 0),
            "the mask comes after the softmax, so the shares of what is seen do not add up to "
            "one: hidden keys have taken theirs already",
        ),
        (
            zeroed / zeroed.sum(axis=-1, keepdims=True),
            "hidden scores are set to 0 before exp, and exp(0) is 1: hidden keys get a share",
        ),
        (
            np.where(sees, e, 0) if close(np.where(sees, e, 0), got) else columns,
            "these are exp(score), not shares: divide each row by its sum",
        ),
        (
            columns / columns.sum(axis=-2, keepdims=True),
            "columns add up to one, and rows should: the softmax goes along the last axis",
        ),
        (
            np.exp(flipped) / np.exp(flipped).sum(axis=-1, keepdims=True),
            "the mask is turned round: the past is hidden, and the future seen",
        ),
        (scores, "scores come back as they were"),
        (
            np.where(sees, scores, 0),
            "what is seen comes back as it was" + ANOTHER,
        ),
        (
            np.where(sees, lowered, 0),
            "what is seen comes back less its row's maximum" + ANOTHER,
        ),
        (
            np.where(sees, np.exp(lowered), 0),
            "what is seen comes back as exp(score - maximum), not divided by the row's sum"
            + ANOTHER,
        ),
    ):
        if close(got, wrong):
            raise Wrong(with_ + why)
    leak = np.abs(np.where(sees, 0, got)).max()
    if close(np.where(sees, got, 0), wanted) and leak > 0:
        raise Wrong(
            with_ + f"shares of keys that are not seen should be 0, and one is {leak:.4g}: what "
            "stood there before has to be overwritten"
        )
    if close(got / got.sum(axis=-1, keepdims=True), wanted):
        raise Wrong(
            with_ + "each row is right up to a factor: it has to be divided by its own sum, once"
        )


def diagnose_lse(got: np.ndarray, wanted: np.ndarray, scores: np.ndarray, first: int, about: str):
    if not got.size:
        return
    t, s = scores.shape[-2:]
    sees = np.arange(s) <= first + np.arange(t)[:, None]
    top = np.where(sees, scores, -np.inf).max(axis=-1, initial=-np.inf)
    found = f"with {about}, lse is not the logarithm of the sum of exp(score)"
    if np.isinf(got[np.isfinite(wanted)]).any():
        raise Wrong(f"{found}: exp overflows or vanishes, unless the maximum stays out of it")
    for wrong, why in (
        (wanted - top, "the maximum, which was subtracted before exp, has to be added again"),
        (np.exp(wanted - top), "this is the sum (with the maximum subtracted), not its logarithm"),
        (np.exp(wanted), "this is the sum, not its logarithm"),
        (top, "this is the maximum"),
        (wanted - 2 * top, "the maximum has to be added, not subtracted once more"),
        (np.zeros_like(wanted), "this is 0, the logarithm of a sum that was divided already"),
        (np.logaddexp.reduce(scores, axis=-1), "keys that are not seen are in this sum, too"),
    ):
        seen = np.isfinite(wanted)
        if seen.any() and close(got[seen], wrong[seen]):
            raise Wrong(f"{found}: {why}")
    blind = wanted == -np.inf
    if blind.any() and close(got[~blind], wanted[~blind]):
        raise Wrong(
            f"with {about}, the lse of a query that sees no key is {got[blind][0]:.4g}, expected "
            "-inf, the logarithm of an empty sum"
        )


def check_dtype(function, rng) -> None:
    for dtype in (np.float32, np.float64):
        scores = rng.normal(size=(2, 5, 7)).astype(dtype)
        shares, lse = run(function, scores.copy(), 2, "a block of two heads")
        for what, array in (("shares", shares), ("lse", lse)):
            if array.dtype != dtype:
                raise Wrong(
                    f"from {np.dtype(dtype).name} scores, {what} are {array.dtype}: a kernel stays "
                    "in the dtype it was given, and what is made without a dtype is float64"
                )
        try_out(function, scores, 2, f"{np.dtype(dtype).name} scores, first=2", 1e-5)


def check_place(function, rng) -> None:
    """The result is in the memory of the scores, contiguous or not."""
    for scores, what in (
        (rng.normal(size=(4, 6)), "scores of shape (4, 6), first=2"),
        (rng.normal(size=(3, 4, 12))[..., ::2], "every second column of an array, first=2"),
        (rng.normal(size=(6, 4, 2)).T, "a transposed array, first=2"),
        (rng.normal(size=(3, 2, 4, 6)).swapaxes(0, 1), "heads and sequences exchanged, first=2"),
    ):
        wanted, _ = reference(scores, 2)
        shares, _ = run(function, scores, 2, what)
        if not close(shares, wanted):
            same(shares, wanted, f"with {what}, shares")
        if not close(scores, wanted):
            raise Wrong(
                f"with {what}, the shares that come back are right, but `scores` does not hold "
                "them: write into it (out=, -=, /=, [...] =). `reshape` and most expressions make "
                "another array"
            )
        if not np.may_share_memory(shares, scores):
            raise Wrong(f"with {what}, the shares that come back are a copy: return `scores`")


def check_large(function, rng) -> None:
    for dtype in (np.float32, np.float64):
        scores = rng.normal(size=(4, 6)).astype(dtype) + dtype(3000)
        shares, _ = run(function, scores.copy(), 3, "large scores")
        if not np.isfinite(shares).all():
            raise Wrong(
                "with scores around 3000, shares are NaN: exp overflows, unless the row's maximum "
                "is subtracted first"
            )
    for name, gap in (("first", [0.0, 2000.0, 0.0]), ("other", [0.0, -2000.0, -4000.0])):
        scores = rng.normal(size=(3, 3)) + np.array(gap)[:, None]
        wanted, _ = reference(scores, 2)
        shares, _ = run(function, scores.copy(), 2, "rows of very different size")
        if not close(shares, wanted):
            raise Wrong(
                "in a block where one row's scores are 2000 larger than another's, a row of small "
                "ones is lost: each row needs its own maximum, not that of the block"
            )
        try_out(function, scores, 2, f"rows of very different size ({name})")
    for dtype in (np.float32, np.float64):
        scores = rng.normal(size=(4, 6)).astype(dtype) + dtype(3000)
        name, rtol = np.dtype(dtype).name, 1e-3  # a score of 6000 has that many digits in float32
        try_out(function, scores.copy(), 3, f"{name} scores around 3000", rtol)
        try_out(function, -2 * scores, 3, f"{name} scores around -6000", rtol)
    scores = rng.normal(size=(3, 6))
    scores[:, -1] = 5000  # not seen by anybody
    wanted, _ = reference(scores, 2)
    shares, _ = run(function, scores.copy(), 2, "a large hidden score")
    if not close(shares, wanted):
        raise Wrong(
            "where a key that is not seen has a score of 5000, the others are lost: take the "
            "maximum over what is seen only"
        )


def check_infinite(function, rng) -> None:
    scores = rng.normal(size=(2, 4, 5))
    scores[0, :, 1] = -np.inf
    try_out(function, scores.copy(), 1, "a key whose scores are all -inf, first=1")
    scores[1, 2, :] = -np.inf
    shares, _ = run(function, scores.copy(), 1, "a row of -inf")
    if np.isnan(shares).any():
        raise Wrong(
            "a query all of whose scores are -inf gets NaN, expected zeros: it may see keys by "
            "position, and yet none by its scores"
        )
    try_out(function, scores, 1, "a row of -inf, first=1")


def check_not_a_number(function, rng) -> None:
    scores = rng.normal(size=(3, 6))
    scores[:, 4:] = np.nan  # behind the last query
    shares, _ = run(function, scores.copy(), 1, "NaN at keys that nobody sees")
    if np.isnan(shares).any():
        raise Wrong(
            "NaN at a key that is not seen has reached the shares: nothing may be computed from "
            "it. NaN + -inf and NaN * 0 are NaN; overwrite it, or do not read it"
        )
    try_out(function, scores, 1, "NaN at keys that nobody sees")
    scores = rng.normal(size=(3, 6))
    scores[1, 0] = np.nan
    shares, lse = run(function, scores.copy(), 1, "a NaN that is seen")
    if not np.isnan(shares[1, :3]).all() or not np.isnan(lse[1]):
        raise Wrong(
            "a NaN among the scores that a query sees has disappeared: whoever trains would never "
            "learn that something is broken. Deal with -inf, and leave NaN alone"
        )


def check_memory(function, rng) -> None:
    t, s = 256, 2048
    scores = rng.normal(size=(t, s)).astype(np.float32)
    tracemalloc.start()
    try:
        run(function, scores, s - t, "a large block")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    if peak >= t * s:
        size = scores.nbytes
        what = "another array of the scores' size" if peak >= size else "a mask of booleans"
        raise Wrong(
            f"all values are right, but beside a block of {size:,} bytes, {peak:,} more were held "
            f"at some moment, enough for {what} ({size if peak >= size else t * s:,} bytes). Work "
            "on views and in place, row by row if need be"
        )
