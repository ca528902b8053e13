"""Documents from a folder of files, and passages of a document that lie far apart."""

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

PLAIN = (".txt", ".md", ".rst", ".tex")
MARKUP = (".html", ".htm")
CODE = {
    ".py": "Python", ".js": "JavaScript", ".ts": "TypeScript", ".java": "Java", ".c": "C", ".h": "C", ".cpp": "C++",
    ".cc": "C++", ".hpp": "C++", ".go": "Go", ".rs": "Rust", ".rb": "Ruby", ".php": "PHP", ".cs": "C#", ".sh": "Shell",
    ".sql": "SQL", ".scala": "Scala", ".kt": "Kotlin", ".swift": "Swift", ".jl": "Julia", ".lua": "Lua",
}  # fmt: skip
PDF = ".pdf"
HIDDEN_TAGS = frozenset({"script", "style", "head", "noscript", "template", "svg", "nav", "footer"})
BLOCK_TAGS = frozenset({"p", "div", "br", "li", "tr", "h1", "h2", "h3", "h4", "h5", "h6", "section", "article", "pre"})


@dataclass(frozen=True, slots=True)
class Document:
    """The text of a file."""

    name: str
    """Path relative to the folder."""
    text: str
    programming_language: str | None
    """The programming language of a source file, which becomes ``language`` in its rows; else None."""


def check_folder(folder: Path) -> None:
    """Raise ValueError if the folder does not exist."""
    if not folder.is_dir():
        raise ValueError(f"documents={folder} is not a folder: give one with .txt, .md, .html, .pdf or source files")


def read_documents(folder: Path, minimum_characters: int) -> tuple[list[Document], dict[str, str]]:
    """Read all documents in a fixed order.

    Returns:
        The documents, and for each file that is skipped its name and the reason.

    Raises:
        ValueError: the folder does not exist, or holds no usable document.
    """
    check_folder(folder)
    documents, left_out = [], {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = file.relative_to(folder).as_posix()
        try:
            text = read_text(file)
        except ValueError as error:
            left_out[name] = str(error)
            continue
        if len(text) < minimum_characters:
            left_out[name] = f"shorter than minimum_characters={minimum_characters}"
            continue
        documents.append(Document(name, text, CODE.get(file.suffix.lower())))
    if not documents:
        reasons = "; ".join(f"{name}: {why}" for name, why in list(left_out.items())[:3]) or "it is empty"
        raise ValueError(f"documents={folder} holds no usable document ({reasons})")
    return documents, left_out


def read_text(file: Path) -> str:
    """Return the text of a file. Raises ValueError with the reason if it has none."""
    suffix = file.suffix.lower()
    readers: dict[str, Callable[[Path], str]] = {PDF: _pdf, **dict.fromkeys(MARKUP, _html)}
    readers |= dict.fromkeys((*PLAIN, *CODE), _plain)
    if suffix not in readers:
        raise ValueError("not a supported file type")
    try:
        text = readers[suffix](file)
    except UnicodeDecodeError as error:
        raise ValueError("not UTF-8") from error
    except OSError as error:
        raise ValueError(error.strerror or "cannot be read") from error
    if "\0" in text:
        raise ValueError("not text")
    return text.strip()


def _plain(file: Path) -> str:
    return file.read_text(encoding="utf-8-sig")


def _pdf(file: Path) -> str:
    try:
        from pypdf import PdfReader
        from pypdf.errors import DependencyError, PyPdfError
    except ImportError as error:
        raise ValueError("pdf needs pypdf: pip install 'longctx-rl[build]'") from error
    try:
        text = "\n".join(page.extract_text() for page in PdfReader(file).pages)
    except (PyPdfError, DependencyError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a readable pdf ({(str(error) or type(error).__name__).splitlines()[0]})") from error
    if not text.strip():
        raise ValueError("a pdf without text: run OCR on it first")
    return text


def _html(file: Path) -> str:
    reader = _Text()
    reader.feed(_plain(file))
    reader.close()
    lines = (" ".join(line.split()) for line in "".join(reader.pieces).splitlines())
    return "\n".join(line for line in lines if line)


class _Text(HTMLParser):
    """Collects the visible text of a page, one line per block."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.pieces: list[str] = []
        self._hidden = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._hidden += tag in HIDDEN_TAGS
        if tag in BLOCK_TAGS:
            self.pieces.append("\n")

    def handle_endtag(self, tag: str) -> None:
        self._hidden = max(0, self._hidden - (tag in HIDDEN_TAGS))
        if tag in BLOCK_TAGS:
            self.pieces.append("\n")

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.pieces.append(data)


def choose_passages(
    text: str, *, count: int, characters: int, minimum_distance: float, draw: random.Random
) -> list[tuple[int, str]]:
    """Draw passages of whole paragraphs or sentences that lie far apart.

    Args:
        count: number of passages.
        characters: maximum length of a passage.
        minimum_distance: smallest gap between two passages, as a share of the document.

    Returns:
        Start and text of each passage, in the document's order; fewer than ``count`` if the document is too short.
    """
    pieces = split(text, characters)
    gap = minimum_distance * len(text)
    order = list(range(len(pieces)))
    draw.shuffle(order)
    chosen: list[int] = []
    for index in order:
        start, piece = pieces[index]
        apart = all(
            start - (other + len(passage)) >= gap or other - (start + len(piece)) >= gap
            for other, passage in (pieces[each] for each in chosen)
        )
        if apart:
            chosen.append(index)
        if len(chosen) == count:
            break
    return [pieces[index] for index in sorted(chosen)]


def split(text: str, characters: int) -> list[tuple[int, str]]:
    """Split the text into pieces of at most ``characters``: at line breaks, else sentences, else spaces, else anywhere.

    Returns:
        Start and text of each piece.
    """
    pieces: list[tuple[int, str]] = []
    start = 0
    while start < len(text):
        end = min(len(text), start + characters)
        if end < len(text):
            window = text[start + characters // 2 : end]
            cut = max((boundary.end() for boundary in re.finditer(r"\n\s*\n|\n", window)), default=0)
            cut = cut or max(
                (boundary.end() for boundary in re.finditer(r"[.!?]\s|[\u3002\uff01\uff1f]", window)), default=0
            )
            cut = cut or window.rfind(" ") + 1
            end = start + characters // 2 + cut if cut else end
        if text[start:end].strip():
            pieces.append((start, text[start:end].strip()))
        start = end
    return pieces
