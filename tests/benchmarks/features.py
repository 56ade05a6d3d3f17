"""Images per second of Inception's features, against what pytorch-fid's own command does with the same images.

Both read the weights, take the features of every image and end with mean and covariance, alternating in one run; the
command (`python -m pytorch_fid --save-stats`) starts from PNGs, and its start as a program is not counted. Where the
right weights are missing, random ones of their shapes are as fast. With a run directory: how fast it makes images.
"""

import argparse
import hashlib
import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image
from pytorch_fid import fid_score
from pytorch_fid import inception as theirs

from eval.features import inception
from eval.features.extractor import collect
from eval.sampling import draw_samples
from eval.trial import TrainedTrial, load_method
from trainer.config.resolve import load_config
from trainer.data.cache import load, stage
from trainer.runs.directory import RunDirectory

EXAMPLE = "example:\n  python tests/benchmarks/features.py --images 200 --run logs/dcgan/dcgan,seed=0-1a2b3c4d"


def at_random(path: Path) -> None:
    """Write weights drawn by chance, under the names and in the shapes of the right ones, which signals get through."""
    load_state = torchvision.models.Inception3.load_state_dict
    theirs.load_state_dict_from_url = lambda *_, **__: {}
    torchvision.models.Inception3.load_state_dict = lambda *_: None
    network = theirs.fid_inception_v3()
    torchvision.models.Inception3.load_state_dict = load_state
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
    torch.save(network.state_dict(), path)
    inception.SHA256 = hashlib.sha256(path.read_bytes()).hexdigest()
    os.environ["TURNOUT_INCEPTION"] = str(path)


def seconds(work: Callable[[], object]) -> float:
    """How long it takes, to the end of what the device does."""
    began = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


def main() -> None:
    """Print images/s and the ratio, its median over rounds."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=200, help="of the test split of mnistm5k, at most 1,000")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=0, help="processes that read PNGs for pytorch-fid")
    parser.add_argument("--run", type=Path, help="a run directory of a method with sample()")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        stage("mnistm5k", folder)
        images = np.array(load("mnistm5k", "test", folder).images[: options.images])
        (folder / "pictures").mkdir()
        for number, image in enumerate(images):
            Image.fromarray(image.transpose(1, 2, 0)).save(folder / "pictures" / f"{number:04d}.png")
        if not inception.weights_path().exists():
            at_random(folder / "weights.pth")
        weights = inception.read(inception.weights_path())
        theirs.load_state_dict_from_url = lambda *_, **__: weights
        saved: list[tuple[np.ndarray, np.ndarray]] = []

        def ours() -> None:
            gaussian = collect([torch.from_numpy(images)], inception.extractor(device)).moments.gaussian()
            saved.append((gaussian.mean, gaussian.covariance))

        def command() -> None:
            (folder / "statistics.npz").unlink(missing_ok=True)
            paths = [str(folder / "pictures"), str(folder / "statistics.npz")]
            with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                fid_score.save_fid_stats(paths, 50, device, 2048, options.workers)

        rates: list[tuple[float, float]] = []
        for number in range(options.rounds):
            rates.append((len(images) / seconds(ours), len(images) / seconds(command)))
            print(f"round {number + 1}: %.1f images/s, pytorch-fid %.1f" % rates[-1], flush=True)
        with np.load(folder / "statistics.npz") as file:
            for name, mine in zip(("mu", "sigma"), saved[-1], strict=True):
                apart = abs(file[name] - mine).max() / abs(file[name]).max()
                print(f"{name}: apart by at most {apart:.1e} of its largest value")
    mine, other = (statistics.median(column) for column in zip(*rates, strict=True))
    ratio = statistics.median(a / b for a, b in rates)
    print(f"features: {mine:.1f} images/s, {ratio:.2f} times the {other:.1f} of pytorch-fid ({device.type})")
    if options.run:
        config = load_config(options.run / "config.yaml")
        files = RunDirectory(options.run).exported_weights()
        method = load_method(config, files[max(files)], device)
        subject = TrainedTrial(RunDirectory(options.run), config, files, max(files), method, device, Path())
        drawn = [seconds(lambda: list(draw_samples(subject, 1000, 0, "benchmark"))) for _ in range(options.rounds)]
        print(f"generation: {1000 / statistics.median(drawn):.0f} images/s of {config.method} ({device.type})")


if __name__ == "__main__":
    main()
