"""The outputs shown in README.md and docs/*.md are those of the code and the default model."""

import hashlib
import json
import subprocess
import sys

import pytest

from docs.outputs import MODEL, PAGES, ROOT, made, outputs, rewritten, same, workspace

SHOWN = [block for page in PAGES for block in outputs(page, (ROOT / page).read_text(encoding="utf-8"))]


def of_kind(kind):
    return [pytest.param(block, id=block.place) for block in SHOWN if block.kind == kind]


def missing_model() -> str:
    """Why the outputs of the default model cannot be compared here; "" if they can."""
    files = sorted(path for path in (ROOT / MODEL).rglob("*") if path.is_file())
    if not files:
        return f"{MODEL} is not there (make repro)"
    listed = [
        {"md5": hashlib.md5(path.read_bytes()).hexdigest(), "relpath": path.relative_to(ROOT / MODEL).as_posix()}
        for path in files
    ]
    ours = hashlib.md5(json.dumps(listed, sort_keys=True).encode()).hexdigest() + ".dir"  # as DVC hashes a folder
    show = ["git", "show", "HEAD:dvc.lock"]
    lock = subprocess.run(show, cwd=ROOT, capture_output=True, text=True, check=False).stdout
    return "" if ours in lock else f"{MODEL} is not the model that the committed dvc.lock names"


def test_every_output_says_where_it_comes_from():
    assert {"quick", "model"} <= {block.kind for block in SHOWN}
    assert [block.place for block in SHOWN if not block.kind] == []


@pytest.mark.slow
@pytest.mark.parametrize("block", of_kind("quick"))
def test_outputs_that_need_no_model(block, tmp_path):
    now = made(block, workspace(tmp_path))
    assert same(list(block.lines), now), "python -m docs.outputs writes it anew"


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_outputs_of_the_default_model(page):
    if reason := missing_model():
        pytest.skip(reason)
    text = (ROOT / page).read_text(encoding="utf-8")
    assert rewritten(page, text, {"model"}) == text, "python -m docs.outputs writes it anew"


PAGE = """Text.

```bash
printf '%s\\n' "one took 1.25 s" two; exit 3
```

<!-- output: quick -->
```
one took 0.50 s
{second}
```

```python
number = 3
```

```python
print("not shown")
```

```python
print(number)
```

<!-- output: quick -->
```
{number}
```

<!-- output: quick -->
```console
$ echo "first"
{first}
$ echo second 2>/dev/null
second
```

<!-- output: quick: printf '| a |\\n| b |\\n' -->
| a |
{cell}

<!-- output: kept: a frame -->
```
as it is
```
"""
RIGHT = {"second": "two", "number": "3", "first": "first", "cell": "| b |"}


def test_an_output_is_written_anew_in_place():
    wrong = {"second": "zwei", "number": "4\n5", "first": "erst\nens", "cell": "| c |\n| d |"}
    once = rewritten("page", PAGE.format(**wrong), {"quick"})
    # where a line changes, the durations of the block do
    assert once == PAGE.format(**RIGHT).replace("0.50 s", "1.25 s")
    assert rewritten("page", PAGE.format(**RIGHT), {"quick"}) == PAGE.format(**RIGHT)
    assert rewritten("page", PAGE.format(**wrong), {"model"}) == PAGE.format(**wrong)


def test_a_command_that_fails_is_no_output():
    page = "```bash\n{}\n```\n\n<!-- output: {} -->\n```\nx\n```\n"
    with pytest.raises(ValueError, match="page:6: the command failed"):
        rewritten("page", page.format("false", "model"), {"model"})
    crash = page.format(f"{sys.executable} -c 'raise KeyError'", "quick")
    with pytest.raises(ValueError, match="the command failed"):
        rewritten("page", crash, {"quick"})


def test_an_output_without_a_comment_is_found():
    (block,) = outputs("page", "```bash\nls\n```\n\n```\nfile\n```\n")
    assert (block.kind, block.place) == ("", "page:5")


def test_commands_run_beside_the_project(tmp_path):
    folder = workspace(tmp_path)
    assert (folder / "params.yaml").read_bytes() == (ROOT / "params.yaml").read_bytes()
    for name in ("new-file-of-a-page", "out/new-file-of-a-page"):
        (folder / name).touch()
        assert not (ROOT / name).exists()
