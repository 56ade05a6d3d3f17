"""What launchers ask for is adopted or refused in one line: `accelerate launch`, torchrun and variables of MPI."""

import json
import os
import re
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PYTHON = (sys.executable,)
ACCELERATE = (*PYTHON, "-m", "accelerate.commands.launch")
TORCHRUN = (*PYTHON, "-m", "torch.distributed.run", "--standalone")
SWEEP = "method: vae\nmodel: {width: 1, latent: 2}\ndata: {dataset: digits}\ntrain: {steps: 2, batch_size: 8}\n"
Result = tuple[str, list[tuple[int, str]]]  # what was printed; exit code and output of each trial
TWO = "^vae-.*: 2 processes, %s, cpu, global batch 8 = 2 × 4\n(.*\n)*.*: done at step 2"


@dataclass
class Variant:
    """A start of a launcher. Each setting is a trial of one process, all trained or refused under this launcher."""

    launcher: tuple[str, ...]
    trials: dict[str, str]  # `key=value`, or "" → a regular expression of what is printed
    config: dict[str, object] = field(default_factory=dict)  # of accelerate
    variables: dict[str, str] = field(default_factory=dict)
    pair: str = ""  # instead of trials: what the start of two processes prints


def config(kind: str, **more: object) -> dict[str, object]:
    return {"compute_environment": "LOCAL_MACHINE", "distributed_type": kind, **more}


VARIANTS = {
    "nothing": Variant(
        ACCELERATE,
        {"": "1 process, fp32, cpu, global batch 8\n"},
        variables={"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0", "MASTER_PORT": "1", "RANK": "3"},
    ),
    "processes": Variant((*ACCELERATE, "--num_processes", "2"), {}, pair=TWO % "fp32"),
    "processes that do not divide the batch": Variant(
        (*ACCELERATE, "--num_processes", "3", "--cpu"),
        {"": r"accelerate launch: num_processes: 3: train.batch_size: 8 is not divisible by 3 .*valid size is 9"},
    ),
    "processes that do not divide by machines": Variant(
        (*ACCELERATE, "--num_processes=3", "--num_machines=2", "--main_process_ip=::1", "--main_process_port=1"),
        {"": r"num_processes: 3 is not divisible by num_machines \(2\)"},
    ),
    "precision and accumulation": Variant(
        (*ACCELERATE, "--mixed_precision=bf16", "--gradient-accumulation-steps", "2"),
        {
            "": "1 process, bf16, cpu, global batch 8, 2 micro-batches\n",
            "train.precision=bf16": "already done",
            "train.micro_batches=2": "already done",
            "train.precision=no": r"line: train.precision: 'no' contradicts 'bf16' \(accelerate launch: mixed_pr",
            "train.micro_batches=4": r"line: train.micro_batches: 4 contradicts 2 \(accelerate launch: gradient_acc",
        },
    ),
    "a precision of no": Variant(
        (*ACCELERATE, "--mixed_precision", "no"), {"train.precision=bf16": "train.precision: 'bf16' contradicts 'no'"}
    ),
    "a config file for CPUs": Variant(
        ACCELERATE,
        {},
        config("MULTI_CPU", num_processes=2, mixed_precision="bf16", use_cpu=True),
        pair=TWO % "bf16",
    ),
    "a config file without precision": Variant(
        ACCELERATE,
        {"train.precision=bf16": "1 process, bf16"},
        config("NO", num_processes=1, mixed_precision="no"),
    ),
    "a config file that torchrun reads": Variant(
        ACCELERATE,
        {},
        config("MULTI_GPU", num_processes=2, num_machines=1, main_process_port=0),
        pair=TWO % "fp32",
    ),
    "a compiler": Variant(
        (*ACCELERATE, "--dynamo_backend", "inductor"),
        {"": "^error: environment: ACCELERATE_DYNAMO_BACKEND=INDUCTOR: not supported; unset [^\n]*\n$"},
    ),
    "FSDP": Variant(
        (*ACCELERATE, "--use_fsdp", "--num_processes", "2", "--main_process_port", "0"),
        {"": "^error: environment: ACCELERATE_USE_FSDP=true: FSDP is not supported; [^\n]*\n$"},
    ),
    "DeepSpeed": Variant(
        PYTHON,
        {"": "^error: environment: ACCELERATE_USE_DEEPSPEED=true: DEEPSPEED is not supported"},
        variables={"ACCELERATE_USE_DEEPSPEED": "true"},
    ),
    "torchrun": Variant(
        (*TORCHRUN, "--nproc-per-node", "2"),
        {},
        variables={"ACCELERATE_MIXED_PRECISION": "bf16"},
        pair=TWO % "bf16",
    ),
    "fp8": Variant(
        PYTHON,
        {"": r"environment: ACCELERATE_MIXED_PRECISION: train.precision: 'fp8': input should be 'no', 'bf16' or"},
        variables={"ACCELERATE_MIXED_PRECISION": "fp8"},
    ),
    "mpirun": Variant(
        PYTHON,
        {"": "^error: environment: OMPI_COMM_WORLD_SIZE=2: torchrun did not start this process"},
        variables={"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "1"},
    ),
    "what torchrun left": Variant(
        PYTHON,
        {"": "^error: environment: WORLD_SIZE=2: torchrun did not start this process"},
        variables={
            **{"TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_ERROR_FILE": "/nowhere/error.json", "RANK": "0"},
            **{"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"},
        },
    ),
}  # fmt: skip


def start(folder: Path, variant: Variant) -> Result:
    """Run a variant in a folder; return what was printed, and exit code and output of each trial."""
    folder.mkdir()
    (folder / "tiny.yaml").write_text(SWEEP)
    launcher = [*variant.launcher]
    if variant.config:
        (folder / "accelerate.yaml").write_text(yaml.dump(variant.config))
        launcher += ["--config_file", str(folder / "accelerate.yaml")]
    common = [str(folder / "tiny.yaml"), f"data.root={folder.parent}", "--runs", str(folder / "logs")]
    lines = [json.dumps([*common, *filter(None, [setting])]) for setting in variant.trials]
    (folder / "trials").write_text("\n".join(lines))
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("ACCELERATE_", "TURNOUT_"))}
    environment |= {"OMP_NUM_THREADS": "1", "HF_HOME": str(folder), **variant.variables}
    program = ["tests/launched.py", str(folder / "trials"), str(folder / "results")]
    command = [*launcher, *(["trainer/main.py", *common] if variant.pair else program)]
    result = subprocess.run(
        command, cwd=ROOT, env=environment, text=True, capture_output=True, timeout=300, check=False
    )
    text = result.stdout + result.stderr
    if variant.pair:
        return text, []
    assert (folder / "results").exists(), text
    return text, [tuple(json.loads(line)) for line in (folder / "results").read_text().splitlines()]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, "Future[Result]"]:
    """Every variant, two at a time."""
    folder = tmp_path_factory.mktemp("launchers")
    with ThreadPoolExecutor(2) as pool:
        return {name: pool.submit(start, folder / str(i), v) for i, (name, v) in enumerate(VARIANTS.items())}


@pytest.mark.parametrize("name", VARIANTS)
def test_launcher_settings_are_adopted_or_refused_in_one_line(name: str, results: dict[str, "Future[Result]"]) -> None:
    text, trials = results[name].result()
    assert re.search(VARIANTS[name].pair, text, re.MULTILINE), text
    for (code, output), (setting, pattern) in zip(trials, VARIANTS[name].trials.items(), strict=True):
        assert re.search(pattern, output), (setting, output, text)
        errors = [line for line in output.splitlines() if line.startswith("error:")]
        assert (code, len(errors), "Traceback" in output) == (2 if errors else 0, 1 if errors else 0, False), output
        assert errors or "done" in output
