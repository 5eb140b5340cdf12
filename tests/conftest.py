"""What tests measure and tokenise goes to a cache of their own.

A machine that is busy with tests is no measure of itself: `gpt.plan` would believe for good what it
was timed at here.
"""

import os
import shutil
import tempfile


def pytest_configure(config):
    folder = tempfile.mkdtemp(prefix="tinygrad_edu-tests-")
    os.environ["TINYGRAD_EDU_CACHE"] = folder
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
