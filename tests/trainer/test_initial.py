"""`train.init`: a training that starts from the weights, or goes on from the whole state, of another trial."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from trainer.config.resolve import load_config, resolve
from trainer.errors import ConfigError
from trainer.main import main
from trainer.runs.directory import RunDirectory

DDPM = "method: ddpm\nmodel: {width: 8, timesteps: 20}\n"  # with a moving average of the weights
VAE = "method: vae\nmodel: {width: 4, latent: 8, decay: constant}\n"  # constant: the same rates whatever the length


def train(folder: Path, text: str, *settings: str, code: int = 0) -> RunDirectory:
    """Train 8 steps of a sweep file, unless `settings` say otherwise; return the newest run directory."""
    folder.mkdir(exist_ok=True)
    (folder / "tiny.yaml").write_text(text + "data: {dataset: digits}\n")
    AcceleratorState._reset_state(reset_partial_state=True)  # other tests of this process may have another precision
    common = ["train.steps=8", "train.batch_size=8", "train.log_every=4", f"data.root={folder}", *settings]
    assert main([str(folder / "tiny.yaml"), *common, "--runs", str(folder / "logs")]) == code
    return RunDirectory(max((folder / "logs" / "tiny").glob("*-*"), key=lambda path: path.stat().st_mtime_ns))


def losses(run: RunDirectory) -> list[dict[str, float]]:
    return [{k: v for k, v in line.items() if k not in ("time", "rate")} for line in run.metrics()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A finished trial, with its checkpoint of the last step."""
    return train(tmp_path_factory.mktemp("finished"), VAE, "train.keep_checkpoints=true")


def test_a_finished_trial_trained_for_longer_is_one_that_was_longer_from_the_start(
    tmp_path: Path, finished: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = train(tmp_path / "whole", VAE, "train.steps=12")
    init = [f"train.init.trial={finished.path}", "train.init.take=all"]
    longer = train(tmp_path / "longer", VAE, "train.steps=12", *init)
    weights = [load_file(run.exported_weights()[12]) for run in (whole, longer)]
    assert all(torch.equal(weights[0][name], tensor) for name, tensor in weights[1].items())
    assert losses(longer) == [line for line in losses(whole) if line["step"] > 8]
    assert (
        f"goes on from step 8 of {finished.path}; schedules follow the new length, 12 steps" in capsys.readouterr().err
    )


def test_a_training_starts_from_the_averaged_weights_of_another_trial(tmp_path: Path) -> None:
    first = train(tmp_path, DDPM)
    taken = load_file(first.exported_weights()[8])
    start = train(tmp_path, DDPM, "train.seed=1", f"train.init={first.path}", "model.lr=1e-30", "train.steps=1")
    assert start.name.startswith("ddpm,steps=1,batch_size=8,seed=1,lr=1e-30-")
    for name, tensor in load_file(start.exported_weights()[1]).items():
        if name.endswith(("weight", "bias")):  # batch norm's statistics follow the images
            assert torch.allclose(tensor, taken[name], atol=1e-6), name
    # What was taken is recorded, so the trial stays what it is when the other one is gone.
    identity = load_config(start.config_file).identity()
    shutil.rmtree(first.path)
    assert load_config(start.config_file).identity() == identity == start.name.rpartition("-")[2]


def test_the_identity_has_what_is_taken_and_not_where_it_lies(tmp_path: Path, finished: RunDirectory) -> None:
    def identity(init: object) -> str:
        return resolve(
            {"name": "a", "method": "vae", "data": {"dataset": "digits"}, "train": {"init": init}}, "here"
        ).identity()

    shutil.copytree(finished.path, tmp_path / "copy")
    original, copy, other = identity(str(finished.path)), identity(str(tmp_path / "copy")), tmp_path / "other"
    shutil.copytree(finished.path, other)
    weights = RunDirectory(other).exported_weights()[8]
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    assert identity({"trial": str(finished.path), "take": "weights"}) == original == copy
    assert len({original, identity(str(other)), identity(None), identity({"trial": str(other), "take": "all"})}) == 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["train.init=nowhere"], "train.init.trial: 'nowhere' is no run directory; give logs/<sweep>/<trial>"),
        (["train.init={run}", "model.width=8"], r"trial: encoder.0.0.weight is \[4, \d, 3, 3\] in vae,\S+, and \[8, "),
        (["train.init={run}", "method=vae_wide"], r"train.init.trial: vae,\S+ has no \S+, which this trial has"),
        (["train.init.trial={run}", "train.init.take=all"], r"take: 'all': vae,\S+ is at step 8 already; set"),
        (
            ["train.init.trial={run}", "train.init.take=all", "method=vae_wide"],
            r"take: 'all': vae,\S+ trains vae, not vae_wide, so its optimizers do not fit; set take: weights",
        ),
        (["train.init.trial={run}", "train.init.take=some"], "train.init.take: 'some'"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_in_one_line(
    tmp_path: Path, finished: RunDirectory, capsys: pytest.CaptureFixture[str], settings: list[str], message: str
) -> None:
    text = VAE.replace("decay: constant", "") if "method=vae_wide" in settings else VAE
    (tmp_path / "logs" / "tiny" / "none-0").mkdir(parents=True)
    train(tmp_path, text, *(setting.format(run=finished.path) for setting in settings), code=2)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert re.search(message, line), line


def test_checkpoints_that_are_gone_or_weights_that_changed_are_refused(
    tmp_path: Path, finished: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = RunDirectory(tmp_path / "copy")
    shutil.copytree(finished.path, copy.path)
    shutil.rmtree(copy.checkpoints)
    document = {"name": "a", "method": "vae", "data": {"dataset": "digits"}}
    with pytest.raises(ConfigError, match=r"take: 'all': copy has no checkpoint: .*; set take: weights"):
        resolve(document | {"train": {"init": {"trial": str(copy.path), "take": "all"}}}, "here")
    weights = copy.exported_weights()[8]
    planned = train(tmp_path, VAE, f"train.init={copy.path}", "train.seed=1", "--until", "4")
    shutil.rmtree(planned.checkpoints)
    planned.latest_file.unlink()
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    assert main([str(planned.path)]) == 2
    assert f"train.init.trial: {copy.path}: has changed since this trial was planned" in capsys.readouterr().err
    weights.unlink()
    with pytest.raises(
        ConfigError, match=r"here: train.init.trial: copy has no weights yet \(it is done\); wait until"
    ):
        resolve(document | {"train": {"init": str(copy.path)}}, "here")
