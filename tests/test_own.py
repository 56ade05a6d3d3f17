"""Sets of one's own: npz, a folder of pictures, CelebA as it is downloaded; and what may be wrong with them."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from trainer.config import Data
from trainer.data.batches import Batches
from trainer.data.cache import Arrays, load, stage, staged
from trainer.data.registry import DataError, get


def draw(n: int, height: int = 12, width: int = 12, seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, 256, (n, height, width, 3), np.uint8)


def encoded(image: np.ndarray, kind: str = "PNG") -> bytes:
    content = io.BytesIO()
    Image.fromarray(image).save(content, kind)
    return content.getvalue()


def fill(folder: Path, names: list[str], **shape: int) -> np.ndarray:
    """A picture of its own under each name."""
    images = draw(len(names), **shape)
    for name, image in zip(names, images, strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encoded(image))
    return images


def keys(images: np.ndarray) -> list[bytes]:
    return [np.ascontiguousarray(image).tobytes() for image in images]


def everything(name: str, root: Path, size: int | None = None) -> tuple[list[bytes], list[int]]:
    """Images [H, W, C] and labels of all splits."""
    splits = [load(name, split, root, size) for split in ("train", "validation", "test")]
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
    found = get(name)
    assert (found.size, found.channels, found.classes) == (12, 3, 3)
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
    found, labels = everything(name, tmp_path)
    assert dict(zip(found, labels, strict=True)) == dict(zip(keys(images), np.arange(30) % 4, strict=True))
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
    stage(name, tmp_path, size=12)
    found, labels = everything(name, tmp_path, 12)
    squares = images[:, :, 2:14]  # cut to the centre, and not resized
    assert dict(zip(found, labels, strict=True)) == dict(zip(keys(squares), [0] * 10 + [1] * 10, strict=True))
    stage(name, tmp_path, size=6)
    assert load(name, "train", tmp_path, 6).images.shape == (17, 3, 6, 6)


def test_a_folder_with_splits_and_a_table(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    names = [f"{split}/{i}.png" for split in ("train", "test") for i in range(8)]
    fill(folder, names)
    rows = [f"{name},{i % 2},{'yes' if i % 3 else 'no'}" for i, name in enumerate(names)]
    (folder / "attributes.csv").write_text("\n".join(["file,male,glasses", *rows]))
    stage(f"folder:{folder}#glasses", tmp_path, size=12)
    test = load(f"folder:{folder}#glasses", "test", tmp_path, 12)
    assert [int(label) for label in test.labels] == [int(bool(i % 3)) for i in range(8, 16)]
    with pytest.raises(DataError, match=r"attributes\.csv: has no column 'hat'; it has: male, glasses"):
        get(f"folder:{folder}#hat")
    (folder / "attributes.csv").write_text("\n".join(["file,male", *rows[:-1]]))
    with pytest.raises(DataError, match=r"says nothing of train/7\.png|says nothing of test/7\.png and 0 more"):
        stage(f"folder:{folder}#male", tmp_path, size=12)


def test_what_cannot_be_read_is_named_and_left_out_only_when_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "photos"
    fill(folder, [f"{i:02}.png" for i in range(20)])
    (folder / "07.png").write_bytes((folder / "07.png").read_bytes()[:50])
    (folder / "11.png").write_bytes(encoded(draw(1, 5, 40)[0]))
    name = f"folder:{folder}"
    with pytest.raises(DataError, match=r"2 of 20 pictures cannot be used, such as 07\.png: .*--skip-unreadable"):
        stage(name, tmp_path, size=12)
    assert not staged(name, tmp_path, 12)
    said = capsys.readouterr().err
    assert "07.png" in said
    assert "11.png: 40 x 5 pixels are less than 12" in said
    assert stage(name, tmp_path, size=12, skip=True)
    assert "left out 2 of 20" in capsys.readouterr().err
    assert len(everything(name, tmp_path, 12)[0]) == 18


def test_a_set_that_has_changed_since_is_not_taken_for_the_old_one(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    fill(folder, [f"{i}.png" for i in range(5)])
    name = f"folder:{folder}"
    stage(name, tmp_path, size=12)
    assert staged(name, tmp_path, 12)
    fill(folder, ["new.png"])
    with pytest.raises(DataError, match=r"has changed since it was staged in .*remove that folder"):
        staged(name, tmp_path, 12)


def test_what_is_no_set_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    fill(tmp_path / "one", ["a.png"])
    np.savez(tmp_path / "wide.npz", images=draw(3, 4, 6), labels=np.arange(3))
    np.savez(tmp_path / "float.npz", images=draw(3) / 255, labels=np.arange(3))
    np.savez(tmp_path / "bare.npz", images=draw(3))
    np.savez(tmp_path / "code.npz", images=np.array([{}, {}]), labels=np.arange(2))
    (tmp_path / "torn.npz").write_bytes(b"PK\x03\x04 torn")
    for name, problem in {
        f"npz:{tmp_path}/none.npz": "there is no file",
        f"folder:{tmp_path}/none": "there is no folder",
        f"folder:{tmp_path}/empty": "holds 0 pictures .* at least two",
        f"folder:{tmp_path}/one": "holds 1 pictures .* at least two",
        f"npz:{tmp_path}/wide.npz": "4 x 6 pixels; cut them square",
        f"npz:{tmp_path}/float.npz": "images are float64 .* must be uint8",
        f"npz:{tmp_path}/bare.npz": "holds no 'labels'; it has: images",
        f"npz:{tmp_path}/code.npz": "images are object",
        f"npz:{tmp_path}/torn.npz": "cannot be read as npz",
    }.items():
        with pytest.raises(DataError, match=problem):
            get(name)


def test_a_set_without_a_size_asks_for_one(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"celeba has no size of its own; set data\.size"):
        Data(dataset="celeba").shape()
    assert Data(dataset="celeba#Smiling", size=64).shape() == (3, 64, 2)
    with pytest.raises(DataError, match=r"list_attr_celeba\.txt is missing"):
        stage("celeba", tmp_path, size=16)


@pytest.mark.parametrize("zipped", [True, False])
def test_celeba_as_it_is_downloaded(tmp_path: Path, zipped: bool) -> None:
    place = tmp_path / "celeba"
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
    stage("celeba#Smiling", tmp_path, size=24)
    for number, split in enumerate(("train", "validation", "test")):
        found = load("celeba#Smiling", split, tmp_path, 24)
        assert [int(label) for label in found.labels] == [int(bool(i % 3)) for i in range(3 * number, 3 * number + 3)]
        for picture, name in zip(found.images, names[3 * number :], strict=False):
            decoded = np.asarray(Image.open(io.BytesIO(contents[name])))[3:27]
            np.testing.assert_array_equal(picture.transpose(1, 2, 0), decoded)
    with pytest.raises(DataError, match="celeba#Hat: there is no such attribute; it has: Male, Smiling"):
        stage("celeba#Hat", tmp_path, size=24)


def test_flips_are_those_of_the_global_batch_however_many_processes_share_it() -> None:
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
