"""Holds portal/ to its plan: imports point down, never in a circle, never hidden inside a function; HTMX in one place.

The plan is docs/architecture.md; a new room or module at the top of portal/ gets its floor here.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# A module imports from its own room and from floors below, not from a neighbour; only services are one room on two
# floors. The longest name that fits counts.
FLOORS = {
    "portal.rules": 0,
    "portal.settings": 1,
    "portal.metrics": 1,
    "portal.store": 2,
    "portal.mail": 3,
    "portal.services": 5,
    "portal.web": 6,
    "portal.demo": 6,
    "portal.logs": 7,
    "portal.cli": 8,
    "app": 9,
}
# The bottom of the services: what the others stand on.
_BOTTOM = ("actor", "audit", "idempotency", "key_check", "outage", "rate_limit", "readiness", "usage")
FLOORS |= {f"portal.services.{name}": 4 for name in _BOTTOM}

HTTP = {"flask", "flask_login", "flask_wtf", "werkzeug", "wtforms"}
DATABASE = {"sqlalchemy", "alembic", "psycopg", "sqlite3"}
FORBIDDEN = {
    "portal.rules": HTTP | DATABASE,
    "portal.store": HTTP,
    "portal.services": HTTP,
    "portal.web": DATABASE,
}


@dataclass(frozen=True)
class Import:
    """One imported name, `from a import b` as `a.b`; `where` is file:line."""

    importer: str
    name: str
    where: str
    in_function: bool
    is_relative: bool


def test_imports_point_down() -> None:
    assert faults(ROOT) == []


def test_only_one_module_looks_at_htmx_headers() -> None:
    """Which says `Vary`, so that no cache takes a part of a page for the page."""
    modules = (ROOT / "portal").rglob("*.py")
    assert [path.stem for path in modules if "HX-" in path.read_text(encoding="utf-8")] == ["http"]


def faults(root: Path) -> list[str]:
    """List what is wrong with the imports of root/portal and root/app.py, a sentence each."""
    files = {module_name(path, root): path for path in sorted((root / "portal").rglob("*.py"))}
    if (root / "app.py").exists():
        files["app"] = root / "app.py"
    imports = [found for module, path in files.items() for found in imports_of(module, path, root)]
    arrows = {(found.importer, target) for found in imports if (target := module_of(found.name, files))}
    return [
        *(f"{module} has no floor" for module in files if module != "portal" and not room(module)),
        *(fault for found in imports if (fault := fault_of(found))),
        *circle(arrows),
    ]


def fault_of(found: Import) -> str | None:
    """Say what is wrong with one import by itself, or None."""
    says = f"{found.where}: {found.importer} imports {found.name}"
    if found.in_function:
        return f"{says} inside a function"
    if found.is_relative:
        return f"{says} by a relative path"
    library = found.name.partition(".")[0]
    if any(library in FORBIDDEN[name] for name in FORBIDDEN if is_within(found.importer, name)):
        return f"{says}, which its room may not know"
    here, there = room(found.importer), room(found.name)
    if there and here and here != there:
        are_services = is_within(here, "portal.services") and is_within(there, "portal.services")
        if FLOORS[there] > FLOORS[here] or (FLOORS[there] == FLOORS[here] and not are_services):
            return f"{says}, which is not below it"
    if there and not here:  # portal/__init__.py is the map: whatever is imported first would pull all of it in
        return f"{says}, but it is only the map"
    return None


def circle(arrows: set[tuple[str, str]]) -> Iterator[str]:
    """Describe one circle among the arrows, if there is any."""
    graph = TopologicalSorter[str]()
    for importer, imported in arrows:
        graph.add(importer, imported)
    try:
        graph.prepare()
    except CycleError as error:
        yield "a circle: " + " ← ".join(error.args[1])


def imports_of(module: str, path: Path, root: Path) -> Iterator[Import]:
    """Find every import in a file, also those for type checkers only."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    inside = {id(node) for function in functions for node in ast.walk(function)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module or ''}.{alias.name}" for alias in node.names]
        else:
            continue
        relative = isinstance(node, ast.ImportFrom) and node.level > 0
        where = f"{path.relative_to(root)}:{node.lineno}"
        yield from (Import(module, name, where, id(node) in inside, relative) for name in names)


def module_name(path: Path, root: Path) -> str:
    """Name the module in a file: portal/web/__init__.py is portal.web."""
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def module_of(name: str, modules: dict[str, Path]) -> str | None:
    """Return the module of ours that an imported name is, or stands in."""
    return next((module for module in (name, name.rpartition(".")[0]) if module in modules), None)


def room(module: str) -> str | None:
    """Return the longest name in FLOORS that the module is, or is within."""
    return max((name for name in FLOORS if is_within(module, name)), key=len, default=None)


def is_within(module: str, package: str) -> bool:
    return f"{module}.".startswith(f"{package}.")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"portal/services/keys.py": "from portal.services import audit"}, None),
        ({"portal/services/keys.py": "import portal.rules.access"}, None),
        ({"portal/services/audit.py": "from portal.services.actor import Actor"}, None),
        ({"portal/web/keys.py": "from portal.web.http import page"}, None),
        ({"app.py": "from portal.web import http\nfrom portal import settings"}, None),
        ({"portal/store/models.py": "from portal.services import keys"}, "not below it"),
        ({"portal/store/models.py": "from portal.services.keys import create"}, "not below it"),
        ({"portal/services/audit.py": "from portal.services import keys"}, "not below it"),
        ({"portal/web/http.py": "from portal import cli"}, "not below it"),
        ({"portal/cli.py": "import app"}, "not below it"),
        ({"portal/__init__.py": "from portal.web import http"}, "only the map"),
        ({"portal/store/models.py": "if TYPE_CHECKING:\n    from portal.web import http"}, "not below it"),
        (
            {
                "portal/services/keys.py": "from portal.services import records",
                "portal/services/records.py": "from portal.services.keys import create",
            },
            "a circle",
        ),
        ({"portal/web/keys.py": "def show() -> None:\n    from portal.services import keys"}, "inside a function"),
        ({"portal/cli.py": "class A:\n    async def show(self) -> None:\n        import json"}, "inside a function"),
        ({"portal/web/keys.py": "from . import http"}, "relative path"),
        ({"portal/rules/access.py": "import sqlalchemy.orm"}, "may not know"),
        ({"portal/services/keys.py": "from flask import g"}, "may not know"),
        ({"portal/web/keys.py": "from sqlalchemy import select"}, "may not know"),
        ({"portal/helpers.py": ""}, "has no floor"),
    ],
)
def test_the_check_itself_tells_right_from_wrong(tmp_path: Path, files: dict[str, str], expected: str | None) -> None:
    stock = ("cli", "settings", "rules/access", "store/models", "services/audit", "services/keys", "web/http")
    for name, text in ({f"portal/{module}.py": "" for module in stock} | files).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    found = "; ".join(faults(tmp_path))
    assert (expected in found and "; " not in found) if expected else found == ""
