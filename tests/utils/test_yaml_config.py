"""Nested mappings: files and their base, overrides, merging, and where two configs differ."""

from collections.abc import Callable
from pathlib import Path

import pytest

from src.config import config_from_dict
from src.utils.errors import UserError
from src.utils.yaml_config import differences, merge, nested, parse_override, read_yaml


def test_an_override_is_a_dotted_name_and_a_yaml_value():
    assert parse_override("optimization.lr=0.01") == ("optimization.lr", 0.01)
    assert parse_override("data.crop_size=[100, 32]") == ("data.crop_size", [100, 32])
    assert parse_override("output_root=a=b") == ("output_root", "a=b")
    assert parse_override("model.load_path=") == ("model.load_path", None)


@pytest.mark.parametrize("text", ["lr", "=1", "data.=1", ".lr=1", "data..lr=1"])
def test_what_is_no_override_is_said(text):
    with pytest.raises(UserError, match=r"is not an override; write section.key=value"):
        parse_override(text)


def test_an_override_whose_value_is_no_yaml():
    with pytest.raises(UserError, match=r"data\.classes=\[a': the value is not valid YAML"):
        parse_override("data.classes=[a")


def test_merging_goes_key_by_key_and_leaves_its_arguments_alone():
    base = {"data": {"a": 1, "b": [1, 2]}, "meta": {"c": 3}}
    new = {"data": {"b": [9]}, "more": 1}
    assert merge(base, new) == {"data": {"a": 1, "b": [9]}, "meta": {"c": 3}, "more": 1}
    assert base == {"data": {"a": 1, "b": [1, 2]}, "meta": {"c": 3}}
    assert merge(base, nested("meta.c", 4))["meta"] == {"c": 4}


def test_differences_are_named_with_both_values():
    ours = {"data": {"a": 1, "b": [1]}, "logging": {"folder": "x"}, "new": {"k": 2}}
    theirs = {"data": {"a": 2, "b": [1]}, "logging": {"folder": "y"}, "old": {"k": 3}}
    assert differences(ours, theirs) == [
        "data.a is 1, was 2",
        "logging.folder is 'x', was 'y'",
        "new.k is 2, was None",
        "old.k is None, was 3",
    ]
    assert differences(ours, theirs, {"logging", "data.a", "new", "old"}) == []
    assert differences(ours, theirs, {"data"})[0].startswith("logging.folder")


def test_a_key_that_one_side_does_not_know_may_be_unset():
    assert differences({"data": {"a": None}}, {"data": {}}) == []


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes YAML files under a folder and returns the last one's path."""

    def write(**files: str) -> Path:
        for name, text in files.items():
            path = tmp_path / f"{name.replace('__', '/')}.yaml"
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        return path

    return write


def test_a_file_shows_only_its_differences_from_its_base(write):
    path = write(
        shared="data: {a: 1, b: 2}\nmeta: {c: 3}\n",
        sub__middle="base: ../shared.yaml\ndata: {b: 20}\n",
        top="base: sub/middle.yaml\nmeta: {d: 4}\ndata: {a: null}\n",
    )
    assert read_yaml(path) == {"data": {"a": None, "b": 20}, "meta": {"c": 3, "d": 4}}


def test_a_circle_of_bases_is_said(write, tmp_path):
    circle = r"one\.yaml: base leads in a circle: two\.yaml -> one\.yaml -> two\.yaml"
    with pytest.raises(UserError, match=circle):
        read_yaml(write(one="base: two.yaml\n", two="base: one.yaml\n"))
    with pytest.raises(UserError, match=r"circle: self\.yaml -> self\.yaml"):
        read_yaml(write(self="base: self.yaml\n"))

    around = f"base: ../{tmp_path.name}/self.yaml\n"
    with pytest.raises(UserError, match=r"circle: self\.yaml -> self\.yaml"):
        read_yaml(write(self=around))


def test_a_base_that_is_missing_or_no_path_is_said(write):
    with pytest.raises(UserError, match=r"top\.yaml: base: no config file .*shard\.yaml.*shared"):
        read_yaml(write(shared="a: 1\n", top="base: shard.yaml\n"))
    with pytest.raises(UserError, match=r"top\.yaml: base is \['a'\]; allowed: the path of"):
        read_yaml(write(top="base: [a]\n"))
    with pytest.raises(UserError, match=r"bad\.yaml is not valid YAML"):
        read_yaml(write(bad="[", top="base: bad.yaml\n"))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "nan"])
def test_numbers_that_are_not_finite_are_refused(value):
    with pytest.raises(UserError, match=r"optimization\.lr is .* a finite number"):
        config_from_dict({"optimization": {"lr": value}}, "a test")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"top\.yaml is empty; sections of keys"),
        (b"# only a comment\n", r"top\.yaml is empty"),
        (b"a string\n", r"must hold sections of keys, but it is 'a string'"),
        (b"data:\n\tbatch_size: 2\n", r"line 2 \('batch_size: 2'\): it is indented with a tab"),
        (b"data:\n  a: 'open\n", r"not valid YAML: line \d+ .*end of stream"),
        (b"\xff\xfe\x00", r"not a text file in UTF-8"),
    ],
)
def test_a_file_that_holds_no_sections_says_why_on_one_line(tmp_path: Path, content, message):
    path = tmp_path / "top.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as raised:
        read_yaml(path)
    assert "\n" not in str(raised.value)


def test_a_folder_or_a_misspelt_name_in_place_of_a_file(write, tmp_path: Path):
    path = write(quickstart="a: 1\n")
    with pytest.raises(UserError, match=r"is a folder; name a YAML file, such as .*/quickstart\.y"):
        read_yaml(tmp_path)
    with pytest.raises(UserError, match=f"no config file .*Did you mean '{path.name}'"):
        read_yaml(tmp_path / "quickstrat.yaml")
