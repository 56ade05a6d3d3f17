"""State what a dataset in the cache contains, for people who stage it, and record what a trial was trained on."""

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.data import cache
from trainer.data.classes import list_names
from trainer.data.store import check_sample, count_classes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trainer.config.schema import Data


def summarize(folder: Path) -> list[str]:
    """Return lines about a dataset in a folder of the cache: splits, classes, sizes, what was left out or assumed."""
    origin = cache.origin(folder)
    names = tuple(origin.get("class_names") or map(str, range(origin["classes"])))
    counts: Counter[str] = Counter()
    for split in origin["splits"]:
        counts.update(count_classes(cache.read(folder, split).labels, names))
    splits = ", ".join(f"{split} {n}" for split, n in origin["splits"].items())
    classes = list_names([f"{name} {counts[name]}" for name in (*names, "without label") if name in counts])
    lines = [f"{sum(origin['splits'].values())} images: {splits}", f"classes: {classes}"]
    findings = origin.get("found", {})
    if sizes := findings.get("sizes"):
        least, largest = (f"{width} x {height}" for width, height in (sizes["least"], sizes["largest"]))
        lines.append(f"sizes: {least} pixels" + (f" to {largest}" if largest != least else ""))
    for reason, files in findings.get("ignored", {}).items():
        lines.append(f"ignored: {files['count']} {reason}, such as {files['first'][0]}")
    if left_out := origin["left_out"]["count"]:
        lines.append(f"left out: {left_out} pictures that cannot be used, such as {origin['left_out']['first'][0]}")
    return lines + [f"note: {note}" for note in findings.get("notes", [])]


def describe_data(data: "Data") -> dict[str, Any]:
    """Return what a trial of these settings is trained on; DataError if it is not staged or damaged."""
    root, form, domains = cache.data_root(data.root), data.form(), {}
    for domain, name in data.datasets().items():
        folder = cache.find(name, root, form=form)
        origin = cache.origin(folder)
        check_sample(folder, origin)
        findings = origin.get("found", {})
        domains[domain or "dataset"] = {
            "name": name,
            "fingerprint": compute_fingerprint(folder, data.class_order(domain)),
            "splits": origin["splits"],
            "left out": origin["left_out"]["count"],
            "ignored": {reason: files["count"] for reason, files in findings.get("ignored", {}).items()},
            "notes": findings.get("notes", []),
        }
    return {"classes": list(data.class_names()), "domains": domains}


def compute_fingerprint(folder: Path, order: "Sequence[int] | None") -> str:
    """Return 16 hex digits of the content of a dataset in the cache and the order of its classes."""
    files = cache.origin(folder)["files"]
    content = [{name: facts["sha256"] for name, facts in files.items()}, order]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def find_difference(earlier: dict[str, Any], current: dict[str, Any]) -> str:
    """Return how the data differ from an earlier record of `describe_data`; empty if they do not or it is unknown."""
    for domain, record in current["domains"].items():
        before = earlier.get("domains", {}).get(domain, record)
        if before["fingerprint"] != record["fingerprint"]:
            counts = (f"{sum(r['splits'].values())} images, {r['fingerprint']}" for r in (before, record))
            return f"data.{domain}: {record['name']} has changed ({' → '.join(counts)})"
    before, now = (list_names(record.get("classes", current["classes"])) for record in (earlier, current))
    if before != now:
        return f"data: the names of classes have changed ({before} → {now})"
    return ""
