"""What every page says of itself is true: blocks, commands, links, files, functions, readings."""

import ast
import json
import re
from importlib import import_module
from pathlib import Path

import pytest

from cdp_torchrec.config import ConfigError, load_config
from cdp_torchrec.experiment_config import ExperimentConfig
from tests.docs.draw_architecture import PICTURE, draw
from tests.docs.pages import BLOCKS, LANGUAGES, NOTES, PAGES, Block, blocks_of
from tests.docs.settings import check, check_layer, output_of
from tests.paths import CONFIGS, ROOT

PACKAGE = ROOT / "cdp_torchrec"
INTEREST_PAGE = PACKAGE / "interest" / "README.md"

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def of(language: str) -> pytest.MarkDecorator:
    found = [block for block in BLOCKS if block.language == language]
    return pytest.mark.parametrize("block", found, ids=lambda block: block.place)


def test_the_front_page_is_short() -> None:
    assert len((ROOT / "README.md").read_bytes()) <= 12 * 1024


@pages
def test_every_block_is_executed_or_says_why_not(page: Path) -> None:
    for block in blocks_of(page):
        assert block.language in LANGUAGES, f"{block.place}: a language out of {LANGUAGES}"
        if block.note:
            assert block.note[0] in NOTES, f"{block.place}: a comment out of {NOTES}"
        reason = block.value("not run")
        assert reason is None or len(reason.split()) >= 4, f"{block.place}: give a reason"
    assert page.read_text().count("```") == 2 * len(blocks_of(page)), "a fence is not closed"


@pages
def test_every_command_names_scripts_layers_and_keys_that_exist(page: Path) -> None:
    made_here: set[str] = set()
    for block in blocks_of(page):
        if block.value("file"):
            made_here.add(block.value("file") or "")
        if block.language != "bash":
            continue
        for command in block.commands():
            more = (block.value("run with") or "").strip()
            words = [*command.words, *Block.words_of(more)]
            try:
                check(words, made_here=made_here)
            except (AssertionError, ConfigError) as error:
                pytest.fail(f"{command.place}: {command.text}\n{error}")
            made_here.add(output_of(words) or "")
            if ">" in words:
                made_here.add(words[words.index(">") + 1])


@of("python")
def test_python_blocks_compile_and_their_imports_exist(block: Block) -> None:
    tree = ast.parse(block.text, block.place)
    if block.value("file"):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            module = import_module(node.module)
            missing = [alias.name for alias in node.names if not hasattr(module, alias.name)]
            assert missing == [], f"{block.place}: {node.module} has no {missing}"


@of("toml")
def test_toml_blocks_load_as_layers(block: Block, tmp_path: Path) -> None:
    if block.is_executed and not block.value("file"):
        check_layer(block.text, block.value("settings of") or "train", tmp_path)


@of("json")
def test_json_blocks_are_json(block: Block) -> None:
    json.loads(block.text)


@pages
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        place = (page.parent / path).resolve() if path else page
        assert place.exists(), f"{page.name}: {target}"
        if anchor:
            place = place / "README.md" if place.is_dir() else place
            headings = re.findall(r"^#+ (.*)$", place.read_text(), re.MULTILINE)
            assert anchor in {slug(heading) for heading in headings}, f"{page}: {target}"


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pages
def test_every_file_that_a_page_names_exists(page: Path) -> None:
    text = page.read_text()
    made = {block.value("file") for block in blocks_of(page)}
    paths = set(re.findall(r"(?<![\w/.])(?:launch|configs|cdp_torchrec|tests)/[\w/.]*\w", text))
    missing = {p for p in paths - made if not (ROOT / p).exists()}
    names = set(re.findall(r"`((?:\w+/)*\w+\.(?:py|toml|json))`", text))
    folders = (page.parent, PACKAGE, ROOT / "launch", ROOT / "tests", ROOT, CONFIGS)
    written_by_commands = {"config.toml", "plan.json", "environment.json", "evaluation.json"}
    written_by_commands |= {
        "table.json",
        "days.json",
        "offsets.json",
        "starter.toml",
        "schema.toml",
        "manifest.json",
        "artifact.json",
        "delta.json",
    }
    missing |= {
        name
        for name in names - made - written_by_commands
        if not any((folder / name).exists() for folder in folders)
    }
    assert missing == set()


def test_functions_of_the_equation_table_exist() -> None:
    text = (PACKAGE / "README.md").read_text()
    rows = re.findall(r"`(\w+(?:/\w+)+\.py)`: ((?:`[\w.]+`(?:, )?)+)", text)
    assert len(rows) == 11
    for file, names in rows:
        source = (PACKAGE / file).read_text()
        for name in re.findall(r"`([\w.]+)`", names):
            for part in name.split("."):
                assert re.search(rf"(class|def) {part}\b", source), (file, name)


def test_the_picture_is_what_its_script_draws_and_names_files_that_exist() -> None:
    picture = PICTURE.read_text()
    assert picture == draw(), "python tests/docs/draw_architecture.py draws it again"
    files = re.findall(r">([\w/]+(?:\.py|/))<", picture)
    assert len(files) > 15
    assert [name for name in files if not (PACKAGE / name).exists()] == []


def test_every_row_of_the_model_table_has_a_layer_and_every_layer_a_row() -> None:
    table = INTEREST_PAGE.read_text().partition("## The readings")[0]
    cells = re.findall(r"^\| (`[^|]*`) \|", table, re.MULTILINE)
    rows = {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}
    assert rows == {path.stem for path in (CONFIGS / "interest").glob("*.toml")}


def test_the_readings_are_what_the_layers_say() -> None:
    table = re.findall(r"^\| (a\d+) \|(.*)\|$", INTEREST_PAGE.read_text(), re.MULTILINE)
    assert [number for number, _ in table] == [f"a{n}" for n in range(1, 19)]
    checked = 0
    for column, preset in ((2, "cdp_paper"), (3, "cdp_timestep"), (4, "cdp")):
        layers = [str(CONFIGS / "quickstart.toml"), str(CONFIGS / "interest" / f"{preset}.toml")]
        interest = load_config(ExperimentConfig, layers).model.interest.model_dump(mode="json")
        for number, row in table:
            cells = [cell.strip() for cell in row.split("|")]
            keys = re.findall(r"`([\w.]+)`", cells[1])
            said = next(c for c in cells[column:1:-1] if c != "the same")
            for key, value in zip(keys, re.findall(r"`(\w+)`|(?<!\w)([\d.]+)\b", said)):  # noqa: B905
                found = interest
                for part in key.split("."):
                    found = found[part]
                plain = value[0] or value[1]
                equal = float(plain) == found if value[1] else plain == json.dumps(found).strip('"')
                assert equal, (number, preset, key, plain, found)
                checked += 1
    assert checked > 20
