"""Looks at pages in a real browser, without a screen; what they show is kept as pictures."""

import base64
import json
import os
import shutil
import subprocess
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image

from tests.patience import PATIENCE_S

# WebGL without a graphics card.
_OPTIONS = (
    *("--headless=new", "--no-sandbox", "--hide-scrollbars", "--disable-dev-shm-usage", "--no-first-run"),
    *("--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"),
)


def _command(folder, size):
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium is installed: apt-get install chromium")
    return [browser, *_OPTIONS, f"--user-data-dir={folder / 'profile'}", f"--window-size={size[0]},{size[1]}"]


def screenshot(address, picture, size=(1200, 1600), budget_ms=20_000):
    """Keep a picture of a page, and return it as an array ``(H, W, 3)``; skip the test where there is no browser.

    The page has so many milliseconds of its own clock, in which nothing is waited for.
    """
    wanted = [f"--screenshot={picture}", f"--virtual-time-budget={budget_ms}", address]
    subprocess.run([*_command(picture.parent, size), *wanted], capture_output=True, timeout=PATIENCE_S, check=True)
    return _read(picture)


def _read(picture):
    return np.asarray(Image.open(picture).convert("RGB"))


def share_of(picture, color, distance=40):
    """The share of pixels that have about a colour."""
    return (np.abs(picture.astype(int) - color).max(axis=2) <= distance).mean()


class Browser:
    """A page that is asked, by the protocol of Chromium's own tools, while its clock is that of the world."""

    # The text of a page, also that of components, which hide theirs in a tree of their own.
    _TEXT = """(function text(node) {
        if (["STYLE", "SCRIPT", "TEMPLATE"].includes(node.nodeName)) return "";
        const own = node.nodeType === Node.TEXT_NODE ? node.data : "";
        return own + [...(node.shadowRoot?.childNodes ?? []), ...node.childNodes].map(text).join(" ");
    })(document.body)"""

    def __init__(self, requests, answers):
        self._requests, self._answers, self._count, self._session = requests, answers, 0, {}
        target = self._ask("Target.createTarget", url="about:blank")["targetId"]
        session = self._ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._session = {"sessionId": session}

    def _ask(self, method, **params):
        self._count += 1
        message = {"id": self._count, "method": method, "params": params, **self._session}
        self._requests.write(json.dumps(message).encode() + b"\0")
        self._requests.flush()
        while (answer := json.loads(self._next())).get("id") != self._count:
            pass
        assert "error" not in answer, answer
        return answer["result"]

    def _next(self):
        found = bytearray()
        while (byte := self._answers.read(1)) != b"\0":
            assert byte, "the browser has ended"
            found += byte
        return found

    def open(self, address):
        self._ask("Page.navigate", url="about:blank")  # one whose fragment alone differs would not be loaded again
        self._ask("Page.navigate", url=address)

    def text(self):
        """All text of the page, in one line."""
        answer = self._ask("Runtime.evaluate", expression=self._TEXT)
        return " ".join(answer["result"].get("value", "").split())

    def picture(self, path):
        path.write_bytes(base64.b64decode(self._ask("Page.captureScreenshot")["data"]))
        return _read(path)


@contextmanager
def browser(folder, size=(1300, 1000)):
    """A browser whose profile is in a folder; skip the test where there is none."""
    requests, answers = os.pipe(), os.pipe()
    options = ["--remote-debugging-pipe", "about:blank"]
    command = ["bash", "-c", f'exec "$0" "$@" 3<&{requests[0]} 4>&{answers[1]}', *_command(folder, size), *options]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, pass_fds=(requests[0], answers[1]), **quiet)
    os.close(requests[0])
    os.close(answers[1])
    with process, os.fdopen(requests[1], "wb") as ask, os.fdopen(answers[0], "rb") as told:
        try:
            yield Browser(ask, told)
        finally:
            process.terminate()
