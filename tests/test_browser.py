"""A learner's browser: Jupyter on loopback, Chromium without a window, a mouse on the sliders.

JupyterLab alone: Notebook 7 draws a notebook with the same parts of it.

The notebooks are copied, so that autosave does not touch them, and their outputs are
cleared, so that whatever is seen comes from this run.
"""

import json
import os
import re
import secrets
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.request

import nbformat
import pytest

from qlora_kit.paths import ROOT

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
NOTEBOOKS = [  # those with sliders that are fast to run
    path for n in ("01", "02", "a1") for path in (ROOT / "notebooks").glob(f"{n}_*.ipynb")
]

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(not CHROMIUM, reason="no Chromium: on Debian, apt-get install chromium"),
]

# Jupyter leaves cells that are out of sight out of the page, and asks the network for news.
SETTINGS = {
    "notebook-extension/tracker": {"windowingMode": "none"},
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}
# The badges come from other machines, which a test does not ask.
ELSEWHERE = re.compile(r"https?://(?!127\.0\.0\.1)")
BADGE = '<svg xmlns="http://www.w3.org/2000/svg" width="90" height="20" />'
# The bytes that an <img> shows, as one number (FNV-1a).
DIGEST = """async image => {
    const bytes = new Uint8Array(await (await fetch(image.src)).arrayBuffer());
    return bytes.reduce((hash, byte) => Math.imul(hash ^ byte, 16777619), 2166136261);
}"""
# Milliseconds from each click to the picture that answers it, as they pass in the page.
WATCH = """box => {
    let pressed;
    box.seen = [];
    box.addEventListener("pointerdown", () => { pressed = performance.now(); }, true);
    box.querySelector("img").addEventListener("load", () => {
        box.seen.push(performance.now() - pressed);
    });
}"""
# All cells have run (a folded one shows no number), or one has failed, and the others never do.
DONE = """([count, folded]) => {
    const prompts = [...document.querySelectorAll(".jp-CodeCell .jp-InputPrompt")];
    const run = prompts.filter(prompt => /\\[\\d+\\]/.test(prompt.textContent));
    const failed = document.querySelector('[data-mime-type$="jupyter.error"]');
    return failed !== null || (prompts.length === count && run.length === count - folded);
}"""


@pytest.fixture
def jupyter(tmp_path):
    """JupyterLab's address and token, in a folder with copies of the notebooks.

    A fresh one each time: it would open the notebooks of last time again, and keep their kernels.
    """
    home = tmp_path / "home"
    home.mkdir()
    for path in NOTEBOOKS:
        book = nbformat.read(path, as_version=4)
        for cell in book.cells:
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None
        nbformat.write(book, home / path.name)
    for name, values in SETTINGS.items():
        file = home / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(values))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(16)
    options = {
        "ServerApp.ip": "127.0.0.1",
        "ServerApp.port": port,
        "ServerApp.port_retries": 0,
        "ServerApp.open_browser": False,
        "ServerApp.allow_root": True,
        "ServerApp.root_dir": home,
        "IdentityProvider.token": token,
    }
    folders = {
        "JUPYTER_CONFIG_DIR": "config",
        "JUPYTER_RUNTIME_DIR": "runtime",
        "JUPYTERLAB_SETTINGS_DIR": "settings",
        "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
        "IPYTHONDIR": "ipython",
    }
    with open(home / "jupyter.log", "w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *(f"--{k}={v}" for k, v in options.items())],
            env=os.environ
            | {name: str(home / folder) for name, folder in folders.items()}
            | {"JUPYTER_PREFER_ENV_PATH": "1", "PYTHONPATH": str(ROOT)},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        wait_for(f"{address}/api/status?token={token}", server, home / "jupyter.log")
        yield f"{address}/lab/tree", token
    finally:
        server.send_signal(signal.SIGTERM)  # shuts its kernels down, too
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)


def wait_for(address, server, log):
    for _ in range(240):
        assert server.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(address):
                return
        except OSError:
            time.sleep(0.5)
    raise TimeoutError(log.read_text())


@pytest.fixture(scope="module")
def chromium():
    with playwright.sync_playwright() as engine:
        browser = engine.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        yield browser
        browser.close()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notebook_runs_and_its_sliders_move_its_pictures(jupyter, path, chromium, tmp_path):
    address, token = jupyter
    page = chromium.new_page(viewport={"width": 1200, "height": 1000})
    complaints = []
    page.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.route(ELSEWHERE, lambda route: route.fulfill(content_type="image/svg+xml", body=BADGE))

    page.goto(f"{address}/{path.name}?token={token}", timeout=120_000)
    cells = page.locator(".jp-NotebookPanel .jp-Cell")
    cells.first.wait_for(timeout=120_000)
    page.get_by_text("Python 3", exact=False).first.wait_for(timeout=120_000)  # a kernel is there
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    code = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
    folded = sum("source_hidden" in cell.metadata.get("jupyter", {}) for cell in code)
    page.wait_for_function(DONE, arg=[len(code), folded], timeout=900_000)
    for kind in ("error", "stderr"):
        output = page.locator(f'.jp-OutputArea-output[data-mime-type$="jupyter.{kind}"]')
        assert output.all_inner_texts() == []

    widgets = page.locator(".jp-OutputArea-output .widget-vbox")
    assert widgets.count() == sum("widgets.explore(" in cell.source for cell in code) > 0
    for number, widget in enumerate(widgets.all()):
        picture, numbers = widget.locator("img"), widget.locator(".widget-html-content")
        widget.scroll_into_view_if_needed()
        assert picture.evaluate("image => image.naturalWidth") >= 400
        widget.evaluate(WATCH)
        sliders = widget.locator(".noUi-target")
        assert sliders.count()
        for slider in sliders.all():
            handle, bar = slider.locator(".noUi-handle"), slider.bounding_box()
            now, least, most = (
                float(handle.get_attribute(f"aria-value{name}")) for name in ("now", "min", "max")
            )
            there, back = (0.75, 0.25) if now < (least + most) / 2 else (0.25, 0.75)
            for share in (there, back) * 3:
                shown, said = picture.evaluate(DIGEST), numbers.inner_text()
                # A handle that still glides would catch the click.
                playwright.expect(slider).not_to_have_class(re.compile("noUi-state-tap"))
                slider.click(position={"x": share * bar["width"], "y": bar["height"] / 2})
                start = time.monotonic()
                time.sleep(0.3)  # so that looking does not slow down what is looked at
                while picture.evaluate(DIGEST) == shown or numbers.inner_text() == said:
                    assert time.monotonic() - start < 120, f"nothing changed: {said}"
                    time.sleep(0.05)
        seen = sorted(widget.evaluate("box => box.seen"))
        print(
            f"{path.stem}, widget {number}: {len(seen)} moves, median "
            f"{statistics.median(seen):.0f} ms, slowest {seen[-1]:.0f} ms"
        )
        widget.screenshot(path=tmp_path / f"{path.stem}-widget-{number}.png")
    page.screenshot(path=tmp_path / f"{path.stem}.png")
    assert complaints == []
    page.close()
