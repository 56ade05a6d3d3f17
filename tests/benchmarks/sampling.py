"""How fast a diffusion model samples, what of it is the network, and what fewer sampling steps cost in accuracy.

Of a run of ddpm: milliseconds of a call of the network (both halves of the guidance), the share of a sampling step
that is spent outside it, the ratio to the loop of diffusers' pipelines with the same network, and, of ancestral
sampling at T and of DDIM at fewer steps, seconds per 1,000 samples and the share that a classifier recognises.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler
from scipy.stats import binomtest
from torch import Tensor

from eval.features.classifier import load_judge
from eval.sampling import draw_samples
from eval.trial import TrainedTrial, load_method
from models.ddpm import DDPM
from trainer.config.resolve import load_config
from trainer.runs.directory import RunDirectory
from trainer.seeds import seed_torch

EXAMPLE = "example:\n  python tests/benchmarks/sampling.py logs/ddpm/*timesteps=400* --samples 1000 --precision bf16"
STEPS = (10, 20, 50, 100)


def now() -> float:
    """Return the time in seconds once the device is idle."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def seconds(work: Callable[[], object]) -> float:
    """Return the seconds that a call takes."""
    began = now()
    work()
    return now() - began


@torch.inference_mode()
def theirs(method: DDPM, noise: Tensor, labels: Tensor, steps: int, autocast: torch.autocast) -> Tensor:
    """The denoising loop of diffusers' pipelines: their scheduler, guidance as they write it, both halves in a call."""
    scheduler = DDIMScheduler(
        method.diffusion.timesteps,
        trained_betas=betas(method),
        timestep_spacing="trailing",
        clip_sample=True,
        prediction_type={"noise": "epsilon", "velocity": "v_prediction"}[method.predicts],
    )
    scheduler.set_timesteps(steps, device=noise.device)
    halves = parts(method)
    labels = torch.cat([torch.full_like(labels, method.classes), labels][-halves:])
    x = noise
    for t in scheduler.timesteps:
        with autocast:
            prediction = method.network(torch.cat([x] * halves), t.expand(halves * len(x)), labels).to(x.dtype)
        if halves == 2:
            free, known = prediction.chunk(2)
            prediction = free + (1 + method.guidance) * (known - free)
        x = scheduler.step(prediction, t, x, eta=0.0, use_clipped_model_output=True).prev_sample
    return x


def parts(method: DDPM) -> int:
    """Return the images per sample in a call of the network: two with guidance, with and without the class."""
    return 2 if method.classes and method.guidance else 1


def betas(method: DDPM) -> list[float]:
    """Return the variance of the noise that each time adds."""
    share = method.diffusion.share.cpu()
    earlier = torch.cat([torch.ones(1, dtype=share.dtype), share[:-1]])
    return [float(beta) for beta in 1 - share / earlier]


@torch.inference_mode()
def overhead(method: DDPM, n: int, steps: int, rounds: int, how: dict[str, Any]) -> None:
    """Print how long the network takes, what is added to it, and how that compares with diffusers' loop."""
    device = method.diffusion.share.device
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=how["precision"] == "bf16")
    noise = torch.randn(n, *method.shape, device=device)
    labels = torch.arange(n, device=device) % max(1, method.classes)
    inside: list[float] = []
    hooks = (
        method.network.register_forward_pre_hook(lambda *_: inside.append(-now())),
        method.network.register_forward_hook(lambda *_: inside.append(now())),
    )

    def ours() -> Tensor:
        return method.sample(n, labels if method.classes else None, noise=noise, steps=steps, eta=0.0, **how)

    works = {"ours": ours, "diffusers": lambda: theirs(method, noise, labels, steps, autocast)}
    apart = (ours() - works["diffusers"]()).abs()
    calls, outside, ratio = [], [], []
    for number in range(rounds):
        times = {}
        # Take turns at being first, so that a drift of the machine's speed falls on both.
        for name in list(works)[:: 1 if number % 2 else -1]:
            inside.clear()
            times[name] = seconds(works[name])
            if name == "ours":
                calls.append(1e3 * sum(inside) / steps)
                outside.append(1 - sum(inside) / times[name])
        ratio.append(times["ours"] / times["diffusers"])
    for hook in hooks:
        hook.remove()
    call = statistics.median(calls)
    print(f"a call of the network, {parts(method)} × {n} images: {call:.1f} ms (median of {rounds})")
    print(f"outside it: {100 * statistics.median(outside):.1f} % of the time; goal under 5 %")
    print(f"ratio to the loop of diffusers: {statistics.median(ratio):.3f} ({min(ratio):.3f} … {max(ratio):.3f})")
    print(f"images apart from those of diffusers: mean {apart.mean():.1e}, at most {apart.max():.1e}")


@torch.inference_mode()
def compiled(method: DDPM, n: int, steps: int, how: dict[str, Any]) -> None:
    """Print how much faster a compiled network samples, and whether its images are the same."""
    images = []
    for compile in (False, True):
        how = how | {"compile": compile, "eta": 0.0, "steps": steps}

        def work(how: dict[str, Any] = how) -> Tensor:
            seed_torch(0)
            return method.sample(n, **how)

        images.append((work(), seconds(work)))
    (plain, slow), (fused, fast) = images
    print(f"compiled: {slow / fast:.2f} times as fast; images apart by at most {(plain - fused).abs().max():.1e}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="a run directory of ddpm")
    parser.add_argument("--samples", type=int, default=1000, help="of each setting, as many of each class")
    parser.add_argument("--precision", choices=["no", "bf16"], default="no")
    parser.add_argument("--compile", action="store_true", help="try the compiled network, too")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    config = load_config(options.run / "config.yaml")
    files = RunDirectory(options.run).exported_weights()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    method = load_method(config, files[max(files)], device)
    assert isinstance(method, DDPM)
    subject = TrainedTrial(RunDirectory(options.run), config, files, max(files), method, device, Path())
    if 0 < options.samples < method.classes:
        parser.error(f"--samples: {options.samples} must be 0, or one of each of {method.classes} classes at least")
    how, whole = {"precision": options.precision}, method.diffusion.timesteps
    print(f"{options.run.name}: {device}, precision {options.precision}, {torch.get_num_threads()} threads")
    overhead(method, 100, min(10, whole), options.rounds, how)
    if not options.samples:
        return
    if options.compile:
        compiled(method, 100, min(10, whole), how)
    if not method.classes:
        print("no accuracy: the method learns no classes that a classifier could recognise")
        return
    classifier = load_judge(subject.cache_folder(""), device)
    print(f"accuracy of the classifier on test images: {classifier.facts['test accuracy']:.4f}")
    labels = torch.arange(config.data.shape()[2]).repeat_interleave(options.samples // config.data.shape()[2])
    settings = {f"DDIM {steps}": {"steps": steps, "eta": 0.0} for steps in STEPS if steps <= whole}
    settings[f"DDPM {whole}"] = {"steps": whole, "eta": 1.0}
    for name, setting in settings.items():
        parts: list[Tensor] = []
        took = seconds(lambda: parts.extend(draw_samples(subject, len(labels), 0, "benchmark", labels, how | setting)))  # noqa: B023
        with torch.inference_mode():
            named = torch.cat([classifier.logits(images).argmax(1).cpu() for images in parts])
        correct = int((named == labels).sum())
        interval = binomtest(correct, len(labels)).proportion_ci(0.95, method="wilson")
        print(
            f"{name:>9}: {1000 * took / len(labels):6.1f} s per 1,000 samples, accuracy {correct / len(labels):.3f} "
            f"({interval.low:.3f} to {interval.high:.3f}) of {len(labels)}",
            flush=True,
        )


if __name__ == "__main__":
    main()
