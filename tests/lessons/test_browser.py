"""JupyterLab in a headless browser opens a lesson and runs it. Needs playwright and Chromium."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.lessons

LESSONS = Path(__file__).parents[2] / "lessons"
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture
def lab(tmp_path):
    """The address of `python -m lessons` on a copy of the notebooks, which it may overwrite."""
    for path in [*LESSONS.glob("*.ipynb"), *LESSONS.glob("*.md"), *LESSONS.glob("*.png")]:
        shutil.copy(path, tmp_path)
    log = tmp_path / "log.txt"
    command = [sys.executable, "-m", "lessons", "--no-browser", "--port=0", "--allow-root",
               f"--ServerApp.root_dir={tmp_path}", "--IdentityProvider.token="]  # fmt: skip
    with open(log, "w") as file:
        server = subprocess.Popen(
            command, stdout=file, stderr=file, cwd=LESSONS.parent, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 60
        while not (found := re.search(r"http://(?:localhost|127[\d.]+):(\d+)/", log.read_text())):
            assert server.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        yield f"http://127.0.0.1:{found[1]}/lab"
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_the_first_lesson_runs_in_a_browser(lab, tmp_path):
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        # As high as the notebook: cells out of sight would have no outputs in the page.
        page = browser.new_page(viewport={"width": 1200, "height": 9000})
        page.goto(f"{lab}/tree/README.md")
        page.wait_for_selector(".jp-RenderedMarkdown table", timeout=60_000)
        page.goto(f"{lab}/tree/01_one_derivative.ipynb")
        page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=60_000)
        page.click("text=Edit")  # clears what was there, so that all outputs are of this run
        page.click("text=Clear Outputs of All Cells")
        page.wait_for_function("!document.querySelector('.jp-OutputArea-output')")
        page.click("text=Run >> nth=0")
        page.click("text=Run All Cells >> nth=0")
        cells = page.locator(".jp-CodeCell").count()
        last = f"document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')[{cells - 1}]"
        page.wait_for_function(f"/\\[\\d+\\]/.test({last}.textContent)", timeout=120_000)
        prompts = page.locator(".jp-CodeCell .jp-InputPrompt").all_text_contents()
        assert all(re.fullmatch(r"\[\d+\]:", prompt.strip()) for prompt in prompts), prompts
        assert page.locator("[data-mime-type='application/vnd.jupyter.error']").count() == 0
        assert page.locator("[data-mime-type='application/vnd.jupyter.stderr']").count() == 0
        assert page.locator(".jp-OutputArea-output img").count() >= 1
        if folder := os.environ.get("LESSONS_SCREENSHOTS"):
            page.screenshot(path=Path(folder, "lesson_01.png"))
        browser.close()
