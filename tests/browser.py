"""Chromium without a window, driven over a pipe, for the tests of the page."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--hide-scrollbars", "--mute-audio"),
    *("--disable-background-networking", "--disable-component-update", "--disable-extensions", "--use-fake-ui-for-media-stream"),
    *("--use-fake-device-for-media-stream", "--remote-debugging-pipe"),
)


def program() -> str | None:
    """The browser of this machine."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Browser:
    """One page in a browser of its own; its settings lie in `folder`."""

    def __init__(self, folder, *flags: str):
        read_here, write_there = os.pipe()
        read_there, write_here = os.pipe()
        # The browser listens at descriptor 3 and answers at 4.
        script = f'exec "$@" 3<&{read_there} 4>&{write_there}'
        command = ["bash", "-c", script, "-", program(), *FLAGS, f"--user-data-dir={folder}", *flags]
        self._process = subprocess.Popen(command, pass_fds=(read_there, write_there), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(read_there)
        os.close(write_there)
        self._in, self._out, self._rest, self._count, self.events = write_here, read_here, b"", 0, []
        self._session = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._process.terminate()
        self._process.wait(20)
        os.close(self._in)
        os.close(self._out)

    def call(self, method: str, **params):
        """A command of the browser's protocol; returns its result."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": params}
        message |= {"sessionId": self._session} if self._session else {}
        os.write(self._in, json.dumps(message).encode() + b"\0")
        while (answer := self._receive(30)).get("id") != self._count:
            self.events.append(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def _receive(self, seconds: float) -> dict:
        end = time.monotonic() + seconds
        while b"\0" not in self._rest:
            if not select.select([self._out], [], [], max(end - time.monotonic(), 0))[0]:
                raise TimeoutError(f"the browser did not answer within {seconds} seconds")
            part = os.read(self._out, 1 << 20)
            if not part:
                raise ConnectionError("the browser has ended")
            self._rest += part
        message, self._rest = self._rest.split(b"\0", 1)
        return json.loads(message)

    def evaluate(self, expression: str):
        """The value of an expression in the page; promises are awaited."""
        answer = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True, userGesture=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"]["exception"].get("description", answer))
        return answer["result"].get("value")

    def wait(self, expression: str, seconds: float = 20):
        """Waits until an expression is true; returns its value."""
        end = time.monotonic() + seconds
        while not (value := self.evaluate(expression)):
            if time.monotonic() > end:
                raise TimeoutError(f"not true within {seconds} s: {expression}; the page shows: {self.evaluate('document.body.innerText')}")
            time.sleep(0.05)
        return value

    def open(self, url: str, width: int = 1280, height: int = 800, dark: bool = False, phone: bool = False):
        """Loads a page in a window of some size."""
        self.resize(width, height, phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        answer = self.call("Page.navigate", url=url)
        if "errorText" in answer:
            raise ConnectionError(f"{url}: {answer['errorText']}")
        self.wait("document.readyState === 'complete'")

    def resize(self, width: int, height: int, phone: bool = False):
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=2 if phone else 1, mobile=phone)

    def screenshot(self, path):
        with open(path, "wb") as file:
            file.write(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def complaints(self) -> list[str]:
        """Errors that pages wrote to the console or that the browser logged."""
        self.call("Runtime.evaluate", expression="0")
        kinds = {"Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled"}
        return [json.dumps(event["params"]) for event in self.events if event.get("method") in kinds]
