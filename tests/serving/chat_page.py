"""The chat page as a browser draws it: a question typed and sent, the answer, a stop, a reload, phone and dark.

python tests/serving/chat_page.py http://127.0.0.1:8000 FOLDER

Needs Chromium (`--browser` names another command) and a running server. Fails if the page logs an error, asks another
host for anything, or is wider than the window.
"""

import argparse
import asyncio
import json
import runpy
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import websockets

# How the report's pictures are taken: the browser, a page of it, the sizes.
DRIVER = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "screenshots.py")))
COLOURS, WIDTHS, Page = DRIVER.COLOURS, DRIVER.WIDTHS, DRIVER.Page
ANSWER_SECONDS = 30.0


async def until(page: Any, expression: str, seconds: float = ANSWER_SECONDS) -> None:
    """Wait until a JavaScript expression is true. Raises RuntimeError."""
    end = time.monotonic() + seconds
    while not await page.value(f"Boolean({expression})"):
        if time.monotonic() > end:
            raise RuntimeError(f"never true: {expression}")
        await asyncio.sleep(0.02)


async def type_and_send(page: Any, text: str) -> None:
    """As a person does: into the box, then Enter."""
    await page.value("document.getElementById('question').focus()")
    await page.call("Input.insertText", text=text)
    for kind in ("keyDown", "keyUp"):
        await page.call("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13)


async def window(page: Any, device: str, colour: str) -> None:
    features = [{"name": "prefers-color-scheme", "value": colour}]
    await page.call("Emulation.setEmulatedMedia", features=features)
    size = {"width": WIDTHS[device], "height": 800, "deviceScaleFactor": 1, "mobile": device == "phone"}
    await page.call("Emulation.setDeviceMetricsOverride", **size)


async def shot(page: Any, folder: Path, name: str, device: str) -> list[str]:
    await DRIVER.picture(page, folder / f"{name}.png", 0, WIDTHS[device], 800)
    content = await page.value("document.documentElement.scrollWidth")
    return [f"{name}: {content} pixels wide in a window of {WIDTHS[device]}"] if content > WIDTHS[device] else []


async def talk(page: Any, url: str, folder: Path, questions: list[str], tokens: int) -> list[str]:
    """Go through the page. Returns what is wrong. tokens: of the answer that is stopped."""
    for domain in ("Page", "Runtime", "Log", "Network"):
        await page.call(f"{domain}.enable")
    wrong = []
    await window(page, "desktop", "light")
    await page.call("Page.navigate", url=url)
    await until(page, "document.getElementById('model')?.textContent.length > 1")
    wrong += await shot(page, folder, "empty", "desktop")
    for number, question in enumerate(questions):
        await type_and_send(page, question)
        answers = f"document.querySelectorAll('.answer').length === {number + 1}"
        await until(page, f"{answers} && document.querySelector('.answer:last-child .known')")
        if number == 0:
            wrong += await shot(page, folder, "denoising", "desktop")
        await until(page, "document.getElementById('send').textContent === 'Send'")
    said = await page.value("[...document.querySelectorAll('.canvas')].at(-1).textContent")
    print(f"answered: {said}")
    wrong += [] if said and "▒" not in said.split("∎")[0] else [f"the last answer is {said!r}"]
    wrong += await shot(page, folder, "answered", "desktop")
    await page.value("s = document.querySelector('.player input'); s.value = 2; s.oninput()")
    masks = await page.value("document.querySelector('.canvas').querySelectorAll('.masked').length")
    wrong += [] if masks else ["the slider shows no earlier step"]
    await page.value("document.querySelector('details').open = true")
    for device in WIDTHS:
        for colour in COLOURS:
            await window(page, device, colour)
            wrong += await shot(page, folder, f"{device}-{colour}", device)
    for name, value in {
        "max_tokens": tokens,
        "steps": tokens,
        "temperature": 5,
    }.items():  # hot: no end
        field = f"document.querySelector('[name={name}]')"
        await page.value(f"{field}.value = {value}; {field}.onchange()")
    await type_and_send(page, questions[0])
    await until(
        page,
        "document.getElementById('send').textContent === 'Stop' && document.querySelectorAll('.answer').length > 1",
    )
    await asyncio.sleep(0.2)
    await page.value("document.getElementById('send').click()")
    await until(page, "document.getElementById('send').textContent === 'Send'", 5)
    wrong += [] if await page.value("document.querySelector('.error')?.textContent === 'stopped'") else ["no stop"]
    await page.call("Page.reload")
    await until(page, f"document.querySelectorAll('.question').length === {len(questions) + 1}")
    wrong += await shot(page, folder, "reloaded", "phone")
    return wrong + [p for p in page.problems() if not p.startswith(f"asked for {url}")]


async def visit(browser: str, url: str, folder: Path, *to_say: Any) -> list[str]:
    """Start the browser, go through the page, end the browser."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0"]
        command = [browser, *options, f"--user-data-dir={profile}", "about:blank"]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            address = await DRIVER.first_page(await DRIVER.listening_port(Path(profile) / "DevToolsActivePort"))
            async with websockets.connect(address, max_size=None, proxy=None) as socket:
                return await talk(Page(socket), url, folder, *to_say)
        finally:
            process.terminate()
            process.wait()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--browser", default="chromium")
    parser.add_argument("--question", action="append", default=None)
    parser.add_argument("--tokens", type=int, default=900, help="of the answer that is stopped")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    questions = args.question or ["What is Bruno's animal?", "In which town can I visit Petra?"]
    wrong = asyncio.run(visit(args.browser, args.url.rstrip("/") + "/", args.folder, questions, args.tokens))
    for line in wrong:
        print(f"error: {line}", file=sys.stderr)
    print(json.dumps({"wrong": len(wrong)}))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
