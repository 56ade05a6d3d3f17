"""Hugging Face datasets on the disk: `hf:<path>` of save_to_disk or of a folder of Parquet files. Needs pyarrow.

Formats: https://huggingface.co/docs/datasets/about_arrow; the features are JSON in the metadata of the schema.
"""

import io
import json
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import IO, Any

from trainer.data.classes import check_missing, clean_labels
from trainer.data.dataset import Findings, find_split
from trainer.data.names import Names
from trainer.data.sources.labelled import LabelledPictures, Part, Parts, check_parts
from trainer.data.sources.listing import list_folder
from trainer.errors import DataError


class HuggingFace(LabelledPictures):
    """A saved dataset; `#<column>` selects the label, by default the first ClassLabel, else `label`."""

    @cached_property
    def tables(self) -> dict[str, Any]:
        """Split -> table, '' if the dataset is not split; memory-mapped if saved by save_to_disk. DataError."""
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq
        except ImportError:
            raise DataError(f"{self.name}: needs pyarrow: pip install -e '.[huggingface]'") from None
        files: dict[str, list[Path]] = {}
        for file in map(Path, self.list_files()):
            files.setdefault(find_split(file.name, file.parent.name), []).append(file)
        if len(files) > 1 and not {"train", "test"} <= files.keys():
            raise DataError(
                f"{self.name}: holds {', '.join(split or 'files of no split' for split in files)}; a dataset that is "
                "split has train and test, perhaps validation"
            )
        try:
            parts = {
                split: [
                    pq.read_table(file)
                    if file.suffix.lower() == ".parquet"
                    else pa.ipc.open_stream(pa.memory_map(str(file))).read_all()
                    for file in part
                ]
                for split, part in files.items()
            }
            schemas = [(part.column_names, read_features(part)) for split in parts.values() for part in split]
            tables = {split: pa.concat_tables(part) for split, part in parts.items()}
        except (OSError, ValueError, AttributeError, pa.ArrowException) as error:
            raise DataError(f"{self.path}: cannot be read: {' '.join(str(error).split())}; save it again") from None
        if any(schema != schemas[0] for schema in schemas):
            raise DataError(
                f"{self.name}: its files differ in their columns or in the names of classes; save all splits at once"
            )
        return tables if len(tables) > 1 else {"": next(iter(tables.values()))}

    @cached_property
    def features(self) -> dict[str, Any]:
        """Column -> its feature as the datasets library describes it; {} if it did not write the files."""
        return read_features(next(iter(self.tables.values())))

    @cached_property
    def image_column(self) -> str:
        """The column of the pictures; DataError if there is none."""
        columns = next(iter(self.tables.values())).column_names
        images = [column for column in columns if self.features.get(column, {}).get("_type") == "Image"]
        images += [column for column in columns if column in ("image", "img")]
        if not images:
            raise DataError(f"{self.name}: has no column of pictures; it has: {', '.join(columns)}")
        return images[0]

    def check_path(self, name: str) -> None:
        """Check that there are files; DataError."""
        if not self.path.is_dir() or not self.list_files():
            raise DataError(
                f"{name}: there is no .arrow or .parquet file below {self.path}; give the path of a dataset"
            )

    def list_files(self) -> list[str]:
        """Return the files of the tables, without the caches of transformations."""
        files = sorted(self.path / file for file in list_folder(self.path, (".arrow", ".parquet")).files)
        return [str(path) for path in files if not path.name.startswith("cache-")]

    def read_parts(self, findings: Findings) -> Parts:
        """Return the class of each row; DataError."""
        columns = next(iter(self.tables.values())).column_names
        labels = [column for column in columns if self.features.get(column, {}).get("_type") == "ClassLabel"]
        column = self.label or next(iter([*labels, *(c for c in ("label", "labels") if c in columns)]), "")
        if column and column not in columns:
            raise DataError(f"{self.name}: has no column {column!r}; it has: {', '.join(columns)}")
        names = self.features.get(column, {}).get("names") or []
        classes = dict(enumerate(names)) | {None: None, -1: None}
        texts: dict[str, list[str | None]] = {}
        for split, table in self.tables.items():
            values = table.column(column).to_pylist() if column else [None] * len(table)
            for row, value in enumerate(values):
                if isinstance(value, (list, dict)) or (names and value not in classes):
                    raise DataError(
                        f"{self.name}: row {row} of {split or 'the table'}: {column} is {value!r}, which is no class; "
                        "correct it, or select another column with #<column>"
                    )
            texts[split] = [classes[v] if names else None if v is None else str(v) for v in values]
        flat = [text for part in texts.values() for text in part]
        cleaned = iter(flat if names else clean_labels(flat))
        parts = {}
        for split, part in texts.items():
            rows = Names(f"{split} row {row}".lstrip() for row in range(len(part)))
            parts[split] = Part(rows, list(islice(cleaned, len(part))), partial(self.open, split))
            check_missing(parts[split].labels, f"row {{}} of {split or 'the table'}".format, self.name)
        check_parts(self.name, parts)
        return parts

    def open(self, split: str, row: int) -> IO[bytes]:
        """Return the bytes of a picture, or open the file that its row names."""
        value = self.tables[split].column(self.image_column)[row].as_py()
        if isinstance(value, dict) and value.get("bytes") is None:
            return (self.path / str(value.get("path"))).open("rb")
        return io.BytesIO(value["bytes"] if isinstance(value, dict) else value)


def read_features(table: Any) -> dict[str, Any]:
    """Return column -> its feature as the datasets library describes it; ValueError or AttributeError for others."""
    metadata = (table.schema.metadata or {}).get(b"huggingface", b"{}")
    features: dict[str, Any] = json.loads(metadata).get("info", {}).get("features", {})
    return features
