"""LongBlocks' rows without a document, joined with a local copy of Institutional Books by barcode.

More than half of LongBlocks' rows come from institutional/institutional-books-1.0, a gated data set whose text must not
be redistributed: their ``document`` is null and their ``id`` is the book's barcode. Given the books' Parquet files in a
local folder, the text is restored: all pages of whichever of the two OCR texts has the better score.
"""

import sqlite3
from collections.abc import Iterable
from pathlib import Path

import pyarrow
import pyarrow.parquet

SOURCE = "Institutional-Books-1.0"
COLUMNS = ("barcode_src", "text_by_page_src", "text_by_page_gen", "ocr_score_src", "ocr_score_gen")
HOW_TO_RESTORE = (
    "request access to institutional/institutional-books-1.0 on the Hub, download its Parquet files, "
    "and set data.longblocks.books=FOLDER"
)


class Books:
    """Texts of the requested books, copied once into a SQLite file beside the prepared rows.

    Args:
        folder: the books' Parquet files.
        store: the SQLite file; it records which files were searched, so that an interrupted search can resume.
    """

    def __init__(self, folder: Path, store: Path) -> None:
        self.files = sorted(folder.expanduser().rglob("*.parquet"))
        if not self.files:
            raise ValueError(f"data.longblocks.books={folder} holds no .parquet file: {HOW_TO_RESTORE}")
        self._texts = sqlite3.connect(store)
        self._texts.execute("CREATE TABLE IF NOT EXISTS texts (barcode TEXT PRIMARY KEY, text TEXT NOT NULL)")
        self._texts.execute("CREATE TABLE IF NOT EXISTS searched (file TEXT PRIMARY KEY)")

    def collect(self, requested: Iterable[str]) -> None:
        """Search all files for the given barcodes; only matching rows' texts are read."""
        barcodes = set(requested)
        searched = {name for (name,) in self._texts.execute("SELECT file FROM searched")}
        for file in self.files:
            if str(file) in searched:
                continue
            try:
                self._search(file, barcodes)
            except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
                cause = (str(error).strip() or type(error).__name__).splitlines()[0]
                raise ValueError(f"{file} cannot be read ({cause}): download it again") from error
            self._texts.execute("INSERT INTO searched VALUES (?)", (str(file),))
            self._texts.commit()

    def _search(self, file: Path, barcodes: set[str]) -> None:
        with pyarrow.parquet.ParquetFile(file) as opened:
            if missing := [column for column in COLUMNS if column not in opened.schema_arrow.names]:
                raise ValueError(f"{file.name} has no column {missing[0]!r}: {HOW_TO_RESTORE}")
            for group in range(opened.num_row_groups):
                names = opened.read_row_group(group, columns=["barcode_src"])["barcode_src"].to_pylist()
                hits = [index for index, name in enumerate(names) if name in barcodes]
                if hits:
                    rows = opened.read_row_group(group, columns=list(COLUMNS)).take(pyarrow.array(hits))
                    texts = ((row["barcode_src"], book_text(row)) for row in rows.to_pylist())
                    self._texts.executemany("INSERT OR REPLACE INTO texts VALUES (?, ?)", texts)

    def text(self, barcode: str) -> str | None:
        """Return the text of a book; None if no file contains it."""
        row = self._texts.execute("SELECT text FROM texts WHERE barcode = ?", (barcode,)).fetchone()
        return row[0] if row else None

    def close(self) -> None:
        self._texts.close()


def book_text(row: dict[str, object]) -> str:
    """Return the pages with the better OCR score; the library's own text if the scores are equal or unknown."""
    scores = [row["ocr_score_src"], row["ocr_score_gen"]]
    source, generated = (float(score) if isinstance(score, int | float) else -1.0 for score in scores)
    pages = row["text_by_page_gen"] if generated > source else row["text_by_page_src"]
    pages = pages or row["text_by_page_src"] or row["text_by_page_gen"] or []
    assert isinstance(pages, list)
    return "\n".join(page for page in pages if page)
