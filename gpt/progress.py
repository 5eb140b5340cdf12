"""How far a step has come: on a chip, one step of a large model takes minutes."""

import time

from tqdm import tqdm


class Progress:
    """Told of each op of a chip, writes what has been done of `step_flops` into the bar."""

    def __init__(self, bar: tqdm, step_flops: int) -> None:
        self.bar, self.whole = bar, step_flops
        self.done, self.shown = 0, time.monotonic()

    def __call__(self, op: str, flops: int) -> None:
        if self.done == 0:  # a step begins
            self.shown = time.monotonic()
        self.done = 0 if op == "update" else self.done + flops
        if time.monotonic() - self.shown > 1:
            self.shown = time.monotonic()
            percent = min(100, 100 * self.done // max(1, self.whole))
            self.bar.set_postfix_str(f"{op} {percent} %" if self.done else "update")
