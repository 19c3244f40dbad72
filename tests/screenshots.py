"""Pictures of the report as a browser draws it: desktop and phone, light and dark, an answer being played.

python tests/screenshots.py reports/report.html FOLDER

Needs Chromium (`--browser` names another command). Fails if the page logs an error, asks the network for anything,
or is wider than the window.
"""

import argparse
import asyncio
import base64
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import websockets

WIDTHS = {"desktop": 1280, "phone": 390}
COLOURS = ("light", "dark")
LONGEST = 16_000  # pixels; the tallest picture that Chromium draws
PLAYED_SECONDS = 3.0
START_SECONDS = 60


class Page:
    """A page of a running Chromium, controlled by the DevTools protocol."""

    def __init__(self, socket: Any) -> None:
        self.socket, self.sent, self.events = socket, 0, list[dict]()

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        self.sent += 1
        await self.socket.send(json.dumps({"id": self.sent, "method": method, "params": params}))
        while (message := json.loads(await self.socket.recv())).get("id") != self.sent:
            self.events.append(message)
        if "error" in message:
            raise RuntimeError(f"{method}: {message['error']['message']}")
        return message["result"]

    async def value(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        return (await self.call("Runtime.evaluate", expression=expression, returnByValue=True))["result"].get("value")

    def problems(self) -> list[str]:
        """Errors that the page logged, and addresses other than files that it requested."""
        found = []
        for event in self.events:
            params = event.get("params", {})
            if event.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
                found.append(json.dumps(params))
            elif event.get("method") == "Network.requestWillBeSent":
                url = params["request"]["url"]
                found += [f"asked for {url}"] if not url.startswith(("file:", "data:")) else []
        return found


async def take(page: Page, url: str, folder: Path) -> list[str]:
    """Write the pictures. Returns the page's problems."""
    for domain in ("Page", "Runtime", "Log", "Network"):
        await page.call(f"{domain}.enable")
    wrong = []
    for device, width in WIDTHS.items():
        for colour in COLOURS:
            media = {"prefers-color-scheme": colour, "prefers-reduced-motion": "reduce"}  # nothing plays by itself
            features = [{"name": name, "value": value} for name, value in media.items()]
            await page.call("Emulation.setEmulatedMedia", features=features)
            size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": device == "phone"}
            await page.call("Emulation.setDeviceMetricsOverride", **size)
            await page.call("Page.navigate", url=url)
            while await page.value("document.readyState") != "complete":
                await asyncio.sleep(0.05)
            content = await page.value("document.documentElement.scrollWidth")
            wrong += [f"{device}: {content} pixels wide in a window of {width}"] if content > width else []
            height = min(await page.value("document.documentElement.scrollHeight"), LONGEST)
            await picture(page, folder / f"{device}-{colour}.png", 0, width, height)
    if await page.value("Boolean(document.querySelector('.player button'))"):
        opened = await page.value("document.querySelector('.player input').value")
        wrong += [f"an answer opens at step {opened}, not at 0"] if opened != "0" else []
        await page.value("document.querySelector('.player button').click()")
        await asyncio.sleep(PLAYED_SECONDS)
        top = await page.value("scrollY + document.querySelector('.answer').getBoundingClientRect().top")
        await picture(page, folder / "playing.png", max(0, top - 80), WIDTHS["phone"], 700)
    return wrong + page.problems()


async def picture(page: Page, path: Path, top: float, width: int, height: int) -> None:
    """The part of the page from `top` down, in CSS pixels."""
    clip = {"x": 0, "y": top, "width": width, "height": height, "scale": 1}
    data = (await page.call("Page.captureScreenshot", clip=clip, captureBeyondViewport=True))["data"]
    path.write_bytes(base64.b64decode(data))
    print(path)


async def visit(browser: str, url: str, folder: Path) -> list[str]:
    """Start the browser, take the pictures, end it."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0"]
        process = subprocess.Popen(
            [browser, *options, f"--user-data-dir={profile}", "about:blank"], stderr=subprocess.DEVNULL
        )
        try:
            port = await listening_port(Path(profile) / "DevToolsActivePort")
            address = await first_page(port)
            async with websockets.connect(address, max_size=None, proxy=None) as socket:
                return await take(Page(socket), url, folder)
        finally:
            process.terminate()
            process.wait()


async def listening_port(file: Path) -> int:
    """The port chosen by Chromium."""
    end = time.monotonic() + START_SECONDS
    while not (file.exists() and file.read_text().strip()):
        if time.monotonic() > end:
            raise RuntimeError("the browser did not start")
        await asyncio.sleep(0.1)
    return int(file.read_text().split()[0])


async def first_page(port: int) -> str:
    """The address of the debugger of the browser's first page."""
    import urllib.request

    with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list") as reply:
        return next(target["webSocketDebuggerUrl"] for target in json.load(reply) if target["type"] == "page")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--browser", default="chromium")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    wrong = asyncio.run(visit(args.browser, args.page.resolve().as_uri(), args.folder))
    for line in wrong:
        print(f"error: {line}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
