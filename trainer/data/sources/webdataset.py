"""WebDataset tars on the disk: `wds:<pattern>`, such as `wds:shards/train-*.tar`; members of one key form a sample.

Format: https://github.com/webdataset/webdataset, section "The WebDataset Format".
"""

import io
import os
import re
import sys
import tarfile
from array import array
from collections.abc import Iterable, Iterator
from functools import cached_property, partial
from glob import glob
from itertools import islice, product
from pathlib import Path
from typing import IO

from trainer.data.classes import check_missing, clean_labels
from trainer.data.dataset import Findings, find_split
from trainer.data.names import Names
from trainer.data.pictures import printable
from trainer.data.sources.labelled import LabelledPictures, Part, Parts, check_parts
from trainer.data.sources.listing import PICTURES
from trainer.errors import DataError

LABEL = "cls"  # default extension of a sample's label, which is text


class WebDataset(LabelledPictures):
    """Tars whose names match a pattern, with * and braces such as {000..003}; `#<extension>` selects the label."""

    @cached_property
    def shards(self) -> list[Path]:
        """The tars, sorted; DataError if braces name one that does not exist."""
        patterns = expand_braces(str(self.path))
        check_folders(patterns)
        files = {pattern: glob(pattern) for pattern in patterns}
        missing = [pattern for pattern in files if not files[pattern]]
        if missing and len(missing) < len(files):
            raise DataError(
                f"{self.path}: there is no {missing[0]}, and {len(missing) - 1} more are missing; name those that exist"
            )
        return sorted({Path(file) for matches in files.values() for file in matches})

    def check_path(self, name: str) -> None:
        """Check that there are tars; DataError."""
        if not self.shards:
            raise DataError(
                f"{name}: there is no tar {self.path}; give the path of one, or a pattern such as train-*.tar"
            )

    def list_files(self) -> list[str]:
        """Return the tars."""
        return list(map(str, self.shards))

    def read_parts(self, findings: Findings) -> Parts:
        """Return the class of each picture, by the splits in the names of the tars or their folders; DataError."""
        files, texts, blocks = dict[str, Names](), dict[str, list[str]](), dict[str, "array[int]"]()
        for number, shard in enumerate(self.shards):
            split = find_split(shard.name, shard.parent.name)
            names = files.setdefault(split, Names())
            part, places = texts.setdefault(split, []), blocks.setdefault(split, array("Q"))
            for name, text, offset, size in self.read_shard(shard, findings):
                names.append(name)
                part.append(sys.intern(text))
                places.extend((number, offset, size))
        if len(files) > 1 and not {"train", "test"} <= files.keys():
            raise DataError(
                f"{self.name}: tars of {', '.join(split or 'no split' for split in files)}; name all of them "
                "train-…, test-… and perhaps validation-…, or none"
            )
        if sum(map(len, files.values())) < 2:
            raise DataError(f"{self.name}: holds {sum(map(len, files.values()))} pictures; at least two are needed")
        cleaned = iter(clean_labels([text for part in texts.values() for text in part]))
        parts = {}
        for split, names in files.items():
            labels = list(islice(cleaned, len(names)))
            check_missing(labels, partial(self.describe_member, names), self.name)
            parts[split if len(files) > 1 else ""] = Part(names, labels, partial(self.open, blocks[split]))
        check_parts(self.name, parts)
        return parts

    def read_shard(self, shard: Path, findings: Findings) -> Iterator[tuple[str, str, int, int]]:
        """Yield name, text of the label, offset and size of each picture of a tar; DataError for a damaged one."""
        extension = f".{self.label or LABEL}".lower()
        where = shard.relative_to(os.path.commonpath([s.parent for s in self.shards]))
        pictures, labels, others = dict[str, tuple[str, int, int]](), dict[str, str](), list[str]()
        try:
            with tarfile.open(shard, "r:") as archive:
                for member in archive:
                    folder, _, file = member.name.rpartition("/")
                    stem, dot, ending = file.partition(".")
                    key, name = f"{folder}/{stem}", f"{where}/{printable(member.name)}"
                    ending = f"{dot}{ending}".lower()  # as the webdataset library compares them
                    if not member.isfile():
                        continue
                    if name in pictures or (ending == extension and key in labels):
                        raise DataError(f"{shard}: holds {printable(member.name)} twice; write it again")
                    if ending in PICTURES:
                        pictures[name] = key, member.offset_data, member.size
                    elif ending == extension and (content := archive.extractfile(member)):
                        labels[key] = content.read().decode(errors="backslashreplace")
                    else:
                        others.append(name)
                    archive.members.clear()  # type: ignore[attr-defined] # it keeps all of them otherwise
                check_end(shard, archive.offset)
        except (OSError, tarfile.TarError) as error:
            raise DataError(f"{shard}: cannot be read as tar: {error}; repair or remove it") from None
        findings.ignore("neither picture nor label", others)
        for name, (key, offset, size) in pictures.items():
            yield name, labels.get(key, ""), offset, size

    def describe_member(self, names: Names, position: int) -> str:
        """Return where the label of a picture is."""
        return f"{names[position]}, .{self.label or LABEL}"

    def open(self, blocks: "array[int]", position: int) -> IO[bytes]:
        """Read a picture; `blocks` holds the number of the tar, offset and size of each."""
        number, offset, size = blocks[3 * position : 3 * position + 3]
        handle = os.open(self.shards[number], os.O_RDONLY)
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


def check_folders(patterns: Iterable[str]) -> None:
    """Check that the folders that patterns name may be listed, which glob silently skips otherwise; DataError."""
    paths = {path for pattern in patterns for path in (Path(pattern), *Path(pattern).parents)}
    rights = {(str(path.parent), os.R_OK if set("*?[") & set(path.name) else 0) for path in paths}
    for pattern, right in sorted(rights):
        for folder in filter(os.path.isdir, glob(pattern)):
            if not os.access(folder, right | os.X_OK, effective_ids=True):
                raise DataError(f"{folder}: cannot be read: Permission denied; make it readable or name other tars")


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
