"""Links between README.md and the pages of docs/ lead to files and headings that are there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINK = re.compile(r"\]\((?!https?:)([^)\s]*)\)|(?:src|srcset)=\"(?!https?:)([^\"]+)\"")
FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def text_of(page: Path) -> str:
    return FENCED.sub("", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", text_of(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    broken = []
    for link in ("".join(groups) for groups in LINK.findall(text_of(page))):
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_of_the_package_that_a_page_names_exist(page):
    named = re.findall(r"`((?:qwen3llada|bench|stages|flows|tests|configs|launch)/[\w./-]+)`", text_of(page))
    assert [name for name in named if "NAME" not in name and not (ROOT / name).exists()] == []


def test_broken_links_are_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# One *heading*, two\n```\n# none\n```\n")
    assert anchors(page) == {"one-heading-two"}
    assert LINK.findall('[a](b.md#c) [d](https://e) <img src="f.svg">') == [("b.md#c", ""), ("", "f.svg")]


def tree_block(page: str) -> str:
    return re.search(r"^## Where things are\n+```text\n(.*?)^```", page, re.MULTILINE | re.DOTALL).group(1)


def files_of_tree(block: str) -> tuple[set[str], set[str]]:
    """Paths from the project's root: those that the tree says are there, and those that it says are planned."""
    there, planned, folders = set(), set(), []
    for line in block.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        name, remark = line.split(maxsplit=1)
        folders[depth:] = [name]
        above = "".join(folders[:depth])
        if "(planned)" in remark:
            planned.add(above + name)
        elif "ignored by git" not in remark:
            there.add(above + name)
            for other in re.findall(r"(?<!\S)[\w./]+(?:\.py|\.md|/)(?=[\s,;:]|$)", remark):
                places = (above, above + name, "")  # beside the line's own name, in it, or from the root
                there.add(next((p + other for p in places if (ROOT / (p + other)).exists()), above + other))
    return there, planned


def test_the_tree_of_files_is_the_one_that_is_there():
    there, planned = files_of_tree(tree_block((ROOT / "README.md").read_text(encoding="utf-8")))
    assert sorted(path for path in there if not (ROOT / path).exists()) == []
    assert sorted(path for path in planned if (ROOT / path).exists()) == [], "no longer planned"
    package = ROOT / "qwen3llada"
    parts = {path.name + "/" if path.is_dir() else path.name for path in package.iterdir() if holds_code(path)}
    assert {f"qwen3llada/{name}" for name in parts} - there == {"qwen3llada/__init__.py"}


def holds_code(path: Path) -> bool:
    return path.suffix == ".py" or (path.is_dir() and any(path.glob("*.py")))


def test_names_in_the_table_of_places_are_in_their_files():
    table = (ROOT / "README.md").read_text(encoding="utf-8").split("## Where to add")[1]
    named = re.findall(r"`(\w+)`(?: or `\w+`)? (?:in|of) `((?:qwen3llada|tests)/[\w./]+\.py)`", table)
    assert len(named) > 15
    assert [(name, file) for name, file in named if name not in (ROOT / file).read_text(encoding="utf-8")] == []
