"""Several processes train as one: real process groups, launched as users launch them."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import models
from tests import warm
from tests.models.test_methods import build_trainer
from tests.processes import BATCH, batches, build, draws_noise

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def torchrun(processes: int, *command: str, **options: Any) -> "subprocess.Popen[str]":
    arguments = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return warm.Popen([*arguments, *command], cwd=ROOT, env=ENVIRONMENT, text=True, stderr=subprocess.PIPE, **options)


def finish(process: "subprocess.Popen[str]") -> str:
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return errors


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every method, trained by one process and by two."""
    out = tmp_path_factory.mktemp("trained")
    groups = [torchrun(processes, "-m", "tests.processes", str(out)) for processes in (1, 2)]
    for group in groups:
        finish(group)
    return out


@pytest.mark.parametrize("name", models.names())
def test_two_processes_end_with_the_same_weights_and_buffers(name: str, trained: Path) -> None:
    for kind in ("whole", "independent"):
        for ending in ("raw", "safetensors"):
            zero, one = (load_file(trained / f"{name}.{kind}.2.{rank}.{ending}") for rank in (0, 1))
            assert zero.keys() == one.keys()
            assert all(torch.equal(zero[key], one[key]) for key in zero)


@pytest.mark.parametrize("name", models.names())
def test_two_processes_train_like_one(name: str, trained: Path) -> None:
    if draws_noise(name):
        pytest.skip(f"{name} draws noise, which differs between processes by intention")
    one, two = (load_file(trained / f"{name}.independent.{world}.0.raw") for world in (1, 2))
    fresh = build(name, independent=True).state_dict()
    assert any(not torch.allclose(fresh[key], one[key]) for key in one)
    for key in one:
        torch.testing.assert_close(one[key], two[key], rtol=1e-4, atol=1e-6)


def dealt(rows: Tensor) -> Callable[..., Tensor]:
    """Return rows of fixed numbers, again and again, instead of torch.rand or torch.randn."""
    deck = cycle(rows)
    return lambda n, *shape, **options: torch.stack(list(islice(deck, n)))


def penalised(out: Path, micro_batches: int = 1) -> None:
    """Keep the gradients of an iteration of WGAN-GP; each process has its part of given images, noise and mixtures."""
    method = build("wgan_gp", independent=True).double()
    for parameter in method.get_submodule("critic").parameters():  # as trained: with slopes that matter
        parameter.data.mul_(5)
    training = build_trainer(method, micro_batches=micro_batches)
    rank, world = training.accelerator.process_index, training.accelerator.num_processes
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(BATCH, 100, generator=generator, dtype=torch.float64).chunk(world)[rank]
    mix = torch.rand(BATCH, 1, 1, 1, generator=generator, dtype=torch.float64).chunk(world)[rank]
    batch = {"images": next(batches("wgan_gp", rank, world))["images"].double()}
    with patch.object(torch, "randn", dealt(noise)), patch.object(torch, "rand", dealt(mix)):
        for _ in training.fit([batch]):
            pass
    # With a beta1 of 0 Adam keeps the gradient as it was.
    kept = {
        f"{name}.{i}": state["exp_avg"].contiguous()
        for name, optimizer in training.optimizers.items()
        for i, state in enumerate(optimizer.state.values())
    }
    terms = {name: torch.tensor(value) for name, value in training.settle()[0].items()}
    save_file({**kept, **terms}, out / f"{world}.{rank}.{micro_batches}")


def test_micro_batches_and_processes_share_one_gradient_penalty(tmp_path: Path) -> None:
    """From the same draws parts of a batch have, in the mean, the gradients and terms of the whole."""
    pair = torchrun(2, "-m", "tests.trainer.test_processes", str(tmp_path))
    for micro_batches in (1, 2, 3):
        penalised(tmp_path, micro_batches)
    finish(pair)
    whole = load_file(tmp_path / "1.0.1")
    assert "critic/penalty" in whole
    for parts in (load_file(tmp_path / name) for name in ("1.0.2", "1.0.3", "2.0.1", "2.1.1")):
        assert parts.keys() == whole.keys()
        for key, value in whole.items():
            # Terms are kept in single precision.
            assert (parts[key] - value).norm() < (1e-5 if "/" in key else 1e-6) * value.norm(), key


def test_two_processes_stop_at_one_step_and_resume_bit_identically(tmp_path: Path, data_root: str) -> None:
    """One rank gets the signal; all stop; the same command then ends with the weights of an undisturbed run."""
    settings = [
        "sweeps/dann.yaml",
        "train.steps=60",
        "train.batch_size=8",
        "train.log_every=7",
        f"data.root={data_root}",
    ]
    finish(torchrun(2, "trainer/main.py", *settings, "--runs", str(tmp_path / "whole")))

    logs = tmp_path / "disturbed"
    process = torchrun(2, "trainer/main.py", *settings, "--runs", str(logs), start_new_session=True)
    status = wait_for(lambda: running(logs), process)
    # Rank 0 writes the heartbeat: signal the other one, so that the agreement is what stops rank 0.
    workers = children(process.pid)
    other = next(pid for pid in workers if pid != status["pid"])
    os.kill(other, signal.SIGUSR2)
    assert "stopped at step" in finish(process)
    run = next(logs.glob("dann/*"))
    stopped = json.loads((run / "stopped.direct.json").read_text())["step"]
    assert 0 < stopped < 60
    assert (run / "latest").read_text().strip() == f"step-{stopped:06d}"

    assert f"resuming from step {stopped}" in finish(torchrun(2, "trainer/main.py", *settings, "--runs", str(logs)))
    whole = next((tmp_path / "whole").glob("dann/*"))
    weights = "weights/step-000060.safetensors"
    assert (run / weights).read_bytes() == (whole / weights).read_bytes()
    assert losses(run) == losses(whole)


def running(logs: Path) -> dict[str, Any]:
    for file in logs.glob("dann/*/status.json"):
        status: dict[str, Any] = json.loads(file.read_text())
        if status["state"] == "running":
            return status
    return {}


def children(pid: int) -> list[int]:
    pids = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in pids if b"trainer/main.py" in Path(f"/proc/{child}/cmdline").read_bytes()]


def wait_for(look: Any, process: "subprocess.Popen[str]") -> Any:
    deadline = time.monotonic() + 60
    while not (value := look()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return value


def losses(run: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("time", "rate")} for line in lines]


if __name__ == "__main__":  # in each process of a group: `torchrun … -m tests.trainer.test_processes OUT`
    penalised(Path(sys.argv[1]))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    os._exit(0)  # the threads of gloo sometimes abort an interpreter that takes its time to leave
