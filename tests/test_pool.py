"""Threads that help with kernels: every piece once, whoever sleeps, is late, or does not exist."""

import os
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest

from tinygrad_edu.kernels import launch, pool

PIECES, LINE = 50, 8  # numbers on a cache line


@launch.task
def count(arrays, sizes, numbers, piece, slot):
    """Each piece adds one to a number of its own, after some work, and says who it was."""
    total = 0.0
    for i in range(sizes[0] * (sizes[1] if slot else 1)):
        total += i * numbers[0]
    arrays[0][piece * 8] += 1 + total
    arrays[1][piece * 8] = slot


def run(work=0, pieces=PIECES, helper=1):
    """The counts of one job, and the slots of those who did it; helpers are slower by `helper`."""
    found, slots = np.zeros((2, pieces * LINE))
    count(pieces, [found, slots], [work, helper], [0.0])
    return found[::LINE], slots[::LINE]


def until(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.001)


several = pytest.mark.skipif(launch.most_threads() < 2, reason="one thread only")


@pytest.mark.parametrize("pause", [0, 0.0003, 0.003])
@pytest.mark.parametrize("work", [0, 3000])
def test_every_piece_is_done_once_whether_helpers_are_awake_or_asleep(work, pause):
    for _ in range(100):
        for pieces in (1, 2, 3, PIECES):
            found, _ = run(work, pieces)
            assert (found == 1).all()
        time.sleep(pause)


@several
def test_helpers_help_and_then_sleep_and_wake_up_again():
    for _ in range(3):
        until(lambda: len(set(run(20_000)[1])) > 1)
        until(lambda: pool.POOL.asleep(1))


def test_callers_at_the_same_time_do_not_disturb_each_other():
    wrong = []

    def many():
        for _ in range(1000):
            found, _ = run(100)
            if not (found == 1).all():
                wrong.append(found)

    callers = [threading.Thread(target=many) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong


@pytest.fixture
def mine(monkeypatch):
    """A pool for one test."""
    mine = pool.Pool()
    monkeypatch.setattr(launch, "POOL", mine)
    return mine


def test_a_caller_that_finds_the_pool_taken_works_alone(mine):
    run()
    mine.words[pool.OWNER // 8] = 1
    for _ in range(20):
        found, slots = run(20_000)
        assert (found == 1).all() and (slots == 0).all()


def test_without_threads_from_the_system_the_caller_does_everything(mine, monkeypatch):
    class Refused(threading.Thread):
        def start(self):
            raise RuntimeError("can't start new thread")

    monkeypatch.setattr(pool.threading, "Thread", Refused)
    for _ in range(2):
        found, slots = run()
        assert (found == 1).all() and (slots == 0).all()


@several
def test_an_interrupt_at_the_start_gives_no_slot_out_twice(mine, monkeypatch):
    class Interrupted(threading.Thread):
        def start(self):
            super().start()
            raise KeyboardInterrupt

    monkeypatch.setattr(pool.threading, "Thread", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        run()
    before = threading.active_count()
    monkeypatch.setattr(launch, "_threads", 2)
    until(lambda: len(set(run(20_000)[1])) > 1)
    assert threading.active_count() == before


@several
def test_a_caller_sleeps_while_others_are_still_at_work(mine):
    slept, done = [], threading.Event()

    def watch():
        while not done.wait(0.0002):
            slept.extend([1] * mine.asleep(0))

    def late():
        found, _ = run(20_000, helper=100)
        assert (found == 1).all()
        return slept

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        until(late)
    finally:
        done.set()
        watcher.join()


def test_a_helper_that_comes_when_all_is_done_finds_the_gate_closed(mine, monkeypatch):
    class Late(threading.Thread):
        def start(self):
            pass

    with monkeypatch.context() as patch:
        patch.setattr(pool.threading, "Thread", Late)
        found, slots = run(1000)
    assert (found == 1).all() and (slots == 0).all()
    for helper in mine.helpers.values():
        threading.Thread.start(helper)
    until(lambda: all(map(mine.asleep, mine.helpers)))
    assert mine.words[pool.GATE // 8] == 0
    if mine.helpers:
        until(lambda: len(set(run(20_000)[1])) > 1)


def script(text, **environment):
    """Runs a program that has this file's `run`; its output."""
    start = f"import sys; sys.path.insert(0, {os.path.dirname(__file__)!r})\n"
    done = subprocess.run(
        [sys.executable, "-c", start + "from test_pool import *\n" + textwrap.dedent(text)],
        env={**os.environ, **environment}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_more_threads_than_cores():
    """Some are always late then; those that may not take part sleep, whatever the others do."""
    out = script(
        """
        for threads in (5, 3, 2, 4):
            launch.set_threads(threads)
            for _ in range(300):
                found, slots = run(1000)
                assert (found == 1).all() and slots.max() < threads
            others = range(threads, len(pool.POOL.helpers) + 1)
            until(lambda: all(map(pool.POOL.asleep, others)))
            until(lambda: run(20_000)[1].max() == threads - 1)
        print(len(pool.POOL.helpers))
        """,
        NUMBA_NUM_THREADS="5",
    )
    assert out.split() == ["4"]


def test_compiled_code_does_not_know_how_many_threads_there_are(tmp_path):
    """It is kept on disk, for processes that have more or fewer."""
    for threads in ("1", "4", "2"):
        script(
            """
            from tinygrad_edu import kernels
            found, slots = np.zeros((2, 3, PIECES * LINE))
            count.each([(PIECES, list(one), [1000, 1], [0.0]) for one in zip(found, slots)])
            assert (found[:, ::LINE] == 1).all()
            a, b = np.ones((1, 600)), np.ones((600, 500))
            assert (kernels.matmul(a, b) == 600).all()
            """,
            NUMBA_NUM_THREADS=threads,
            NUMBA_CACHE_DIR=str(tmp_path),
        )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_gets_helpers_of_its_own():
    out = script(
        """
        run(1000)
        pid = os.fork()
        assert (run(1000)[0] == 1).all()
        if pid:
            assert os.waitpid(pid, 0)[1] == 0
        until(lambda: len(set(run(20_000)[1])) > 1)
        print(pool.POOL.size)
        """,
        NUMBA_NUM_THREADS="2",
    )
    assert out.split() == ["2", "2"]


def test_a_process_ends_while_others_of_its_threads_compute():
    script(
        """
        def forever():
            while True:
                run(1000)
        for _ in range(2):
            threading.Thread(target=forever, daemon=True).start()
        time.sleep(0.2)
        """
    )


@pytest.mark.skipif(sys.platform == "win32", reason="signals are another thing there")
def test_ctrl_c_waits_for_the_kernel():
    out = script(
        """
        import signal
        run()
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        found, slots = np.zeros((2, PIECES * LINE))
        done = 0
        try:
            while True:
                found[:] = 0
                done += 1
                count(PIECES, [found, slots], [1_000_000, 1], [0.0])
        except KeyboardInterrupt:
            before = found.copy()
            time.sleep(0.1)
            print((before == found).all(), set(found[::LINE]) in ({0.0}, {1.0}), done > 0)
        """
    )
    assert out.split() == ["True", "True", "True"]
