"""Images per second: batches of arrays against a torchvision dataset in a DataLoader, alternating in one run."""

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Generator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import VisionDataset

from trainer.data.batches import Batches, prefetch
from trainer.data.cache import Arrays, load, stage
from trainer.data.registry import DATASETS

EXAMPLE = "example:\n  python tests/benchmarks/data.py --dataset mnistm5k --batch-size 64 --rounds 5"
GOAL = 20.0


class Pictures(VisionDataset):
    """The same images as torchvision's own sets give them: a PIL picture each, then the transforms."""

    def __init__(self, arrays: Arrays) -> None:
        half = [0.5] * arrays.images.shape[1]
        both = transforms.Compose([transforms.ToTensor(), transforms.Normalize(half, half)])
        super().__init__("", transform=both)
        self.images = np.ascontiguousarray(arrays.images.transpose(0, 2, 3, 1)).squeeze()
        self.labels = arrays.labels

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.transform(Image.fromarray(self.images[index])), int(self.labels[index])

    def __len__(self) -> int:
        return len(self.labels)


Source = Generator[dict[str, torch.Tensor], None, None]


def batches(arrays: Arrays, batch_size: int, device: torch.device, resident: bool) -> Source:
    """Batches of the room under test, prefetched where they live in host memory."""
    return prefetch(Batches({"": arrays}, ("images", "labels"), batch_size, 0, 0, 1, device, resident), 0, 2**40)


def loaded(loader: DataLoader[Any], device: torch.device) -> Source:
    """Epoch after epoch of a loader, on the device."""
    while True:
        for images, labels in loader:
            yield {"images": images.to(device, non_blocking=True), "labels": labels.to(device, non_blocking=True)}


def rate(source: Source, steps: int, device: torch.device) -> float:
    """Images per second over the next `steps` batches."""
    synchronize: Callable[[], None] = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    synchronize()
    start, count = time.perf_counter(), 0
    for batch in islice(source, steps):
        count += len(batch["images"])
    synchronize()
    return count / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", default="mnistm5k", choices=sorted(DATASETS), help="which set (default: mnistm5k)")
    parser.add_argument("--root", help="data root (default: a temporary one)")
    parser.add_argument("--batch-size", type=int, default=64, help="images in a batch (default: 64)")
    parser.add_argument("--rounds", type=int, default=5, help="alternations; medians are printed (default: 5)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch on the CPU (default: 1)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    # Workers outnumber the cores of a small machine: the loader says so, and is measured all the same.
    warnings.filterwarnings("ignore", message="This DataLoader will create")

    with tempfile.TemporaryDirectory() as temporary:
        root = Path(options.root or temporary)
        stage(options.dataset, root)
        arrays = load(options.dataset, "train", root)
        common: dict[str, Any] = {"batch_size": options.batch_size, "shuffle": True, "drop_last": True}
        common["pin_memory"] = device.type == "cuda"
        without: DataLoader[Any] = DataLoader(Pictures(arrays), **common)
        workers: DataLoader[Any] = DataLoader(Pictures(arrays), num_workers=2, persistent_workers=True, **common)
        contenders = {
            "batches, resident": (batches(arrays, options.batch_size, device, resident=True), 2000),
            "batches, host memory": (batches(arrays, options.batch_size, device, resident=False), 2000),
            "loader, no workers": (loaded(without, device), 100),
            "loader, 2 workers": (loaded(workers, device), 100),
        }
        rates: dict[str, list[float]] = {name: [] for name in contenders}
        for source, steps in contenders.values():
            rate(source, steps // 10, device)  # warm up: pages, workers, allocator
        for _ in range(options.rounds):
            for name, (source, steps) in contenders.items():
                rates[name].append(rate(source, steps, device))
        for source, _ in contenders.values():
            source.close()

    print(
        f"{options.dataset}, batch {options.batch_size}, {device}, {options.threads} thread(s), {options.rounds} rounds"
    )
    middle = {name: statistics.median(values) for name, values in rates.items()}
    for name, values in rates.items():
        print(f"{name:20} {middle[name]:12,.0f} images/s   ({min(values):,.0f} to {max(values):,.0f})")
    loader = max(middle["loader, no workers"], middle["loader, 2 workers"])
    ratio = middle["batches, resident"] / loader
    print(f"ratio {ratio:.1f} (resident batches over the faster loader; goal {GOAL:.0f})")


if __name__ == "__main__":
    main()
