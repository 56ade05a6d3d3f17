"""The order and the names of the columns of tables: the main metric first, then by how its weights were selected."""

from collections.abc import Iterable, Sequence

from eval import metrics

# Prefix of a metric → how the weights that it is of were selected, in the order of the columns.
RULES = {
    "": "last",
    "best": "selected on source validation",
    "infomax": "selected without labels",
    "oracle": "oracle",
}
STEP = " step"  # ending of the name of the step that a rule selected


def order_metrics(names: Iterable[str], evaluated: Sequence[str]) -> list[str]:
    """Return names of metrics, those of the first entries of `eval.metrics` first, the target before other domains."""

    def place(name: str) -> tuple[int, bool, str, int, bool, str]:
        rule, base = split_rule(name.removesuffix(STEP))
        entry = find_entry(name.removesuffix(STEP), evaluated)
        domain = "" if base.endswith("/target") else base
        return entry, domain != "", domain, list(RULES).index(rule), name.endswith(STEP), name

    return sorted(names, key=place)


def find_entry(name: str, evaluated: Sequence[str]) -> int:
    """Return the place of the entry of `eval.metrics` that gives a metric; their number if none does."""
    root = split_rule(name)[1].removeprefix("validation/")
    return next((i for i, e in enumerate(evaluated) if root == e or root.startswith(f"{e}/")), len(evaluated))


def choose_main(names: Sequence[str], evaluated: Sequence[str]) -> list[str]:
    """Return, of ordered names, the first metric of each entry of `eval.metrics`, the very first in all its forms.

    Without any such metric, return all names.
    """
    main: dict[int, str] = {}
    for name in names:
        main.setdefault(find_entry(name, evaluated), split_rule(name)[1])
    main.pop(len(evaluated), None)
    return [n for n in names if split_rule(n)[1] == main.get(0) or n in main.values()] or [*names]


def split_rule(name: str) -> tuple[str, str]:
    """Return the rule that selected the weights, empty for the last ones, and the metric."""
    rule, _, base = name.partition("/")
    return (rule, base) if rule in RULES and rule else ("", name)


def is_maximized(name: str) -> bool | None:
    """Return whether higher values of a metric are better, by the declaration of its file; None if it has none."""
    root = split_rule(name)[1].removeprefix("validation/").partition("/")[0]
    if root not in metrics.names():
        return True if root == "information" else None
    return metrics.declares(root, "higher_is_better")


def describe_rule(name: str, names: Sequence[str]) -> str:
    """Return how the weights of a metric were selected; empty if that is the same for all forms of the metric."""
    rule, base = split_rule(name)
    if not any(f"{other}/{base}" in names for other in RULES if other):
        return ""
    return RULES[rule] if base.endswith("/target") or rule != "best" else "selected on validation"
