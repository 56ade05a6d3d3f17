"""What the sweep of sweeps/dann.yaml is to show: adaptation lies well above its lower bound, and both bounds are sane.

make sweep && python tests/benchmarks/adaptation.py logs/dann
"""

import argparse
import csv
import statistics
import sys
from collections import defaultdict
from pathlib import Path

MARGIN = 0.15  # of every DANN setting over source only, in mean target accuracy over seeds
UPPER = 0.93  # that target only must exceed


def main() -> int:
    """Print the mean target accuracy of every setting and whether the goals are met; 1 if one is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type=Path, nargs="?", default=Path("logs/dann"), help="its directory")
    options = parser.parse_args()
    settings: dict[str, list[float]] = defaultdict(list)
    with (options.sweep / "report" / "results.csv").open() as file:
        for row in csv.DictReader(file):
            if not row["accuracy/target"]:
                continue
            name = f"dann, gamma {row['model.gamma']}" if row["method"] == "dann" else row["method"]
            settings[name].append(float(row["accuracy/target"]))
    means = {name: statistics.mean(values) for name, values in settings.items()}
    met = True
    for name, mean in means.items():
        goal = UPPER if name == "target_only" else means["source_only"] + MARGIN if name != "source_only" else 0.0
        met &= mean >= goal
        print(f"{name:>15}  {mean:.4f} over {len(settings[name])} seeds" + (f"  goal {goal:.4f}" if goal else ""))
    print("all goals are met" if met else "a goal is missed")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
