"""Documents from a folder of files, and passages of a document that lie far apart."""

import codecs
import html
import os
import random
import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from longctx_rl.rewards.replies import is_unicode, shortened

PLAIN = (".txt", ".md", ".rst", ".tex")
MARKUP = (".html", ".htm")
CODE = {
    ".py": "Python", ".js": "JavaScript", ".ts": "TypeScript", ".java": "Java", ".c": "C", ".h": "C", ".cpp": "C++",
    ".cc": "C++", ".hpp": "C++", ".go": "Go", ".rs": "Rust", ".rb": "Ruby", ".php": "PHP", ".cs": "C#", ".sh": "Shell",
    ".sql": "SQL", ".scala": "Scala", ".kt": "Kotlin", ".swift": "Swift", ".jl": "Julia", ".lua": "Lua",
}  # fmt: skip
PDF = ".pdf"
DAMAGES = (
    ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, RuntimeError, TypeError, ValueError,
    struct.error, zlib.error,
)  # fmt: skip
"""What pypdf raises for damaged files beside its own errors."""
MAXIMUM_BYTES = 2**30
"""A larger file does not fit into a cell of the data set, which holds 2 GiB."""
BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF32_LE: "utf-32-le", codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be",
}  # fmt: skip
CHARSET = re.compile(
    rb"""(?:<meta\b[^>]*?\bcharset|<\?xml\b[^>]*?\bencoding)\s*=\s*["']?\s*([\w.:-]+)""", re.IGNORECASE
)
CHARSET_BYTES = 1024
"""A page declares its charset within its first bytes."""
CHARSETS = {
    "ascii": "cp1252", "iso8859-1": "cp1252", "iso8859-9": "cp1254", "shift_jis": "cp932", "gb2312": "gb18030",
    "gbk": "gb18030", "euc_kr": "cp949", "utf-16": "utf-8", "utf-16-le": "utf-8", "utf-16-be": "utf-8",
}  # fmt: skip
"""Charsets that browsers read as another, by Python's names (https://encoding.spec.whatwg.org)."""
OTHER_CHARSETS = re.compile(
    r"utf-8|cp\d+|iso8859-\d+|gb18030|big5(?:hkscs)?|euc_jp|iso2022_jp|koi8-[ru]|mac-\w+|tis-620"
)
TOKEN = re.compile(
    r"""<!--(?:-?>|.*?(?:--!?>|\Z))
      | <(script|style)(?=[\s/>])(?:=\s*"[^"]*"|=\s*'[^']*'|[^<>])*+(?<!/)>.*?(?:</\1(?=[\s/>])[^>]*>|\Z)
      | <[!?][^>]*(?:>|\Z)
      | <(?P<slash>/?)(?P<tag>[a-z][^\s/<>]*+)(?:=\s*"[^"]*"|=\s*'[^']*'|[^<>])*+>""",
    re.IGNORECASE | re.DOTALL | re.VERBOSE,
)
"""What is not text: a comment, a script or style sheet, a declaration, a tag. Anything else, such as ``a < b``, is."""
HIDDEN_TAGS = frozenset({"title", "noscript", "template", "svg", "nav", "footer"})
"""Elements whose content is dropped, if they have an end tag."""
CELL_TAGS = frozenset({"td", "th"})
BLOCK_TAGS = frozenset({
    "address", "article", "aside", "blockquote", "body", "br", "caption", "dd", "details", "div", "dl", "dt",
    "fieldset", "figcaption", "figure", "footer", "form", "h1", "h2", "h3", "h4", "h5", "h6", "header", "hr",
    "li", "main", "nav", "ol", "option", "p", "pre", "section", "summary", "table", "tbody", "tfoot", "thead", "tr",
    "ul",
})  # fmt: skip


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
    left_out: dict[str, str] = {}
    documents: dict[str, Document] = {}
    for file in _files(folder, left_out):
        name = _name(file, folder)
        try:
            text = read_text(file)
        except ValueError as error:
            left_out[name] = str(error)
            continue
        if len(text) < minimum_characters:
            left_out[name] = f"shorter than minimum_characters={minimum_characters}"
        elif text in documents:
            left_out[name] = f"the same text as {documents[text].name}"
        else:
            documents[text] = Document(name, text, CODE.get(file.suffix.lower()))
    if not documents:
        reasons = "; ".join(shortened(f"{name}: {why}") for name, why in list(left_out.items())[:3]) or "it is empty"
        raise ValueError(f"documents={folder} holds no usable document ({reasons})")
    return list(documents.values()), left_out


def _files(folder: Path, left_out: dict[str, str]) -> list[Path]:
    """All regular files in a fixed order. What cannot be one is noted in ``left_out``."""

    def unreadable(error: OSError) -> None:
        left_out[_name(Path(error.filename), folder)] = f"cannot be read ({error.strerror})"

    files = []
    for root, folders, names in os.walk(folder, onerror=unreadable):
        left_out |= {
            _name(Path(root, each), folder): "a link to a folder" for each in folders if Path(root, each).is_symlink()
        }
        paths = [Path(root, each) for each in names]
        files += [path for path in paths if path.is_file()]
        left_out |= {_name(path, folder): "not a regular file" for path in paths if not path.is_file()}
    return sorted(files)


def _name(path: Path, folder: Path) -> str:
    """The path below the folder, for reports: bytes that are not UTF-8 are spelled out."""
    return os.fsencode(path.relative_to(folder).as_posix()).decode("utf-8", "backslashreplace")


def read_text(file: Path) -> str:
    """Return the text of a file. Raises ValueError with the reason if it has none."""
    suffix = file.suffix.lower()
    readers: dict[str, Callable[[Path], str]] = {PDF: _pdf, **dict.fromkeys(MARKUP, _html)}
    readers |= dict.fromkeys((*PLAIN, *CODE), lambda path: decoded(path.read_bytes()))
    if suffix not in readers:
        raise ValueError("not a supported file type")
    try:
        if file.stat().st_size > MAXIMUM_BYTES:
            raise ValueError("larger than 1 GiB: split it")
        text = readers[suffix](file)
    except OSError as error:
        raise ValueError(error.strerror or "cannot be read") from error
    if "\0" in text:
        raise ValueError("not text")
    if not is_unicode(text):
        raise ValueError("text with an unpaired surrogate")
    return text.strip()


def decoded(data: bytes, charset: str = "utf-8") -> str:
    """Return text with newlines as line ends. A byte order mark decides, else ``charset``. Raises ValueError."""
    mark = next((mark for mark in BYTE_ORDER_MARKS if data.startswith(mark)), b"")
    charset = BYTE_ORDER_MARKS.get(mark, charset)
    try:
        text = data[len(mark) :].decode(charset)
    except UnicodeDecodeError as error:
        raise ValueError(f"not {charset.upper()}") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _pdf(file: Path) -> str:
    try:
        from pypdf import PdfReader
        from pypdf.errors import DependencyError, PyPdfError
    except ImportError as error:
        raise ValueError("pdf needs pypdf: pip install 'longctx-rl[build]'") from error
    try:
        text = "\n".join(page.extract_text() for page in PdfReader(file).pages)
    except (PyPdfError, DependencyError, *DAMAGES) as error:
        raise ValueError(f"not a readable pdf ({shortened(str(error)) or type(error).__name__})") from error
    if not text.strip():
        raise ValueError("a pdf without text: run OCR on it first")
    return text


def _html(file: Path) -> str:
    data = file.read_bytes()
    declared = CHARSET.search(data[:CHARSET_BYTES])
    return visible(decoded(data, _charset(declared[1].decode()) if declared else "utf-8"))


def _charset(label: str) -> str:
    """Python's name of a charset that a page declares. Raises ValueError for an unknown charset."""
    try:
        name = codecs.lookup(label).name
    except LookupError:
        name = ""
    name = CHARSETS.get(name, name)
    if not OTHER_CHARSETS.fullmatch(name):
        raise ValueError(f"its charset {shortened(label)} is unknown")
    return name


def visible(page: str) -> str:
    """Return the visible text of a page, one line per block. Never raises, whatever the markup."""
    pieces: list[str] = []
    hidden: dict[str, list[int]] = {tag: [] for tag in HIDDEN_TAGS}  # where their open elements start in ``pieces``
    end = 0
    for token in TOKEN.finditer(page):
        pieces.append(html.unescape(page[end : token.start()]))
        end, tag, closes = token.end(), (token["tag"] or "").lower(), token["slash"] == "/"
        if tag in HIDDEN_TAGS and not closes and not token[0].endswith("/>"):
            hidden[tag].append(len(pieces))
            pieces.append("")
        if tag in HIDDEN_TAGS and closes and hidden[tag]:
            start = hidden[tag].pop()
            del pieces[start:]
            for starts in hidden.values():  # of elements inside it
                while starts and starts[-1] > start:
                    starts.pop()
        pieces.append("\n" if tag in BLOCK_TAGS else " " if tag in CELL_TAGS else "")
    pieces.append(html.unescape(page[end:]))
    lines = (" ".join(line.split()) for line in "".join(pieces).splitlines())
    return "\n".join(line for line in lines if line)


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
