"""The rules of the house, checked from the sources: imports point one way, files are short, names and words plain."""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROOMS = ("models", "trainer", "eval", "jobs")  # each imports only from itself and from those before it
LONGEST_MODULE, LONGEST_FUNCTION = 300, 60  # lines
VAGUE_NAMES = {"found", "given", "made", "wanted", "told"}  # of variables
# In brackets, so that a search of the repository for these words does not find this line.
RIDDLES = re.compile(
    r"\b(whenc[e]|twin[s]|men[d]|ane[w]|whoeve[r]|feig[n]|scrap[s]|dea[f]|notin[g]|shortfal[l])\b", re.I
)

SOURCES = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]
TESTS = sorted((ROOT / "tests").rglob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def rooms_above(path: Path) -> tuple[str, ...]:
    """Return the rooms that a source file must not know."""
    return ROOMS[ROOMS.index(path.relative_to(ROOT).parts[0]) + 1 :]


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield line and module of each import, also of those by name such as `import_module(f"jobs.{name}")`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.lineno, f"{'.' * node.level}{node.module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            first = node.args[0].values[0] if isinstance(node.args[0], ast.JoinedStr) else node.args[0]
            yield node.lineno, str(first.value) if isinstance(first, ast.Constant) else ast.unparse(first)


def test_imports_point_one_way() -> None:
    upward = [
        f"{name_of(path)}:{line}: {module}"
        for path in SOURCES
        for line, module in imports(ast.parse(path.read_text()))
        if module.partition(".")[0] in ("", *rooms_above(path))
    ]
    assert not upward


def test_no_room_looks_into_the_files_of_a_room_above_it() -> None:
    """A path such as ROOT / "eval" / "metrics" would be an import in disguise; only the code copy lists all rooms."""
    upward = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div) and isinstance(node.right, ast.Constant):
                above = node.right.value in rooms_above(path) and path.parent.name != "runs"  # <trial>/eval is no room
                upward += [f"{name_of(path)}:{node.lineno}: {ast.unparse(node)}"] if above else []
    assert not upward


def test_modules_import_each_other_in_no_circle() -> None:
    modules = {name_of(p).removesuffix(".py").removesuffix("/__init__").replace("/", "."): p for p in SOURCES}
    graph: dict[str, set[str]] = {}
    for name, path in modules.items():
        at_import = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)]
        targets = {module for node in at_import for _, module in imports(ast.Module([node], []))}
        graph[name] = {t if t in modules else t.rpartition(".")[0] for t in targets} & modules.keys() - {name}
    finished: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " → ".join((*path, name))
        if name not in finished:
            for other in sorted(graph[name]):
                visit(other, (*path, name))
            finished.add(name)

    for name in graph:
        visit(name, ())


def test_modules_and_functions_are_short() -> None:
    long = []
    for path in SOURCES:
        source = path.read_text()
        if source.count("\n") > LONGEST_MODULE:
            long.append(f"{name_of(path)}: {source.count(chr(10))} lines")
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                long += (
                    [f"{name_of(path)}:{node.lineno}: {node.name}: {lines} lines"] if lines > LONGEST_FUNCTION else []
                )
    assert not long


def test_variables_are_named_after_what_they_hold() -> None:
    vague = []
    for path in SOURCES + TESTS:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
                name = node.id if isinstance(node, ast.Name) else node.attr
            else:
                name = node.arg if isinstance(node, ast.arg) else ""
            vague += [f"{name_of(path)}:{node.lineno}: {name}"] if name in VAGUE_NAMES else []  # type: ignore[attr-defined]
    assert not vague


def test_no_text_has_to_be_decoded() -> None:
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    names = [name for name in listing.stdout.split("\0") if name] or [name_of(path) for path in SOURCES + TESTS]
    riddles = [
        f"{name}:{number}: {word}"
        for name in names
        if name.endswith((".py", ".md", ".yaml", ".jinja", ".toml", "Makefile")) and (ROOT / name).is_file()
        for number, line in enumerate((ROOT / name).read_text().splitlines(), 1)
        for word in RIDDLES.findall(line)
    ]
    assert not riddles
