"""Every python block of README and docs runs, in order, in a folder of its own."""

import re
from pathlib import Path

import pytest
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser

ROOT = Path(__file__).parent.parent
HOW_TO = ROOT / "docs" / "how-to.md"
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_examples_of_the_page_run(page):
    document = Sybil(parsers=[PythonCodeBlockParser()]).parse(page)
    for example in document.examples():
        example.evaluate()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_files_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert target.startswith("http") or (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_headings_lead_to_one(page):
    for target, anchor in re.findall(r"\]\(([^)#]*)#([^)]+)\)", page.read_text()):
        if not target.startswith("http"):
            assert anchor in anchors(page.parent / target if target else page), f"{target}#{anchor}"


def test_every_task_of_the_how_to_is_in_its_index():
    tasks = [title.lower() for title in re.findall(r"^## (.+)$", HOW_TO.read_text(), re.MULTILINE)]
    assert [title.lower() for title in re.findall(r"^- \[(.+?)\]\(#", HOW_TO.read_text(), re.MULTILINE)] == tasks


def test_an_example_of_the_how_to_has_at_most_15_lines_of_code():
    for example in re.findall(r"^```\w+\n(.*?)^```$", HOW_TO.read_text(), re.MULTILINE | re.DOTALL):
        assert len([line for line in example.splitlines() if line.strip()]) <= 15, example


def anchors(page):
    """Return the names under which a page's headings can be linked to."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
