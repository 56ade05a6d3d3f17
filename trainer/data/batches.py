"""Compute batches as a pure function of (seed, step, rank), so that resuming needs no saved state."""

from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache, partial

import torch
from torch import Tensor

from trainer.data.augment import jitter as jittered
from trainer.data.cache import Arrays
from trainer.data.pixels import to_signed
from trainer.seeds import hash_seed

SHARE_OF_MEMORY = 0.25  # of the free device memory, for the arrays of a trial


class Batches:
    """The share of one process in the global batches of a trial.

    The samples of a domain form an endless sequence, epoch after epoch, each epoch a permutation that depends on (seed,
    epoch, domain). Global batch `step` is positions [step * batch_size, (step + 1) * batch_size) of it, across epochs,
    and rank r of `world` takes the r-th of `world` equal slices.

    `arrays` maps a domain to its training arrays: "" for a single one, or "source" and "target". `keys` are those of a
    batch: "images" and "labels", or "source_images", "source_labels", "target_images"; no other array is read.
    The arrays are on the device if they fit into a quarter of its free memory, else in host memory (on the CPU: in
    the memory map itself). `resident` overrides that; the values are the same either way.
    In a domain whose labels are read, `balanced` samples classes uniformly, each class in an endless sequence of its
    own, and `jitter` > 0 scales, shears and shifts the images by up to that share. `flip` mirrors half of the images
    of the global batch: the same ones for any number of processes.
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
        storage = device if resident else torch.device("cpu")
        self.device = device
        self.resident = resident
        self._share = batch_size // world
        self._batch_size = batch_size
        self._rank = rank
        self._flipped = [key for key in keys if flip and key.endswith("images")]
        self._tensors = {key: t if storage.type == "cpu" else t.to(storage).contiguous() for key, t in tensors.items()}
        self._domains = {key: key.rpartition("_")[0] for key in keys}
        labelled = {domain: tensors[key] for key, domain in self._domains.items() if key.endswith("labels")}
        images = [key for key, domain in self._domains.items() if key.endswith("images") and domain in labelled]
        self._jittered, self._jitter, self._seed, self._storage = images if jitter else [], jitter, seed, storage
        lengths = {domain: len(tensors[key]) for key, domain in self._domains.items()}
        self._sequences = {domain: [_Sequence(n, seed, domain, storage)] for domain, n in lengths.items()}
        for domain, labels in labelled.items() if balanced else ():
            members = [(labels == label).nonzero()[:, 0].to(storage) for label in labels.unique()]
            self._sequences[domain] = [
                _Sequence(len(chosen), seed, f"{domain}/{number}", storage, chosen)
                for number, chosen in enumerate(members)
            ]

    def at(self, step: int) -> dict[str, Tensor]:
        """Return this process's share of batch `step`, on the device.

        images: float32 [batch_size / world, C, H, W] in [-1, 1], channels last in memory; labels: int64.
        """
        batch = self._finish(self._gather(step))
        for key in self._jittered:
            batch[key] = jittered(batch[key], self._jitter, _make_seed(self._seed, step, self._rank, key))
        for key in self._flipped:
            generator = torch.Generator().manual_seed(_make_seed(self._seed, step, key, "flip"))
            first = self._rank * self._share
            mirrored = torch.rand(self._batch_size, generator=generator)[first : first + self._share] < 0.5
            batch[key] = torch.where(mirrored.to(self.device)[:, None, None, None], batch[key].flip(3), batch[key])
        return batch

    def _gather(self, step: int) -> dict[str, Tensor]:
        """Return the samples of a batch as they are stored, where they are stored; pinned for a CUDA device."""
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
        """Return which samples are at positions [first, last) of the endless sequence of a domain; int64."""
        sequences = self._sequences[domain]
        if len(sequences) == 1:
            return sequences[0].between(first, last)
        # Position p has class p mod n, and is number p div n of that class.
        n, picks = len(sequences), torch.empty(last - first, dtype=torch.long, device=self._storage)
        for number, sequence in enumerate(sequences):
            begin, end = ((position - number + n - 1) // n for position in (first, last))
            if begin < end:  # a batch may be too small for all classes
                picks[(number - first) % n :: n] = sequence.between(begin, end)
        return picks

    def _finish(self, gathered: dict[str, Tensor]) -> dict[str, Tensor]:
        """Move a gathered batch to the device, and scale images from bytes to [-1, 1]."""
        batch = {}
        for key, stored in gathered.items():
            moved = stored.to(self.device, non_blocking=self.device.type == "cuda")
            if key.endswith("images"):
                # A view of [n, H, W, C] as [n, C, H, W] has the memory format channels_last.
                moved = to_signed(moved).permute(0, 3, 1, 2)
            batch[key] = moved
        return batch


def prefetch(batches: Batches, start: int, stop: int) -> Generator[dict[str, Tensor], None, None]:
    """Yield `batches.at(step)` for step in [start, stop), one batch ahead if they are in host memory.

    A thread gathers the next batch and copies it on a CUDA stream of its own while the device computes. The thread ends
    with the generator, also when that is closed early; its errors are raised here.
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
                for tensor in batch.values():  # its memory belongs to the side stream, which must not reuse it yet
                    tensor.record_stream(stream)
            yield batch


def _tensor(arrays: dict[str, Arrays], key: str) -> Tensor:
    """Return the array that a batch key names, without a copy: images [N, H, W, C], labels [N]."""
    domain, _, kind = key.rpartition("_")
    if domain not in arrays or kind not in ("images", "labels"):
        known = ", ".join(f"{name}_{kind}".lstrip("_") for name in arrays for kind in ("images", "labels"))
        raise ValueError(f"unknown batch key {key!r}: there are {known}")
    images, labels = arrays[domain].images, arrays[domain].labels
    if len(images) != len(labels) or not len(labels):
        raise ValueError(f"{domain or 'the data'}: {len(images)} images and {len(labels)} labels do not form a dataset")
    return torch.from_numpy(images).permute(0, 2, 3, 1) if kind == "images" else torch.from_numpy(labels)


def _fits(tensors: Iterable[Tensor], device: torch.device) -> bool:
    """Return whether the tensors leave most of a CUDA device free; False on other accelerators, which cannot tell."""
    needed = sum(tensor.nbytes for tensor in tensors)
    return device.type == "cuda" and needed <= torch.cuda.mem_get_info(device)[0] * SHARE_OF_MEMORY


class _Sequence:
    """An endless sequence of samples, epoch after epoch: of all `length` of a domain, or of the `chosen` ones."""

    def __init__(self, length: int, seed: int, name: str, device: torch.device, chosen: Tensor | None = None) -> None:
        self._length, self._chosen = length if chosen is None else len(chosen), chosen
        # Two epochs, because a batch may straddle them; on the device, so that no step waits for the host.
        self._order = lru_cache(maxsize=2)(partial(_order, self._length, seed, name, device))

    def between(self, first: int, last: int) -> Tensor:
        """Return the samples at [first, last); int64."""
        epochs = range(first // self._length, (last - 1) // self._length + 1)
        parts = [self._order(e)[max(first - e * self._length, 0) : last - e * self._length] for e in epochs]
        indices = parts[0] if len(parts) == 1 else torch.cat(parts)
        return indices if self._chosen is None else self._chosen[indices]


def _order(length: int, seed: int, domain: str, device: torch.device, epoch: int) -> Tensor:
    """Return the order of an epoch, int64 [length], from the CPU's random numbers so that every device has the same."""
    generator = torch.Generator().manual_seed(_make_seed(seed, epoch, domain))
    order = torch.randperm(length, generator=generator)
    return order.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else order


def _make_seed(*parts: int | str) -> int:
    """Return a seed that is a pure function of the parts."""
    return hash_seed("/".join(map(str, parts)))
