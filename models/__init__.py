"""Every method in this folder is a plugin: `load("dann")` gives the one Method that models/dann.py defines.

What a method accepts is read from its source without importing it, so that a sweep of a thousand trials is checked
in a moment on a login node, where importing torch alone would take seconds.
"""

import ast
import io
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from models.base import Method

FOLDER = Path(__file__).parent
NO_METHODS = ("__init__", "base", "optim", "types")
# The imports whose names may stand in the annotation of a hyperparameter; none of them imports torch.
TYPE_MODULES = ("typing", "pydantic", "models.types")
# Class attributes of a method that are read from its source, with their values in models.base.Method.
DEFAULTS: dict[str, Any] = {"reads": ("images", "labels"), "conditional": False, "role": ""}


@dataclass(frozen=True)
class Hyperparameter:
    """One line of a method's constructor."""

    name: str
    annotation: Any  # a type as pydantic understands it
    default: Any  # ... (Ellipsis) where there is none
    comment: str  # the trailing comment: unit, range, equation


@dataclass(frozen=True)
class Signature:
    """What a method's file says of itself."""

    method: str
    summary: str  # first line of the module's docstring
    reads: tuple[str, ...]  # keys of a batch
    conditional: bool  # whether `sample` takes class labels
    role: str  # "lower_bound" or "upper_bound" of domain adaptation, else empty
    hyperparameters: tuple[Hyperparameter, ...] = field(default=())


def names() -> list[str]:
    """All methods, sorted: the files of this folder, but for the contract and the bounds."""
    return sorted(p.stem for p in FOLDER.glob("*.py") if p.stem not in NO_METHODS)


def load(name: str) -> "type[Method]":
    """Import the one Method subclass that models/<name>.py defines; TypeError if it defines none or several."""
    from models.base import Method

    module = import_module(f"models.{name}")
    found = [
        m
        for m in vars(module).values()
        if isinstance(m, type) and issubclass(m, Method) and m.__module__ == module.__name__
    ]
    if len(found) != 1:
        raise TypeError(f"models/{name}.py must define exactly one Method, found {[m.__name__ for m in found]}")
    return found[0]


@lru_cache
def signature(name: str) -> Signature:
    """Read the schema of a method's `model:` block from its constructor, without importing the file."""
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
    # A method may extend another one, whose constructor and class attributes it then inherits.
    inherited = None if parent == "models.base" else signature(parent.removeprefix("models."))
    attributes = {name: getattr(inherited, name) if inherited else default for name, default in DEFAULTS.items()}
    arguments = inherited.hyperparameters if inherited else ()
    for node in definition.body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            attribute = ast.unparse(node.targets[0] if isinstance(node, ast.Assign) else node.target)
            if attribute in attributes:
                attributes[attribute] = ast.literal_eval(node.value)
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            arguments = tuple(_arguments(tree, node, _comments(source)))
    summary = (ast.get_docstring(tree) or "").split("\n")[0]
    return Signature(name, summary, hyperparameters=arguments, **attributes)


def _arguments(tree: ast.Module, constructor: ast.FunctionDef, comments: dict[int, str]) -> Iterator[Hyperparameter]:
    """Yield the constructor's arguments after self and the DataSpec."""
    scope: dict[str, Any] = {}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module in TYPE_MODULES:
            scope |= {a.asname or a.name: getattr(import_module(node.module), a.name) for a in node.names}
    given = constructor.args
    defaults = [None] * (len(given.args) - len(given.defaults)) + list(given.defaults) + given.kw_defaults
    for argument, default in list(zip(given.args + given.kwonlyargs, defaults, strict=True))[2:]:
        if argument.annotation is None:
            raise TypeError(f"give the hyperparameter {argument.arg!r} a type")
        # The expression stands in our own source, which training would import and run all the same.
        annotation = eval(ast.unparse(argument.annotation), scope)  # noqa: S307
        value = ... if default is None else ast.literal_eval(default)
        yield Hyperparameter(argument.arg, annotation, value, comments.get(argument.lineno, ""))


def _comments(source: str) -> dict[int, str]:
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {t.start[0]: t.string.lstrip("# ") for t in tokens if t.type == tokenize.COMMENT}
