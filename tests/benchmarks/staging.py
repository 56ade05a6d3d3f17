"""Pictures per second: staging a folder against torchvision's ImageFolder and a DataLoader that decode the same files.

Both crop to the centre square and resize with antialiasing, on all cores, alternating in one run. On a machine that
other programs use, compare the seconds of CPU time instead. The memory that staging takes is printed for two numbers of
pictures: pictures themselves must not add to it, only their names, labels and permutations, about 70 bytes each.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
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


def load_all(folder: Path, size: int, workers: int) -> None:
    """Decode every picture once by a DataLoader."""
    crop = transforms.Compose([transforms.Resize(size), transforms.CenterCrop(size), transforms.PILToTensor()])
    loader = DataLoader(ImageFolder(str(folder), crop), batch_size=64, num_workers=workers)
    for _ in loader:
        pass


def measure(action: Callable[..., object], *arguments: object) -> tuple[float, float]:
    """Return the seconds that an action takes, and those of CPU time in this process and its workers."""
    started, used = time.perf_counter(), sum_cpu_time()
    action(*arguments)
    return time.perf_counter() - started, sum_cpu_time() - used


def sum_cpu_time() -> float:
    """Return the CPU time of this process and its workers that have ended, seconds."""
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


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
        times: dict[str, list[tuple[float, float]]] = {"staging": [], "DataLoader": []}
        form = Form(options.size, 3)
        for number in range(options.rounds):  # staging decodes, writes, hashes and flushes to the disk
            times["staging"].append(measure(stage, f"folder:{many}", root / f"data{number}", form))
            times["DataLoader"].append(measure(load_all, many, options.size, cores))
        memory = [measure_memory(folder, options.size, root / f"memory-{folder.name}") for folder in (few, many)]
    medians = {name: [statistics.median(column) for column in zip(*t, strict=True)] for name, t in times.items()}
    rates = {name: options.pictures / seconds for name, (seconds, _) in medians.items()}
    print(f"{options.pictures} JPEGs of {options.side} px to {options.size} px, {cores} cores, {options.rounds} rounds")
    for name, rate in rates.items():
        print(f"{name:12} {rate:10,.0f} pictures/s {medians[name][1]:8.1f} s of CPU time")
    print(f"ratio {rates['staging'] / rates['DataLoader']:.2f} (staging over the loader; goal 1)")
    print(f"ratio {medians['DataLoader'][1] / medians['staging'][1]:.2f} of the CPU time (the loader's over staging's)")
    print(
        f"memory {memory[0]:.0f} MiB for {options.pictures // 10} pictures, {memory[1]:.0f} MiB for {options.pictures}"
    )


if __name__ == "__main__":
    main()
