"""Peers of a benchmark: processes that hold one library each and wait for their turn.

A library that still has spinning threads slows the next one down, and some settings (which BLAS
kernel, which MKL path) are read once, at start-up. So each peer is a process with an environment
of its own, told over a pipe what to run; `alternate` gives them the machine in turns, with a pause
before each. One line of JSON per request, one per answer.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

PAUSE = 0.3  # seconds; spinning threads go to sleep within it


class PeerError(RuntimeError):
    """A peer could not run; the message says why."""


class Peer:
    """A worker process that answers requests; `module` is run as `python -m module`."""

    def __init__(self, module: str, *arguments: str, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, "--serve", *arguments],
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def turn(self, **request: Any) -> Any:
        """Sends one request and waits for its answer; raises PeerError."""
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except OSError as error:
            raise PeerError(f"the worker process ended: {error}") from None
        if not line:
            raise PeerError(f"the worker process ended with status {self.process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise PeerError(answer["error"])
        return answer["result"]

    def close(self) -> None:
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> "Peer":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def serve(answer: Callable[..., Any]) -> None:
    """The worker's side: answers requests until the pipe closes."""
    pipe = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints must not be taken for an answer
    for line in sys.stdin:
        try:
            reply = {"result": answer(**json.loads(line))}
        except Exception as error:  # the other side decides what a failed peer means
            reply = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
        print(json.dumps(reply), file=pipe, flush=True)


def alternate(
    peers: dict[str, Peer], blocks: int, failed: dict[str, str], **request: Any
) -> dict[str, list[Any]]:
    """`blocks` turns for each peer in alternation -> the answers; a peer that fails is left out."""
    answers: dict[str, list[Any]] = {name: [] for name in peers if name not in failed}
    for _ in range(blocks):
        for name in [name for name in answers if name not in failed]:
            time.sleep(PAUSE)
            try:
                answers[name].append(peers[name].turn(**request))
            except PeerError as error:
                failed[name] = str(error)
    return {name: given for name, given in answers.items() if name not in failed}


def peak_rss() -> float | None:
    """Megabytes this process has held at most (VmHWM), where the system says."""
    try:
        with open("/proc/self/status") as status:
            for line in status:
                if line.startswith("VmHWM"):
                    return int(line.split()[1]) / 1024
    except OSError:
        pass
    return None
