"""Texts from a folder of files, each unreadable file counted with its reason."""

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
    """One file as text."""

    name: str
    """Path below the folder."""
    text: str
    programming_language: str | None
    """Of source files, whose rows have it in ``language``."""


def read_documents(folder: Path, minimum_characters: int) -> tuple[list[Document], dict[str, str]]:
    """All documents in a fixed order, and why other files were left out, by name.

    Raises:
        ValueError: no folder, or no usable document in it.
    """
    if not folder.is_dir():
        raise ValueError(f"documents={folder} is not a folder: give one with .txt, .md, .html, .pdf or source files")
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
    """The text of a file. Raises ValueError with the reason if there is none."""
    suffix = file.suffix.lower()
    readers: dict[str, Callable[[Path], str]] = {PDF: _pdf, **dict.fromkeys(MARKUP, _html)}
    readers |= dict.fromkeys((*PLAIN, *CODE), _plain)
    if suffix not in readers:
        raise ValueError("not a kind of file that is read")
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
        raise ValueError("a pdf without text: recognise its pages first")
    return text


def _html(file: Path) -> str:
    reader = _Text()
    reader.feed(_plain(file))
    reader.close()
    lines = (" ".join(line.split()) for line in "".join(reader.pieces).splitlines())
    return "\n".join(line for line in lines if line)


class _Text(HTMLParser):
    """What a page shows, a line for each block."""

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
