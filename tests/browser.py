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
    """One tab, or the browser itself. `errors`: what its console and its scripts complained of."""

    def __init__(self, socket: ClientConnection, **session: str) -> None:
        self._socket, self._session, self._asked = socket, session, 0
        self.errors: list[str] = []

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """A command of the protocol and its answer."""
        self._asked += 1
        order = {"id": self._asked, "method": method, "params": params, **self._session}
        self._socket.send(json.dumps(order))
        while True:
            answer = json.loads(self._socket.recv(timeout=60))
            told = answer.get("params", {})
            level = told.get("entry", {}).get("level") or told.get("type")
            if "exceptionDetails" in told or level in ("error", "warning", "assert"):
                self.errors.append(json.dumps(told)[:500])
            if answer.get("id") == self._asked and answer.get("sessionId") == self._session.get("sessionId"):
                assert "error" not in answer, answer["error"]
                return answer["result"]

    def value(self, script: str) -> Any:
        """What an expression gives, promises awaited."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, script: str, seconds: float = 30) -> None:
        """Until an expression is true; a loaded machine takes its time."""
        end = time.monotonic() + seconds
        while not self.value(script):
            assert time.monotonic() < end, f"never true: {script}; errors: {self.errors}"
            time.sleep(0.05)

    def click(self, selector: str, x: float = 0.5) -> None:
        """The mouse on the first element of a selector, at a share `x` of its width."""
        left, top, width, height = self.value(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); e.scrollIntoView({{block: 'nearest'}});"
            "const r = e.getBoundingClientRect(); return [r.left, r.top, r.width, r.height]; })()"
        )
        at = {"x": left + x * width, "y": top + height / 2, "button": "left", "clickCount": 1}
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, **at)

    def press(self, key: str, code: int) -> None:
        """A key by its name and its code."""
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code)

    def write(self, text: str) -> None:
        """Text where the focus is."""
        self.call("Input.insertText", text=text)


@contextmanager
def chromium(profile: Path) -> Iterator[Callable[..., Page]]:
    """Opens pages by path; the browser writes into the folder `profile` and ends with the block."""
    assert BROWSER is not None
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"]
    flags += ["--remote-debugging-port=0", f"--user-data-dir={profile}", "--disable-background-networking"]
    command, silent = [BROWSER, *flags], subprocess.DEVNULL
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=silent, text=True)
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
