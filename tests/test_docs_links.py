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
