"""A real browser, driven over the pipe of the DevTools protocol, and the accessibility checker axe-core from npm."""

from __future__ import annotations

import json
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.conftest import ROOT, skip_or_fail

AXE_VERSION = "4.14.1"
# Messages of the browser that report something to the reader of the console.
CONSOLE_EVENTS = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")


class Page:
    """A tab of the browser."""

    def __init__(self, reader: Any, writer: Any) -> None:
        self._reader, self._writer, self._number = reader, writer, 0
        self._session: str | None = None
        self.messages: list[Any] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> Any:
        """Call a method of the protocol and return its result; collect the messages of the console meanwhile."""
        self._number += 1
        request = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            request["sessionId"] = self._session
        self._writer.write(json.dumps(request).encode() + b"\0")
        self._writer.flush()
        while (answer := self._read()).get("id") != self._number:
            pass
        assert "error" not in answer, (method, answer["error"])
        return answer["result"]

    def open(self, path: Path, width: int, scheme: str = "light") -> None:
        """Show a file in a window of this width, and wait until it has loaded."""
        self.messages.clear()
        is_mobile = width < 600
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=is_mobile)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.call("Page.navigate", url=path.resolve().as_uri())
        while self._read().get("method") != "Page.loadEventFired":
            pass

    def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression, which may be a promise."""
        answer = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def press(self, key: str) -> None:
        """Press and release a key: Tab or Enter."""
        options: dict[str, Any] = {"key": key, "code": key, "windowsVirtualKeyCode": {"Tab": 9, "Enter": 13}[key]}
        if key == "Enter":
            options["text"] = "\r"
        self.call("Input.dispatchKeyEvent", type="keyDown", **options)
        self.call("Input.dispatchKeyEvent", type="keyUp", **options)

    def _read(self) -> Any:
        message = bytearray()
        while not message.endswith(b"\0"):
            chunk = self._reader.read(1)
            assert chunk, "the browser has ended"
            message += chunk
        content = json.loads(message[:-1])
        if content.get("method") in CONSOLE_EVENTS:
            self.messages.append(content["params"])
        return content


@contextmanager
def open_browser(profile: Path) -> Iterator[Page]:
    """Start a browser without windows, and yield its tab."""
    command = [
        str(shutil.which("chromium")), "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe",
        "--no-first-run", f"--user-data-dir={profile}", "about:blank",
    ]  # fmt: skip
    # The browser reads descriptor 3 and writes descriptor 4.
    shell = ["bash", "-c", 'exec "$@" 3<&0 4>&1 </dev/null >/dev/null', "bash", *command]
    pipe, nowhere = subprocess.PIPE, subprocess.DEVNULL
    with subprocess.Popen(shell, stdin=pipe, stdout=pipe, stderr=nowhere) as process:
        try:
            yield Page(process.stdout, process.stdin)
        finally:
            process.terminate()


def load_axe() -> str:
    """Return the source of axe-core, which npm fetches once; skip the test if it cannot, or fail it in CI."""
    folder = ROOT / ".nox" / f"axe-core-{AXE_VERSION}"
    archive = folder / f"axe-core-{AXE_VERSION}.tgz"
    if not archive.exists():
        if shutil.which("npm") is None:
            skip_or_fail("npm")
        folder.mkdir(parents=True, exist_ok=True)
        command = ["npm", "pack", "--silent", f"axe-core@{AXE_VERSION}"]
        if subprocess.run(command, cwd=folder, capture_output=True, check=False).returncode:
            skip_or_fail("axe-core from the npm registry")
    with tarfile.open(archive) as files:
        source = files.extractfile("package/axe.min.js")
        assert source is not None
        return source.read().decode()
