"""Whatever stands under the name of a layer, or behind an equals sign, is refused in our words."""

import os
from pathlib import Path

import pytest

from cdp_torchrec.config import ConfigError, load_config
from cdp_torchrec.config.toml_file import read_toml
from tests.config.sample import Experiment, lines


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


DIGITS = "9" * 5000
CONTENTS = {
    "digits": (f"seed = {DIGITS}", "value has 5000 digits"),
    "hexadecimal": (f"seed = 0x{'f' * 5000}", "must be an integer of 64 bits"),
    "deep": (f"seed = {'[' * 20_000}{']' * 20_000}", "more than 32 tables or lists"),
    "dotted": (f"[{'.'.join('a' * 3000)}]\nx = 1", "more than 32 tables or lists"),
    "inline": (f"a = {'{a=' * 600}1{'}' * 600}", "more than 32 tables or lists"),
    "twice": ("seed.x = 1\nseed = 2", "not valid TOML"),
    "null": ('extends = "a\\u0000b.toml"', "cannot be read: embedded null byte [extended by"),
    "long": (f'extends = "{"a" * 5000}.toml"', "cannot be read: File name too long [extended by"),
    "null path": ('trainer.notes = "a\\u0000b"', "= 'a\\x00b': must not have a NUL character"),
    "infinite": ("sparse.lr = 1e400", "must be a finite number"),
    "negative zero": ("sparse.lr = -0.0", "sparse.lr = -0.0: must be a number > 0"),
    "date": ("seed = 2020-01-01", "dates and times are not used here"),
    "quoted": ('"data.dir" = 1', '"data.dir": unknown key'),
    "control": ('"\\u001b[31m\\n" = 1', '"\\u001b[31m\\n": unknown key'),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_what_a_layer_cannot_be_is_one_line(name: str) -> None:
    content, said = CONTENTS[name]
    Path("odd.toml").write_text(content)
    (found,) = lines("odd.toml")
    assert said in found
    assert found.isprintable()


def test_what_is_no_file_of_settings_is_not_opened() -> None:
    os.mkfifo("pipe.toml")
    Path("zero.toml").symlink_to("/dev/zero")
    Path("loop.toml").symlink_to("loop.toml")
    Path("dir.toml").mkdir()
    with Path("huge.toml").open("wb") as file:
        file.truncate(10**9)
    names = ("pipe", "zero", "loop", "dir", "huge")
    found = lines(*(f"{name}.toml" for name in names))
    said = [
        "not a regular file",
        "not a regular file",
        "Symlink loop",
        "not a regular file",
        "1 MiB",
    ]
    assert all(text in line for text, line in zip(said, found, strict=True)), found


def test_a_chain_of_layers_ends_somewhere() -> None:
    for number in range(30):
        Path(f"{number}.toml").write_text(f'extends = "{number + 1}.toml"')
    assert lines("0.toml") == ["20.toml: extended through more than 20 layers"]


def test_a_layer_of_thousands_of_mistakes_names_the_first_ones() -> None:
    Path("many.toml").write_text("\n".join(f"key_{number} = 1" for number in range(20_000)))
    found = lines("many.toml")
    assert found[0].startswith("key_0: unknown key") and found[-1] == "..." and len(found) == 51


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        (f"seed={DIGITS}", "must be an integer"),
        ("seed=" + "[" * 3000 + "]" * 3000, "more than 32 tables or lists"),
        ("a." * 3000 + "b=1", "more than 32 tables"),
        ("data.dir=caf\udce9", "data.dir = caf\\udce9: not UTF-8"),
        ('data.dir="a\\u0000b"', "must not have a NUL character"),
        ("sparse.lr=nan", "must be a finite number"),
        ("x" * 100_000, "is neither a layer"),
    ],
)
def test_what_an_argument_cannot_be_is_one_short_line(argument: str, said: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load_config(
            Experiment, ["data.dir=log", argument] if "data" not in argument else [argument]
        )
    assert said in str(raised.value)
    assert len(str(raised.value)) < 1000


def test_a_byte_order_mark_is_no_mistake() -> None:
    Path("bom.toml").write_bytes(b"\xef\xbb\xbfseed = 3\r\n")
    assert load_config(Experiment, ["data.dir=log", "bom.toml"]).seed == 3


def test_a_reader_may_change_the_table_that_it_got(tmp_path: Path) -> None:
    path = tmp_path / "layer.toml"
    path.write_text("extends = []\nsection.list = [1, 2]")
    table = read_toml(path)
    del table["extends"]
    table["section"]["list"].append(3)
    assert read_toml(path) == {"extends": [], "section": {"list": [1, 2]}}
    path.write_text("section.list = [4]")
    assert read_toml(path) == {"section": {"list": [4]}}
