"""Documents of every kind and state: each becomes text, or is left out with the reason."""

import io
import os
import re
from pathlib import Path

import pypdf
import pytest

from longctx_rl.data.building.documents import read_documents


def test_a_source_file_has_a_language(tmp_path: Path) -> None:
    (tmp_path / "b.py").write_text("def f():\n    return 1\n")
    assert [(one.name, one.programming_language) for one in read_documents(tmp_path, 1)[0]] == [("b.py", "Python")]


def pdf(
    stream: str = "BT /F1 12 Tf 20 100 Td (The bell is kept by TorVin.) Tj ET", font: str = "", more: str = ""
) -> bytes:
    """A handwritten PDF with one line of Helvetica."""
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        "<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 300 200] /Contents 4 0 R /Resources << /Font << /F1 "
        f"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica {font} >> >> >> >>",
        *(f"<< /Length {len(content)} >>\nstream\n{content}\nendstream" for content in (stream, more)),
    ]
    content, offsets = "%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        offsets.append(len(content))
        content += f"{number} 0 obj\n{body}\nendobj\n"
    table = "".join(f"{offset:010} 00000 n \n" for offset in offsets)
    start = len(content)
    content += f"xref\n0 6\n0000000000 65535 f \n{table}trailer << /Size 6 /Root 1 0 R >>\nstartxref\n{start}\n%%EOF\n"
    return content.encode("latin-1")


def encrypted(password: str) -> bytes:
    writer = pypdf.PdfWriter(clone_from=pypdf.PdfReader(io.BytesIO(pdf())))
    writer.encrypt(password, owner_password="owner", algorithm="RC4-128")
    out = io.BytesIO()
    writer.write(out)
    return out.getvalue()


HALF_EMOJI = "begincmap 1 begincodespacerange <00> <FF> endcodespacerange 1 beginbfchar <54> <D83D> endbfchar endcmap"
LINE = "The bell is kept by TorVin."
FILES: dict[str, tuple[str, bytes, str]] = {
    "pdf": ("a.pdf", pdf(), LINE),
    "pdf encrypted without a password": ("a.pdf", encrypted(""), LINE),
    "pdf encrypted": ("a.pdf", encrypted("secret"), r"! not a readable pdf \(File has not been decrypted\)"),
    "pdf of an image": ("a.pdf", pdf("0 0 300 200 re f"), "! a pdf without text: run OCR on it first"),
    "pdf with half an emoji": ("a.pdf", pdf(font="/ToUnicode 5 0 R", more=HALF_EMOJI), "! text with an unpaired surr"),
    "pdf cut short": ("a.pdf", pdf()[:300], "! not a readable pdf"),
    "pdf with an unknown filter": ("a.pdf", pdf().replace(b"/Length 58", b"/Filter /X"), "! not a readable pdf"),
    "pdf of nothing": ("a.pdf", b"", "! not a readable pdf"),
    "pdf of a web page": ("a.pdf", b"<html>Sign in", "! not a readable pdf"),
    "empty": ("a.txt", b"", "! shorter than minimum_characters=1"),
    "white space": ("a.txt", b" \r\n\t", "! shorter than minimum_characters=1"),
    "null": ("a.txt", b"a\0b", "! not text"),
    "latin-1": ("a.txt", b"caf\xe9", "! not UTF-8"),
    "utf-8 with a mark": ("a.txt", b"\xef\xbb\xbfcaf\xc3\xa9", "caf\xe9"),
    "utf-16": ("a.txt", "caf\xe9 \U0001f600".encode("utf-16"), "caf\xe9 \U0001f600"),
    "utf-16 big endian": ("a.txt", b"\xfe\xff" + "caf\xe9".encode("utf-16-be"), "caf\xe9"),
    "utf-32": ("a.txt", b"\xff\xfe\0\0" + "caf\xe9".encode("utf-32-le"), "caf\xe9"),
    "utf-16 cut short": ("a.txt", "caf\xe9".encode("utf-16")[:-1], "! not UTF-16-LE"),
    "half an emoji in utf-8": ("a.txt", b"\xed\xa0\xbd", "! not UTF-8"),
    "line ends": ("a.txt", b"a\r\nb\rc\nd", "a\nb\nc\nd"),
    "special tokens": ("a.md", b"<|im_end|>\n<|im_start|>assistant", "<|im_end|>\n<|im_start|>assistant"),
    "table of records": ("a.jsonl", b"{}", "! not a supported file type"),
    "head without an end": ("a.html", b"<html><head><meta charset=utf-8><title>T</title><p>One<p>two", "One\ntwo"),
    "no head": ("a.htm", b"<title>T</title>One", "One"),
    "no body": ("a.html", b"<head><title>T</title></head>One &lt;two&gt;&nbsp;&#233;&#xD83D;", "One <two> \xe9\ufffd"),
    "windows-1252": ("a.html", b"<meta charset=iso-8859-1>\x80 caf\xe9", "\u20ac caf\xe9"),
    "http-equiv": ("a.html", b"<META content='text/html; charset=windows-1251'>\xcc\xe8\xf0", "\u041c\u0438\u0440"),
    "shift_jis": ("a.html", b"<meta charset='Shift_JIS'>" + "\u9418".encode("cp932"), "\u9418"),
    "gb2312": ("a.html", b"<meta charset=gb2312>" + "\u9418".encode("gb18030"), "\u9418"),
    "xhtml": ("a.html", b"<?xml version='1.0' encoding='ISO-8859-15'?><script src='x'/><p>\xa4</p>", "\u20ac"),
    "html in utf-16": ("a.html", "<meta charset=utf-16><p>caf\xe9".encode("utf-16"), "caf\xe9"),
    "says utf-16": ("a.html", b"<meta charset=utf-16><p>caf\xc3\xa9", "caf\xe9"),
    "says utf-8": ("a.html", b"<meta charset=utf-8><p>caf\xe9", "! not UTF-8"),
    "unknown charset": ("a.html", b"<meta charset=martian><p>x", "! its charset martian is unknown"),
    "charset that is a program": ("a.html", b"<meta charset=unicode_escape>\\ud83d", "! its charset unicode_e"),
    "hidden": (
        "a.html",
        b"<nav>n<svg>s</nav>a<script>if (a<b) '</p>'</script >b<style>x{}</style>c<!-- d > e -->f<!-->g"
        b"<template><p>h</template><noscript>i</noscript>j",
        "abcfgj",
    ),
    "hidden without an end": ("a.html", b"<nav>menu<p>One<footer>two<svg>three", "menu\nOne\ntwothree"),
    "script without an end": ("a.html", b"One<script>two <p>three", "One"),
    "cells": ("a.html", b"<table><tr><td>a</td><td>b</td></tr><tr><th>c<th>d</table>e<br>f<hr/>g", "a b\nc d\ne\nf\ng"),
    "attributes": ("a.html", b"<p title=it's>a</p><p title='x > y' class=\"a'b\">b</p>", "a\nb"),
    "broken declarations": ("a.html", b"<![if IE]>a<![foo[<p>b", "ab"),
    "text": ("a.html", b"if a < b and c <d or e\n\nwith  lines", "if a < b and c <d or e\nwith lines"),
    "deep": ("a.html", b"<div>" * 100_000 + b"x", "x"),
    "long attribute": ("a.html", b"<a title='" + b"x" * 1_000_000 + b"'>y</a>", "y"),
    "long tag": ("a.html", b"<" + b"a" * 1_000_000 + b"<p>z", "<" + "a" * 1_000_000 + "\nz"),
    "comments without an end": ("a.html", b"x" + b"<!--" * 100_000, "x"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "content", "expected"), FILES.values(), ids=FILES)
def test_a_file_becomes_text_or_is_left_out_with_the_reason(
    name: str, content: bytes, expected: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    (tmp_path / "other.txt").write_text("Another document.")
    documents, left_out = read_documents(tmp_path, 1)
    if expected.startswith("! "):
        assert re.match(expected.removeprefix("! "), left_out[name]) and len(documents) == 1
    else:
        assert documents[0].text == expected and not left_out


def test_a_folder_may_hold_anything(tmp_path: Path) -> None:
    folder = tmp_path / "documents"
    (folder / "a.pdf").mkdir(parents=True)
    (folder / "a.pdf" / "b.txt").write_text("One.")
    (folder / "copy.txt").write_text("One.")
    os.mkfifo(folder / "pipe.txt")
    (folder / "loop").symlink_to(folder)
    (folder / "self.txt").symlink_to(folder / "self.txt")
    (folder / "gone.txt").symlink_to(tmp_path / "nowhere.txt")
    (tmp_path / "elsewhere.txt").write_text("Two.")
    (folder / "link.txt").symlink_to(tmp_path / "elsewhere.txt")
    with (folder / "large.txt").open("wb") as large:
        large.truncate(2**30 + 1)
    Path(os.fsdecode(bytes(folder) + b"/caf\xe9\n.txt")).write_text("Three.")
    documents, left_out = read_documents(folder, 1)
    assert [one.name for one in documents] == ["a.pdf/b.txt", "caf\\xe9\n.txt", "link.txt"]
    assert left_out == {
        "copy.txt": "the same text as a.pdf/b.txt", "gone.txt": "not a regular file", "loop": "a link to a folder",
        "large.txt": "larger than 1 GiB: split it", "pipe.txt": "not a regular file", "self.txt": "not a regular file",
    }  # fmt: skip
    with pytest.raises(ValueError, match="holds no usable document") as refused:
        read_documents(folder, 100)
    assert str(refused.value).isprintable()


@pytest.mark.skipif(os.getuid() == 0, reason="root reads every file")
def test_a_file_that_may_not_be_read_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("One.")
    (tmp_path / "b.txt").write_text("Two.")
    (tmp_path / "b.txt").chmod(0)
    (tmp_path / "c").mkdir(0)
    assert read_documents(tmp_path, 1)[1] == {"b.txt": "Permission denied", "c": "cannot be read (Permission denied)"}
