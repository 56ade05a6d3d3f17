"""Datasets: their content, disjoint splits, refusals of bad files, the cache, and batches as pure functions."""

import bz2
import gzip
import hashlib
import io
import json
import os
import re
import socket
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from trainer.data import cache, decode, patches, raw
from trainer.data.batches import Batches, prefetch
from trainer.data.cache import Arrays, data_root, load, stage, staged
from trainer.data.dataset import SPLITS, Form, Splits
from trainer.data.registry import DATASETS, get
from trainer.data.splits import SEED
from trainer.errors import DataError

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
CPU = torch.device("cpu")
EMBEDDED = {"mnist5k": (3500, 500, 1000), "mnistm5k": (3500, 500, 1000), "digits": (1297, 200, 300)}

# Small files of the real formats.


def pixels(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).randint(256, size=shape).astype(np.uint8)


def write_idx(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    path.write_bytes((gzip.compress if path.suffix == ".gz" else bytes)(header + array.tobytes()))


def write_mnist(root: Path, folder: str = "MNIST", suffix: str = ".gz") -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Write 60 + 20 random digits; return the official parts."""
    parts = {}
    for number, (part, count) in enumerate((("train", 60), ("t10k", 20))):
        images, labels = pixels(count, 28, 28, seed=number), np.arange(count, dtype=np.uint8) % 10
        write_idx(root / folder / "raw" / f"{part}-images-idx3-ubyte{suffix}", images)
        write_idx(root / folder / "raw" / f"{part}-labels-idx1-ubyte{suffix}", labels)
        parts[part] = images[:, None], labels.astype(np.int64)
    return parts


def write_usps(root: Path) -> None:
    (root / "USPS").mkdir(parents=True)
    for seed, (name, count) in enumerate((("usps.bz2", 40), ("usps.t.bz2", 15))):
        values = np.random.RandomState(seed).uniform(-1, 1, (count, 256)).round(3)
        values[0, :2] = -1, 1
        lines = [
            f"{i % 10 + 1} " + " ".join(f"{k + 1}:{v:g}" for k, v in enumerate(row)) for i, row in enumerate(values)
        ]
        (root / "USPS" / name).write_bytes(bz2.compress("\n".join(lines).encode() + b"\n"))


def write_svhn(root: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    from scipy.io import savemat

    (root / "SVHN").mkdir(parents=True)
    parts = {}
    for seed, (part, count) in enumerate((("train", 30), ("test", 12))):
        images, labels = pixels(count, 3, 32, 32, seed=seed), np.arange(count, dtype=np.int64) % 10
        content = {"X": images.transpose(2, 3, 1, 0), "y": np.where(labels == 0, 10, labels).astype(np.uint8)[:, None]}
        savemat(root / "SVHN" / f"{part}_32x32.mat", content)
        parts[part] = images, labels
    return parts


def write_photographs(place: Path, colours: dict[str, int] | None = None, side: int = 40) -> None:
    """Write two jpgs for each split, of one grey value if `colours` gives one, into a folder or, by its name, a tar."""
    files = {}
    for number, folder in enumerate(("train", "val", "test")):
        for copy in range(2):
            array = pixels(side, side + 5, 3, seed=10 * number + copy)
            if colours:
                array[:] = colours[folder]
            content = io.BytesIO()
            Image.fromarray(array).save(content, "JPEG", quality=95)
            files[f"data/images/{folder}/{1000 - copy}.jpg"] = content.getvalue()
    files["data/groundTruth/train/1000.mat"] = b"no photograph"
    files["data/images/train/._1000.jpg"] = b"no photograph"
    if ".t" in place.name:
        with tarfile.open(place, "w:gz" if place.name.endswith("gz") else "w") as archive:
            for name, data in files.items():
                member = tarfile.TarInfo(f"BSR/{name}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    else:
        for name, data in files.items():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(data)


def rows(images: np.ndarray) -> list[bytes]:
    return [np.ascontiguousarray(image).tobytes() for image in images]


def digests(root: Path, name: str) -> dict[str, str]:
    place = cache.folder(name, root)
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(place.iterdir())}


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("embedded")
    for name in EMBEDDED:
        assert stage(name, root, download=False)
    return root


# Registry and root.


def test_the_registry_imports_nothing_heavy() -> None:
    heavy = "{'numpy', 'torch', 'torchvision', 'sklearn', 'mlxtend', 'PIL'}"
    program = f"import sys, trainer.data.registry; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_the_cache_imports_no_torch() -> None:
    program = "import sys, trainer.data.cache; sys.exit(bool({'torch', 'sklearn', 'mlxtend'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_an_unknown_name_is_refused_with_the_nearest_and_all_names() -> None:
    with pytest.raises(DataError, match=r"'minstm5k'.*Did you mean 'mnistm5k'\?.*digits.*svhn.*usps"):
        get("minstm5k")


def test_the_registry_describes_every_dataset() -> None:
    for name, dataset in DATASETS.items():
        assert dataset.name == name
        assert dataset.origin
        assert (name in EMBEDDED) == (dataset.files == ())


def test_the_data_root_comes_from_config_environment_or_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TURNOUT_DATA", "/from/environment")
    assert data_root("/configured") == Path("/configured")
    assert data_root(None) == Path("/from/environment")
    monkeypatch.delenv("TURNOUT_DATA")
    monkeypatch.setenv("HOME", "/somebody")
    assert data_root(None) == Path("/somebody/.cache/turnout")
    assert data_root("~/data") == Path("/somebody/data")
    assert data_root("data") == Path.cwd() / "data"


# Embedded sets.


@pytest.mark.parametrize("name", EMBEDDED)
def test_an_embedded_dataset_is_as_described(embedded: Path, name: str) -> None:
    dataset = DATASETS[name]
    assert not stage(name, embedded)
    for split, count in zip(SPLITS, EMBEDDED[name], strict=True):
        arrays = load(name, split, embedded)
        assert arrays.images.shape == (count, dataset.channels, dataset.size, dataset.size)
        assert arrays.images.dtype == np.uint8
        assert isinstance(arrays.images, np.memmap)
        assert (arrays.images.min(), arrays.images.max()) == (0, 255)
        assert arrays.labels.dtype == np.int64
        counts = np.bincount(arrays.labels, minlength=dataset.classes)
        assert len(counts) == dataset.classes
        assert counts.max() - counts.min() <= (9 if name == "digits" and split == "train" else 0)
        middles = [np.flatnonzero(arrays.labels == label).mean() / count for label in range(dataset.classes)]
        assert max(np.abs(np.array(middles) - 0.5)) < 0.2, "a split must come shuffled"


@pytest.mark.parametrize("name", ["mnist5k", "digits"])
def test_splits_partition_the_samples(embedded: Path, name: str) -> None:
    splits = [set(rows(load(name, split, embedded).images)) for split in SPLITS]
    assert sum(map(len, splits)) == len(set.union(*splits)) == sum(EMBEDDED[name])


def test_mnistm5k_blends_mnist5k_with_patches_that_no_two_splits_share(embedded: Path) -> None:
    """Find each patch in the photographs by the digit's blank first row, then check digit and position."""
    from sklearn.datasets import load_sample_images

    side, photographs = 28, load_sample_images().images
    places: dict[bytes, list[tuple[int, int, int]]] = {}
    for number, photograph in enumerate(photographs):
        strips = np.lib.stride_tricks.sliding_window_view(photograph, side, axis=1)  # [H, W - 27, 3, 28]
        for top in range(len(photograph) - side + 1):
            for left, strip in enumerate(strips[top]):
                places.setdefault(strip.tobytes(), []).append((number, top, left))
    used = {split: np.zeros((2, 427, 640), bool) for split in SPLITS}
    for split in SPLITS:
        digits, blended = load("mnist5k", split, embedded), load("mnistm5k", split, embedded)
        np.testing.assert_array_equal(digits.labels, blended.labels)
        for digit, picture in zip(digits.images.astype(int), blended.images, strict=True):
            assert not digit[0, 0].any()
            for number, top, left in places[np.ascontiguousarray(picture[:, 0]).tobytes()]:
                patch = photographs[number][top : top + side, left : left + side].transpose(2, 0, 1)
                # Of equal patches in a flat piece of sky, one that the split is entitled to.
                inside = any(a <= left and left + side <= b for a, b in patches.STRIPES[split])
                if inside and np.array_equal(np.abs(patch - digit), picture):
                    used[split][number, top : top + side, left : left + side] = True
                    break
            else:
                pytest.fail(f"{split}: no patch of its own with this digit gives this picture")
    assert not (used["train"] & used["test"]).any()
    assert not (used["train"] & used["validation"]).any()
    assert not (used["validation"] & used["test"]).any()
    assert all(pixel.mean() > 0.05 for pixel in used.values())


@pytest.mark.parametrize("name", EMBEDDED)
def test_staging_again_elsewhere_gives_the_same_bytes(embedded: Path, tmp_path: Path, name: str) -> None:
    stage(name, tmp_path)
    assert digests(tmp_path, name) == digests(embedded, name)
    origin = json.loads((cache.folder(name, tmp_path) / "origin.json").read_text())
    assert origin["splits"] == dict(zip(SPLITS, EMBEDDED[name], strict=True))
    assert (origin["dataset"], origin["seed"], origin["origin"]) == (name, SEED, DATASETS[name].origin)
    assert {file: facts["sha256"] for file, facts in origin["files"].items()} == {
        file: digest for file, digest in digests(tmp_path, name).items() if file.endswith(".npy")
    }


# Raw files.


@pytest.mark.parametrize(("name", "folder"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST")])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_mnist_is_read_from_plain_and_gzipped_files(tmp_path: Path, name: str, folder: str, suffix: str) -> None:
    parts = write_mnist(tmp_path, folder, suffix)
    before = sorted(tmp_path.rglob("*"))
    splits = decode.decode(name, tmp_path, download=True)
    assert sorted(tmp_path.rglob("*")) == before
    check_official(splits, parts["train"], parts["t10k"])


def check_official(
    splits: Splits, training: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray]
) -> None:
    """Check that the test set is official, validation a tenth of the training set, and no sample lost or repeated."""
    for mine, official in zip(splits["test"], test, strict=True):
        np.testing.assert_array_equal(mine, official)
    assert len(splits["validation"][1]) == len(training[1]) // 10
    both = [np.concatenate([splits["train"][i], splits["validation"][i]]) for i in range(2)]
    assert sorted(zip(rows(both[0]), both[1], strict=True)) == sorted(zip(rows(training[0]), training[1], strict=True))


def test_usps_is_read_as_torchvision_reads_it(tmp_path: Path) -> None:
    from torchvision.datasets import USPS

    write_usps(tmp_path)
    official = [USPS(tmp_path / "USPS", train=train) for train in (True, False)]
    training, test = ((o.data[:, None], np.array(o.targets)) for o in official)
    check_official(decode.decode("usps", tmp_path, download=False), training, test)


def test_svhn_is_read_with_zero_as_zero(tmp_path: Path) -> None:
    parts = write_svhn(tmp_path)
    check_official(decode.decode("svhn", tmp_path, download=False), parts["train"], parts["test"])


@pytest.mark.parametrize("place", ["BSDS500", "bsds500_small.tar", "BSR_bsds500.tgz", "my-BSDS500.tar.gz"])
def test_mnistm_has_the_digits_of_mnist_over_the_photographs_of_its_split(tmp_path: Path, place: str) -> None:
    write_mnist(tmp_path)
    colours = {"train": 0, "val": 255, "test": 100}
    write_photographs(tmp_path / place, colours)
    digits, splits = (decode.decode(name, tmp_path, download=False) for name in ("mnist", "mnistm"))
    for folder, split in patches.FOLDERS.items():
        expected = np.abs(colours[folder] - digits[split][0].astype(int)).repeat(3, axis=1)
        np.testing.assert_array_equal(splits[split][0], expected)
        np.testing.assert_array_equal(splits[split][1], digits[split][1])


def test_photographs_are_the_same_from_a_folder_and_from_a_tar(tmp_path: Path) -> None:
    write_photographs(tmp_path / "a" / "BSDS500")
    (tmp_path / "b").mkdir()
    write_photographs(tmp_path / "b" / "bsds500.tar")
    folder, tar = patches.bsds500(tmp_path / "a"), patches.bsds500(tmp_path / "b")
    for split in SPLITS:
        assert rows(np.stack(folder[split])) == rows(np.stack(tar[split]))
        assert len(folder[split]) == 2


def test_patches_are_taken_uniformly() -> None:
    """The pixels of these photographs are their coordinates, so each position can be counted."""
    down, across = np.meshgrid(np.arange(40), np.arange(48), indexing="ij")
    photographs = [np.stack([down, across, np.full_like(down, k)], 2).astype(np.uint8) for k in range(3)]
    picture = patches.blend(np.zeros((30_000, 1, 28, 28), np.uint8), photographs, seed=3)
    corners = picture[:, :, 0, 0].astype(int)
    np.testing.assert_array_equal(picture[:, :, -1, -1], corners + np.array([27, 27, 0]))
    hits = np.zeros((13, 21, 3), int)
    np.add.at(hits, tuple(corners.T), 1)
    assert hits.min() > 12  # 36.6 expected, deviation 6
    assert hits.max() < 73


# Raw files that are missing or bad.


def test_a_missing_file_is_named_with_the_remedy(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    path = tmp_path / "MNIST" / "raw" / "t10k-labels-idx1-ubyte.gz"
    path.unlink()
    with pytest.raises(DataError, match=rf"mnist: {path.with_suffix('')} is missing.*network.*data.root.*TURNOUT_DATA"):
        stage("mnist", tmp_path, download=False)
    for name in ("svhn", "usps", "mnistm"):
        with pytest.raises(DataError, match=f"{name}: .* is missing"):
            stage(name, tmp_path, download=False)


@pytest.mark.parametrize(
    ("name", "file", "content", "reason"),
    [
        ("mnist", "MNIST/raw/train-images-idx3-ubyte.gz", lambda data: data[: len(data) // 2], "end-of-stream"),
        ("mnist", "MNIST/raw/train-images-idx3-ubyte.gz", lambda data: data[:-20] + bytes(20), ""),
        ("mnist", "MNIST/raw/train-labels-idx1-ubyte.gz", lambda data: b"<html>not found</html>", "gzip"),
        ("mnist", "MNIST/raw/t10k-images-idx3-ubyte", lambda data: b"", ""),
        ("mnist", "MNIST/raw/t10k-images-idx3-ubyte", lambda data: bytes([0, 0, 13, 1, 0, 0, 0, 0]), "not an idx file"),
        ("mnist", "MNIST/raw/t10k-images-idx3-ubyte", lambda data: bytes([0, 0, 8, 1, 0, 0, 0, 9]), "promises 9"),
        ("mnist", "MNIST/raw/t10k-labels-idx1-ubyte", lambda data: bytes([0, 0, 8, 1, 0, 0, 0, 1, 7]), "reshape"),
        ("usps", "USPS/usps.t.bz2", lambda data: data[: len(data) // 2], "end-of-stream"),
        ("usps", "USPS/usps.bz2", lambda data: bz2.compress(b"one two three\n"), ""),
        ("svhn", "SVHN/test_32x32.mat", lambda data: data[: len(data) // 2], ""),
        ("svhn", "SVHN/train_32x32.mat", lambda data: b"", ""),
        ("mnistm", "bsds500.tar", lambda data: data[:5000], ""),
        ("mnistm", "bsds500.tar", lambda data: data[: len(data) // 2], ""),
    ],
)
def test_a_damaged_file_is_named(
    tmp_path: Path, name: str, file: str, content: Callable[[bytes], bytes], reason: str
) -> None:
    write_mnist(tmp_path)
    write_usps(tmp_path)
    write_svhn(tmp_path)
    write_photographs(tmp_path / "bsds500.tar", side=64)
    path = tmp_path / file
    path.write_bytes(content(path.read_bytes() if path.exists() else b""))
    with pytest.raises(DataError, match=rf"(?i){re.escape(str(path))}.* cannot be read: .*{reason}.*remove it"):
        stage(name, tmp_path, download=False)
    assert not staged(name, tmp_path)
    assert list((tmp_path / "cache").iterdir()) == []


def test_labels_outside_the_classes_are_refused(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    write_idx(tmp_path / "MNIST/raw/t10k-labels-idx1-ubyte.gz", np.full(20, 10, np.uint8))
    with pytest.raises(DataError, match=r"mnist: test .* outside 0\.\.9"):
        stage("mnist", tmp_path, download=False)


def test_images_of_another_size_are_refused(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    write_idx(tmp_path / "MNIST/raw/t10k-images-idx3-ubyte.gz", pixels(20, 8, 8))
    with pytest.raises(DataError, match=r"mnist: test images are .*8, 8.* not .*28, 28"):
        stage("mnist", tmp_path, download=False)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda place: [p.unlink() for p in (place / "data/images/val").iterdir()], "no jpgs in a folder called 'val'"),
        (lambda place: [p.unlink() for p in place.rglob("*.jpg")], "mnistm: .*BSDS500.* is missing"),
        (lambda place: (place / "data/images/test/999.jpg").write_bytes(b"no jpg"), "999.jpg cannot be read"),
        (lambda place: Image.new("RGB", (99, 27)).save(place / "data/images/test/1.jpg"), "99x27 pixels are less"),
    ],
)
def test_damaged_photographs_are_named(tmp_path: Path, spoil: Callable[[Path], object], message: str) -> None:
    write_mnist(tmp_path)
    write_photographs(tmp_path / "BSDS500")
    spoil(tmp_path / "BSDS500")
    with pytest.raises(DataError, match=message):
        stage("mnistm", tmp_path, download=False)


# Downloads, from a server of this test's own.


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

    monkeypatch.setenv("no_proxy", "*")
    (tmp_path / "served").mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "served"))) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}/"
        http.shutdown()
        thread.join()


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def test_missing_files_are_downloaded_and_then_used(
    tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision import datasets

    source, root = tmp_path / "served", tmp_path / "root"
    write_mnist(source)
    write_usps(source)
    files = sorted((source / "MNIST" / "raw").iterdir())
    monkeypatch.setattr(datasets.MNIST, "mirrors", [f"{server}MNIST/raw/"])
    monkeypatch.setattr(datasets.MNIST, "resources", [(path.name, md5(path)) for path in files])
    usps = {"train": source / "USPS/usps.bz2", "test": source / "USPS/usps.t.bz2"}
    parts = {part: [f"{server}USPS/{path.name}", path.name, md5(path)] for part, path in usps.items()}
    monkeypatch.setattr(datasets.USPS, "split_list", parts)
    for name in ("mnist", "usps"):
        assert stage(name, root)
        stage(name, source, download=False)
        assert digests(root, name) == digests(source, name)
    assert sorted(path.name for path in root.iterdir()) == ["MNIST", "USPS", "cache"]


def test_without_a_network_the_missing_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import datasets

    monkeypatch.setenv("no_proxy", "*")
    with socket.socket() as closed:  # bound, but nobody listens: connections are refused at once
        closed.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{closed.getsockname()[1]}/"
        monkeypatch.setattr(datasets.MNIST, "mirrors", [nowhere])
        parts = {part: [nowhere, f"{part}_32x32.mat", ""] for part in ("train", "test")}
        monkeypatch.setattr(datasets.SVHN, "split_list", parts)
        for name, file in (("mnist", "MNIST/raw/train-images-idx3-ubyte"), ("svhn", "SVHN/train_32x32.mat")):
            message = rf"{name}: {tmp_path / file} is missing; the download failed: .*refused.*where there is a network"
            with pytest.raises(DataError, match=message):
                stage(name, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


# The cache.


def test_size_and_channels_are_converted_as_pil_does(tmp_path: Path) -> None:
    parts = write_svhn(tmp_path)
    for size, channels in ((None, None), (28, 3), (None, 1), (20, 1), (40, 3)):
        assert stage("svhn", tmp_path, Form(size, channels), download=False)
        assert staged("svhn", tmp_path, Form(size, channels))
        arrays = load("svhn", "test", tmp_path, Form(size, channels))
        side, mode = size or 32, "L" if channels == 1 else "RGB"
        assert arrays.images.shape == (12, channels or 3, side, side)
        for mine, original in zip(arrays.images, parts["test"][0], strict=True):
            picture = Image.fromarray(np.ascontiguousarray(original.transpose(1, 2, 0))).convert(mode)
            expected = np.asarray(picture.resize((side, side), Image.Resampling.BILINEAR)).reshape(side, side, -1)
            np.testing.assert_array_equal(mine, expected.transpose(2, 0, 1))
    assert len(list((tmp_path / "cache").iterdir())) == 5


def test_grey_becomes_rgb_by_repetition(tmp_path: Path) -> None:
    parts = write_mnist(tmp_path)
    stage("mnist", tmp_path, Form(channels=3), download=False)
    arrays = load("mnist", "test", tmp_path, Form(channels=3))
    np.testing.assert_array_equal(arrays.images, parts["t10k"][0].repeat(3, axis=1))
    assert not staged("mnist", tmp_path)
    assert staged("mnist", tmp_path, Form(28, 3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("mnist5k", "train", None, None), "not staged: .*mnist5k-28x28x1.* does not exist.*jobs/stage.py"),
        (("mnist5k", "dev", None, None), "no split 'dev'; splits: train, validation, test"),
        (("mnist5k", "train", 0, None), "size 0"),
        (("mnist5k", "train", 5000, None), "size 5000"),
        (("mnist5k", "train", None, 2), "channels 2"),
        (("mnist", "train", None, None), "mnist is not staged"),
        (("cifar", "train", None, None), "unknown dataset 'cifar'"),
    ],
)
def test_an_unavailable_split_or_dataset_is_explained(
    tmp_path: Path, arguments: tuple[str, str, int | None, int | None], message: str
) -> None:
    name, split, size, channels = arguments
    with pytest.raises(DataError, match=message):
        load(name, split, tmp_path, Form(size, channels))


def test_a_root_that_cannot_be_written_is_reported_before_decoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "decode", lambda *_: pytest.fail("decoded before the root was checked"))
    (tmp_path / "cache").write_text("in the way")
    with pytest.raises(DataError, match=rf"cannot write the data cache {tmp_path}/cache: .*data.root or TURNOUT_DATA"):
        stage("digits", tmp_path)


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    write_mnist(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(DataError, match=r"cannot write the data cache .*No space left"):
            stage("mnist", tmp_path, download=False)
    assert list((tmp_path / "cache").iterdir()) == []
    assert stage("mnist", tmp_path, download=False)


def test_a_damaged_entry_is_noticed_and_replaced(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    stage("mnist", tmp_path, download=False)
    good = digests(tmp_path, "mnist")
    path = cache.folder("mnist", tmp_path) / "train_images.npy"
    for spoil in (lambda: os.truncate(path, 1000), path.unlink, (path.parent / "origin.json").unlink):
        spoil()
        assert not staged("mnist", tmp_path)
        with pytest.raises(DataError, match="is incomplete"):
            load("mnist", "test", tmp_path)
        assert stage("mnist", tmp_path, download=False)
        assert digests(tmp_path, "mnist") == good
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_if_two_calls_stage_at_once_one_result_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_mnist(tmp_path)
    both = threading.Barrier(2, timeout=60)

    def together(name: str, root: Path, download: bool, *more: Any) -> Splits:
        both.wait()  # both have seen that nothing is there
        return decode.decode(name, root, download, *more)

    monkeypatch.setattr(cache, "decode", together)
    with ThreadPoolExecutor(2) as threads:
        futures = [threads.submit(stage, "mnist", tmp_path, download=False) for _ in range(2)]
        assert sorted(future.result() for future in futures) == [False, True]
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["mnist-28x28x1-v1"]


def test_writing_to_loaded_arrays_does_not_reach_the_cache(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    stage("mnist", tmp_path, download=False)
    before = digests(tmp_path, "mnist")
    arrays = load("mnist", "train", tmp_path)
    torch.from_numpy(arrays.images).zero_()  # torch would warn of an array that cannot be written
    assert digests(tmp_path, "mnist") == before
    assert load("mnist", "train", tmp_path).images.any()


# Batches.


def numbered(count: int, channels: int = 3) -> Arrays:
    """Return samples whose label, and whose pixels modulo 256, are their index."""
    index = np.arange(count)
    images = np.broadcast_to(index.astype(np.uint8)[:, None, None, None], (count, channels, 4, 6))
    return Arrays(images.copy(), index.astype(np.int64))


def single(count: int = 23, batch_size: int = 6, rank: int = 0, world: int = 1, seed: int = 5) -> Batches:
    return Batches({"": numbered(count)}, ("images", "labels"), batch_size, seed, rank, world, CPU)


def labels(batches: Batches, steps: range) -> list[int]:
    return torch.cat([batches.at(step)["labels"] for step in steps]).tolist()


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_batch_is_normalised_and_channels_last(channels: int) -> None:
    arrays = numbered(256, channels)
    batch = Batches({"": arrays}, ("images", "labels"), 256, 0, 0, 1, CPU).at(0)
    images, names = batch["images"], batch["labels"]
    assert (images.dtype, names.dtype) == (torch.float32, torch.int64)
    assert images.shape == (256, channels, 4, 6)
    assert images.is_contiguous(memory_format=torch.channels_last)
    expected = torch.from_numpy(arrays.images)[names].float() / 127.5 - 1
    assert torch.equal(images, expected)
    assert (images.min(), images.max()) == (-1, 1)


@pytest.mark.parametrize(("count", "batch_size"), [(24, 6), (23, 6), (5, 12), (1, 3)])
def test_every_epoch_holds_every_sample_once(count: int, batch_size: int) -> None:
    steps = 6 * count // batch_size + 1
    order = labels(single(count, batch_size), range(steps))
    epochs = [order[i : i + count] for i in range(0, 6 * count, count)]
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
    assert count < 5 or len({tuple(epoch) for epoch in epochs}) > 1


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    steps = list(range(20))
    once = [single().at(step) for step in steps]  # each from a fresh start: a resumed run
    again = single()
    for step in reversed(steps):
        assert equal(again.at(step), once[step])
    assert labels(single(seed=6), range(4)) != labels(single(seed=5), range(4))


@pytest.mark.parametrize("world", [2, 3, 6])
def test_the_shares_of_all_processes_make_the_batch_of_one(world: int) -> None:
    for step in range(10):
        shares = [single(rank=rank, world=world).at(step) for rank in range(world)]
        whole = {key: torch.cat([share[key] for share in shares]) for key in shares[0]}
        assert equal(whole, single().at(step))


def test_domains_are_ordered_apart_and_only_keys_are_read() -> None:
    arrays = {"source": numbered(20), "target": numbered(20)}
    keys = ("source_images", "source_labels", "target_images")
    batches = Batches(arrays, keys, 20, 0, 0, 1, CPU)
    batch = batches.at(0)
    assert tuple(batch) == keys
    source, target = (((batch[f"{domain}_images"][:, 0, 0, 0] + 1) * 127.5).round() for domain in arrays)
    assert torch.equal(source, batch["source_labels"].float())
    assert not torch.equal(source, target)


def test_domains_of_different_length_have_epochs_of_their_own() -> None:
    arrays = {"source": numbered(7), "target": numbered(12)}
    batches = Batches(arrays, ("source_labels", "target_labels"), 4, 0, 0, 1, CPU)
    for domain, count in (("source", 7), ("target", 12)):
        order = torch.cat([batches.at(step)[f"{domain}_labels"] for step in range(21)]).tolist()
        assert all(sorted(order[i : i + count]) == list(range(count)) for i in range(0, 84, count))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 7, "world": 2}, "batch_size 7 cannot be shared by 2 processes"),
        ({"batch_size": 0}, "batch_size 0"),
        ({"rank": 2, "world": 2}, "rank 2"),
        ({"keys": ("images", "lables")}, "'lables': there are images, labels"),
        ({"keys": ("source_images",)}, "'source_images': there are images, labels"),
        ({"arrays": {"": Arrays(pixels(3, 1, 4, 4), np.arange(2))}}, "3 images and 2 labels"),
        ({"arrays": {"": Arrays(pixels(0, 1, 4, 4), np.arange(0))}}, "0 images and 0 labels"),
    ],
)
def test_impossible_batches_are_refused(change: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {
        **{"arrays": {"": numbered(9)}, "keys": ("images", "labels"), "batch_size": 4, "seed": 0},
        **{"rank": 0, "world": 1, "device": CPU},
    }
    with pytest.raises(ValueError, match=message):
        Batches(**(arguments | change))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="step -1"):
        single().at(-1)


def prefetchers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


@pytest.mark.parametrize("resident", [True, False])
def test_prefetched_batches_are_the_same_and_the_thread_ends(resident: bool) -> None:
    batches = Batches({"": numbered(23)}, ("images", "labels"), 6, 5, 0, 1, CPU, resident=resident)
    assert batches.resident == resident
    steps = iter(range(3, 14))
    for batch in prefetch(batches, 3, 14):
        assert equal(batch, single().at(next(steps)))
        assert bool(prefetchers()) != resident
    assert next(steps, None) is None
    assert not prefetchers()
    early = prefetch(batches, 0, 100)
    next(early)
    early.close()
    assert not prefetchers()
    assert list(prefetch(batches, 5, 5)) == []


def test_an_error_in_the_prefetching_thread_surfaces(monkeypatch: pytest.MonkeyPatch) -> None:
    batches = Batches({"": numbered(23)}, ("labels",), 6, 5, 0, 1, CPU, resident=False)
    at = batches.at

    def failing(step: int) -> dict[str, torch.Tensor]:
        if step == 2:
            raise OSError("the file system went away")
        return at(step)

    monkeypatch.setattr(batches, "at", failing)
    ahead = prefetch(batches, 0, 9)
    assert equal(next(ahead), at(0))
    assert equal(next(ahead), at(1))
    with pytest.raises(OSError, match="went away"):
        next(ahead)
    assert not prefetchers()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("resident", [None, True, False])
def test_batches_on_a_cuda_device_are_those_of_the_cpu(resident: bool | None) -> None:
    device = torch.device("cuda")
    batches = Batches({"": numbered(23)}, ("images", "labels"), 6, 5, 0, 1, device, resident=resident)
    assert batches.resident == (resident is not False)
    for step, batch in enumerate(prefetch(batches, 0, 40)):
        assert batch["images"].is_contiguous(memory_format=torch.channels_last)
        assert all(tensor.is_cuda for tensor in batch.values())
        assert equal({key: tensor.cpu() for key, tensor in batch.items()}, single().at(step))
        assert equal(batch, batches.at(step))


# The real files, where they are at hand.


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"no real data at {SHARED}")
def test_real_files_are_staged(tmp_path: Path) -> None:
    for path in SHARED.iterdir():
        (tmp_path / path.name).symlink_to(path)
    expected = {"mnist": (54_000, 6_000, 10_000), "usps": (6_562, 729, 2_007), "mnistm": (54_000, 6_000, 10_000)}
    for name, counts in expected.items():
        assert stage(name, tmp_path, download=False)
        splits = {split: load(name, split, tmp_path) for split in SPLITS}
        assert tuple(len(arrays.labels) for arrays in splits.values()) == counts
        assert all(np.bincount(arrays.labels).min() > 0.05 * len(arrays.labels) for arrays in splits.values())
    digits, blended = load("mnist", "test", tmp_path), load("mnistm", "test", tmp_path)
    np.testing.assert_array_equal(digits.labels, blended.labels)
    assert raw.locate(tmp_path / "MNIST/raw/t10k-images-idx3-ubyte") is not None
