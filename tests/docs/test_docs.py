"""The documentation is up to date, complete, and its links lead somewhere."""

from __future__ import annotations

import ast
import json
import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from scripts import generate_docs
from tesazure import settings
from tesazure.cli.exits import Code
from tesazure.cli.main import app
from tesazure.lifecycle import TRANSITIONS
from tesazure.validate import parse_task
from tests.docs.blocks import PAGES, ROOT, Block, blocks

WRITTEN = [page for page in PAGES if page.name not in ("settings.md", "cli.md")]


def names(page: Path) -> str:
    return str(page.relative_to(ROOT))


def commands(script: str) -> Iterator[list[str]]:
    """The command lines of a shell block."""
    for line in script.replace("\\\n", " ").splitlines():
        if line.strip():
            yield shlex.split(line)


def anchors(page: Path) -> set[str]:
    """What links can point to within a page, by GitHub's rule for headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", generate_docs.pages().items(), ids=lambda item: item[0].name)
def test_generated_pages_are_up_to_date(page: tuple[Path, str]) -> None:
    path, text = page
    assert path.read_text() == text, "run: python -m scripts.generate_docs"


def test_every_setting_is_documented_with_its_meaning() -> None:
    page = (ROOT / "docs/settings.md").read_text()
    for name in settings.FIELDS:
        said = settings.help_of(name).text
        assert said.endswith((".", "…")), f"{name}: its help is a sentence"
        assert f"| `{name.upper()}` |" in page
        assert said in page


def test_how_each_secret_is_changed_is_documented() -> None:
    section = (ROOT / "docs/operations.md").read_text().partition("## Rotating keys\n")[2]
    table = section.partition("\n## ")[0]
    for name in settings.FIELDS:
        if settings.help_of(name).secret:
            assert f"`{name.upper()}`" in table


def verbs() -> dict[str, Any]:
    """What follows `tesazure` on a command line, such as `run` and `transfer get`."""
    group: Any = get_command(app)
    found: dict[str, Any] = {}
    for name, command in group.commands.items():
        found[name] = command
        below = getattr(command, "commands", {})
        found |= {f"{name} {verb}": each for verb, each in below.items()}
    return found


def test_every_verb_and_flag_is_documented() -> None:
    page = (ROOT / "docs/cli.md").read_text()
    for name, command in verbs().items():
        assert f"# tesazure {name}\n" in page
        for parameter in command.params:
            assert parameter.help or name == "version", f"{name}: {parameter.name} has no help"
            for flag in parameter.opts if parameter.param_type_name == "option" else ():
                assert flag in page
    for code in Code:
        assert f"| {code:d} |" in page


def test_the_diagram_has_every_transition() -> None:
    page = (ROOT / "docs/design.md").read_text()
    for old, following in TRANSITIONS.items():
        for new in following:
            assert f"    {old} --> {new}\n" in page


@pytest.mark.parametrize("page", PAGES, ids=names)
def test_links_resolve(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path) if path else page
        assert found.exists(), f"{target} leads nowhere"
        if anchor:
            assert anchor in anchors(found), f"{target}: no such heading"


@pytest.mark.parametrize("page", PAGES, ids=names)
def test_shell_blocks_parse(page: Path) -> None:
    for block in blocks(page, "sh"):
        subprocess.run(["sh", "-n"], input=block.text, text=True, check=True, timeout=10)


@pytest.mark.parametrize(
    "text", ["```\nls\n```\n", "- one\n\n  ```sh\n  ls\n  ```\n", "```sh\nls\n"], ids=repr
)
def test_a_block_that_would_be_overlooked_is_an_error(text: str, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(ValueError, match="page"):
        blocks(page)


SECTION = re.compile(r"^## (.+)$", re.MULTILINE)
PROGRAMS = {"az", "curl", "docker", "docker-compose", "helm", "kubectl", "make", "pip", "terraform"}


def snippets(test: Path) -> Iterator[tuple[str, str | None]]:
    """Section and word of each block that a test takes out of docs/clients.md to run it."""
    for node in ast.walk(ast.parse(test.read_text())):
        match node:
            case ast.Call(ast.Name("snippet"), [ast.Constant(str(section)), word, _]):
                chosen = word.value if isinstance(word, ast.Constant) else None
                yield section, chosen if isinstance(chosen, str) else None


@pytest.mark.parametrize(
    "block", [each for page in PAGES for each in blocks(page, "sh") if each.remark], ids=str
)
def test_a_block_that_is_run_elsewhere_or_never_says_so_truly(block: Block) -> None:
    if block.run_by:
        above = "\n".join(block.page.read_text().splitlines()[: block.line])
        section = SECTION.findall(above)[-1]
        assert block.page.name == "clients.md"
        assert any(
            taken == section and (word is None or word in block.text)
            for taken, word in snippets(block.run_by)
        )
    else:
        assert block.why_not_run, f"neither `run by: FILE` nor `not run: REASON`: {block.remark}"
        assert len(block.why_not_run.split()) >= 4, "that is no reason"
        for test in re.findall(r"tests/[\w/.]+", block.why_not_run):
            assert (ROOT / test).exists(), f"there is no {test}"


KINDS = {"groovy", "json", "mermaid", "python", "sh", "text", "toml", "wdl", "yaml"}


@pytest.mark.parametrize("page", WRITTEN, ids=names)
def test_commands_are_in_shell_blocks(page: Path) -> None:
    """So that they are run, or the page says why they are not: `sh`, not `bash` or `console`."""
    assert {block.language for block in blocks(page)} <= KINDS
    for block in blocks(page, "text"):
        for line in block.text.splitlines():
            first = line.split(" ")[0]
            assert first not in PROGRAMS | {"tesazure"}, f"{block}: {line}"


@pytest.mark.parametrize("page", WRITTEN, ids=names)
def test_commands_of_ours_exist_with_their_flags(page: Path) -> None:
    known_verbs = verbs()
    lines = [line for block in blocks(page, "sh") for line in commands(block.text)]
    inline = re.findall(r"`(tesazure [^`]+)`", page.read_text())
    lines += [shlex.split(text.replace("…", "")) for text in inline]
    for line in lines:
        if line[0] != "tesazure" or line[1].isupper() or line[1].startswith("-"):
            continue
        name = " ".join(line[1:3]) if " ".join(line[1:3]) in known_verbs else line[1]
        assert name in known_verbs, f"there is no `tesazure {name}`"
        known = {flag for parameter in known_verbs[name].params for flag in parameter.opts}
        ours = line[: line.index("--")] if "--" in line else line
        for flag in [word for word in ours[2:] if word.startswith("-") and word != "-"]:
            assert flag in known | {"--help"}, f"tesazure {line[1]} has no {flag}"


def test_make_targets_that_the_readme_names_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`?make (\w+)", (ROOT / "README.md").read_text()):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"there is no `make {target}`"


@pytest.mark.parametrize("page", PAGES, ids=names)
def test_json_blocks_are_json_and_tasks_are_valid(page: Path) -> None:
    for block in blocks(page, "json"):
        document = json.loads(block.text)
        if "executors" in document:
            _, warnings = parse_task(block.text.encode())
            assert warnings == []


@pytest.mark.parametrize("page", PAGES, ids=names)
def test_toml_blocks_are_settings(page: Path, tmp_path: Path) -> None:
    for block in blocks(page, "toml"):
        file = tmp_path / "tesazure.toml"
        file.write_text(block.text)
        settings.load({}, config=file)


def test_example_tasks_are_valid() -> None:
    for file in (ROOT / "examples").glob("*.json"):
        _, warnings = parse_task(file.read_bytes())
        assert warnings == [], file.name


def of_deploy() -> set[str]:
    """The variables of compose files and the arguments of Dockerfiles."""
    files = [*(ROOT / "deploy").rglob("compose.yaml"), *(ROOT / "deploy").rglob("Dockerfile")]
    pattern = re.compile(r"(?:\$\{|^ARG )([A-Z_]+)", re.MULTILINE)
    return {name for file in files for name in pattern.findall(file.read_text())}


def test_settings_named_in_the_pages_exist() -> None:
    for page in WRITTEN:
        for name in re.findall(r"\bAPP_([A-Z_]+)\b", page.read_text()):
            assert name.lower() in settings.FIELDS, f"{page.name}: there is no APP_{name}"
        for name in re.findall(r"`([A-Z]+(?:_[A-Z]+)+)(?:=\w+)?`", page.read_text()):
            known = name.removeprefix("APP_").lower() in settings.FIELDS
            known = known or name.startswith(("EXECUTOR_", "SYSTEM_"))
            known = known or name in settings.ALIASES.values() or name in of_deploy()
            assert known, f"{page.name}: there is no setting {name}"


def test_changelog_fragments_have_a_known_kind() -> None:
    readme = (ROOT / "changelog.d/README.md").read_text()
    for fragment in (ROOT / "changelog.d").glob("[0-9]*.md"):
        assert f"`{fragment.name.split('.')[1]}`" in readme
        assert fragment.read_text().strip()


def test_the_licence_is_the_one_that_the_readme_names() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["license"] == "Apache-2.0"
    assert "Apache 2.0" in (ROOT / "README.md").read_text()
