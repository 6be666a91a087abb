"""What must be so in the source trees: names, sizes, constructors, imports, and the map of the rooms."""

from __future__ import annotations

import ast
import re
import tomllib
from collections import defaultdict
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[2]
DISTRIBUTIONS = {"agentstream": ROOT / "sdk", "agentstream_operator": ROOT / "operator"}
MAX_LINES, MAX_LINES_OF_A_FILE = 50_000, 400
MAX_ARGUMENTS, MAX_CALLBACKS = 6, 2


@cache
def sources(*suffixes: str) -> dict[Path, str]:
    """The text of every source file of both distributions."""
    found = [path for folder in DISTRIBUTIONS.values() for path in sorted(folder.rglob("*.*"))]
    return {path: path.read_text(encoding="utf-8") for path in found if path.suffix in suffixes}


@cache
def classes() -> tuple[tuple[Path, ast.ClassDef], ...]:
    """Every class of both distributions, nested and private ones included."""
    trees = [(path, ast.parse(text)) for path, text in sources(".py").items()]
    return tuple((p, node) for p, tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef))


@cache
def callable_types() -> frozenset[str]:
    """`Callable`, and the names that are given to types of callables."""
    text = "\n".join(sources(".py").values())
    return frozenset(re.findall(r"^(\w+)(?:: TypeAlias)? = Callable\[", text, re.MULTILINE)) | {"Callable"}


def parameters(cls: ast.ClassDef) -> list[ast.AST]:
    """The annotations of what a service's constructor takes; a dataclass that only holds data has none.

    A dataclass is a service if it has a coroutine for a method or takes more callbacks than a service may.
    """
    for node in cls.body:
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            arguments = [*node.args.posonlyargs, *node.args.args][1:] + node.args.kwonlyargs
            return [argument.annotation or argument for argument in arguments]
    if not any("dataclass" in ast.unparse(decorator) for decorator in cls.decorator_list):
        return []
    fields = [node for node in cls.body if isinstance(node, ast.AnnAssign)]
    taken = [f.annotation for f in fields if not re.search(r"init=False|ClassVar", ast.unparse(f))]
    serves = any(isinstance(node, ast.AsyncFunctionDef) for node in cls.body)
    return taken if serves or len(callbacks(taken)) > MAX_CALLBACKS else []


def callbacks(annotations: list[ast.AST]) -> list[ast.AST]:
    """Those that are types of callables."""
    return [a for a in annotations if callable_types() & set(re.findall(r"\w+", ast.unparse(a)))]


def rooms(distribution: str) -> set[str]:
    """The packages and modules directly in a distribution, but for the names that it shows."""
    folder = DISTRIBUTIONS[distribution] / distribution
    found = {
        path.stem for path in folder.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    return found - {"__init__", "__main__"}


def layers(distribution: str) -> list[list[str]]:
    """The rooms of a distribution from top to bottom, as its contract has them; siblings together."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    for contract in contracts["contracts"]:
        if contract["type"] == "layers" and (
            contract.get("containers") == [distribution]
            or any(layer.startswith(f"{distribution}.") for layer in contract["layers"])
        ):
            found = [layer.removeprefix(f"{distribution}.") for layer in contract["layers"]]
            names = [re.split(r" [|:] ", layer.replace(f"{distribution}.", "")) for layer in found]
            return [row for row in names if row != ["agentstream"]]
    raise AssertionError(f"no contract has the layers of {distribution}")


def test_the_operator_folder_does_not_shadow_the_standard_library() -> None:
    assert not (ROOT / "operator" / "__init__.py").exists()


def test_no_source_file_is_too_long_to_be_one_thing() -> None:
    sizes = {str(path.relative_to(ROOT)): len(text.splitlines()) for path, text in sources(".py").items()}
    assert not {path: lines for path, lines in sizes.items() if lines > MAX_LINES_OF_A_FILE}


def test_the_distributions_stay_small() -> None:
    lines = sum(len(text.splitlines()) for text in sources(".py", ".lua").values())
    assert lines <= MAX_LINES, "what can go? see Habits in CONTRIBUTING.md"


def test_a_class_name_means_one_thing() -> None:
    named = defaultdict(list)
    for path, cls in classes():
        named[cls.name].append(str(path.relative_to(ROOT)))
    twice = {name: paths for name, paths in named.items() if len(paths) > 1}
    assert not twice, "give one of them another name, also where they are private"


def test_constructors_take_few_arguments() -> None:
    many = {
        cls.name: f"{path.relative_to(ROOT)}: {len(taken)} arguments, {len(callbacks(taken))} callbacks"
        for path, cls in classes()
        if len(taken := parameters(cls)) > MAX_ARGUMENTS or len(callbacks(taken)) > MAX_CALLBACKS
    }
    assert not many, (
        f"at most {MAX_ARGUMENTS} arguments and {MAX_CALLBACKS} callbacks: make ports or a listener of them"
    )


def test_no_private_access_is_suppressed() -> None:
    found = [str(path.relative_to(ROOT)) for path, text in sources(".py").items() if "SLF001" in text]
    assert not found, "let the owner have a method for it"


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_no_imports_go_in_a_circle(distribution: str) -> None:
    graph = grimp.build_graph(distribution, exclude_type_checking_imports=False)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        pytest.fail(f"a circle, annotation-only imports included: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_every_room_has_its_layer_in_the_contracts(distribution: str) -> None:
    assert {room for row in layers(distribution) for room in row} == rooms(distribution)


def test_the_map_shows_the_rooms_as_the_contracts_have_them() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    shown = re.findall(r"^\| `(\w+)` \| [^|]+ \| [^|]+ \|$", page, re.MULTILINE)
    assert shown == [room for distribution in DISTRIBUTIONS for row in layers(distribution) for room in row]
