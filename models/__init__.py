"""Find methods by file name: `load("dann")` returns the one Method that models/dann.py defines.

The hyperparameters of a method are read from its source without importing it, because importing torch takes seconds
and a login node should check a sweep of a thousand trials at once.
"""

import ast
import io
import tokenize
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

if TYPE_CHECKING:
    from models.base import Method

FOLDER = Path(__file__).parent
NO_METHODS = ("__init__", "base", "checks", "losses", "optim", "sampling", "types")
# Modules whose names the annotation of a hyperparameter may use; none of them imports torch.
TYPE_MODULES = ("typing", "pydantic", "models.types")
# Class attributes of a method that are read from its source, with their values in models.base.Method.
DEFAULTS: dict[str, Any] = {
    "reads": ("images", "labels"), "conditional": False, "role": "", "check": "", "least_batch": "",
    "revisions": {}, "added_later": {},
}  # fmt: skip


@dataclass(frozen=True)
class Hyperparameter:
    """Describe an argument of a method's constructor."""

    name: str
    annotation: Any  # a type as pydantic understands it
    default: Any  # ... (Ellipsis) if there is none
    comment: str  # its comment or Field(description=…): unit, range, equation


@dataclass(frozen=True)
class Signature:
    """Describe a method, as read from its file."""

    method: str
    summary: str  # first line of the module's docstring
    reads: tuple[str, ...]  # keys of a batch
    conditional: bool  # whether `sample` takes class labels
    check: str  # of models/checks.py, which refuses sizes and widths; else empty
    least_batch: str  # of models/checks.py: fewest images that batch norm takes; else empty
    role: str  # "lower_bound" or "upper_bound" of domain adaptation, else empty
    revisions: dict[str, int]  # net -> revision of its layers, where they were corrected
    functions: frozenset[str]  # names of those that it defines or inherits from another method, such as predict
    added_later: dict[str, Any]  # hyperparameter -> default that keeps the behaviour of trials from before it existed
    hyperparameters: tuple[Hyperparameter, ...] = field(default=())


def names() -> list[str]:
    """Return the names of all methods: the files of this folder except NO_METHODS."""
    return sorted(p.stem for p in FOLDER.glob("*.py") if p.stem not in NO_METHODS)


def load(name: str) -> "type[Method]":
    """Import and return the one Method subclass that models/<name>.py defines; TypeError if it has none or several."""
    from models.base import Method

    module = import_module(f"models.{name}")
    methods = [
        m
        for m in vars(module).values()
        if isinstance(m, type) and issubclass(m, Method) and m.__module__ == module.__name__
    ]
    if len(methods) != 1:
        raise TypeError(f"models/{name}.py must define exactly one Method, not {[m.__name__ for m in methods]}")
    return methods[0]


@lru_cache
def signature(name: str) -> Signature:
    """Return the description of a method. TypeError if its file defines none or an argument cannot be read."""
    source = (FOLDER / f"{name}.py").read_text()
    tree = ast.parse(source, f"models/{name}.py")
    imported = {a.name: n.module for n in tree.body if isinstance(n, ast.ImportFrom) and n.module for a in n.names}
    for definition in (n for n in tree.body if isinstance(n, ast.ClassDef)):
        parents = [imported.get(ast.unparse(base), "") for base in definition.bases]
        plugins = {f"models.{other}" for other in ("base", *names())}
        parent = next((module for module in parents if module in plugins), None)
        if parent:
            break
    else:
        raise TypeError(f"models/{name}.py defines no Method")
    # A method that extends another one inherits its constructor and class attributes.
    inherited = None if parent == "models.base" else signature(parent.removeprefix("models."))
    attributes = {name: getattr(inherited, name) if inherited else default for name, default in DEFAULTS.items()}
    arguments = inherited.hyperparameters if inherited else ()
    functions = {node.name for node in definition.body if isinstance(node, ast.FunctionDef)}
    functions |= inherited.functions if inherited else set()
    for node in definition.body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            attribute = ast.unparse(node.targets[0] if isinstance(node, ast.Assign) else node.target)
            if attribute in attributes:
                attributes[attribute] = ast.literal_eval(node.value)
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            arguments = tuple(_arguments(name, tree, node, _comments(source)))
    summary = (ast.get_docstring(tree) or "").split("\n")[0]
    return Signature(name, summary, hyperparameters=arguments, functions=frozenset(functions), **attributes)


def revision(name: str, arguments: Mapping[str, Any]) -> int:
    """Return the revision of the network that a method builds from its arguments; 0 if it was never corrected."""
    try:
        described = signature(name)
    except (OSError, TypeError):  # no method of that name
        return 0
    default = next((h.default for h in described.hyperparameters if h.name == "net"), "")
    return described.revisions.get(arguments.get("net", default), 0)


def added_later(name: str) -> dict[str, Any]:
    """Return the hyperparameters that a method got later, with their defaults; {} if there is no such method."""
    try:
        return signature(name).added_later
    except (OSError, TypeError):
        return {}


def _arguments(
    method: str, tree: ast.Module, constructor: ast.FunctionDef, comments: dict[int, str]
) -> Iterator[Hyperparameter]:
    """Yield the constructor's arguments after self and the DataSpec."""
    scope = _scope(method, tree)
    arguments = constructor.args
    defaults = (
        [None] * (len(arguments.args) - len(arguments.defaults)) + list(arguments.defaults) + arguments.kw_defaults
    )
    for argument, default in list(zip(arguments.args + arguments.kwonlyargs, defaults, strict=True))[2:]:
        location = f"models/{method}.py:{argument.lineno}: {argument.arg}"
        if argument.annotation is None:
            raise TypeError(f"{location}: give the hyperparameter a type")
        try:
            # Evaluating the expression is safe: it is in our own source, which training imports anyway.
            annotation = eval(ast.unparse(argument.annotation), scope)  # noqa: S307
            value = ... if default is None else ast.literal_eval(default)
        except (NameError, ValueError) as error:
            raise TypeError(
                f"{location}: {error}; use types of {', '.join(TYPE_MODULES)}, aliases of these, and a literal default"
            ) from None
        lines = range(argument.lineno, (default or argument).end_lineno or argument.lineno)
        comment = next((comments[line] for line in (*lines, lines.stop) if line in comments), "")
        yield Hyperparameter(argument.arg, annotation, value, comment or _description(annotation))


def _scope(method: str, tree: ast.Module) -> dict[str, Any]:
    """Return the names that annotations may use: imports from TYPE_MODULES, and aliases in the method's own file."""
    scope: dict[str, Any] = {}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module in TYPE_MODULES:
            scope |= {a.asname or a.name: getattr(import_module(node.module), a.name) for a in node.names}
        elif isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            with suppress(Exception):  # not an alias: an annotation that uses it raises NameError
                scope[ast.unparse(target)] = eval(ast.unparse(node.value), scope)  # noqa: S307
    return scope


def _description(annotation: Any) -> str:
    """Return the description of an annotation's Field; empty without one."""
    return next((text for part in get_args(annotation) if (text := getattr(part, "description", None))), "")


def _comments(source: str) -> dict[int, str]:
    """Return the comment of each line that has one."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {t.start[0]: t.string.lstrip("# ") for t in tokens if t.type == tokenize.COMMENT}
