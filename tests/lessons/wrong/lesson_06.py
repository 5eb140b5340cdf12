"""Typical wrong answers to lesson 6: what, the solution's text, what stands there, the verdict."""

STOP = "stop = max(0, first + i + 1)"
BLIND = "top[top == -np.inf] = 0"
RETURN = "return scores, lse"
BODY = "lse = np.empty(scores.shape[:-1], scores.dtype)"


def instead(text):
    """Another beginning, after which the solution's own lines are never reached."""
    return text.strip().replace("\n", "\n    ") + "\n    " + BODY


MASK = """
hidden = np.arange(scores.shape[-1]) > first + np.arange(scores.shape[-2])[:, None]
scores[..., hidden] = {hide}
top = scores.max(axis=-1, keepdims=True, initial=-np.inf)
top[top == -np.inf] = 0
scores -= top
np.exp(scores, out=scores)
total = scores.sum(axis=-1, keepdims=True)
lse = (np.log(total) + top)[..., 0]
total[total == 0] = 1
scores /= total
return scores, lse
"""

RESHAPED = """
if scores.ndim > 3 and scores.size:
    shares, lse = masked_softmax(scores.reshape(-1, *scores.shape[-2:]), first)
    return shares.reshape(scores.shape), lse.reshape(scores.shape[:-1])
"""

WRONG = [
    ("no offset", STOP, "stop = i + 1", "`first` is not used"),
    ("blind to itself", STOP, "stop = max(0, first + i)", "does not see its own position"),
    ("sees the future", STOP, "stop = max(0, first + i + 2)", "which is the future"),
    ("negative from the end", STOP, "stop = first + i + 1", "negative, count from the end"),
    ("aligned at the end", STOP, "stop = max(0, scores.shape[-1] - scores.shape[-2] + i + 1)",
     "taken to end with the last key"),
    ("a row of nothing", BLIND, "pass", "gets NaN, expected zeros"),
    ("no maximum", BLIND, "top[...] = 0", "exp overflows"),
    ("maximum of the block", BLIND, "top[...] = scores[np.isfinite(scores)].max(initial=0)",
     "each row needs its own maximum"),
    ("lse without the maximum", "(np.log(total) + top)", "np.log(total)", "has to be added again"),
    ("a sum, no logarithm", "(np.log(total) + top)", "total", "not its logarithm"),
    ("what was there stays", "rest[...] = 0", "pass", "has to be overwritten"),
    ("a little added to the sum", "total = seen.sum(axis=-1, keepdims=True)",
     "total = seen.sum(axis=-1, keepdims=True) + 1e-8", "shares is 0.99999999 at"),
    ("float64", "lse = np.empty(scores.shape[:-1], scores.dtype)",
     "lse = np.empty(scores.shape[:-1])", "lse are float64"),
    ("shares alone", RETURN, "return scores", "expected the pair"),
    ("lse first", RETURN, "return lse, scores", "lse comes before the shares"),
    ("a copy", BODY, "scores = scores.copy(); " + BODY, "`scores` does not hold"),
    ("leading axes made one", BODY, instead(RESHAPED), "`scores` does not hold"),
    ("a mask", BODY, instead(MASK.format(hide="-np.inf")), "enough for"),
    ("a large number", BODY, instead(MASK.format(hide="-1e9")), "brings them back"),
    ("a mask of zeros", BODY, instead(MASK.format(hide="0")), "exp\\(0\\) is 1|other shares"),
    ("another array", "seen -= top\n        np.exp(seen, out=seen)", "seen = np.exp(seen - top)",
     "gives the name to another array"),
    ("exp in another array", "np.exp(seen, out=seen)", "seen = np.exp(seen)",
     "less its row's maximum: .* the name to another array"),
    ("division in another array", "seen /= total", "seen = seen / total",
     "not divided by the row's sum: .* the name to another array"),
    ("rows of unequal length", RETURN,
     "return [scores[..., i, : first + i + 1] for i in range(scores.shape[-2])], lse",
     "shares are list, expected a NumPy array"),
    ("a list of lse", RETURN, "return scores, lse.tolist()", "lse are list, expected a NumPy"),
    ("lse of shares", "lse[..., i] = (np.log(total) + top)[..., 0]", "lse[..., i] = 0",
     "a sum that was divided already"),
    ("lse that overflows", "(np.log(total) + top)[..., 0]", "np.log(total * np.exp(top))[..., 0]",
     "unless the maximum stays out of it"),
    ("lse of all keys", "(np.log(total) + top)[..., 0]",
     "np.log(total[..., 0] * np.exp(top[..., 0]) + np.exp(rest).sum(-1))", "that are not seen are"),
    ("NaN swept away", "seen -= top", "seen -= top; np.nan_to_num(seen, copy=False, nan=-np.inf)",
     "has disappeared"),
]  # fmt: skip
