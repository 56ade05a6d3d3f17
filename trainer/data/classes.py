"""Names of classes: their order, missing and ambiguous labels, and how the classes of two datasets are matched."""

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING, TypeAlias

from trainer.data.dataset import UNLABELLED, Dataset
from trainer.data.pictures import printable
from trainer.errors import DataError

if TYPE_CHECKING:
    import numpy as np

# data.classes: {target name: source name}, or the names of all datasets in their shared order
Mapped: TypeAlias = Mapping[str, str] | Sequence[str] | None

# Cells without a label, as pandas.read_csv reads them.
MISSING = {"", "nan", "NaN", "-nan", "-NaN", "NA", "N/A", "n/a", "#N/A", "<NA>", "NULL", "null", "None"}
NUMBER = re.compile(r"[+-]?\d{1,50}(\.\d{0,50})?(e[+-]?\d{1,2})?", re.I)  # longer ones are words
SHOWN = 20  # names that a message lists


def sort_names(names: Iterable[str]) -> tuple[str, ...]:
    """Return names once each, in the one order of all kinds of datasets: by value if all are numbers, else as text."""
    distinct = set(names)
    numeric = all(NUMBER.fullmatch(name) for name in distinct)
    return tuple(sorted(distinct, key=lambda name: (Fraction(name) if numeric else 0, name)))


def clean_labels(labels: Sequence[str | None]) -> list[str | None]:
    """Return the class of each label, without surrounding spaces and numbers in one spelling; None if it is missing.

    Missing is what is empty, NaN, NA, None or null, and -1 unless all labels are 1 or -1.
    """
    words = {label: (label or "").strip() for label in set(labels)}
    classes = {label: None if word in MISSING or word.lower() == "nan" else word for label, word in words.items()}
    names = {name for name in classes.values() if name is not None}
    if all(map(NUMBER.fullmatch, names)):
        spelt = {name: _spell(name) for name in names}
        minus = "-1" if set(spelt.values()) != {"-1", "1"} else None
        spelt = {name: number for name, number in spelt.items() if number != minus}
        classes = {label: spelt.get(name or "") for label, name in classes.items()}
    return [classes[label] for label in labels]  # one string for all images of a class


def number_labels(labels: Sequence[str | None], names: Sequence[str], where: str) -> "np.ndarray":
    """Return the position of each label in `names`, UNLABELLED for None: int64; DataError if one is not among them."""
    import numpy as np

    numbers: dict[str | None, int] = {name: number for number, name in enumerate(names)} | {None: UNLABELLED}
    if new := set(labels) - numbers.keys():
        raise DataError(f"{where}: class {new.pop()!r} has appeared while it was read; run the same command again")
    return np.fromiter(map(numbers.__getitem__, labels), np.int64, len(labels))


def check_missing(labels: Sequence[str | None], describe: Callable[[int], str], where: str) -> None:
    """Check that all labels of a split are missing or none; DataError, which describes the first one that is."""
    count = sum(label is None for label in labels)
    if 0 < count < len(labels):
        first = list(labels).index(None)
        raise DataError(
            f"{where}: {describe(first)}: has no label (empty, NaN, NA, None, null or -1), and {count - 1} more; give "
            "each a class or remove it: labels may only be missing for all images of a split"
        )


def check_spelling(names: Mapping[str, str], where: str) -> None:
    """Check that no two names (name -> where it is used) look the same: but for case, spaces or leading zeros."""
    spelt: dict[str, str] = {}
    for name in sorted(names):
        key = _spell(name.strip()) if NUMBER.fullmatch(name.strip()) else _fold(name)
        if key in spelt:
            raise DataError(
                f"{where}: {names[name]}: class {name!r} is also spelt {spelt[key]!r} ({names[spelt[key]]}); "
                "spell it in one way"
            )
        spelt[key] = name


def check_train(
    splits: Mapping[str, Sequence[str | None]], describe: Callable[[str, int], str], where: str, remedy: str
) -> None:
    """Check that train has every class of the other splits; DataError, which describes the first image of another one.

    Nothing is checked if train is unlabelled.
    """
    train = set(splits.get("train", ()))
    for split in ("validation", "test"):
        others = set(splits.get(split, ())) - train - {None}
        if others and None not in train:
            first, name = next((i, name) for i, name in enumerate(splits[split]) if name in others)
            names = sort_names(other for other in train if other is not None)
            raise DataError(
                f"{where}: {printable(describe(split, first))}: class {name!r} is in {split} but not in train, which "
                f"has: {list_names(names)}; {remedy}"
            )


def match_classes(datasets: Mapping[str, Dataset], mapped: Mapped) -> tuple[tuple[str, ...], dict[str, list[int]]]:
    """Return the shared names of classes, and for each domain the shared class of each of its own classes.

    Datasets without labels share any classes. `mapped` is data.classes. ValueError, which lists the names, if the
    classes cannot be matched by name.
    """
    labelled = {domain: dataset for domain, dataset in datasets.items() if dataset.names}
    if mapped is not None:
        check_mapped(labelled, mapped)
    if not labelled:
        return (), {}
    if mapped is not None and not isinstance(mapped, Mapping):
        names = tuple(mapped)
    else:
        names = next(iter(labelled.values())).names
    mapping = mapped if isinstance(mapped, Mapping) else {}
    orders = {}
    for number, (domain, dataset) in enumerate(labelled.items()):
        own = [mapping.get(name, name) if number else name for name in dataset.names]
        same = sorted(own) == sorted(names) if mapped is not None else tuple(own) == names
        if not same and not (mapping and set(own) <= set(names)):
            raise ValueError(_explain(labelled, names))
        orders[domain] = [names.index(name) for name in own]
    return names, orders


def check_mapped(labelled: Mapping[str, Dataset], mapped: Mapped) -> None:
    """Check that data.classes names existing classes; ValueError."""
    listed = {domain: list_names(dataset.names) for domain, dataset in labelled.items()}
    if isinstance(mapped, Mapping):
        if len(labelled) != 2:
            raise ValueError("classes: a mapping from target to source needs labels of both; leave it out")
        source, target = labelled.values()
        for name in mapped:
            if name not in target.names:
                raise ValueError(f"classes: {name!r} is no class of the target, which has: {listed['target']}")
        for name in mapped.values():
            if name not in source.names:
                raise ValueError(f"classes: {name!r} is no class of the source, which has: {listed['source']}")
        return
    names = list(mapped or ())
    for domain, dataset in labelled.items():
        if sorted(names) != sorted(dataset.names):
            raise ValueError(
                f"classes: must name each class of {dataset.name} once; {domain or 'dataset'} has: {listed[domain]}"
            )


def list_names(names: Sequence[str]) -> str:
    """Return names for a message, at most SHOWN."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(map(printable, names[:SHOWN])) + more


@lru_cache(1 << 16)
def _spell(number: str) -> str:
    value = Fraction(number)  # floating point would merge large integers
    return str(value) if value.denominator == 1 else repr(float(number))


def _fold(name: str) -> str:
    """Return a name without case, accents' encodings, invisible characters and surplus spaces."""
    folded = unicodedata.normalize("NFKC", name).casefold()
    return " ".join("".join(c for c in folded if unicodedata.category(c) != "Cf").split())


def _explain(labelled: Mapping[str, Dataset], names: tuple[str, ...]) -> str:
    source, target = labelled.values()
    if sorted(source.names) == sorted(target.names):
        remedy = f"set their shared order: data.classes: [{list_names(names)}]"
    else:
        remedy = "choose datasets that share their classes, or map them: data.classes: {target name: source name, …}"
    return (
        f"{source.name} ({len(source.names)} classes: {list_names(source.names)}) and {target.name} "
        f"({len(target.names)} classes: {list_names(target.names)}) have different classes; {remedy}"
    )
