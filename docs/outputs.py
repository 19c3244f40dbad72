"""The outputs in README.md and docs/*.md come from real runs: `python -m docs.outputs` writes them anew, in place.

A block without a language, and one of `console`, is an output. A comment in the line above says where it comes from:

    <!-- output: quick -->              the command block above it, which needs nothing trained: the test suite runs it
    <!-- output: model -->              the same, with the model of the built-in default, out/qwen3llada-sft
    <!-- output: model: COMMAND -->     COMMAND instead; the output may be a table
    <!-- output: kept: WHY -->          written by hand

In a `console` block the lines after `$ ` are the commands. Blocks of Python share one session a page. Durations are not
compared, and stay as they are where nothing else changes. `--check` compares and writes nothing.
"""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = (
    "README.md",
    *(f"docs/{name}.md" for name in ("training", "sampling", "evaluation", "serving", "data", "flows", "workflow")),
)
MODEL = Path("out/qwen3llada-sft")

MARKER = re.compile(r"<!-- output: (?P<kind>quick|model|kept)(: (?P<text>.+))? -->")
FENCE = re.compile(r"```(?P<language>\w*)")
DURATION = re.compile(r'(?<="seconds": )\d+\.\d+|\d+\.\d+(?= s\b)')
SEPARATOR = "--- end of a block ---"


@dataclass(frozen=True, kw_only=True)
class Output:
    """Lines `start` to `end` (exclusive, from 0) of a page."""

    page: str
    kind: str  # quick | model | kept; "" where the comment is missing
    start: int
    end: int
    lines: tuple[str, ...]
    language: str  # of the command: bash, python, console
    command: str
    before: tuple[str, ...] = ()  # the Python blocks above, the command included

    @property
    def place(self) -> str:
        return f"{self.page}:{self.start}"


def outputs(page: str, text: str) -> Iterator[Output]:
    """The output blocks of a page, in order. Raises ValueError for a comment with nothing below it."""
    lines = text.splitlines()
    language, command, python = "", "", []
    number = 0
    while number < len(lines):
        marker = MARKER.fullmatch(lines[number])
        number += bool(marker)
        opened = FENCE.match(lines[number]) if number < len(lines) else None
        if opened:
            start = number + 1
            end = next(i for i in range(start, len(lines)) if lines[i].startswith("```"))
        elif marker and number < len(lines) and lines[number].startswith("|"):
            start = number
            end = next((i for i in range(start, len(lines)) if not lines[i].startswith("|")), len(lines))
        elif marker:
            raise ValueError(f"{page}:{number}: no output below {lines[number - 1]!r}")
        else:
            number += 1
            continue
        content = tuple(lines[start:end])
        if marker or (opened and opened["language"] in ("", "console")):
            kind, given = (marker["kind"], marker["text"]) if marker else ("", None)
            where = {"page": page, "start": start, "end": end, "lines": content}
            block = Output(kind=kind, language=language, command=command, **where)
            if opened and opened["language"] == "console":
                block = replace(block, language="console", command="")
            elif kind != "kept" and given:
                block = replace(block, language="bash", command=given)
            elif language == "python":
                block = replace(block, before=tuple(python))
            yield block
        elif opened:
            language, command = opened["language"], "\n".join(content)
            python += [command] if language == "python" else []
        number = end + bool(opened)


def made(block: Output, folder: Path) -> list[str]:
    """What the command of a block prints now, run in `folder`. Raises ValueError where it fails for no good reason."""
    if block.language == "console":
        lines = []
        for line in block.lines:
            if line.startswith("$ "):
                lines += [line, *run(["bash", "-c", line[2:]], block, folder)]
        return lines
    if block.language == "python":
        code = f"\nprint({SEPARATOR!r})\n".join(block.before)
        printed = run([sys.executable, "-c", code], block, folder)
        return printed[max((i + 1 for i, line in enumerate(printed) if line == SEPARATOR), default=0) :]
    return run(["bash", "-c", block.command], block, folder)


def run(command: list[str], block: Output, folder: Path) -> list[str]:
    """The lines on stdout and stderr, without progress bars."""
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "COLUMNS": "120"}
    done = subprocess.run(
        command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    if "Traceback (most recent call last)" in done.stdout or (block.kind == "model" and done.returncode):
        raise ValueError(f"{block.place}: the command failed:\n{done.stdout}")
    lines = (line.rsplit("\r", 1)[-1].rstrip() for line in done.stdout.split("\n"))
    return "\n".join(line for line in lines if "%|" not in line).strip("\n").split("\n")


def same(one: list[str], other: list[str]) -> bool:
    """Whether two outputs are equal but for durations."""
    return [DURATION.sub("…", line) for line in one] == [DURATION.sub("…", line) for line in other]


def workspace(folder: Path) -> Path:
    """A folder with links to everything in the project, so that what a command writes beside it leaves no trace.

    `out` is a folder of its own, with links to the folders in the project's.
    """
    out = ROOT / "out"
    (folder / "out").mkdir()
    for entry in [*(e for e in ROOT.iterdir() if e != out), *(e for e in out.glob("*") if e.is_dir())]:
        (folder / entry.relative_to(ROOT)).symlink_to(entry)
    return folder


def stale(page: str, text: str, kinds: set[str]) -> Iterator[tuple[Output, list[str]]]:
    """The outputs of these kinds that a run does not give any more, each with what it gives."""
    with tempfile.TemporaryDirectory() as name:
        folder = workspace(Path(name))
        for block in outputs(page, text):
            if block.kind in kinds and not same(list(block.lines), now := made(block, folder)):
                yield block, now


def rewritten(page: str, text: str, kinds: set[str]) -> str:
    lines = text.splitlines()
    for block, now in reversed(list(stale(page, text, kinds))):
        print(f"{block.place}: written anew")
        lines[block.start : block.end] = now
    return "\n".join(lines) + "\n"


def main() -> int:
    kinds = {"quick", "model"} if (ROOT / MODEL / "config.json").is_file() else {"quick"}
    if "model" not in kinds:
        print(f"without {MODEL} (make repro) only the outputs that need no model", file=sys.stderr)
    found = 0
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        if "--check" in sys.argv[1:]:
            for block, now in stale(page, text, kinds):
                found += 1
                print("\n".join([f"{block.place}: is", *block.lines, "but a run gives", *now, ""]))
        else:
            (ROOT / page).write_text(rewritten(page, text, kinds), encoding="utf-8")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
