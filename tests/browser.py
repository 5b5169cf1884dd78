"""A real headless Chromium, driven over a pipe by its DevTools protocol: nothing to install beside the browser.

https://chromedevtools.github.io/devtools-protocol: messages are JSON objects that end in a zero byte; the browser reads
them on file descriptor 3 and answers on 4.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
PATIENCE = 60.0  # seconds


def find() -> str | None:
    """The path of a Chromium, None where there is none; ZOO_CHROMIUM names another."""
    return next(filter(None, map(shutil.which, [os.environ.get("ZOO_CHROMIUM", ""), *NAMES])), None)


class Browser:
    """One browser with one page. `complaints` are the errors and violations its console has shown."""

    def __init__(self, path: str, profile: Path) -> None:
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self._number, self._rest = 0, b""
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        # 3 and 4 are set up by the shell: pipes may have been given any numbers here.
        command = f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}'
        options = ["headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "no-first-run"]
        options += ["hide-scrollbars", "remote-debugging-pipe", f"user-data-dir={profile}"]
        self._process = subprocess.Popen(
            ["bash", "-c", command, "bash", path, *(f"--{option}" for option in options), "about:blank"],
            pass_fds=(theirs_in, theirs_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    _session: str | None = None

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._in)
        os.close(self._out)

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and return its result; events that come meanwhile are noted."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self._note(answer)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            if not select.select([self._in], [], [], PATIENCE)[0]:
                raise TimeoutError("the browser does not answer")
            part = os.read(self._in, 1 << 20)
            if not part:
                raise RuntimeError("the browser has gone")
            self._rest += part
        text, self._rest = self._rest.split(b"\0", 1)
        return json.loads(text)

    def _note(self, event: dict[str, Any]) -> None:
        method, facts = event.get("method"), event.get("params", {})
        if method == "Runtime.exceptionThrown":
            details = facts["exceptionDetails"]
            self.complaints.append(details.get("exception", {}).get("description") or details["text"])
        elif method == "Runtime.consoleAPICalled" and facts["type"] in ("error", "warning", "assert"):
            self.complaints.append(" ".join(str(value.get("value")) for value in facts["args"]))
        elif method == "Log.entryAdded" and facts["entry"]["level"] in ("error", "warning"):
            self.complaints.append(facts["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.requests.append(facts["request"]["url"])

    def open(self, file: Path, width: int = 1400, height: int = 900, scheme: str = "light") -> None:
        """Show a file at a size of the window."""
        self.resize(width, height, scheme)
        self.send("Page.navigate", url=file.resolve().as_uri())
        self.wait("document.readyState === 'complete'")

    def resize(self, width: int, height: int, scheme: str = "light", media: str = "") -> None:
        """Another size of the window; `scheme` is what the user's system prefers, `media` may be "print"."""
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.send("Emulation.setEmulatedMedia", media=media, features=[feature])

    def run(self, script: str) -> Any:
        """The value of an expression in the page, awaited if it is a promise."""
        found = self.send("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in found:
            raise RuntimeError(found["exceptionDetails"].get("exception", {}).get("description", "exception"))
        return found["result"].get("value")

    def wait(self, condition: str) -> None:
        """Until an expression is true in the page."""
        end = time.monotonic() + PATIENCE
        while not self.run(condition):
            if time.monotonic() > end:
                raise TimeoutError(f"this never came true: {condition}")
            time.sleep(0.02)

    def click(self, selector: str) -> None:
        """A real click in the middle of the first element that `selector` finds."""
        x, y = self._middle(selector)
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            button = "none" if kind == "mouseMoved" else "left"
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button=button, clickCount=1)

    def wheel(self, selector: str, delta: float, ctrl: bool = False) -> None:
        """Turn the wheel over an element."""
        x, y = self._middle(selector)
        self.send(
            "Input.dispatchMouseEvent", type="mouseWheel", x=x, y=y, deltaX=0, deltaY=delta, modifiers=2 if ctrl else 0
        )

    def press(self, key: str) -> None:
        """Press and release a key."""
        text = {"text": key} if len(key) == 1 else {}
        self.send("Input.dispatchKeyEvent", type="keyDown", key=key, **text)
        self.send("Input.dispatchKeyEvent", type="keyUp", key=key)

    def type(self, selector: str, text: str) -> None:
        """Write into a field."""
        self.click(selector)
        self.send("Input.insertText", text=text)

    def choose(self, selector: str, value: str) -> None:
        """Choose an option of a list by its value."""
        quoted = json.dumps(selector)
        self.run(
            f"(() => {{ const list = document.querySelector({quoted}); list.value = {json.dumps(value)};"
            "list.dispatchEvent(new Event('change', {bubbles: true})); })()"
        )

    def _middle(self, selector: str) -> tuple[float, float]:
        quoted = json.dumps(selector)
        found = self.run(
            f"(() => {{ const one = document.querySelector({quoted}); if (!one) return null;"
            "one.scrollIntoView({block: 'center', behavior: 'instant'}); const box = one.getBoundingClientRect();"
            "return [box.x + box.width / 2, box.y + box.height / 2]; })()"
        )
        assert found, f"nothing on the page is {selector}"
        return found[0], found[1]

    def screenshot(self, file: Path, whole: bool = False) -> None:
        """A PNG of the window, or of the whole page."""
        found = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        file.write_bytes(base64.b64decode(found["data"]))

    def print(self, file: Path) -> None:
        """The page as PDF, as it would be printed."""
        file.write_bytes(base64.b64decode(self.send("Page.printToPDF", printBackground=False)["data"]))
