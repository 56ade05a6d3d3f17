"""Start a training from the weights, or from the whole state, of another trial."""

from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from trainer.config.initial import Init, locate
from trainer.errors import ConfigError
from trainer.loop import Trainer
from trainer.runs.atomic import hash_file
from trainer.runs.directory import RunDirectory


def load_initial(init: Init, trainer: Trainer, place: Path) -> str:
    """Load what a training starts from; return a line that says what was taken.

    ConfigError, which begins with `place`, if it is not there any more, has changed, or does not fit.
    """
    run = RunDirectory(Path(init.trial))
    try:
        step, file = locate(run, init.take)
        if hash_file(file) != init.sha256:
            raise ValueError(f"trial: {run.path}: has changed since this trial was planned; submit the sweep again")
        weights = load_file(file if init.take == "weights" else file.with_name("method.safetensors"))
        trained = trainer.method.state_dict()
        check_fit(trained, weights, run)
        if init.take == "all":
            trainer.load(file.parent)
            return (
                f"goes on from step {step} of {run.path}; schedules follow the new length, {trainer.train.steps} steps"
            )
        trainer.method.load_state_dict({name: weights[name] for name in trained})
        trainer.averages.load_state_dict({name: weights[name] for name in trainer.averages.state_dict()})
    except ValueError as error:
        raise ConfigError(f"{place}: train.init.{error}") from None
    return f"starts from {len(trained)} of the {len(weights)} tensors of {run.path}, step {step}"


def check_fit(networks: dict[str, Tensor], weights: dict[str, Tensor], run: RunDirectory) -> None:
    """Check that another trial has every tensor of the networks, in its shape; ValueError names the first other one."""
    for name, tensor in networks.items():
        if name not in weights:
            raise ValueError(
                f"trial: {run.name} has no {name}, which this trial has; give a trial of the same networks"
            )
        if (shape := [*tensor.shape]) != [*weights[name].shape]:
            raise ValueError(
                f"trial: {name} is {[*weights[name].shape]} in {run.name}, and {shape} here; give the same `model` and "
                "`data` settings to both"
            )
