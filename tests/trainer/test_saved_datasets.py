"""Datasets in the formats of WebDataset and of Hugging Face's datasets, as files of the real formats."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.trainer.test_files import png
from trainer.data.cache import folder, load, origin, stage
from trainer.data.dataset import SPLITS, Form
from trainer.data.registry import find, get
from trainer.data.sources.webdataset import expand_braces
from trainer.errors import DataError

SIDE = 8
IMAGES = np.random.RandomState(1).randint(0, 256, (24, SIDE, SIDE, 3))


def content(name: str, root: Path) -> dict[bytes, int]:
    """Return the pixels of every staged image with its label."""
    form = Form(SIDE, 3)
    stage(name, root, form=form)
    splits = [load(name, split, root, form=form) for split in SPLITS]
    images = [image for split in splits for image in split.images.transpose(0, 2, 3, 1)]
    labels = [int(label) for split in splits for label in split.labels]
    return {np.ascontiguousarray(image).tobytes(): label for image, label in zip(images, labels, strict=True)}


def expected(labels: list[int]) -> dict[bytes, int]:
    return {image.astype(np.uint8).tobytes(): label for image, label in zip(IMAGES, labels, strict=True)}


# WebDataset


def make_tar(*members: tuple[str, bytes]) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return content.getvalue()


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(make_tar(*members.items()))


ENTIRE = make_tar(*[(name, bytes(9)) for name in ("0.png", "1.png", "0.cls")])  # 1024 bytes a member
TWICE = make_tar(("0.png", b""), ("0.cls", b"1"), ("0.cls", b"2"))


def shard(numbers: range, labels: list[str]) -> dict[str, bytes]:
    members = {}
    for number in numbers:
        members[f"some/{number:05}.seg.png"] = b"a mask, which is another extension"
        members[f"some/{number:05}.png"] = png(IMAGES[number], 2)
        members[f"some/{number:05}.cls"] = labels[number].encode()
        members[f"some/{number:05}.txt"] = f"word {number % 2}".encode()
    return members


def test_tars_are_read_by_keys_and_extensions(tmp_path: Path) -> None:
    labels = [str(number % 3) for number in range(24)]
    for number in range(3):
        write_tar(tmp_path / "shards" / f"set-{number:03}.tar", shard(range(8 * number, 8 * number + 8), labels))
    for pattern in ("set-*.tar", "set-{000..002}.tar", "set-{000,001,002}.tar"):
        assert content(f"wds:{tmp_path}/shards/{pattern}", tmp_path) == expected([n % 3 for n in range(24)])
    name = f"wds:{tmp_path}/shards/set-*.tar#txt"
    assert get(name).names == ("word 0", "word 1")
    assert content(name, tmp_path) == expected([n % 2 for n in range(24)])
    loud = {path.upper(): data for path, data in shard(range(24), labels).items()}
    write_tar(tmp_path / "loud.tar", loud)  # the webdataset library ignores the case of extensions, too
    assert content(f"wds:{tmp_path}/loud.tar", tmp_path) == expected([n % 3 for n in range(24)])
    ignored = origin(folder(name, tmp_path, form=Form(SIDE, 3)))["found"]["ignored"]["neither picture nor label"]
    assert (ignored["count"], ignored["first"][0]) == (48, "set-000.tar/some/00000.seg.png")


def test_tars_have_the_split_in_their_names_or_those_of_their_folders(tmp_path: Path) -> None:
    labels = [str(number % 2) for number in range(24)]
    for word, numbers in {"train": range(16), "val": range(16, 20), "test": range(20, 24)}.items():
        for file in (f"a/{word}-0.tar", f"b/mnist-{word}-0.tar", f"c/{word}/0.tar"):
            write_tar(tmp_path / file, shard(numbers, labels))
    for pattern in ("a/*.tar", "b/*.tar", "c/*/0.tar"):
        name = f"wds:{tmp_path}/{pattern}"
        assert content(name, tmp_path) == expected([number % 2 for number in range(24)])
        for split, count in zip(SPLITS, (16, 4, 4), strict=True):
            assert len(load(name, split, tmp_path, form=Form(SIDE, 3)).labels) == count


def test_braces_are_written_out() -> None:
    assert expand_braces("a-{08..10}-{x,y}.tar") == [f"a-{n}-{c}.tar" for n in ("08", "09", "10") for c in "xy"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, r"there is no tar .*/a-\*\.tar; give the path of one"),
        ({"a-0.tar": b"no tar" * 200}, r"a-0\.tar: cannot be read as tar: .*; repair or remove it"),
        ({"a-0.tar": {"0.png": png(IMAGES[0], 2)}}, r"holds 1 pictures; at least two are needed"),
        (
            {"a-0.tar": {"0.png": png(IMAGES[0], 2), "0.cls": b"1", "1.png": png(IMAGES[1], 2)}},
            r"a-0\.tar/1\.png, \.cls: has no label",
        ),
        ({"a-0.tar": ENTIRE[:2048]}, r"a-0\.tar: is damaged or cut 2048 bytes from its start; write or copy it again"),
        ({"a-0.tar": ENTIRE[:1024] + b"?" + ENTIRE[1025:]}, r"a-0\.tar: is damaged or cut 1024 bytes from its start"),
        ({"a-0.tar": TWICE}, r"a-0\.tar: holds 0\.cls twice; write it again"),
    ],
)
def test_a_bad_tar_is_named(tmp_path: Path, files: dict[str, Any], message: str) -> None:
    for file, members in files.items():
        if isinstance(members, bytes):
            (tmp_path / file).write_bytes(members)
        else:
            write_tar(tmp_path / file, members)
    with pytest.raises(DataError, match=message):
        get(f"wds:{tmp_path}/a-*.tar")


def test_a_tar_that_braces_name_must_exist(tmp_path: Path) -> None:
    write_tar(tmp_path / "a-0.tar", {"0.png": png(IMAGES[0], 2), "1.png": png(IMAGES[1], 2)})
    with pytest.raises(DataError, match=r"there is no .*/a-1\.tar, and 1 more are missing; name those that exist"):
        get(f"wds:{tmp_path}/a-{{0..2}}.tar")


# Hugging Face

NAMES = ["fox", "ant", "bee"]
FEATURES = {
    "photo": {"_type": "Image"},
    "kind": {"names": NAMES, "_type": "ClassLabel"},
    "size": {"dtype": "int64", "_type": "Value"},
}


def write_table(path: Path, numbers: range, form: str, labels: list[int], names: list[str] = NAMES) -> None:
    """Write rows as the datasets library does: pictures as {bytes, path}, features in the metadata of the schema."""
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    features = FEATURES | {"kind": {"names": names, "_type": "ClassLabel"}}
    metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    fields = [("photo", image), ("kind", pa.int64()), ("size", pa.int64())]
    schema = pa.schema(fields, metadata=metadata)
    rows = [{"bytes": png(IMAGES[number], 2), "path": f"{number}.png"} for number in numbers]
    columns = [rows, [labels[number] for number in numbers], [number // 12 for number in numbers]]
    table = pa.Table.from_arrays(
        [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)], schema=schema
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    if form == "parquet":
        pq.write_table(table, path)
    else:
        with pa.ipc.new_stream(str(path), schema) as writer:
            writer.write_table(table)


@pytest.mark.parametrize("form", ["parquet", "arrow"])
def test_a_saved_dataset_has_its_pictures_and_the_names_of_its_classes(tmp_path: Path, form: str) -> None:
    labels = [number % 3 for number in range(24)]
    for part in range(2):
        file = f"data-{part:05}-of-00002.{form}"
        write_table(tmp_path / "set" / file, range(12 * part, 12 * part + 12), form, labels)
    name = f"hf:{tmp_path}/set"
    assert get(name).names == ("ant", "bee", "fox"), "in the order of all kinds"
    assert content(name, tmp_path) == expected([{0: 2, 1: 0, 2: 1}[label] for label in labels])
    assert content(f"{name}#size", tmp_path) == expected([number // 12 for number in range(24)])
    with pytest.raises(DataError, match="has no column 'hat'; it has: photo, kind, size"):
        get(f"{name}#hat")


def test_a_saved_dataset_that_is_split(tmp_path: Path) -> None:
    for split, numbers in {"train": range(16), "test": range(16, 24)}.items():
        write_table(tmp_path / "a" / split / "data-00000-of-00001.arrow", numbers, "arrow", [n % 3 for n in range(24)])
        write_table(tmp_path / "b/data" / f"{split}-00000-of-00001.parquet", numbers, "parquet", [-1] * 24)
        write_table(tmp_path / "c" / f"mnist-{split}.arrow", numbers, "arrow", [n % 3 for n in range(24)])
    (tmp_path / "linked").mkdir()
    for split in ("train", "test"):
        (tmp_path / "linked" / split).symlink_to(tmp_path / "a" / split)
    for name in (f"hf:{tmp_path}/a", f"hf:{tmp_path}/c", f"hf:{tmp_path}/linked"):
        stage(name, tmp_path, form=Form(SIDE, 3))
        assert len(load(name, "test", tmp_path, form=Form(SIDE, 3)).labels) == 8
    assert get(f"hf:{tmp_path}/b").unlabelled == ("test", "train")


def test_a_saved_dataset_that_is_bad_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no \.arrow or \.parquet file below .*/none"):
        find(f"hf:{tmp_path}/none")
    pytest.importorskip("pyarrow")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.parquet").write_bytes(b"no parquet")
    with pytest.raises(DataError, match=r"/a: cannot be read: .*; save it again"):
        get(f"hf:{tmp_path}/a")
    for label in (3, -2):  # of three names
        write_table(tmp_path / f"b{label}" / "x.parquet", range(24), "parquet", [0, label] * 12)
        with pytest.raises(DataError, match=rf"row 1 of the table: kind is {label}, which is no class; correct it"):
            get(f"hf:{tmp_path}/b{label}")
    write_table(tmp_path / "c" / "train.parquet", range(24), "parquet", [0] * 24)
    write_table(tmp_path / "c" / "test.parquet", range(24), "parquet", [0] * 24, names=["ant", "bee", "fox"])
    with pytest.raises(DataError, match="its files differ in their columns or in the names of classes; save all"):
        get(f"hf:{tmp_path}/c")
