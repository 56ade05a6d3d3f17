"""Batches as a pure function of (seed, step, rank): nothing to save, nothing to restore, any step can be had alone."""

from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache, partial

import torch
from torch import Tensor

from trainer.data.augment import jitter as jittered
from trainer.data.cache import Arrays
from trainer.data.pixels import to_signed
from trainer.seeds import hash_seed

SHARE_OF_MEMORY = 0.25  # of the free device memory that the arrays of a run may take


class Batches:
    """The share of one process in the global batches of a run.

    A domain's samples form an endless sequence, epoch after epoch, each epoch a permutation drawn from (seed, epoch,
    domain). Global batch `step` is positions [step * batch_size, (step + 1) * batch_size) of it, whatever epochs these
    fall into, and rank r of `world` takes the r-th of `world` equal slices.

    `arrays` maps a domain to its training arrays: "" for a single one, or "source" and "target". `keys` are what a
    batch holds: "images" and "labels", or "source_images", "source_labels", "target_images"; nothing else is read.
    The arrays live on the device if they fit into a quarter of its free memory, else in host memory (on the CPU: in
    the memory map itself). `resident` overrides that; the values are the same either way.
    Of a domain whose labels are read, `balanced` has each class as often as any other, each class in an endless
    sequence of its own, and `jitter` > 0 changes size, slant and place of the images by up to that share. `flip`
    mirrors half of all images, drawn for the global batch: the same ones however many processes there are.
    Raises ValueError if the batch cannot be shared equally or a key names no array.
    """

    def __init__(
        self,
        arrays: dict[str, Arrays],
        keys: tuple[str, ...],
        batch_size: int,
        seed: int,
        rank: int,
        world: int,
        device: torch.device,
        resident: bool | None = None,
        balanced: bool = False,
        jitter: float = 0.0,
        flip: bool = False,
    ) -> None:
        if batch_size < 1 or batch_size % world:
            raise ValueError(f"batch_size {batch_size} cannot be shared by {world} processes: it must be a multiple")
        if not 0 <= rank < world:
            raise ValueError(f"rank {rank} is not one of {world} processes")
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", torch.cuda.current_device())
        tensors = {key: _tensor(arrays, key) for key in keys}
        if resident is None:
            resident = device.type == "cpu" or _fits(tensors.values(), device)
        place = device if resident else torch.device("cpu")
        self.device = device
        self.resident = resident
        self._share = batch_size // world
        self._batch_size = batch_size
        self._rank = rank
        self._flipped = [key for key in keys if flip and key.endswith("images")]
        self._tensors = {key: t if place.type == "cpu" else t.to(place).contiguous() for key, t in tensors.items()}
        self._domains = {key: key.rpartition("_")[0] for key in keys}
        labelled = {domain: tensors[key] for key, domain in self._domains.items() if key.endswith("labels")}
        images = [key for key, domain in self._domains.items() if key.endswith("images") and domain in labelled]
        self._jittered, self._jitter, self._seed, self._place = images if jitter else [], jitter, seed, place
        lengths = {domain: len(tensors[key]) for key, domain in self._domains.items()}
        self._sequences = {domain: [_Sequence(n, seed, domain, place)] for domain, n in lengths.items()}
        for domain, labels in labelled.items() if balanced else ():
            members = [(labels == label).nonzero()[:, 0].to(place) for label in labels.unique()]
            self._sequences[domain] = [
                _Sequence(len(chosen), seed, f"{domain}/{number}", place, chosen)
                for number, chosen in enumerate(members)
            ]

    def at(self, step: int) -> dict[str, Tensor]:
        """This process's share of batch `step`, on the device.

        images: float32 [batch_size / world, C, H, W] in [-1, 1], channels last in memory; labels: int64.
        """
        batch = self._finish(self._gather(step))
        for key in self._jittered:
            batch[key] = jittered(batch[key], self._jitter, _number(self._seed, step, self._rank, key))
        for key in self._flipped:
            generator = torch.Generator().manual_seed(_number(self._seed, step, key, "flip"))
            drawn = torch.rand(self._batch_size, generator=generator)[self._rank * self._share :][: self._share] < 0.5
            batch[key] = torch.where(drawn.to(self.device)[:, None, None, None], batch[key].flip(3), batch[key])
        return batch

    def _gather(self, step: int) -> dict[str, Tensor]:
        """The samples of a batch as they are stored, where they are stored; pinned on the way to a CUDA device."""
        if step < 0:
            raise ValueError(f"step {step} is negative")
        first = step * self._batch_size + self._rank * self._share
        chosen = {domain: self._positions(domain, first, first + self._share) for domain in self._sequences}
        gathered = {}
        for key, stored in self._tensors.items():
            index = chosen[self._domains[key]]
            if self.device.type == "cuda" and not self.resident:
                pinned = torch.empty((self._share, *stored.shape[1:]), dtype=stored.dtype, pin_memory=True)
                gathered[key] = torch.index_select(stored, 0, index, out=pinned)
            else:
                gathered[key] = stored.index_select(0, index)
        return gathered

    def _positions(self, domain: str, first: int, last: int) -> Tensor:
        """Which samples stand at [first, last) of the endless sequence of a domain; int64."""
        sequences = self._sequences[domain]
        if len(sequences) == 1:
            return sequences[0].between(first, last)
        # Position p is of class p mod n, and there the one with number p div n.
        n, picks = len(sequences), torch.empty(last - first, dtype=torch.long, device=self._place)
        for number, sequence in enumerate(sequences):
            begin, end = ((place - number + n - 1) // n for place in (first, last))
            if begin < end:  # a batch may be too small for all classes
                picks[(number - first) % n :: n] = sequence.between(begin, end)
        return picks

    def _finish(self, gathered: dict[str, Tensor]) -> dict[str, Tensor]:
        """Bring a gathered batch to the device and images from bytes to [-1, 1]."""
        batch = {}
        for key, stored in gathered.items():
            moved = stored.to(self.device, non_blocking=self.device.type == "cuda")
            if key.endswith("images"):
                # The float batch of [n, H, W, C] seen as [n, C, H, W]: this is what channels_last means.
                moved = to_signed(moved).permute(0, 3, 1, 2)
            batch[key] = moved
        return batch


def prefetch(batches: Batches, start: int, stop: int) -> Generator[dict[str, Tensor], None, None]:
    """`batches.at(step)` for step in [start, stop); what lives in host memory is brought one batch ahead.

    That batch is gathered in a thread and copied on a CUDA stream of its own while the device computes. The thread ends
    with the generator, also when it is closed early, and an error in it is raised here.
    """
    if batches.resident:
        yield from map(batches.at, range(start, stop))
        return
    cuda = batches.device.type == "cuda"
    side = torch.cuda.Stream(batches.device) if cuda else None

    def bring(step: int) -> tuple[dict[str, Tensor], torch.cuda.Event | None]:
        with torch.cuda.stream(side):
            return batches.at(step), side.record_event() if side else None

    def pick_device() -> None:
        if cuda:  # a thread starts on device 0
            torch.cuda.set_device(batches.device)

    with ThreadPoolExecutor(1, "prefetch", pick_device) as thread:
        ahead: Future[tuple[dict[str, Tensor], torch.cuda.Event | None]] | None = None
        for step in range(start, stop):
            batch, arrived = (ahead or thread.submit(bring, step)).result()
            ahead = thread.submit(bring, step + 1) if step + 1 < stop else None
            if arrived:
                stream = torch.cuda.current_stream(batches.device)
                stream.wait_event(arrived)
                for tensor in batch.values():  # its memory belongs to the side stream: not to be reused too early
                    tensor.record_stream(stream)
            yield batch


def _tensor(arrays: dict[str, Arrays], key: str) -> Tensor:
    """The array that a batch key names, without a copy: images [N, H, W, C], labels [N]."""
    domain, _, kind = key.rpartition("_")
    if domain not in arrays or kind not in ("images", "labels"):
        known = ", ".join(f"{name}_{kind}".lstrip("_") for name in arrays for kind in ("images", "labels"))
        raise ValueError(f"a batch cannot hold {key!r}: there are {known}")
    images, labels = arrays[domain].images, arrays[domain].labels
    if len(images) != len(labels) or not len(labels):
        raise ValueError(f"{domain or 'the data'}: {len(images)} images and {len(labels)} labels are no dataset")
    return torch.from_numpy(images).permute(0, 2, 3, 1) if kind == "images" else torch.from_numpy(labels)


def _fits(tensors: Iterable[Tensor], device: torch.device) -> bool:
    """Whether the tensors leave most of a CUDA device free; never on another accelerator, which cannot tell."""
    needed = sum(tensor.nbytes for tensor in tensors)
    return device.type == "cuda" and needed <= torch.cuda.mem_get_info(device)[0] * SHARE_OF_MEMORY


class _Sequence:
    """An endless sequence of samples, epoch after epoch; of all `length` of a domain, or of those `chosen` of it."""

    def __init__(self, length: int, seed: int, name: str, place: torch.device, chosen: Tensor | None = None) -> None:
        self._length, self._chosen = length if chosen is None else len(chosen), chosen
        # Two epochs: a batch may straddle them. On the device, so that no step waits for the host.
        self._order = lru_cache(maxsize=2)(partial(_order, self._length, seed, name, place))

    def between(self, first: int, last: int) -> Tensor:
        """The samples at [first, last); int64."""
        epochs = range(first // self._length, (last - 1) // self._length + 1)
        parts = [self._order(e)[max(first - e * self._length, 0) : last - e * self._length] for e in epochs]
        indices = parts[0] if len(parts) == 1 else torch.cat(parts)
        return indices if self._chosen is None else self._chosen[indices]


def _order(length: int, seed: int, domain: str, place: torch.device, epoch: int) -> Tensor:
    """The order of an epoch: int64 [length], drawn on the CPU so that it is the same for every device."""
    generator = torch.Generator().manual_seed(_number(seed, epoch, domain))
    order = torch.randperm(length, generator=generator)
    return order.pin_memory().to(place, non_blocking=True) if place.type == "cuda" else order


def _number(*parts: int | str) -> int:
    """A seed that is a pure function of the parts."""
    return hash_seed("/".join(map(str, parts)))
