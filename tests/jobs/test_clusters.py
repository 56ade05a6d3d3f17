"""Cluster presets without any Slurm: how one is chosen, what may stand in it, and what it makes of a sweep."""

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from jobs.backends.slurm import client, presets, sbatch
from jobs.backends.slurm.presets import Preset, load_preset
from tests.jobs.test_submit import DANN, check_refused, command
from trainer.config.document import Setting
from trainer.config.schema import Resources
from trainer.config.sweep import load_trials
from trainer.errors import ConfigError


def preset(folder: Path, **content: Any) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "lab.yaml").write_text(yaml.safe_dump(content))
    return str(folder / "lab.yaml")


def test_the_example_preset_is_valid_and_shows_every_key() -> None:
    example = load_preset("example")
    assert example.resources.gres == "gpu:a100"
    text = (presets.FOLDER / "example.yaml").read_text()
    for name in Preset.model_fields:
        assert f"\n{name}:" in text or f"\n# {name}:" in text, f"the example does not show {name}"


def test_commented_lines_of_the_example_preset_are_valid(tmp_path: Path) -> None:
    lines = (presets.FOLDER / "example.yaml").read_text().splitlines()
    keys = tuple(f"# {name}:" for name in Preset.model_fields)
    bare = [line[2:] if line.startswith((*keys, "#   - ")) else re.sub("^    # ", "    ", line) for line in lines]
    (tmp_path / "all.yaml").write_text("\n".join(bare))
    loaded = load_preset(str(tmp_path / "all.yaml"))
    assert loaded.model_fields_set == set(Preset.model_fields)
    assert loaded.container[:2] == ["apptainer", "exec"]
    assert loaded.resources.slurm["constraint"] == "a100&nvme"


@pytest.mark.parametrize("name", [None, "local", "slurm"])
def test_without_a_preset_defaults_apply(name: str | None) -> None:
    assert load_preset(name) == Preset()


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "unknown key": ({"containr": "x"}, r"lab.yaml:1: containr: unknown key 'containr'; did you mean 'container'"),
    "unknown resource": (
        {"resources": {"gpus": 2}},
        r"lab.yaml:2: resources.gpus: unknown key 'gpus'.*gpus_per_node",
    ),
    "an option that is ours": ({"resources": {"slurm": {"time": 5}}}, r"resources.slurm: .*use resources.time"),
    "a count in gres": ({"resources": {"gres": "gpu:a100:2"}}, r"resources.gres: 'gpu:a100:2': .*without a count"),
    "a count alone": ({"resources": {"gres": "gpu:2"}}, r"resources.gres: 'gpu:2': .*without a count"),
    "no list": ({"setup": "module load cuda"}, r"lab.yaml:1: setup: 'module load cuda': .*list"),
    "an open quote": ({"container": "run 'x"}, r'lab.yaml:1: container: "run \'x": no closing quotation'),
    "no number": ({"max_array": 0}, r"lab.yaml:1: max_array: 0: .*greater than 0"),
}


@pytest.mark.parametrize("case", WRONG)
def test_an_invalid_preset_is_refused_by_file_and_key(case: str, tmp_path: Path) -> None:
    content, said = WRONG[case]
    with pytest.raises(ConfigError, match=said):
        load_preset(preset(tmp_path, **content))


def test_an_unknown_preset_is_refused_with_the_nearest_name(tmp_path: Path, data_root: str) -> None:
    (tmp_path / "x.yaml").write_text(DANN)
    words = [str(tmp_path / "x.yaml"), "--dry-run", "--runs", str(tmp_path / "logs")]
    result = command(data_root, *words, "--cluster", "exampel")
    check_refused(result, "--cluster", "'exampel'", "did you mean 'example'", "sweeps/clusters/")
    result = command(data_root, *words, TURNOUT_CLUSTER="./nowhere.yaml")
    check_refused(result, "nowhere.yaml", "No such file")
    # The command line wins over the variable, and a preset is for Slurm.
    assert command(data_root, *words, "--cluster", "local", TURNOUT_CLUSTER="exampel").returncode == 0
    result = command(data_root, *words, TURNOUT_CLUSTER="local")
    assert "on this machine (requested by TURNOUT_CLUSTER)" in result.stdout
    result = command(data_root, words[0], "--runs", words[3], PATH=str(tmp_path), TURNOUT_CLUSTER="example")
    check_refused(result, "TURNOUT_CLUSTER: example", "no sbatch", "--cluster local")


def test_a_preset_may_build_on_another(tmp_path: Path) -> None:
    preset(tmp_path, resources={"mem_gb": 8, "slurm": {"partition": "gpu"}}, max_jobs=5)
    (tmp_path / "big.yaml").write_text("base: lab.yaml\nresources: {slurm: {account: vision}}\n")
    loaded = load_preset(str(tmp_path / "big.yaml"))
    assert loaded.resources.slurm == {"partition": "gpu", "account": "vision"}
    assert loaded.max_jobs == 5


def test_a_sweep_file_overrides_the_preset_and_identities_stay(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(DANN + "resources: {mem_gb: 1, slurm: {account: own}}\ngrid: {train.seed: [0, 1]}\n")
    resources = {"mem_gb": 8, "cpus_per_gpu": 2, "slurm": {"account": "lab", "partition": "gpu"}}
    lab = load_preset(preset(tmp_path / "presets", resources=resources))
    plain, trials = load_trials(file, []), load_trials(file, ["resources.slurm.qos=fast"], lab.defaults())
    assert [t.identity for t in trials] == [t.identity for t in plain]
    assert [t.name for t in trials] == [t.name for t in plain]
    chosen = trials[0].config.resources
    assert (chosen.mem_gb, chosen.cpus_per_gpu, chosen.gpus_per_node) == (1, 2, 1)
    assert chosen.slurm == {"account": "own", "partition": "gpu", "qos": "fast"}


def test_a_dry_run_shows_the_settings_of_the_preset(tmp_path: Path, data_root: str) -> None:
    """Also where there is no Slurm."""
    (tmp_path / "x.yaml").write_text(DANN)
    asked = {"gres": "gpu:a100", "gpus_per_node": 2, "slurm": {"gres": "lscratch:10", "account": "vision"}}
    lab = preset(
        tmp_path,
        resources=asked,
        setup=["module load cuda  # twice"],
        container=["apptainer", "exec", "/a b.sif"],
        srun="--mpi=none",
    )
    words = ["--dry-run", "--runs", str(tmp_path / "logs"), "--cluster", lab]
    result = command(data_root, str(tmp_path / "x.yaml"), *words, PATH="/nowhere")
    assert result.returncode == 0, result.stderr
    train = result.stdout.partition("#!/bin/bash")[2]
    for line in ("#SBATCH --account=vision", "#SBATCH --gres=gpu:a100:2,lscratch:10", "module load cuda  # twice"):
        assert f"\n{line}\n" in train
    assert "--gpus-per-node" not in train
    places = [train.index(text) for text in ("module load", "srun ", " --mpi=none ", "submitit.core")]
    assert places == sorted(places)
    assert "start with: apptainer exec '/a b.sif' python3" in result.stdout


@pytest.mark.skipif(shutil.which("env") is None, reason="needs env")
def test_the_launcher_ignores_signals_at_start_and_imports_its_own_code_first(tmp_path: Path) -> None:
    """Run by a real shell, from a path that it would have to be careful with."""
    code = tmp_path / "a b'\"$(touch x)"
    code.mkdir()
    (code / "probe.py").write_text(
        "import os, signal, sys\n"
        "print(os.getcwd())\nprint(os.environ['PYTHONPATH'])\nprint(sys.path[0])\n"
        "print(*(signal.getsignal(n).name for n in (signal.SIGUSR2, signal.SIGTERM)))\n"
    )
    for before, behind in (("", ""), ("/somewhere:/else", ":/somewhere:/else")):
        done = subprocess.run(
            ["sh", "-c", f"{Preset().launcher_command(code)} -m probe"],
            env=os.environ | {"PYTHONPATH": before}, cwd=tmp_path, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert done.stdout.splitlines() == [str(code), f"{code}{behind}", str(code), "SIG_IGN SIG_IGN"]


def test_python_of_the_nodes_or_of_the_container(tmp_path: Path) -> None:
    nodes = Preset(python="/opt/py thon")
    assert nodes.launcher_command(tmp_path).endswith(" '/opt/py thon'")
    assert nodes.container_command() == []
    boxed = Preset(python="/opt/python", container=["run", "x"])
    assert "/opt/python" not in boxed.launcher_command(tmp_path)
    assert boxed.container_command() == ["run", "x", "/opt/python"]
    assert Preset(container=["run"]).container_command() == ["run", "python3"]


def test_without_sbatch_options_are_not_checked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    presets.check_options({"resources.slurm.partishun": Setting("x", "lab.yaml")})


def test_slurm_variables_are_removed_except_those_of_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SBATCH_PARTITION", "SLURM_JOB_ID", "SRUN_DEBUG", "SQUEUE_FORMAT", "SLURM_CONF", "SLURM_JWT"):
        monkeypatch.setenv(name, "x")
    before = dict(os.environ)
    with client.clean_environment():
        assert before.keys() - os.environ.keys() == {"SBATCH_PARTITION", "SLURM_JOB_ID", "SRUN_DEBUG", "SQUEUE_FORMAT"}
    assert dict(os.environ) == before


def test_elements_of_an_array_are_cancelled_in_one_request() -> None:
    assert client.compress(["7_3", "7_0", "9", "7_1", "8_5", "7_2", "7_5"]) == ["7_[0-3,5]", "9", "8_[5]"]


@pytest.mark.parametrize(
    ("resources", "message"),
    [
        ({"slurm": {"export": "NONE"}}, "export is set by Turnout"),
        ({"slurm": {"no-requeue": True}}, "no-requeue is set by Turnout; use resources.max_requeues instead"),
        ({"slurm": {"wait": True}}, "wait cannot be used"),
        ({"slurm": {"mem-per-gpu": "4G"}}, "mem_gb and slurm.mem-per-gpu exclude each other; set mem_gb: null"),
    ],
)
def test_options_that_would_break_a_sweep_are_refused(resources: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Resources.model_validate(resources)
    assert Resources.model_validate({"mem_gb": None, "slurm": {"mem-per-gpu": "4G"}}).mem_gb is None


def test_a_report_gets_the_options_of_the_sweep_but_not_those_of_a_gpu(tmp_path: Path) -> None:
    options = {"account": "vision", "mail-user": "a@b", "reservation": "x", "gres": "lscratch:1", "constraint": "a100"}
    resources = Resources.model_validate({"slurm": options, "mem_gb": None})
    chosen = [sbatch.parameters(tmp_path, stage, resources, {}, Preset()) for stage in ("train", "report")]
    train, report = (parameters["additional_parameters"] for parameters in chosen)
    assert set(options) <= train.keys()
    assert report.keys() & options.keys() == {"account", "mail-user", "reservation"}
    assert [parameters["mem"] for parameters in chosen] == [None, "4096M"]
    assert all(parameters["wckey"] is None for parameters in chosen)


@pytest.mark.parametrize(
    ("answer", "place", "error"),
    [
        (
            "echo 'scontrol: fatal: Could not establish a configuration source' >&2; exit 1",
            "on this machine (sbatch is installed here, but no cluster is configured)",
            "command line: this starts 60 trials; add --yes to confirm",
        ),
        (
            "echo 'Slurmctld(primary) at head is DOWN'; echo '*****'; exit 1",
            "",
            "Slurm: no controller answers: Slurmctld(primary) at head is DOWN; try again later, or use --cluster local",
        ),
    ],
)
def test_only_an_unreachable_cluster_keeps_a_sweep_from_running_locally(
    answer: str, place: str, error: str, tmp_path: Path, data_root: str
) -> None:
    """Packages of Slurm alone, without a configuration, are no cluster."""
    (tmp_path / "x.yaml").write_text(DANN + f"grid: {{train.seed: {[*range(60)]}}}\n")
    for name, text in (("sbatch", "exit 1"), ("scontrol", answer)):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    words = [str(tmp_path / "x.yaml"), "--runs", str(tmp_path / "logs")]
    result = command(data_root, *words, PATH=f"{tmp_path}:{os.environ['PATH']}")
    check_refused(result, error)
    assert place in result.stdout
