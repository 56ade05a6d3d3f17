"""The blocks of a YAML file and the resolved configuration of a trial; importable without torch."""

import hashlib
import json
import math
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

import models
from trainer.config.evaluation import Eval
from trainer.config.initial import Init, read_init
from trainer.config.validators import (
    Section,
    check_colour,
    check_gres,
    check_sbatch_options,
    check_sweep_name,
    check_time_limit,
    parse_slurm_time,
    read_class_names,
)
from trainer.data import registry
from trainer.data.classes import match_classes
from trainer.data.dataset import Form

# Settings that were added later: not part of the identity at these defaults, which keep the earlier behaviour. Methods
# declare those of `model:`.
ADDED_LATER: dict[str, Any] = {
    "data.classes": None, "data.crop": "center", "data.background": "white",
    "eval.tuned": [],
    "resources.trials_per_gpu": 1, "resources.mps": "auto",
    "train.keep_checkpoints": False, "eval.resources": None, "data.copy_to": None,
    "train.preview_every": 0, "train.tf32": None, "train.cudnn_benchmark": False, "train.deterministic": False,
    "train.fused": False, "train.compile": False, "train.async_checkpoints": False, "train.init": None,
    "eval.split": "test", "eval.samples": None, "eval.real": None, "eval.grid": [8, 8],
    "eval.diffusion": {"times": [], "steps": []},
}  # fmt: skip
# Settings that cannot change the trained weights: whole blocks (True), or keys of a block.
NOT_IN_IDENTITY: dict[str, Any] = {
    "name": True,
    "data": {"root", "copy_to"},
    "train": {
        "log_every", "checkpoint_every", "export_every", "keep_checkpoints", "preview_every", "async_checkpoints",
        "init.trial",
    },
    "eval": True,
    "resources": True,
}  # fmt: skip


def check_dataset(name: str) -> str:
    """Check that a dataset exists; ValueError with the nearest name otherwise."""
    return registry.get(name).name


DatasetName = Annotated[str, AfterValidator(check_dataset)]


class Data(Section):
    """The datasets: one `dataset`, or a `source` with labels and a `target` without."""

    dataset: DatasetName | None = None
    source: DatasetName | None = None
    target: DatasetName | None = None
    size: PositiveInt | None = None  # pixels; resize every image to it
    channels: Literal[1, 3] | None = None  # default: 3 if any dataset is in colour
    balanced: bool = False  # sample classes uniformly in domains whose labels the method reads
    flip: bool = False  # mirror training images horizontally with probability 1/2
    jitter: Annotated[float, Field(ge=0, lt=1)] = 0.0  # largest relative scaling, shear and shift of training images
    # Classes are matched by name: {target name: source name}, or all names in the order that the datasets share.
    classes: Annotated[dict[str, str] | list[str] | None, BeforeValidator(read_class_names)] = None
    crop: Literal["center", "pad", "stretch"] = "center"  # how pictures that are not square become square
    background: Annotated[str, AfterValidator(check_colour)] = "white"  # under transparent pixels: or black, "#rrggbb"
    root: str | None = None  # default: $TURNOUT_DATA, else ~/.cache/turnout
    copy_to: str | None = None  # directory on the node that training data are copied to, such as $TMPDIR

    def datasets(self) -> dict[str, str]:
        """Return {domain: dataset name}; the domain of a single `dataset` is ''."""
        names = {"": self.dataset, "source": self.source, "target": self.target}
        return {domain: name for domain, name in names.items() if name is not None}

    def shape(self) -> tuple[int, int, int]:
        """Return (channels, size, classes) of every image and label; ValueError if the datasets disagree."""
        datasets = [registry.get(name) for name in self.datasets().values()]
        sizes, classes = {d.size for d in datasets}, max(1, len(self.class_names()))
        if self.size is None and (unsized := [d.name for d in datasets if d.size is None]):
            raise ValueError(f"{unsized[0]} has no size of its own; set data.size")
        names = " and ".join(f"{d.name} ({d.size} px, {d.classes} classes)" for d in datasets)
        if self.size is None and len(sizes) != 1:
            raise ValueError(f"{names} differ in size; set data.size")
        return self.channels or max(d.channels for d in datasets), self.size or sizes.pop() or 0, classes

    def class_names(self) -> tuple[str, ...]:
        """Return the names of the classes, in the order of the labels; ValueError if the datasets disagree."""
        return self._match_classes()[0]

    def class_order(self, domain: str) -> list[int] | None:
        """Return the label of each class of a domain's dataset; None if it has no labels."""
        return self._match_classes()[1].get(domain)

    def _match_classes(self) -> tuple[tuple[str, ...], dict[str, list[int]]]:
        datasets = {domain: registry.get(name) for domain, name in self.datasets().items()}
        return match_classes(datasets, self.classes)

    def form(self) -> Form:
        """Return the form of every image."""
        channels, size, _ = self.shape()
        return Form(size, channels, self.crop, self.background)


class Train(Section):
    """The length, batch size and precision of training."""

    steps: PositiveInt = 1000
    batch_size: PositiveInt = 64  # per domain, over all processes
    micro_batches: PositiveInt = 1  # parts of a process's batch that are backpropagated one after the other
    seed: Annotated[int, Field(ge=0, lt=2**64)] = 0  # torch takes 64 bits
    precision: Literal["no", "bf16", "fp16"] = "no"
    clip: NonNegativeFloat = 0.0  # largest gradient norm of an update; 0: no clipping
    log_every: PositiveInt = 50  # steps
    checkpoint_every: PositiveInt = 500  # steps
    export_every: NonNegativeInt = 0  # steps between exported weights; 0: only the last
    keep_checkpoints: bool = False  # whether checkpoints stay when the trial is finished and evaluated
    preview_every: NonNegativeInt = 0  # steps between validation metrics or samples in TensorBoard; 0: never
    tf32: bool | None = None  # whether GPUs compute fp32 in TF32; null: in convolutions only, as torch does
    cudnn_benchmark: bool = False  # try the algorithms of cuDNN for each shape, and use the fastest
    deterministic: bool = False  # repeat every bit also on a GPU; an error where an operation cannot
    fused: bool = False  # optimizers in one kernel, where torch has it: Adam, AdamW, SGD
    compile: bool = False  # networks by torch.compile
    async_checkpoints: bool = False  # write checkpoints from a copy in host memory, while training continues
    # A trial to start from: {trial: run directory, take: weights or all}, or the directory alone.
    init: Annotated[Init | None, BeforeValidator(read_init)] = None

    @model_validator(mode="after")
    def choose_one_algorithm(self) -> "Train":
        """Refuse the search for fast algorithms beside determinism: its choice differs from run to run."""
        if self.deterministic and self.cudnn_benchmark:
            raise ValueError("deterministic and cudnn_benchmark exclude each other; set one of them")
        return self


class Resources(Section):
    """What a trial requests from the cluster; not part of its identity."""

    nodes: PositiveInt = 1
    gpus_per_node: NonNegativeInt = 1
    gres: Annotated[str, AfterValidator(check_gres)] | None = None  # as --gres=<gres>:N, such as gpu:a100
    processes_per_node: PositiveInt | None = None  # default: one per GPU, one without GPUs
    cpus_per_gpu: PositiveInt = 4
    mem_gb: PositiveFloat | None = 16  # per node; null: what the partition gives, or slurm: {mem-per-gpu: …}
    time: Annotated[str, BeforeValidator(check_time_limit)] = "02:00:00"
    signal_delay: PositiveInt = 120  # seconds before the time limit at which a trial is asked to save
    max_requeues: NonNegativeInt = 10  # times that a trial may reach its time limit and be requeued
    max_parallel: PositiveInt = 20  # trials of a sweep that run at the same time on the cluster
    trials_per_gpu: PositiveInt = 1  # trials that share the GPU (or, without one, the CPUs) of a job, side by side
    mps: Literal["auto", "yes", "no"] = "auto"  # whether they share it through NVIDIA's MPS; auto: where it starts
    # Further sbatch options, such as {partition: gpu, account: vision}.
    slurm: Annotated[dict[str, str | int | bool], AfterValidator(check_sbatch_options)] = Field(default_factory=dict)

    @model_validator(mode="after")
    def leave_time_to_save(self) -> "Resources":
        """Refuse a time limit within signal_delay, which would requeue the trial as soon as it starts."""
        if 60 * self.minutes() <= self.signal_delay:
            raise ValueError(
                f"time {self.time!r} is over before signal_delay ({self.signal_delay} s) has begun; "
                "give more time or a smaller signal_delay"
            )
        return self

    @model_validator(mode="after")
    def request_memory_once(self) -> "Resources":
        """Refuse mem_gb beside an sbatch option for memory, which sbatch does not accept either."""
        if self.mem_gb is not None and (other := next((k for k in self.slurm if k.startswith("mem-per-")), None)):
            raise ValueError(f"mem_gb and slurm.{other} exclude each other; set mem_gb: null")
        return self

    @model_validator(mode="after")
    def share_only_a_single_gpu(self) -> "Resources":
        """Refuse trials of several processes beside each other: each would wait for processes of its own."""
        if self.trials_per_gpu > 1 and self.nodes * self.processes() > 1:
            raise ValueError(
                f"trials_per_gpu: {self.trials_per_gpu} is for trials of one process, not of {self.nodes} nodes with "
                f"{self.processes()}; set nodes: 1 and gpus_per_node: 1, or trials_per_gpu: 1"
            )
        return self

    def minutes(self) -> int:
        """Return the time limit in minutes, rounded up."""
        return max(1, math.ceil(parse_slurm_time(self.time) / 60))

    def processes(self) -> int:
        """Return the number of processes on each node."""
        return self.processes_per_node or max(1, self.gpus_per_node)


class Config(Section):
    """The resolved configuration of a trial: every default is filled in."""

    name: Annotated[str, AfterValidator(check_sweep_name)]
    method: str
    model: Any  # an object of the method's own schema, see trainer.config.resolve.config_schema
    data: Data = Data()
    train: Train = Train()
    eval: Eval = Eval()
    resources: Resources = Resources()

    def model_arguments(self) -> dict[str, Any]:
        """Return the keyword arguments of the method's constructor."""
        arguments: dict[str, Any] = self.model.model_dump()
        return arguments

    def evaluation_resources(self) -> Resources:
        """Return what an evaluation requests: `resources`, key by key replaced by `eval.resources`."""
        if self.eval.resources is None:
            return self.resources
        values = self.resources.model_dump() | self.eval.resources.model_dump(exclude_none=True)
        values |= {"nodes": 1, "processes_per_node": None, "gpus_per_node": min(1, values["gpus_per_node"])}
        options = self.resources.slurm | self.eval.resources.slurm
        values["slurm"] = {key: value for key, value in options.items() if value is not None}
        if any(key.startswith("mem-per-") for key in values["slurm"].keys() & self.eval.resources.slurm):
            values["mem_gb"] = None
        if self.eval.resources.time:  # nothing is saved before the time limit
            values["signal_delay"] = min(values["signal_delay"], max(1, parse_slurm_time(values["time"]) // 2))
        return Resources(**values)

    def identity(self) -> str:
        """Return the trial's identity, see `compute_identity`."""
        return compute_identity(self.model_dump(mode="json"))

    def to_document(self) -> dict[str, Any]:
        """Return the content of a run directory's config.yaml, as before settings were added that have defaults."""
        document = self.model_dump(mode="json")
        for key, default in list_added(self.method).items():
            block, _, name = key.partition(".")
            if document[block].get(name, ...) == default:
                del document[block][name]
        return document

    def to_yaml(self) -> str:
        """Return the text of a run directory's config.yaml."""
        return dump_yaml(self.to_document())


def is_in_identity(key: str) -> bool:
    """Return whether a dotted key is part of a trial's identity."""
    block, _, name = key.partition(".")
    excluded = NOT_IN_IDENTITY.get(block, ())
    return excluded is not True and name not in excluded


def list_added(method: str) -> dict[str, Any]:
    """Return {dotted key: default} of the settings that were added later, with those of a method."""
    return ADDED_LATER | {f"model.{name}": default for name, default in models.added_later(method).items()}


def select_identity(document: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a configuration that can change the trained weights."""
    added = list_added(document.get("method", ""))
    content = {
        block: {
            name: v
            for name, v in value.items()
            if is_in_identity(key := f"{block}.{name}") and v != added.get(key, ...)
        }
        if isinstance(value, dict)
        else value
        for block, value in document.items()
        if is_in_identity(block)
    }
    if init := content.get("train", {}).get("init"):
        content["train"]["init"] = {key: value for key, value in init.items() if is_in_identity(f"train.init.{key}")}
    arguments = document.get("model")
    revision = models.revision(document.get("method", ""), arguments if isinstance(arguments, dict) else {})
    return content | ({"revision": revision} if revision else {})


def compute_identity(document: dict[str, Any]) -> str:
    """Return 8 hex digits that change with every setting that can change the trained weights."""
    return hash_identity(select_identity(document))


def hash_identity(content: dict[str, Any]) -> str:
    """Return the identity of the part of a configuration that `select_identity` returned."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:8]


def dump_yaml(document: dict[str, Any]) -> str:
    """Return the YAML text of a configuration, its keys in order."""
    return yaml.dump(document, Dumper=yaml.CSafeDumper, sort_keys=False)
