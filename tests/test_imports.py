"""Imports run one way: utils <- masks, models, datasets <- helper <- train; none leads in a circle.

Read from the syntax trees, imports inside functions included.
"""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FLOORS = (  # each imports from those before it; rooms of one floor not from each other
    ("src.utils",),
    ("src.masks", "src.models", "src.datasets"),
    ("src.config",),
    ("src.pretrained",),
    ("src.helper", "src.pretrain_state"),
    ("src.monitors",),
    ("src.run_report",),
    ("src.train",),
)
# Rooms of the evaluation, each importing from those before it only; files at the door from any.
EVALUATION_ROOMS = ("scoring", "cohort", "features", "heads", "report", "signal", "studies")
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def modules(folder: str) -> dict[str, Path]:
    """Files under ``folder`` by the name they are imported under."""
    found = {}
    for path in sorted((ROOT / folder).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(code: str, package: str) -> Iterator[str]:
    """Dotted names that ``code`` imports, absolute; ``package`` is what "." means in it."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: 1 - node.level or None] if node.level else []
            base = [*parents, *([node.module] if node.module else [])]
            yield from (".".join([*base, name.name]) for name in node.names)


def imports_of(name: str, path: Path) -> list[str]:
    """Dotted names that the module ``name`` in ``path`` imports."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    return list(imports(path.read_text(), package))


def room(name: str) -> str:
    """The folder or module directly under ``src`` that a dotted name is in."""
    return ".".join(name.split(".")[:2])


def defining_module(name: str, known: dict[str, Path]) -> str | None:
    """The module of ``known`` that a dotted name is, or is defined in; ``None`` for others."""
    while name and name not in known:
        name = name.rpartition(".")[0]
    return name or None


@pytest.mark.parametrize(
    ("code", "package", "expected"),
    [
        ("import a.b", "src.utils", ["a.b"]),
        ("from a.b import c, d", "src.utils", ["a.b.c", "a.b.d"]),
        ("from . import c", "src.utils", ["src.utils.c"]),
        ("from .b import c", "src.datasets.folder", ["src.datasets.folder.b.c"]),
        ("from ..b import c", "src.datasets.folder", ["src.datasets.b.c"]),
        ("from ...utils import c", "src.datasets.folder", ["src.utils.c"]),
        ("def f():\n    from ..masks import c", "src.utils", ["src.masks.c"]),
    ],
)
def test_relative_imports_are_resolved(code, package, expected):
    assert list(imports(code, package)) == expected


def test_every_room_of_src_imports_from_the_floors_below_it_only():
    wrong = []
    for name, path in modules("src").items():
        if name == "src":
            continue
        for imported in imports_of(name, path):
            if not imported.startswith("src.") or room(imported) == room(name):
                continue
            if not FLOOR[room(imported)] < FLOOR[room(name)]:
                wrong.append(f"{name} imports {imported}")
    assert not wrong


def test_every_room_of_the_evaluation_imports_from_those_before_it_only():
    place = {f"downstream_tasks.{name}": i for i, name in enumerate(EVALUATION_ROOMS)}
    wrong = [
        f"{name} imports {imported}"
        for name, path in modules("downstream_tasks").items()
        for imported in imports_of(name, path)
        if place.get(room(imported), -1) > place.get(room(name), len(place))
    ]
    assert not wrong


def test_src_and_the_downstream_tasks_meet_at_the_published_side_of_src():
    wrong = [
        f"{name} imports {imported}"
        for top, forbidden in (("src", "downstream_tasks"), ("downstream_tasks", "src.train"))
        for name, path in modules(top).items()
        for imported in imports_of(name, path)
        if f"{imported}.".startswith(f"{forbidden}.")
    ]
    assert not wrong


def test_src_imports_itself_relatively_so_that_it_can_be_installed_under_another_name():
    wrong = [
        f"{name} imports {imported}"
        for name, path in modules("src").items()
        for imported in imports(path.read_text(), "here")
        if f"{imported}.".startswith("src.")
    ]
    assert not wrong


@pytest.mark.parametrize("top", ["src", "downstream_tasks"])
def test_no_imports_lead_in_a_circle(top):
    known = modules(top)
    graph = {
        name: {defining_module(imported, known) for imported in imports_of(name, path)}
        - {None, name}
        for name, path in known.items()
    }
    assert len(tuple(TopologicalSorter(graph).static_order())) == len(known)
