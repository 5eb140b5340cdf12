"""Lesson 6: fuse the mask and the softmax, in place.

masked_softmax(scores, first) -> (shares, lse)

- `scores` (..., T, S), float32 or float64: T queries, a block of them, against keys 0 .. S - 1;
  any axes may come before, for heads and sequences. T and S may be 0.
- `first`: the position of the block's first query. Query i of the block stands at first + i and
  sees keys 0 .. first + i, as far as there are any. `first` may be negative: such a query sees
  none.
- `shares` are written over `scores`: they are the same memory, and no array as large as that, not
  even a mask of booleans, is made. The shares of what a query sees add up to one; all others are 0.
- `lse` (..., T), of the dtype of `scores`: the logarithm of the sum of exp(score) over the keys
  that a query sees.
- Scores may be large (exp must not overflow) and may be -inf (that key gets 0). A query that sees
  no key, or only scores of -inf, gets zeros, and its lse is -inf. What stands at keys that are not
  seen may be anything, NaN included. A NaN that is seen must stay visible: its row becomes NaN.

Write `masked_softmax`. Then: python -m lessons.check 6
"""


def masked_softmax(scores, first):
    raise NotImplementedError("scores[..., i, :seen] is a view, not a copy.")
