"""Pictures per second: staging a folder against torchvision's ImageFolder and a DataLoader that decode the same files.

Both crop to the centre square and resize with antialiasing, on all cores, alternating in one run. The memory that
staging takes is printed for two numbers of pictures: it must not grow with them.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from trainer.data.cache import stage
from trainer.data.dataset import Form

EXAMPLE = "example:\n  python tests/benchmarks/staging.py --pictures 20000 --side 64 --size 64 --rounds 3"


def write_pictures(folder: Path, count: int, side: int) -> None:
    """Write `count` JPEGs of two classes: smooth noise, as compressible as photographs."""
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)

    def write(number: int) -> None:
        coarse = np.random.RandomState(number).randint(0, 256, (max(2, side // 8), max(2, side // 8), 3), np.uint8)
        picture = Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)
        picture.save(folder / "ab"[number % 2] / f"{number:06}.jpg", quality=90)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(write, range(count)))


def load_all(folder: Path, size: int, workers: int) -> float:
    """Return the seconds that a DataLoader takes to decode every picture once."""
    crop = transforms.Compose([transforms.Resize(size), transforms.CenterCrop(size), transforms.PILToTensor()])
    loader = DataLoader(ImageFolder(str(folder), crop), batch_size=64, num_workers=workers)
    started = time.perf_counter()
    for _ in loader:
        pass
    return time.perf_counter() - started


def stage_all(folder: Path, size: int, root: Path) -> float:
    """Return the seconds that staging takes: decoding, writing, hashing and flushing to the disk."""
    started = time.perf_counter()
    stage(f"folder:{folder}", root, Form(size, 3))
    return time.perf_counter() - started


def measure_memory(folder: Path, size: int, root: Path) -> float:
    """Return the largest memory, MiB, of a process that stages the folder."""
    program = "import sys; from pathlib import Path; from trainer.data.cache import stage; "
    program += "from trainer.data.dataset import Form; "
    program += "stage('folder:' + sys.argv[1], Path(sys.argv[2]), Form(int(sys.argv[3]), 3)); "
    program += "print(Path('/proc/self/status').read_text().partition('VmHWM:')[2].split()[0])"
    command = [sys.executable, "-c", program, str(folder), str(root), str(size)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pictures", type=int, default=4000, help="number of pictures (default: 4000)")
    parser.add_argument("--side", type=int, default=218, help="their height and width, pixels (default: 218)")
    parser.add_argument("--size", type=int, default=64, help="the size that is staged, pixels (default: 64)")
    parser.add_argument("--rounds", type=int, default=3, help="alternations; medians are printed (default: 3)")
    options = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        few, many = root / "few", root / "many"
        write_pictures(few, options.pictures // 10, options.side)
        write_pictures(many, options.pictures, options.side)
        times: dict[str, list[float]] = {"staging": [], "DataLoader": []}
        for number in range(options.rounds):
            times["staging"].append(stage_all(many, options.size, root / f"data{number}"))
            times["DataLoader"].append(load_all(many, options.size, cores))
        memory = [measure_memory(folder, options.size, root / f"memory-{folder.name}") for folder in (few, many)]
    rates = {name: options.pictures / statistics.median(seconds) for name, seconds in times.items()}
    print(f"{options.pictures} JPEGs of {options.side} px to {options.size} px, {cores} cores, {options.rounds} rounds")
    for name, rate in rates.items():
        print(f"{name:12} {rate:10,.0f} pictures/s")
    print(f"ratio {rates['staging'] / rates['DataLoader']:.2f} (staging over the loader; goal 1)")
    print(
        f"memory {memory[0]:.0f} MiB for {options.pictures // 10} pictures, {memory[1]:.0f} MiB for {options.pictures}"
    )


if __name__ == "__main__":
    main()
