"""WebDataset tars on the disk: `wds:<pattern>`, such as `wds:shards/train-*.tar`; members of one key form a sample.

Format: https://github.com/webdataset/webdataset, section "The WebDataset Format".
"""

import io
import os
import re
import tarfile
from functools import cached_property
from glob import glob
from itertools import product
from pathlib import Path
from typing import IO

from trainer.data.classes import check_missing, clean_labels
from trainer.data.dataset import Findings, find_split
from trainer.data.pictures import printable
from trainer.data.sources.labelled import LabelledPictures, Parts, check_parts
from trainer.data.sources.listing import PICTURES
from trainer.errors import DataError

LABEL = "cls"  # default extension of a sample's label, which is text


class WebDataset(LabelledPictures):
    """Tars whose names match a pattern, with * and braces such as {000..003}; `#<extension>` selects the label."""

    @cached_property
    def shards(self) -> list[Path]:
        """The tars, sorted; DataError if braces name one that does not exist."""
        files = {pattern: glob(pattern) for pattern in expand_braces(str(self.path))}
        missing = [pattern for pattern in files if not files[pattern]]
        if missing and len(missing) < len(files):
            raise DataError(
                f"{self.path}: there is no {missing[0]}, and {len(missing) - 1} more are missing; name those that exist"
            )
        return sorted({Path(file) for matches in files.values() for file in matches})

    @cached_property
    def positions(self) -> dict[str, tuple[Path, int, int]]:
        """Picture -> its tar, offset and size; filled by read_parts."""
        return {}

    def check_path(self, name: str) -> None:
        """Check that there are tars; DataError."""
        if not self.shards:
            raise DataError(
                f"{name}: there is no tar {self.path}; give the path of one, or a pattern such as train-*.tar"
            )

    def list_files(self) -> list[Path]:
        """Return the tars."""
        return self.shards

    def read_parts(self, findings: Findings) -> Parts:
        """Return the class of each picture, by the splits in the names of the tars or their folders; DataError."""
        extension, members = self.label or LABEL, dict[str, list[str]]()
        texts: dict[str, str] = {}
        for shard in self.shards:
            split = find_split(shard.name, shard.parent.name)
            pictures, labels = self.read_shard(shard, f".{extension}", findings)
            members.setdefault(split, []).extend(pictures)
            texts |= {file: labels.get(key, "") for file, key in pictures.items()}
        if len(members) > 1 and not {"train", "test"} <= members.keys():
            raise DataError(
                f"{self.name}: tars of {', '.join(split or 'no split' for split in members)}; name all of them "
                "train-…, test-… and perhaps validation-…, or none"
            )
        labels_of = dict(zip(texts, clean_labels(list(texts.values())), strict=True))
        parts = {split: {file: labels_of[file] for file in files} for split, files in members.items()}
        parts = {"": next(iter(parts.values()))} if len(parts) == 1 else parts
        if sum(map(len, parts.values())) < 2:
            raise DataError(f"{self.name}: holds {len(texts)} pictures; at least two are needed")
        for part in parts.values():
            check_missing(list(part.values()), [f"{file}, .{extension}" for file in part], self.name)
        check_parts(self.name, parts)
        return parts

    def read_shard(self, shard: Path, extension: str, findings: Findings) -> tuple[dict[str, str], dict[str, str]]:
        """Return picture -> key and key -> text of its label, of one tar; DataError for a damaged one."""
        pictures, labels, others = dict[str, str](), dict[str, str](), list[str]()
        where = shard.relative_to(os.path.commonpath([shard.parent for shard in self.shards]))
        try:
            with tarfile.open(shard, "r:") as archive:
                for member in archive:
                    folder, _, file = member.name.rpartition("/")
                    stem, dot, ending = file.partition(".")
                    key, name = f"{folder}/{stem}", f"{where}/{printable(member.name)}"
                    if not member.isfile():
                        continue
                    if name in pictures or (f"{dot}{ending}" == extension and key in labels):
                        raise DataError(f"{shard}: holds {printable(member.name)} twice; write it again")
                    if f"{dot}{ending}".lower() in PICTURES:
                        pictures[name] = key
                        self.positions[name] = shard, member.offset_data, member.size
                    elif f"{dot}{ending}" == extension and (content := archive.extractfile(member)):
                        labels[key] = content.read().decode(errors="backslashreplace")
                    else:
                        others.append(name)
                check_end(shard, archive.offset)
        except (OSError, tarfile.TarError) as error:
            raise DataError(f"{shard}: cannot be read as tar: {error}; repair or remove it") from None
        findings.ignore("neither picture nor label", others)
        return pictures, labels

    def open(self, file: str) -> IO[bytes]:
        """Read a picture."""
        shard, offset, size = self.positions[file]
        handle = os.open(shard, os.O_RDONLY)
        try:
            return io.BytesIO(os.pread(handle, size, offset))
        finally:
            os.close(handle)


def check_end(shard: Path, offset: int) -> None:
    """Check that nothing but zeros follows the last member of a tar; DataError, since tarfile stops at damage."""
    with shard.open("rb") as file:
        file.seek(offset)
        if (rest := file.read(1 << 20)).strip(b"\0") or len(rest) < tarfile.BLOCKSIZE:
            raise DataError(f"{shard}: is damaged or cut {offset} bytes from its start; write or copy it again")


def expand_braces(pattern: str) -> list[str]:
    """Return a pattern with {a,b} and {000..003} written out."""
    parts = re.split(r"\{([^{}]*)\}", pattern)
    choices = [expand_range(part) if number % 2 else [part] for number, part in enumerate(parts)]
    return ["".join(words) for words in product(*choices)]


def expand_range(text: str) -> list[str]:
    """Return the words of a,b or of 000..003."""
    if match := re.fullmatch(r"(\d+)\.\.(\d+)", text):
        return [f"{number:0{len(match[1])}d}" for number in range(int(match[1]), int(match[2]) + 1)]
    return text.split(",")
