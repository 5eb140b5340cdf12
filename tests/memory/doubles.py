"""A small model to train on a chip, and media that fail, die, stutter and dawdle."""

import contextlib
import os
import random
import signal
import threading
import time

import numpy as np
import pytest

import tinygrad_edu as tg
from tinygrad_edu import functional as F
from tinygrad_edu import nn
from tinygrad_edu.memory import Chip, ExternalMemory, external_file

METHODS = ("open", "allocate", "read", "write", "fsync", "truncate")
ROOMY = "1MB"  # for the small model


class Medium(external_file.Calls):
    """The operating system, with a log; `before(self, method)` is called before each call."""

    def __init__(self, before=None):
        self.log, self.failed, self.mutex = [], False, threading.Lock()
        self.before = before or (lambda medium, method: None)
        for name in (*METHODS, "replace"):
            setattr(self, name, self.wrapped(name, getattr(external_file.Calls, name)))

    def wrapped(self, name, real):
        def call(*arguments):
            with self.mutex:  # two threads move bytes
                self.log.append(name)
                self.before(self, name)
            return real(*arguments)

        return call


def failing(method, n, error, for_good=False):
    """Fails call `n` of `method`, or from there on everything."""

    def before(medium, name):
        hit = name == method and medium.log.count(method) == n
        if hit or (for_good and medium.failed):
            medium.failed = True
            raise OSError(error, os.strerror(error))

    return Medium(before)


class Stuttering(external_file.Calls):
    """Moves 1 to `most` bytes a call; from read number `ends_at` on the file seems to end."""

    def __init__(self, most, ends_at=None):
        self.random, self.most, self.ends_at, self.reads = random.Random(0), most, ends_at, 0

    def some(self, buffer):
        return buffer[: self.random.randint(1, self.most)]

    def read(self, descriptor, buffer, offset):
        self.reads += 1
        if self.ends_at is not None and self.reads >= self.ends_at:
            return 0
        return os.preadv(descriptor, [self.some(buffer)], offset)

    def write(self, descriptor, buffer, offset):
        return os.pwrite(descriptor, self.some(buffer), offset)


class Dawdling(external_file.Calls):
    """Sleeps before and after moving bytes, now and then, for up to two milliseconds."""

    def __init__(self, seed):
        self.random = random.Random(seed)

    def nap(self):
        if self.random.random() < 0.3:
            time.sleep(self.random.random() * 0.002)

    def read(self, *arguments):
        self.nap()
        count = external_file.Calls.read(*arguments)
        self.nap()
        return count

    def write(self, *arguments):
        self.nap()
        count = external_file.Calls.write(*arguments)
        self.nap()
        return count


class Tiny(nn.Module):
    """A tied embedding around one layer: gathers, rows, and a gradient in two contributions."""

    def __init__(self, width=4):
        rng = np.random.default_rng(0)
        self.embedding = nn.Embedding(16, width, rng=rng)
        self.layer = nn.Linear(width, width, rng=rng)

    def forward(self, idx, targets):
        x = self.layer(self.embedding(idx)).tanh()
        return F.linear_cross_entropy(x, self.embedding.weight, targets)


def train(steps=3, width=4, each_step=lambda model, step: None):
    """Trains a Tiny -> the bytes of its loss, weights and optimizer state."""
    model = Tiny(width)
    optimizer = tg.optim.AdamW(model.parameters(), lr=0.1)
    for step in range(steps):
        ids = np.random.default_rng(step).integers(0, 16, (2, 2, 5))
        optimizer.zero_grad()
        loss = model(ids[0], ids[1])
        loss.backward()
        tg.optim.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        each_step(model, step)
    arrays = [loss.data, *model.state_dict().values()]
    for kind in optimizer.state_names:
        arrays += [p.storage.state_array(kind) for p in optimizer.params]
    return [array.tobytes() for array in arrays]


def train_on_chip(path, memory=ROOMY, poison=False, **options):
    with Chip(memory, ExternalMemory(path), poison):
        return train(**options)


def live_threads():
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("chip ")]


@contextlib.contextmanager
def within(seconds):
    """Fails the test if the main thread hangs inside."""

    def too_long(number, frame):
        pytest.fail(f"hung for {seconds} s")

    before = signal.signal(signal.SIGALRM, too_long)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
