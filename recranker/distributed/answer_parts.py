"""Answers kept on disk while a ranking runs, one Parquet file per batch, so that a killed one goes on from them."""

import hashlib
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recranker.errors import DataError, OutputError
from recranker.schema import ANSWERS
from recranker.store import write_table_atomically

logger = logging.getLogger(__name__)

KEY = list(ANSWERS.key)


class AnswerParts:
    """The finished batches of one model.

    Args:
        folder: On a filesystem that all nodes share; made by ``create``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def create(self) -> None:
        """Make the folder.

        Raises:
            OutputError: If it cannot be made.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"cannot make {str(self.folder)!r}: {error.strerror}; set store.home to a writable place"
            ) from None

    def write(self, answers: pa.Table) -> None:
        """Keep ANSWERS rows, all of them or none; the same lists answered again replace them.

        Raises:
            OutputError: If they cannot be written.
        """
        keys = sorted(zip(*(answers[name].to_pylist() for name in KEY), strict=True))
        digest = hashlib.sha256(repr(keys).encode()).hexdigest()[:32]
        write_table_atomically(self.folder / f"{digest}.parquet", answers)

    def read(self) -> pa.Table:
        """ANSWERS rows of all parts, each list and model once; a broken part is set aside, which is logged."""
        found = pa.concat_tables([ANSWERS.schema.empty_table(), *self._tables()])
        numbered = found.select(KEY).append_column("row", pa.array(np.arange(found.num_rows)))
        first = numbered.group_by(KEY).aggregate([("row", "min")])["row_min"]
        return found.take(first)

    def _tables(self) -> Iterator[pa.Table]:
        for path in sorted(self.folder.glob("*.parquet")):
            try:
                table = pq.read_table(path, partitioning=None, page_checksum_verification=True)
                yield ANSWERS.conform(table, where=str(path))
            except (pa.ArrowException, OSError, DataError) as error:
                aside = path.with_suffix(".broken")
                path.replace(aside)
                logger.warning(
                    "a part of the answers is broken, its lists are asked again; kept as %s: %s", aside, error
                )


def is_answered(prompts: pa.Table, answers: pa.Table) -> pa.Array:
    """``(prompts,)`` whether ``answers`` hold that list and model."""
    known = set(_keys(answers))
    return pa.array([key in known for key in _keys(prompts)], pa.bool_())


def answers_to(prompts: pa.Table, answers: pa.Table) -> pa.Table:
    """Those of ``answers`` whose list and model stand in ``prompts``."""
    return answers.filter(is_answered(answers, prompts))


def _keys(table: pa.Table) -> Iterator[tuple[str, ...]]:
    return zip(*(table[name].to_pylist() for name in KEY), strict=True)
