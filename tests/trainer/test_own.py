"""Datasets of the user's own files: npz, folders of pictures, CelebA as it is downloaded; and refusals of bad ones."""

import io
import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from trainer.config.schema import Data
from trainer.data import cache, decode
from trainer.data.batches import Batches
from trainer.data.cache import Arrays, load, stage, staged
from trainer.data.dataset import Form
from trainer.data.registry import get
from trainer.errors import DataError


def draw(n: int, height: int = 12, width: int = 12, seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, 256, (n, height, width, 3), np.uint8)


def encoded(image: np.ndarray, kind: str = "PNG") -> bytes:
    content = io.BytesIO()
    Image.fromarray(image).save(content, kind)
    return content.getvalue()


def fill(folder: Path, names: list[str], **shape: int) -> np.ndarray:
    """Write a different picture under each name; return them."""
    images = draw(len(names), **shape)
    for name, image in zip(names, images, strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encoded(image))
    return images


def keys(images: np.ndarray) -> list[bytes]:
    return [np.ascontiguousarray(image).tobytes() for image in images]


def everything(name: str, root: Path, size: int | None = None) -> tuple[list[bytes], list[int]]:
    """Return the images [H, W, C] and labels of all splits."""
    splits = [load(name, split, root, Form(size)) for split in ("train", "validation", "test")]
    images = [key for split in splits for key in keys(split.images.transpose(0, 2, 3, 1))]
    return images, [int(label) for split in splits for label in split.labels]


def test_an_npz_with_a_test_split_of_its_own(tmp_path: Path) -> None:
    file = tmp_path / "faces.npz"
    train, test = draw(20, seed=1), draw(6, seed=2)
    ages = np.arange(20) % 3
    males = {"train_labels": ages % 2, "test_labels": np.ones(6)}
    arrays = {"train_images": train, "test_images": test, "train_age": 10 * ages, "test_age": np.full(6, 20), **males}
    np.savez(file, **arrays)  # type: ignore[arg-type]
    name = f"npz:{file}#age"
    actual = get(name)
    assert (actual.size, actual.channels, actual.classes) == (12, 3, 3)
    assert get(f"npz:{file}").classes == 2
    assert stage(name, tmp_path)
    images, labels = everything(name, tmp_path)
    assert dict(zip(images, labels, strict=True)) == dict(
        zip(keys(train), np.arange(20) % 3, strict=True)
    ) | dict.fromkeys(keys(test), 2)
    assert [len(load(name, split, tmp_path).labels) for split in ("train", "validation", "test")] == [18, 2, 6]


def test_an_npz_that_is_not_split(tmp_path: Path) -> None:
    file = tmp_path / "grey.npz"
    images = draw(30)[..., 0]
    np.savez_compressed(file, images=images, labels=np.arange(30) % 4 + 5)
    name = f"npz:{file}"
    assert (get(name).channels, get(name).classes) == (1, 4)
    stage(name, tmp_path)
    actual, labels = everything(name, tmp_path)
    assert dict(zip(actual, labels, strict=True)) == dict(zip(keys(images), np.arange(30) % 4, strict=True))
    assert [len(load(name, split, tmp_path).labels) for split in ("train", "validation", "test")] == [25, 2, 3]


def test_a_relative_path_means_the_same_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(tmp_path / "a.npz", images=draw(4), labels=np.arange(4))
    monkeypatch.chdir(tmp_path)
    assert Data(dataset="npz:a.npz").dataset == f"npz:{tmp_path}/a.npz"


def test_a_folder_of_subfolders(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    names = [f"{kind}/{i}.png" for kind in ("cats", "dogs") for i in range(10)]
    images = fill(folder, names, height=12, width=16)
    (folder / ".hidden.png").write_bytes(b"no picture")
    name = f"folder:{folder}"
    assert (get(name).size, get(name).classes) == (None, 2)
    stage(name, tmp_path, Form(12))
    actual, labels = everything(name, tmp_path, 12)
    squares = images[:, :, 2:14]  # cut to the centre, and not resized
    assert dict(zip(actual, labels, strict=True)) == dict(zip(keys(squares), [0] * 10 + [1] * 10, strict=True))
    stage(name, tmp_path, Form(6))
    assert load(name, "train", tmp_path, Form(6)).images.shape == (17, 3, 6, 6)


def test_a_folder_with_splits_and_a_table(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    names = [f"{split}/{i}.png" for split in ("train", "test") for i in range(8)]
    fill(folder, names)
    rows = [f"{name},{i % 2},{'yes' if i % 3 else 'no'}" for i, name in enumerate(names)]
    (folder / "attributes.csv").write_text("\n".join(["file,male,glasses", *rows]))
    stage(f"folder:{folder}#glasses", tmp_path, Form(12))
    test = load(f"folder:{folder}#glasses", "test", tmp_path, Form(12))
    assert [int(label) for label in test.labels] == [int(bool(i % 3)) for i in range(8, 16)]
    with pytest.raises(DataError, match=r"attributes\.csv: has no column 'hat'; it has: male, glasses"):
        get(f"folder:{folder}#hat")
    (folder / "attributes.csv").write_text("\n".join(["file,male,glasses", *rows[:-1]]))
    with pytest.raises(DataError, match=r"says nothing of test/7\.png and 0 more"):
        stage(f"folder:{folder}#male", tmp_path, Form(12))


@pytest.mark.parametrize(
    ("train", "validation", "test"),
    [("train", "val", "test"), ("Train", "valid", "Test"), ("training", "validation", "testing")],
)
def test_common_names_of_splits_are_recognised(tmp_path: Path, train: str, validation: str, test: str) -> None:
    folders = {"train": train, "validation": validation, "test": test}
    names = {split: [f"{folders[split]}/{kind}/{i}.png" for kind in "ab" for i in range(3)] for split in folders}
    images = {split: fill(tmp_path / "photos", names[split], seed=seed) for seed, split in enumerate(names)}
    arrays = {f"{folders[split]}_images": images[split] for split in images}
    arrays |= {f"{folders[split]}_labels": np.array([*"aaabbb"]) for split in images}
    np.savez(tmp_path / "a.npz", **arrays)  # type: ignore[arg-type]
    for name, size in ((f"folder:{tmp_path}/photos", 12), (f"npz:{tmp_path}/a.npz", None)):
        assert get(name).classes == 2
        stage(name, tmp_path, Form(size))
        for split in names:
            actual = load(name, split, tmp_path, Form(size))
            assert keys(actual.images.transpose(0, 2, 3, 1)) == keys(images[split])
            assert [int(label) for label in actual.labels] == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (["train", "validation"], "pictures are in train, validation, none in test; .* train/ and test/"),
        (["train", "val"], "pictures are in train, val, none in test; "),
        (["test", "validation"], "pictures are in test, validation, none in train; "),
        (
            ["train", "cats", "dogs"],
            "pictures are in train, none in test, others in cats and 1 more; .*rename a folder",
        ),
        (["train", "test", "extra"], "pictures are in test, train, others in extra; "),
        (["train", "test", ""], r"pictures are in test, train, others in 0\.png and 1 more; "),
        (["train", "test", "val", "validation"], "pictures are in test, train, val, validation; .* each once"),
        (["photos/train", "photos/test"], "train and test lie further down; give the path of the folder"),
        (["cats/train", "cats/test", "dogs/train", "dogs/test"], "train and test lie further down"),
    ],
)
@pytest.mark.parametrize("table", [False, True])
def test_a_folder_that_is_split_incompletely_is_refused(
    tmp_path: Path, folders: list[str], message: str, table: bool
) -> None:
    names = [str(Path(folder) / f"{i}.png") for folder in folders for i in range(2)]
    fill(tmp_path / "set", names)
    if table:
        (tmp_path / "set" / "attributes.csv").write_text("\n".join(["file,male", *(f"{name},1" for name in names)]))
    with pytest.raises(DataError, match=rf"^{tmp_path}/set: .*{message}"):
        get(f"folder:{tmp_path}/set")


def test_valid_beside_invalid_is_a_class(tmp_path: Path) -> None:
    fill(tmp_path / "set", ["valid/0.png", "invalid/0.png"])
    assert get(f"folder:{tmp_path}/set").classes == 2


@pytest.mark.parametrize(
    ("prefixes", "message"),
    [
        (["train_", "validation_"], "holds no 'test_images'; it has: "),
        (["train_", "val_"], "holds no 'test_images'; it has: "),
        (["", "test_"], "holds images, test_images; give either images, or train_images and test_images"),
        (["train_", "test_", "val_", "validation_"], "holds .*val_images, validation_images; .* each split once"),
    ],
)
def test_an_npz_that_is_split_incompletely_is_refused(tmp_path: Path, prefixes: list[str], message: str) -> None:
    arrays = {f"{prefix}images": draw(4) for prefix in prefixes} | {
        f"{prefix}labels": np.arange(4) for prefix in prefixes
    }
    np.savez(tmp_path / "a.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=rf"^{tmp_path}/a\.npz: {message}"):
        get(f"npz:{tmp_path}/a.npz")


def test_invalid_labels_of_an_npz_are_refused(tmp_path: Path) -> None:
    for number, (message, labels) in enumerate(
        {
            r"labels are float64 \(4, 4\), but not one-hot rows": np.eye(4) / 2,
            r"labels\[2\]: has no label .*, and 0 more": np.array([0, 1, np.nan, 1]),
            r"labels\[0\] is inf, which is no class": np.array([np.inf, 1, 0, 1]),
            r"labels are complex128 \(4,\)": np.arange(4) * 1j,
        }.items()
    ):
        file = tmp_path / f"{number}.npz"
        np.savez(file, images=draw(4), labels=labels)
        with pytest.raises(DataError, match=rf"^{file}: {message}"):
            get(f"npz:{file}")


def test_labels_may_be_a_column(tmp_path: Path) -> None:
    """MedMNIST is saved so, with splits called train, val and test."""
    splits = {"train": 4, "val": 3, "test": 2}
    images = {f"{split}_images": draw(n) for split, n in splits.items()}
    np.savez(tmp_path / "a.npz", **images, **{f"{split}_labels": np.arange(n)[:, None] for split, n in splits.items()})  # type: ignore[arg-type]
    name = f"npz:{tmp_path}/a.npz"
    assert get(name).classes == 4
    stage(name, tmp_path, Form(8))
    actual = {split: load(name, split, tmp_path, Form(8)).labels.tolist() for split in ("train", "validation", "test")}
    assert actual == {"train": [0, 1, 2, 3], "validation": [0, 1, 2], "test": [0, 1]}


def test_unusable_pictures_are_named_and_left_out_only_on_request(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "photos"
    fill(folder, [f"{i:02}.png" for i in range(20)])
    (folder / "07.png").write_bytes((folder / "07.png").read_bytes()[:50])
    (folder / "11.png").write_bytes(encoded(draw(1, 5, 40)[0]))
    name = f"folder:{folder}"
    with pytest.raises(
        DataError, match=r"2 of 20 pictures cannot be used, such as 07\.png: .*<sweep>\.yaml --skip-unreadable"
    ):
        stage(name, tmp_path, Form(12))
    assert not staged(name, tmp_path, Form(12))
    said = capsys.readouterr().err
    assert "07.png" in said
    assert "11.png: 40 x 5 pixels are less than 12" in said
    assert stage(name, tmp_path, Form(12), skip=True)
    assert "left out 2 of 20" in capsys.readouterr().err
    assert len(everything(name, tmp_path, 12)[0]) == 18
    # origin.json records it, and a later process warns once.
    place = cache.folder(name, tmp_path, Form(12))
    assert json.loads((place / "origin.json").read_text())["left_out"] == {"count": 2, "first": ["07.png", "11.png"]}
    assert staged(name, tmp_path, Form(12))
    assert not stage(name, tmp_path, Form(12))
    assert re.findall("2 pictures .* were left out .* such as 07.png", capsys.readouterr().err) == [
        "2 pictures that could not be used were left out when it was staged, such as 07.png"
    ]


def test_a_folder_without_any_usable_picture_is_refused(tmp_path: Path) -> None:
    fill(tmp_path / "photos", ["0.png", "1.png", "2.png"])
    for skip in (False, True):
        with pytest.raises(DataError, match=r"3 of 3 pictures cannot be used, such as 0\.png: .*data\.size below 13$"):
            stage(f"folder:{tmp_path}/photos", tmp_path, Form(13), skip=skip)


def test_a_dataset_that_has_changed_since_it_was_staged_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    fill(folder, [f"{i}.png" for i in range(5)])
    name = f"folder:{folder}"
    stage(name, tmp_path, Form(12))
    assert staged(name, tmp_path, Form(12))
    fill(folder, ["new.png"])
    file = tmp_path / "a.npz"
    np.savez(file, images=draw(8), labels=np.arange(8) % 2)
    stage(f"npz:{file}", tmp_path)
    np.savez(file, images=draw(9), labels=np.arange(9) % 2)
    for changed, size in ((name, 12), (f"npz:{file}", None)):
        for look in (staged, stage):  # a submission looks, and the job once more when it starts
            with pytest.raises(DataError, match=r"has changed since it was staged in .*remove that folder"):
                look(changed, tmp_path, Form(size))


def test_a_change_during_staging_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "photos"
    fill(folder, [f"{i}.png" for i in range(5)])

    def slow(*arguments: Any) -> Any:
        actual = decode.decode(*arguments)
        fill(folder, ["new.png"])
        return actual

    monkeypatch.setattr(cache, "decode", slow)
    stage(f"folder:{folder}", tmp_path, Form(12))
    with pytest.raises(DataError, match="has changed since it was staged"):
        staged(f"folder:{folder}", tmp_path, Form(12))


def test_an_unusable_dataset_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    fill(tmp_path / "one", ["a.png"])
    np.savez(tmp_path / "bare.npz", images=draw(3), label=np.arange(3))
    np.savez(tmp_path / "code.npz", images=np.array([{}, {}]), labels=np.arange(2))
    (tmp_path / "torn.npz").write_bytes(b"PK\x03\x04 torn")
    for name, problem in {
        f"npz:{tmp_path}/none.npz": "there is no file",
        f"folder:{tmp_path}/none": "there is no folder",
        f"folder:{tmp_path}/empty": "holds 0 pictures .* at least two",
        f"folder:{tmp_path}/one": "holds 1 pictures .* at least two",
        f"npz:{tmp_path}/bare.npz": "holds no 'labels'; it has: images, label; #<name> after the path selects",
        f"npz:{tmp_path}/code.npz": "images are object",
        f"npz:{tmp_path}/torn.npz": "cannot be read as npz",
    }.items():
        with pytest.raises(DataError, match=problem):
            get(name)


def test_a_dataset_without_a_size_needs_data_size(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"celeba has no size of its own; set data\.size"):
        Data(dataset="celeba").shape()
    assert Data(dataset="celeba#Smiling", size=64).shape() == (3, 64, 2)


def write_celeba(root: Path, zipped: bool) -> tuple[list[str], dict[str, bytes]]:
    """Write nine photographs, 30 x 24, three in each split, and their tables; return names and contents."""
    place = root / "celeba"
    place.mkdir()
    images = draw(9, 30, 24)
    names = [f"{i:06}.jpg" for i in range(1, 10)]
    contents = {name: encoded(image, "JPEG") for name, image in zip(names, images, strict=True)}
    if zipped:
        with zipfile.ZipFile(place / "img_align_celeba.zip", "w") as archive:
            for name, content in contents.items():
                archive.writestr(f"img_align_celeba/{name}", content)
    else:
        (place / "img_align_celeba").mkdir()
        for name, content in contents.items():
            (place / "img_align_celeba" / name).write_bytes(content)
    rows = [f"{name} {'1' if i % 2 else '-1'}  {'1' if i % 3 else '-1'} " for i, name in enumerate(names)]
    (place / "list_attr_celeba.txt").write_text("\n".join(["9", "Male Smiling ", *rows]) + "\n")
    (place / "list_eval_partition.txt").write_text("".join(f"{name} {i // 3}\n" for i, name in enumerate(names)))
    return names, contents


@pytest.mark.parametrize("zipped", [True, False])
def test_celeba_as_it_is_downloaded(tmp_path: Path, zipped: bool) -> None:
    names, contents = write_celeba(tmp_path, zipped)
    stage("celeba#Smiling", tmp_path, Form(24))
    for number, split in enumerate(("train", "validation", "test")):
        actual = load("celeba#Smiling", split, tmp_path, Form(24))
        assert [int(label) for label in actual.labels] == [int(bool(i % 3)) for i in range(3 * number, 3 * number + 3)]
        for picture, name in zip(actual.images, names[3 * number :], strict=False):
            decoded = np.asarray(Image.open(io.BytesIO(contents[name])))[3:27]
            np.testing.assert_array_equal(picture.transpose(1, 2, 0), decoded)
    with pytest.raises(DataError, match="celeba#Hat: there is no such attribute; it has: Male, Smiling"):
        stage("celeba#Hat", tmp_path, Form(24))


def test_missing_files_of_celeba_are_named_together_with_their_source(tmp_path: Path) -> None:
    tables = ("list_attr_celeba.txt", "list_eval_partition.txt")
    with pytest.raises(DataError) as caught:
        stage("celeba", tmp_path, Form(16))
    assert all(f"{tmp_path}/celeba/{file}" in str(caught.value) for file in (*tables, "img_align_celeba.zip"))
    assert "Nothing is fetched" in str(caught.value)
    assert "Eval/list_eval_partition.txt" in str(caught.value)
    assert "network" not in str(caught.value)
    write_celeba(tmp_path, zipped=True)
    (tmp_path / "celeba" / "img_align_celeba.zip").unlink()
    for skip in (False, True):
        with pytest.raises(DataError, match=r"^celeba: missing: \S*/img_align_celeba\.zip \(or the folder [^)]*\)\. "):
            stage("celeba", tmp_path, Form(16), skip=skip)


@pytest.mark.parametrize(
    ("file", "spoil", "message"),
    [
        ("img_align_celeba.zip", lambda data: data[:500], "cannot be read as zip: "),
        ("list_attr_celeba.txt", lambda data: data[:-4], r"the row of 000009\.jpg is not a name and 2 times 1 or -1"),
        ("list_attr_celeba.txt", lambda data: data.replace(b"-1", b"0"), r"the row of 000001\.jpg is not a name and 2"),
        ("list_attr_celeba.txt", lambda data: b"9\n", "has 1 lines"),
        ("list_attr_celeba.txt", lambda data: b"\xff" + data, "cannot be read: .*decode"),
        ("list_eval_partition.txt", lambda data: data[:-3], r"the row of 000009\.jpg is not a name and a number"),
        (
            "list_eval_partition.txt",
            lambda data: data.replace(b" 2", b" 1"),
            r"has no test \(2\) of .*list_attr_celeba",
        ),
    ],
)
def test_a_damaged_file_of_celeba_is_named(
    tmp_path: Path, file: str, spoil: Callable[[bytes], bytes], message: str
) -> None:
    write_celeba(tmp_path, zipped=True)
    path = tmp_path / "celeba" / file
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(DataError, match=rf"^{path}: {message}.*; take .* of the CelebA download"):
        stage("celeba", tmp_path, Form(24))


def test_flips_do_not_depend_on_the_number_of_processes() -> None:
    images, labels = draw(12).transpose(0, 3, 1, 2), np.zeros(12, np.int64)
    arrays = {"": Arrays(images, labels)}

    def batch(rank: int, world: int, step: int, **more: bool) -> Tensor:
        return Batches(arrays, ("images",), 8, 3, rank, world, torch.device("cpu"), **more).at(step)["images"]

    flipped = 0
    for step in range(20):
        plain, mirrored = batch(0, 1, step), batch(0, 1, step, flip=True)
        assert torch.equal(mirrored, torch.cat([batch(rank, 2, step, flip=True) for rank in (0, 1)]))
        for before, after in zip(plain, mirrored, strict=True):
            assert torch.equal(after, before) or torch.equal(after, before.flip(2))
            flipped += not torch.equal(after, before)
    assert 55 < flipped < 105
