"""A headless Chromium, driven over its DevTools protocol.

with chromium(tmp_path) as open_page:
    page = open_page(file, width=1280, height=900)
    page.click("#play")
    assert page.value("document.title") == "..." and not page.errors
"""

import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)


class Page:
    """One tab, or the browser itself. `errors`: warnings and errors from its console and scripts."""

    def __init__(self, socket: ClientConnection, **session: str) -> None:
        self._socket, self._session, self._calls = socket, session, 0
        self.errors: list[str] = []

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a protocol command and return its result."""
        self._calls += 1
        request = {"id": self._calls, "method": method, "params": params, **self._session}
        self._socket.send(json.dumps(request))
        while True:
            answer = json.loads(self._socket.recv(timeout=60))
            event = answer.get("params", {})
            level = event.get("entry", {}).get("level") or event.get("type")
            if "exceptionDetails" in event or level in ("error", "warning", "assert"):
                self.errors.append(json.dumps(event)[:500])
            if answer.get("id") == self._calls and answer.get("sessionId") == self._session.get("sessionId"):
                assert "error" not in answer, answer["error"]
                return answer["result"]

    def value(self, script: str) -> Any:
        """Return the value of an expression, after awaiting promises."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, script: str, seconds: float = 30) -> None:
        """Wait until an expression is true; the time limit suits a loaded machine."""
        end = time.monotonic() + seconds
        while not self.value(script):
            assert time.monotonic() < end, f"never true: {script}; errors: {self.errors}"
            time.sleep(0.05)

    def click(self, selector: str, x: float = 0.5) -> None:
        """Click the first element that matches, at a fraction `x` of its width."""
        left, top, width, height = self.value(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); e.scrollIntoView({{block: 'nearest'}});"
            "const r = e.getBoundingClientRect(); return [r.left, r.top, r.width, r.height]; })()"
        )
        at = {"x": left + x * width, "y": top + height / 2, "button": "left", "clickCount": 1}
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, **at)

    def press(self, key: str, code: int) -> None:
        """Press a key, given by name and code."""
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code)

    def write(self, text: str) -> None:
        """Type text into the focused element."""
        self.call("Input.insertText", text=text)


@contextmanager
def chromium(profile: Path) -> Iterator[Callable[..., Page]]:
    """Yield a function that opens pages by path; the browser writes into `profile` and stops with the block."""
    assert BROWSER is not None
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"]
    flags += ["--remote-debugging-port=0", f"--user-data-dir={profile}", "--disable-background-networking"]
    pipe, null = subprocess.PIPE, subprocess.DEVNULL
    process = subprocess.Popen([BROWSER, *flags], stderr=pipe, stdout=null, text=True)
    try:
        assert process.stderr is not None
        address = next(line.split()[-1] for line in process.stderr if "DevTools listening on" in line)
        with connect(address, max_size=None) as socket:
            browser = Page(socket)

            def open_page(file: Path, width: int = 1280, height: int = 900) -> Page:
                target = browser.call("Target.createTarget", url="about:blank")["targetId"]
                page = Page(socket, **browser.call("Target.attachToTarget", targetId=target, flatten=True))
                for domain in ("Page", "Runtime", "Log"):
                    page.call(f"{domain}.enable")
                size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
                page.call("Emulation.setDeviceMetricsOverride", **size)
                page.call("Page.navigate", url=file.resolve().as_uri())
                page.wait("document.readyState === 'complete'")
                return page

            yield open_page
    finally:
        process.terminate()
        process.wait(timeout=30)
