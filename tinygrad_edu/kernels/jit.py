"""Compile a kernel when it is first needed, and keep the machine code on disk.

Numba can cache compiled functions, but it looks for changes only in the file of the function
itself, while a kernel here is built from pieces in several files. So the cache folder is named by
a hash of every kernel source as it was imported: edit any of them and an empty folder is used. The
hash is of the CPU's name and features, too, and each element type has a folder of its own, as two
processes, here or on another machine, that add to one index at the same time may give two files one
name. A folder that cannot be written is passed over; when none can, kernels are compiled in every
process.

The pieces of a kernel are linked by name when it is read back: the function's, the types of its
arguments, and a number that counts what its process had compiled before. Two functions made by one
`def` inside another function, compiled in two processes, may agree in all three, and what was
loaded first then stands for both. So compiled functions are never defined in functions; a constant
argument, which counts as a type, makes variants.

Explicit signatures make Numba compile at decoration, that is at import. `Kernel` waits for the
first call instead.
"""

import contextlib
import functools
import hashlib
import os
import sys
import tempfile
import threading
import time
from pathlib import Path

NAMES = {"f": "float32", "d": "float64"}
watchers = []  # functions of the start and end, in nanoseconds, of what was compiled
HERE = Path(__file__).resolve().parent


def sources_hash():
    digest = hashlib.sha256()
    for source in sorted(filter(Path.is_file, HERE.rglob("*.py"))):  # an editor's lock is no file
        digest.update(str(source.relative_to(HERE)).encode() + source.read_bytes())
    return digest.hexdigest()[:16]


SOURCES = sources_hash()  # now: what this process compiles later is what it imports now


@functools.cache
def cache_folder():
    """A folder we may write to: in NUMBA_CACHE_DIR, beside the sources, the user's; or None."""
    import numba
    from numba.core.registry import cpu_target

    cpu = cpu_target.target_context.codegen().magic_tuple()  # its name and features
    name = hashlib.sha256(f"{SOURCES} {cpu}".encode()).hexdigest()[:16]
    name = f"kernels-{numba.__version__}-{name}"
    user = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    for base in (numba.config.CACHE_DIR, HERE / "__pycache__", user):
        if not base:
            continue
        folder = Path(base) / name
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError:
            continue
        return str(folder)
    return None


def cached(decorator, function, dtype, **options):
    """decorator(cache=True, **options)(function), with the machine code in `cache_folder`."""
    import numba
    from numba.core.compiler_lock import global_compiler_lock

    folder = cache_folder()
    if folder is None:
        return decorator(**options)(function)
    folder = os.path.join(folder, NAMES[dtype])
    with global_compiler_lock:  # other threads may be compiling, too
        before, numba.config.CACHE_DIR = numba.config.CACHE_DIR, folder
        try:  # the folder is read while the decorator runs, and never after
            return decorator(cache=True, **options)(function)
        finally:
            numba.config.CACHE_DIR = before


@contextlib.contextmanager
def announced(name):
    """Around a compilation: tells `watchers` when it was, or when the kernel was read from disk,
    and says on a terminal of which kernel if it takes half a second."""
    import numba

    if numba.config.DISABLE_JIT:
        raise RuntimeError("kernels only run compiled, and NUMBA_DISABLE_JIT is set: unset it")
    text = f"compiling {name} (once; then it is read from disk)"
    notice = threading.Timer(0.5, lambda: print(text, file=sys.stderr, flush=True))
    notice.daemon = True
    if sys.stderr is not None and sys.stderr.isatty():
        notice.start()  # loading from disk is over before the notice is due
    start = time.perf_counter_ns()
    try:
        yield
    finally:
        notice.cancel()
        for watcher in watchers:
            watcher(start, time.perf_counter_ns())


class Kernel:
    """A Numba function with a fixed list of signatures, each compiled on its first use.

    `signature(dtype)` gives the Numba signature for one element type, by NumPy's letter
    for it ("f" or "d"); `kernel[dtype]` is the compiled function, called without Numba's look at
    the types of its arguments, which takes as long as a short kernel: callers pass what it says.
    """

    def __init__(self, function, signature, **options):
        self.function, self.signature, self.options = function, signature, options
        self.compiled = {}

    def __getitem__(self, dtype):
        return self.compiled.get(dtype) or self._compile(dtype)

    def _compile(self, dtype):
        import numba

        with announced(f"{self.function.__name__} for {NAMES[dtype]}"):
            kernel = cached(numba.njit, self.function, dtype, **self.options)
            try:
                kernel.compile(self.signature(dtype))
            except Exception:  # a full disk, a damaged file: the cache is a convenience
                kernel = numba.njit(**self.options)(self.function)
                kernel.compile(self.signature(dtype))
        self.compiled[dtype] = kernel.overloads[kernel.signatures[0]].entry_point
        return self.compiled[dtype]
