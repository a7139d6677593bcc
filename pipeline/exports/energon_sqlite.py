"""Energon's `index.sqlite`: the place of every sample and member by key. Only its joins and random access read it."""

import sqlite3
from pathlib import Path

from pipeline.exports.layout import Layout

# As SqliteIndexWriter of megatron-energon 7.4.1 writes them.
_TABLES = """
CREATE TABLE samples (
    tar_file_id INTEGER NOT NULL, sample_key TEXT NOT NULL UNIQUE, sample_index INTEGER NOT NULL,
    byte_offset INTEGER, byte_size INTEGER
);
CREATE TABLE sample_parts (
    tar_file_id INTEGER, sample_index INTEGER, part_name TEXT,
    content_byte_offset INTEGER, content_byte_size INTEGER
);
"""
_INDEXES = """
CREATE INDEX idx_samples_by_tar_and_idx ON samples(tar_file_id, sample_index);
CREATE INDEX idx_sample_parts_seq ON sample_parts(tar_file_id, sample_index, content_byte_offset);
CREATE INDEX idx_sample_parts_full
    ON sample_parts(tar_file_id, sample_index, part_name, content_byte_offset, content_byte_size);
"""


class SampleIndex:
    """The database while it grows, in a local file: about 300 bytes a sample."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.has_repeated_keys = False
        self._database = sqlite3.connect(path)
        # The file is thrown away if this process dies, so nothing needs to be made durable.
        self._database.executescript(f"PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; {_TABLES}")

    def add(self, tar_number: int, layout: Layout) -> None:
        """Add the samples of a tar; none from the first key on that occurs twice, which Energon does not allow."""
        if self.has_repeated_keys:
            return
        ends = [sample.start for sample in layout.samples[1:]] + [layout.end]
        try:
            self._database.executemany(
                "INSERT INTO samples VALUES (?, ?, ?, ?, ?)",
                (
                    (tar_number, sample.key, index, sample.start, end - sample.start)
                    for index, (sample, end) in enumerate(zip(layout.samples, ends, strict=True))
                ),
            )
        except sqlite3.IntegrityError:
            self.has_repeated_keys = True
            return
        self._database.executemany(
            "INSERT INTO sample_parts VALUES (?, ?, ?, ?, ?)",
            (
                (tar_number, index, member.extension, member.offset, member.num_bytes)
                for index, sample in enumerate(layout.samples)
                for member in sample.members
            ),
        )

    def finish(self) -> None:
        """Add the indexes; the file is complete then."""
        self._database.executescript(_INDEXES)
        self._database.commit()
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._database.close()
