"""The documentation says what is so: reference pages, links, examples, names of files and of records."""

import dataclasses
import re
import textwrap
import xml.etree.ElementTree as ET
from pathlib import Path

import pyte
import pytest

from docs import generate, picture
from docs.pages.errors import error_classes
from docs.pages.markdown import anchor
from fedhelm.config.timing import PROFILES, Timing
from fedhelm.errors import BadInput, NotSupportedYet
from fedhelm.job.rules import parse_config
from fedhelm_console.commands import REGISTRY
from fedhelm_console.grammar import parse
from fedhelm_server.job_book import _HANDLERS
from fedhelm_server.role import Role

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "AGENTS.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/*/*.md")])
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def name(path):
    return str(path.relative_to(ROOT))


def blocks(path, language):
    return [text for found, text in FENCE.findall(path.read_text(encoding="utf-8")) if found == language]


def prose(path):
    return FENCE.sub("", path.read_text(encoding="utf-8"))


def anchors(path):
    return {anchor(line.lstrip("#").strip()) for line in prose(path).splitlines() if line.startswith("#")}


@pytest.mark.parametrize("page", generate.PAGES)
def test_reference_pages_are_what_the_code_says(page):
    assert (generate.REFERENCE / page).read_text(encoding="utf-8") == generate.PAGES[page](), "run: make docs"


def test_check_says_which_page_is_out_of_date(tmp_path, capsys):
    pages = {"a.md": lambda: "new\n", "b.md": lambda: "same\n"}
    (tmp_path / "a.md").write_text("old\n")
    (tmp_path / "b.md").write_text("same\n")
    assert generate.main(["--check"], tmp_path, pages) == 1
    assert "out of date: a.md " in capsys.readouterr().err
    assert (tmp_path / "a.md").read_text() == "old\n"
    assert generate.main([], tmp_path, pages) == 0
    assert (tmp_path / "a.md").read_text() == "new\n"
    assert generate.main(["--check"], tmp_path, pages) == 0


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_relative_links_lead_somewhere(page):
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, fragment = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        if not there.exists() or (fragment and fragment not in anchors(there)):
            broken.append(target)
    assert not broken


def test_every_error_code_has_a_section():
    sections = anchors(ROOT / "docs/reference/errors.md")
    assert {anchor(cls.code) for cls in error_classes()} <= sections
    assert len(error_classes()) >= 28


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_codes_shown_exist(page):
    known = {cls.code for cls in error_classes()} | {"CODE"}
    assert set(re.findall(r"error\[([A-Z_]+)\]", page.read_text(encoding="utf-8"))) <= known


def test_errors_that_commands_name_exist():
    known = {cls.code for cls in error_classes()}
    assert {code for command in REGISTRY for code in command.errors} <= known


def test_console_examples_of_the_reference_are_understood():
    lines = [line for page in PAGES for block in blocks(page, "console") for line in block.splitlines()]
    assert len(lines) >= 2 * len(list(REGISTRY))
    for line in lines:
        assert parse(line, REGISTRY) is not None, line


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_lines_typed_at_the_prompt_are_understood(page):
    typed = re.findall(r"^ *fl \S+ ▸ (\S.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    for line in typed:
        assert parse(line, REGISTRY) is not None, line


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_job_yaml_in_the_docs_is_valid(page):
    for block in blocks(page, "yaml"):
        text = block
        if not text.startswith("name:"):  # a piece of one
            text = 'name: x\ndeploy: {app: ["@ALL"]}\n' + text
        try:
            parse_config(text, "job.yaml")
        except (BadInput, NotSupportedYet) as error:
            pytest.fail(f"{error}\n{text}")


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_python_in_the_docs_compiles(page):
    for block in blocks(page, "python"):
        lines = textwrap.dedent(block)
        body = f"for _ in ():\n{textwrap.indent(lines, '    ')}" if "continue" in lines else lines
        compile(body, name(page), "exec")


def test_record_kinds_of_the_architecture_are_those_of_the_book():
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    table = text[text.index("| kind | body |") :].partition("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)`", table, re.MULTILINE)) == set(_HANDLERS)


def test_times_and_roles_of_the_protocol_page_are_those_of_the_code():
    text = (ROOT / "docs/ha.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(fast|default|wan)` \| (.*) \|$", text, re.MULTILINE)
    names = [field.name for field in dataclasses.fields(Timing)][1:]
    shown = {profile: dict(zip(names, map(float, cells.split(" | ")), strict=True)) for profile, cells in rows}
    assert shown == {name: {key: getattr(one, key) for key in names} for name, one in PROFILES.items()}
    assert set(re.findall(r"^\| `([A-Z]+)` \|", text, re.MULTILINE)) == {str(role) for role in Role}


def test_files_page_names_what_provisioning_writes(tmp_path):
    from fedhelm_lab.workspace import plan, prepare

    prepare(tmp_path / "poc", plan(1, 1, 20_400))
    text = (ROOT / "docs/reference/files.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([^`]+)`", text))
    examples = "transfer"
    for path in (tmp_path / "poc").rglob("*"):
        relative = path.relative_to(tmp_path / "poc")
        if not path.is_file() or examples in relative.parts or relative.parts[0] == "store":
            continue
        assert {path.name, str(relative), str(Path(*relative.parts[1:]))} & named, relative


def test_every_decision_is_in_the_index():
    folder = ROOT / "docs/decisions"
    text = (folder / "README.md").read_text(encoding="utf-8")
    pages = sorted(path for path in folder.glob("0*.md"))
    assert [path.name for path in pages] == re.findall(r"\]\((\d{4}-[^)]+)\)", text)
    for place, path in enumerate(pages, 1):
        title = path.read_text(encoding="utf-8").splitlines()[0]
        assert title.startswith(f"# {place}. ")
        assert f"{place}. [{title.partition('. ')[2]}]({path.name})" in text


def test_readme_keeps_a_place_for_the_figures():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text.count("<!-- bench -->") == 1
    assert text.index("<!-- bench -->") < text.index("<!-- /bench -->")


def test_picture_shows_the_screen():
    screen = pyte.Screen(picture.COLUMNS, picture.LINES)
    pyte.Stream(screen).feed("plain \x1b[1;32mfl server2\x1b[0m & <b>\r\n\x1b[7mbar\x1b[0m")
    root = ET.fromstring(picture.svg(screen, "a title"))
    space = "{http://www.w3.org/2000/svg}"
    texts = {element.text.strip(): element for element in root.iter(f"{space}text")}
    assert {"plain", "fl server2", "& <b>", "bar", "a title"} <= set(texts)
    assert texts["fl server2"].get("font-weight") == "bold"
    assert texts["fl server2"].get("fill") == "#98c379"
    assert float(texts["fl server2"].get("x")) > float(texts["plain"].get("x"))


def test_committed_picture_shows_a_failover():
    root = ET.parse(ROOT / "docs/images/console.svg").getroot()
    text = " ".join(element.text or "" for element in root.iter())
    assert "server1·e1" in text
    assert "server2·e2" in text
    assert "failover server1 → server2" in text
