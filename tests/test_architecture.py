"""The structure: imports point one way, files stay short, plug-ins are files, --help is light."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[1]
PACKAGE = CHECKOUT / "crkd_cli"
MODULES = sorted(PACKAGE.rglob("*.py"))
HEAVY = (
    *("torch", "numpy", "scipy", "SimpleITK", "PIL", "h5py", "medpy", "matplotlib", "nibabel"),
    *("pydicom", "highdicom"),
)

# Higher rows import lower ones, never the reverse; parts of one row do not import each other.
ROWS = (
    ("__main__",),
    ("cli",),
    ("api",),
    ("training", "reporting"),
    ("evaluation",),
    ("inference",),
    ("runtime",),
    ("methods",),
    ("models", "losses", "data", "metrics"),
    ("augment",),
    ("config",),
    (
        "registry",
        "schedules",
        "windows",
        "world",
        "paths",
        "pipeline",
        "progress",
        "config_errors",
        "transfer",
        "renamed",
        "yaml_text",
    ),
    ("locks", "text"),
    ("errors",),
)
ROW = {part: row for row, parts in enumerate(ROWS) for part in parts}
TORCH_IN_DATA = {"batch.py", "dataset.py", "stream.py"}
PLUGINS = ("data/sources", "methods", "models/networks")


def part_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(file: Path, top_level: bool = False) -> Iterator[str]:
    """Yield the dotted names that a file imports: `from a import b` gives a.b.

    With `top_level`, only the imports that run when the file itself is imported.
    """
    tree = ast.parse(file.read_text(encoding="utf-8"))
    nodes: list[ast.AST] = list(tree.body) if top_level else list(ast.walk(tree))
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: write imports in full"
            yield from (f"{node.module}.{name.name}" for name in node.names)


def imported_parts(file: Path) -> set[str]:
    names = [name.split(".") for name in imports(file) if name.startswith("crkd_cli.")]
    return {name[1] for name in names if name[1] != "__version__"}


def module_name(file: Path) -> str:
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.parametrize("file", MODULES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_point_down(file):
    part = part_of(file)
    if part == "__init__":
        return
    for other in imported_parts(file) - {part}:
        assert ROW[other] > ROW[part], f"{file}: {part} must not import {other}"


def test_no_modules_import_each_other_in_a_circle():
    modules = {module_name(file): file for file in MODULES}
    graph = {}
    for name, file in modules.items():
        paths = imports(file)
        imported = {path if path in modules else path.rpartition(".")[0] for path in paths}
        graph[name] = (imported & modules.keys()) - {name}
    graph["crkd_cli"] = set()  # loads its functions when they are asked for
    for folder in PLUGINS:
        # A plug-in imports its package, which names the plug-ins' base class.
        package = f"crkd_cli.{folder.replace('/', '.')}"
        graph[package] = {name for name in graph[package] if not name.startswith(package)}
    TopologicalSorter(graph).prepare()  # raises CycleError


def test_raw_formats_know_no_dataset():
    for file in (PACKAGE / "data" / "raw").glob("*.py"):
        inside = [name for name in imports(file) if name.startswith("crkd_cli.data.")]
        assert all(name.startswith("crkd_cli.data.raw") for name in inside), file


@pytest.mark.parametrize(
    "file", sorted((PACKAGE / "methods").glob("*.py")), ids=lambda file: file.stem
)
def test_methods_see_batches_and_no_other_method(file):
    for name in imports(file):
        if name.startswith("crkd_cli.data"):
            assert name.startswith("crkd_cli.data.batch."), f"{file}: {name}"
        if name.startswith("crkd_cli.methods."):
            assert (
                name.startswith("crkd_cli.methods.base.") or name == "crkd_cli.methods.METHODS"
            ), f"{file}: {name}"


@pytest.mark.parametrize("part", ["data", "metrics"])
def test_data_and_metrics_do_without_torch(part):
    for file in (PACKAGE / part).rglob("*.py"):
        if part == "data" and file.parent.name == "data" and file.name in TORCH_IN_DATA:
            continue
        assert not [name for name in imports(file) if name.split(".")[0] == "torch"], file


def test_medical_libraries_are_imported_where_they_are_used():
    for file in MODULES:
        found = {name.split(".")[0] for name in imports(file, top_level=True)}
        optional = {"pydicom", "highdicom"}
        assert not found & {"SimpleITK", "medpy", "matplotlib", "nibabel", *optional}, file


def test_medpy_is_imported_by_the_paper_protocol_alone():
    """It is under the GPL: see the licenses in docs/install.md."""
    users = [
        str(file.relative_to(PACKAGE))
        for file in MODULES
        if any(name.split(".")[0] == "medpy" for name in imports(file))
    ]
    assert users == ["evaluation/paper.py"]


def test_no_file_is_longer_than_400_lines():
    files = [
        *MODULES,
        *(CHECKOUT / "tests").rglob("*.py"),
        *(CHECKOUT / "benchmarks").rglob("*.py"),
    ]
    long = {
        str(file.relative_to(CHECKOUT)): count for file in files if (count := lines(file)) > 400
    }
    assert not long


def lines(file: Path) -> int:
    return len(file.read_text(encoding="utf-8").splitlines())


def test_every_module_says_what_it_is():
    assert not [
        str(file)
        for file in MODULES
        if not ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))
    ]


@pytest.mark.parametrize("folder", PLUGINS)
def test_a_plugin_is_one_class_in_a_file_of_its_name(folder):
    from importlib import import_module

    package = import_module(f"crkd_cli.{folder.replace('/', '.')}")
    registry = next(value for value in vars(package).values() if type(value).__name__ == "Registry")
    assert registry.names()
    for name in registry.names():
        tree = ast.parse((PACKAGE / folder / f"{name}.py").read_text(encoding="utf-8"))
        registered = [
            node.name
            for node in ast.walk(tree)
            if isinstance(node, ast.ClassDef)
            and any(ast.unparse(mark).endswith(".register") for mark in node.decorator_list)
        ]
        assert len(registered) == 1, f"{folder}/{name}.py registers {registered}"
        assert registry[name].__name__ == registered[0]
        assert registry[name].__module__ == f"{package.__name__}.{name}"


@pytest.mark.parametrize(
    "line",
    [
        "--help",
        "doctor --help",
        "prepare-data --help",
        "make-splits --help",
        "methods --help",
        "methods",
        "train --help",
        "evaluate --help",
        "compare --help",
        "predict --help",
        "suggest --help",
    ],
)
def test_help_loads_nothing_heavy(line):
    program = f"""
import json, sys
sys.argv = ["crkd", *{line.split()!r}]
from crkd_cli.cli import main
try:
    main()
except SystemExit as end:
    print(json.dumps([end.code, [name for name in {HEAVY!r} if name in sys.modules]]))
"""
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=CHECKOUT
    )
    assert json.loads(result.stdout.splitlines()[-1]) == [0, []]
    if "--help" in line:
        assert "Example" in result.stdout
