"""The training loop: the only place that steps an optimizer. It knows no method."""

import ctypes
import inspect
import json
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import partial, reduce
from operator import add
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from models.base import Batch, Method, Update
from trainer.config.schema import Train
from trainer.parallel import Processes, broadcast, mean_over_processes
from trainer.seeds import seed_torch
from trainer.speed import compile_networks, fuse

LossTerms = dict[str, float]  # of one step, "<update>/<term>"
State = dict[str, Any]  # of a training, as `write_state` writes it


class NonFiniteLoss(RuntimeError):
    """A loss term is NaN or infinite; the message names update, term and step."""


class Trainer:
    """Train a method: owns networks, optimizers, averages and the step, which is all that a checkpoint holds."""

    def __init__(self, method: Method, accelerator: Processes, train: Train) -> None:
        self.accelerator, self.train, self.step = accelerator, train, 0
        if accelerator.device.type == "cpu":
            keep_freed_memory()
        # Convolutions are fastest in the channels-last layout, on CPU and GPU alike.
        self.method = method.to(accelerator.device).to(memory_format=torch.channels_last).train().requires_grad_(False)
        spare_compiler_import()
        broadcast(accelerator, self.method)
        self.averages = nn.ModuleDict({name: deepcopy(getattr(method, name)) for name in method.averaged})
        self.updates = method.updates()
        self.parameters = {update.name: parameters(method, update) for update in self.updates}
        # Not prepared by Accelerate: each step of its wrapper looks for packages on the disk.
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        for u in self.updates:
            create = partial(u.optimizer, list(self.parameters[u.name].values()))
            self.optimizers[u.name] = self.optimizers[u.shares] if u.shares else create()
        if train.fused:
            for optimizer in self.optimizers.values():
                fuse(optimizer)
        if train.compile:
            compile_networks(self.method)
        self.base_lr = {name: [g["lr"] for g in opt.param_groups] for name, opt in self.optimizers.items()}
        self.recent: list[tuple[int, list[str], Tensor]] = []  # loss terms that are still on the device
        self.terms_by_step: dict[int, LossTerms] = {}  # on the host, since the last line of the log
        self.norms: dict[str, Tensor] = {}  # update → gradient norm at its last step before a line of the log

    def fit(self, batches: Iterable[Batch]) -> Iterator[int]:
        """Train one step per batch and yield the number of steps; the caller logs and saves."""
        for batch in batches:
            seed_torch(self.train.seed, self.step, self.accelerator.process_index)
            for update in self.updates:
                if self.step % update.every == 0:
                    self.apply(update, batch)
            self.average()
            self.step += 1
            yield self.step

    def apply(self, update: Update, batch: Batch) -> None:
        """Take one optimizer step; the gradient is the mean over micro-batches and over processes."""
        optimizer, params = self.optimizers[update.name], self.parameters[update.name]
        progress, scaler = self.step / self.train.steps, self.accelerator.scaler
        for group, lr in zip(optimizer.param_groups, self.base_lr[update.name], strict=True):
            group["lr"] = lr * update.schedule(progress)
        total = torch.zeros((), device=self.accelerator.device)
        with trainable(params.values()):
            for part in split(batch, self.train.micro_batches):
                with self.accelerator.autocast():
                    losses = update.loss(part, progress)
                loss = reduce(add, (term.float() for term in losses.values())) / self.train.micro_batches
                (scaler.scale(loss) if scaler else loss).backward()
                total = total + torch.stack([term.detach().float() for term in losses.values()])
        self.reduce_gradients(update, params)
        is_watched = -(self.step + 1) % self.train.log_every < update.every
        if self.train.clip or is_watched:
            self.accelerator.unscale_gradients(optimizer)
        if self.train.clip:
            self.norms[update.name] = nn.utils.clip_grad_norm_(params.values(), self.train.clip)
        elif is_watched:
            self.norms[update.name] = nn.utils.get_total_norm([p.grad for p in params.values() if p.grad is not None])
        if scaler:
            scaler.step(optimizer)
            scaler.update()
        else:
            take_step(optimizer)
        optimizer.zero_grad()
        self.recent.append((self.step, [f"{update.name}/{name}" for name in losses], total / self.train.micro_batches))

    def reduce_gradients(self, update: Update, params: dict[str, nn.Parameter]) -> None:
        """Average gradients over processes in one collective, however often each network was called."""
        unreached = [name for name, p in params.items() if p.grad is None]
        if unreached:
            raise RuntimeError(f"update {update.name!r} trains {unreached[0]}, but its loss does not depend on it")
        if self.accelerator.num_processes > 1:
            gradients = [p.grad for p in params.values() if p.grad is not None]
            mean_over_processes(self.accelerator, gradients)

    @torch.no_grad()
    def average(self) -> None:
        """Update the moving averages, and give all processes the same running statistics of batch norm."""
        if self.accelerator.num_processes > 1:
            norms = [m for m in self.method.modules() if isinstance(m, _BatchNorm)]
            mean_over_processes(
                self.accelerator, [t for m in norms for t in (m.running_mean, m.running_var) if t is not None]
            )
        for name, decay in self.method.averaged.items():
            # The decay warms up, so that the average forgets the initial weights.
            decay = min(decay, (1 + self.step) / (10 + self.step))
            network, mean = getattr(self.method, name), self.averages[name]
            torch._foreach_lerp_(list(mean.parameters()), list(network.parameters()), 1 - decay)
            for old, new in zip(mean.buffers(), network.buffers(), strict=True):
                old.copy_(new)

    def settle(self) -> dict[int, LossTerms]:
        """Return the loss terms since the last line of the log, averaged over processes; NonFiniteLoss.

        The only place where the host waits for the device.
        """
        if self.recent:
            # Equal on every process, so that all of them fail if a term of one is not finite.
            values = self.accelerator.reduce(torch.cat([v for _, _, v in self.recent]), "mean").tolist()
            for step, names, _ in self.recent:
                terms, values = dict(zip(names, values, strict=False)), values[len(names) :]
                for name, value in terms.items():
                    if not math.isfinite(value):
                        raise NonFiniteLoss(
                            f"loss {name} is {value} at step {step}; lower the learning rate or set train.clip"
                        )
                self.terms_by_step.setdefault(step, {}).update(terms)
            self.recent = []
        return self.terms_by_step

    def monitor(self) -> dict[str, float]:
        """Return learning rates, gradient norms and ramps of the last step."""
        rates = {f"lr/{name}": optimizer.param_groups[0]["lr"] for name, optimizer in self.optimizers.items()}
        norms = {f"gradient_norm/{name}": float(norm) for name, norm in self.norms.items()}
        ramps = self.method.ramps((self.step - 1) / self.train.steps)
        return {**rates, **norms, **{f"ramp/{name}": value for name, value in ramps.items()}}

    def state(self) -> State:
        """Return all state, which the next step changes; call `settle` first, so that none after a bad loss is kept."""
        scaler = self.accelerator.scaler.state_dict() if self.accelerator.scaler is not None else {}
        return {
            "method": tensors(self.method),
            "averages": tensors(self.averages),
            "optimizers": {u.name: self.optimizers[u.name].state_dict() for u in self.updates if not u.shares},
            "trainer": {"step": self.step, "rows": self.terms_by_step, "scaler": scaler},
        }

    def save(self, folder: Path) -> None:
        """Write all state into a directory."""
        write_state(self.state(), folder)

    def copy_save(self) -> Callable[[Path], None]:
        """Return what writes the present state, however many steps are taken meanwhile."""
        return partial(write_state, copy_to_host(self.state()))

    def load(self, folder: Path) -> None:
        """Load the state that `save` wrote; RuntimeError where it does not fit the method."""
        self.method.load_state_dict(load_file(folder / "method.safetensors"))
        self.averages.load_state_dict(load_file(folder / "averages.safetensors"))
        optimizers = torch.load(folder / "optimizers.pt", map_location="cpu", weights_only=True)
        for name, state_of_optimizer in optimizers.items():
            self.optimizers[name].load_state_dict(state_of_optimizer)
        state: dict[str, Any] = json.loads((folder / "trainer.json").read_text())
        self.step = state["step"]
        self.terms_by_step = {int(step): terms for step, terms in state["rows"].items()}
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])

    def export(self, path: Path) -> None:
        """Write the weights for evaluation: of each network its moving average, if it has one."""
        weights = tensors(self.method)
        weights.update(tensors(self.averages))
        save_file(weights, path)


def write_state(state: State, folder: Path) -> None:
    """Write the state of a training into a directory."""
    save_file(state["method"], folder / "method.safetensors")
    save_file(state["averages"], folder / "averages.safetensors")
    with (folder / "optimizers.pt").open("wb") as file:  # with a path, torch hides why it cannot write
        torch.save(state["optimizers"], file)
    (folder / "trainer.json").write_text(json.dumps(state["trainer"]))


def copy_to_host(value: Any) -> Any:
    """Return a copy of the dicts and lists of a state, with copies of its tensors in host memory."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: copy_to_host(part) for key, part in value.items()}
    return [copy_to_host(part) for part in value] if isinstance(value, list) else value


def parameters(method: Method, update: Update) -> dict[str, nn.Parameter]:
    """Return dotted name → parameter of the networks that an update trains; RuntimeError if they have none."""
    named = {f"{name}.{key}": p for name in update.trains for key, p in getattr(method, name).named_parameters()}
    if not named:
        raise RuntimeError(f"update {update.name!r} trains {update.trains}, which have no parameters")
    return named


def split(batch: Batch, parts: int) -> Iterator[Batch]:
    """Split a batch into equal parts along its first axis."""
    chunks = {key: value.chunk(parts) for key, value in batch.items()}
    return ({key: value[i] for key, value in chunks.items()} for i in range(parts))


@contextmanager
def trainable(params: Iterable[nn.Parameter]) -> Iterator[None]:
    """Require gradients of these parameters only; outside, everything is frozen."""
    params = list(params)
    for p in params:
        p.requires_grad_(True)
    try:
        yield
    finally:
        for p in params:
            p.requires_grad_(False)


def keep_freed_memory() -> None:
    """Keep glibc from returning the memory of activations to the kernel, which would zero it again for each step."""
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD, bytes
        library.mallopt(-3, 1 << 25)  # M_MMAP_THRESHOLD, bytes: the largest that glibc accepts


def spare_compiler_import() -> None:
    """Keep optimizers from importing torch.compile's compiler, 1,000 modules that nothing here uses; with `take_step`.

    Methods marked with torch's internal `_disable_dynamo` import it at their first call, unless they find this
    attribute. A version of torch that looks for another name is slower to start, and trains the same.
    """
    for function in vars(torch.optim.Optimizer).values():
        if inner := getattr(function, "__wrapped__", None):
            setattr(inner, "__dynamo_disable", inner)


def take_step(optimizer: torch.optim.Optimizer) -> None:
    """Take an optimizer's step, of torch's own optimizers without the wrapper that imports the compiler."""
    if not type(optimizer).__module__.startswith("torch.optim."):
        optimizer.step()
        return
    with torch.no_grad():
        inspect.unwrap(type(optimizer).step)(optimizer)


def tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return a module's state as safetensors requires it: contiguous tensors that share no memory."""
    return {key: value.detach().contiguous().clone() for key, value in module.state_dict().items()}
