"""Hugging Face datasets on the disk: `hf:<path>` of save_to_disk or of a folder of Parquet files. Needs pyarrow.

Formats: https://huggingface.co/docs/datasets/about_arrow; the features are JSON in the metadata of the schema.
"""

import io
import json
import re
from functools import cached_property
from pathlib import Path
from typing import IO, Any

from trainer.data.classes import check_missing, clean_labels
from trainer.data.dataset import SPLIT_NAMES, Findings
from trainer.data.sources.labelled import LabelledPictures, Parts, check_parts
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
        for file in self.list_files():
            word = re.match("[a-z]*", (file.parent if file.suffix == ".arrow" else file).name.lower())
            files.setdefault(SPLIT_NAMES.get(word[0] if word else "", ""), []).append(file)
        if len(files) > 1 and not {"train", "test"} <= files.keys():
            raise DataError(
                f"{self.name}: holds {', '.join(split or 'files of no split' for split in files)}; a dataset that is "
                "split has train and test, perhaps validation"
            )
        try:
            tables = {
                split: pa.concat_tables(
                    [
                        pq.read_table(part)
                        if part.suffix == ".parquet"
                        else pa.ipc.open_stream(pa.memory_map(str(part))).read_all()
                        for part in parts
                    ]
                )
                for split, parts in files.items()
            }
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{self.path}: cannot be read: {' '.join(str(error).split())}; save it again") from None
        return tables if len(tables) > 1 else {"": next(iter(tables.values()))}

    @cached_property
    def features(self) -> dict[str, Any]:
        """Column -> its feature as the datasets library describes it; {} if it did not write the files."""
        metadata = next(iter(self.tables.values())).schema.metadata or {}
        described: dict[str, Any] = json.loads(metadata.get(b"huggingface", b"{}")).get("info", {}).get("features", {})
        return described

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

    def list_files(self) -> list[Path]:
        """Return the files of the tables, without the caches of transformations."""
        files = [path for path in sorted(self.path.rglob("*")) if path.suffix in (".arrow", ".parquet")]
        return [path for path in files if not path.name.startswith("cache-")]

    def read_parts(self, findings: Findings) -> Parts:
        """Return the class of each row; DataError."""
        columns = next(iter(self.tables.values())).column_names
        labels = [column for column in columns if self.features.get(column, {}).get("_type") == "ClassLabel"]
        column = self.label or next(iter([*labels, *(c for c in ("label", "labels") if c in columns)]), "")
        if column and column not in columns:
            raise DataError(f"{self.name}: has no column {column!r}; it has: {', '.join(columns)}")
        names = self.features.get(column, {}).get("names") or []
        texts: dict[str, list[str]] = {}
        for split, table in self.tables.items():
            values = table.column(column).to_pylist() if column else [None] * len(table)
            texts[split] = ["" if v is None or v == -1 else names[v] if names else str(v) for v in values]
        flat = iter(clean_labels([text for part in texts.values() for text in part]))
        parts = {split: {f"{split}/{row}": next(flat) for row in range(len(part))} for split, part in texts.items()}
        for split, part in parts.items():
            check_missing(
                list(part.values()), [f"row {row} of {split or 'the table'}" for row in range(len(part))], self.name
            )
        check_parts(self.name, parts)
        return parts

    def open(self, file: str) -> IO[bytes]:
        """Return the bytes of a picture, or open the file that its row names."""
        split, _, row = file.rpartition("/")
        value = self.tables[split].column(self.image_column)[int(row)].as_py()
        if isinstance(value, dict) and value.get("bytes") is None:
            return (self.path / str(value.get("path"))).open("rb")
        return io.BytesIO(value["bytes"] if isinstance(value, dict) else value)
