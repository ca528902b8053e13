"""Building a data set against a scripted endpoint that is good, broken, slow or dishonest."""

import contextlib
import itertools
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import hypothesis
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longctx_rl import cli
from longctx_rl.config.build import BuildConfig
from longctx_rl.config.compose import composed_build
from longctx_rl.data import __main__ as data_command
from longctx_rl.data.building.documents import choose_passages, split
from longctx_rl.data.building.pipeline import balanced
from longctx_rl.data.building.rejection import Rejected, check_evidence, is_repeated, parse
from longctx_rl.data.building.writing import build
from openai_server import Reply, Server, serving

FACTS = [f"In the year {1600 + i} the guild of town {i} chose Master{i} as its head." for i in range(60)]
DOCUMENT = "\n\n".join(f"{fact} Little else is told of that year, and the roads were bad." for fact in FACTS)


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    folder = tmp_path / "documents"
    folder.mkdir()
    (folder / "guilds.txt").write_text(DOCUMENT, encoding="utf-8")
    return folder


def overrides(documents: Path | str, out: Path | str, url: str, *more: str) -> list[str]:
    return [
        f"documents={documents}", f"out={out}", f"writer.base_url={url}", "writer.model=scripted", "writer.retries=1",
        "writer.timeout=60", "writer.concurrency=2", "passage_characters=400", *more,
    ]  # fmt: skip


def settings(documents: Path, out: Path, server: Server, *more: str) -> BuildConfig:
    config = composed(*more)
    writer = replace(config.writer, base_url=server.url, cache=str(out / "replies.sqlite"))
    return replace(config, documents=str(documents), out=str(out), writer=writer)


@cache
def composed(*more: str) -> BuildConfig:
    return composed_build(overrides("unset", "unset", "http://unset", *more))


def proposal(prompt: str) -> dict[str, Any]:
    """A question about the first facts of two passages."""
    found = [fact for fact in FACTS if fact in prompt]
    first, last = found[0], found[-1]
    name = last.split("chose ")[1].split(" ")[0]
    year = first.split("year ")[1].split(" ")[0]
    return {
        "question": f"Who headed the guild of town {FACTS.index(last)}, which chose after the one of {year} did?",
        "answer": name,
        "evidence": [first, last],
    }


def good(number: int, prompt: str) -> Reply:
    """A writer that keeps to the passages, knows no answer without the document, and says yes."""
    if "Reply with one JSON object" in prompt:
        return Reply("Here it is:\n```json\n" + json.dumps(proposal(prompt)) + "\n```")
    return Reply("yes" if "Reply with one word" in prompt else "unknown")


def rows(out: Path) -> list[dict[str, Any]]:
    table: list[dict[str, Any]] = pyarrow.parquet.read_table(out / "data.parquet").to_pylist()
    return table


def report(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "report.json").read_text())
    return found


def test_a_run_can_train_on_a_built_data_set(documents: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with serving(good) as server:
        printed = build(settings(documents, out, server, "price_in=1000", "price_out=2000"))
        asked = len(server.requests)
        build(settings(documents, out, server))
        assert len(server.requests) == asked  # every reply is cached
    found = rows(out)
    assert len(found) == report(out)["stages"]["balanced"] >= 3 and f"{len(found)} rows in" in printed
    for row in found:
        evidence = json.loads(row["evidence"])
        assert all(item["text"] in DOCUMENT and 0 <= item["depth"] < 1 for item in evidence)
        assert row["answer"] in evidence[-1]["text"] and row["document"] == DOCUMENT
    first = report(out)
    assert first["spent"]["replies"] >= asked and first["spent"].get("asked", 0) == 0
    card = (out / "README.md").read_text()
    assert card.startswith("---\nlanguage:") and "| supported |" in card
    command = ["inspect", "data=longblocks", "task=any"]
    command += [f"data.longblocks.path={out / 'data.parquet'}", f"data.longblocks.cache={tmp_path / 'cache'}"]
    command += ["data.longblocks.short=null", "data.longblocks.test=0", "data.longblocks.validation=0"]
    assert "multihop" in data_command.run(command)


def test_a_teacher_s_responses_become_a_column(documents: Path, tmp_path: Path) -> None:
    responder = "{base_url: URL, model: lab/teacher-9B, api_key_env: K, max_tokens: 50, no_thinking: false, "
    responder += "concurrency: 2, timeout: 5.0, retries: 0, cache: " + str(tmp_path / "teacher.sqlite") + "}"

    bad = iter([Reply("From the", finish_reason="length"), Reply(status=400), Reply("\ud83d")])

    def script(number: int, prompt: str) -> Reply:
        return next(bad, Reply("From the whole document.")) if DOCUMENT in prompt else good(number, prompt)

    with serving(script) as server:
        more = f"responder={responder.replace('URL', repr(server.url))}"
        printed = build(settings(documents, tmp_path / "out", server, more, "tasks.multihop=6", "balance=false"))
    responses = [row["response_teacher-9B"] for row in rows(tmp_path / "out")]
    assert set(responses) == {None, "From the whole document."} and responses.count(None) == 3
    assert report(tmp_path / "out")["without_response"] == {
        "the reply was truncated: raise responder.max_tokens": 1,
        "the endpoint rejected the request": 1,
        "the reply is text with an unpaired surrogate": 1,
    }
    assert "1 rows without a response: the endpoint rejected the request" in printed


def answering(**changes: Any) -> Callable[[int, str], Reply]:
    """A good writer with parts of its proposal changed."""

    def script(number: int, prompt: str) -> Reply:
        if "Reply with one JSON object" not in prompt:
            return good(number, prompt)
        return Reply(json.dumps(proposal(prompt) | changes))

    return script


def closed_book(number: int, prompt: str) -> Reply:
    """Knows the answers without the document."""
    if prompt.startswith("Answer in a few words"):
        return Reply(f"I believe it was Master{prompt.split('town ')[1].split(',')[0]}, or so they say, head of it.")
    return good(number, prompt)


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (lambda n, p: Reply("I would rather not."), "no JSON object"),
        (lambda n, p: Reply('{"question": "Who?", '), "no JSON object"),
        (lambda n, p: Reply('{"question": "Who?" "answer"}'), "not JSON"),
        (lambda n, p: Reply('{"question": "Who?"}'), "missing"),
        (lambda n, p: Reply(good(n, p).text, finish_reason="length"), r"writer\.max_tokens"),
        (answering(question=" ?"), "empty"),
        (answering(answer=["Master1"]), "the answer is not text"),
        (answering(answer=float("nan")), "the answer is not text"),
        (answering(evidence="Master1"), "the evidence is not a list"),
        (answering(question="Who headed \ud83d?"), "unpaired surrogate"),  # spelled as an escape in the reply's JSON
        (lambda n, p: Reply("Who headed \ud83d?"), "unpaired surrogate"),
        (lambda n, p: Reply('{"a":' * 100_000 + "}"), "not JSON"),
        (lambda n, p: Reply(message=None), "the reply is empty"),
        (
            lambda n, p: Reply("", finish_reason="length"),
            r"before its answer: raise writer\.max_tokens or set writer\.n",
        ),
        (lambda n, p: Reply(message={"refusal": "I cannot."}), "the model refused"),
        (
            lambda n, p: Reply("y", finish_reason="length") if "one word" in p else good(n, p),
            r"judge's reply was truncated: raise writer\.max_tokens",
        ),
        (answering(evidence=[{"quote": FACTS[0]}, 3]), "no evidence"),
        (answering(evidence=[]), "no evidence"),
        (answering(evidence=["The guild chose nobody.", FACTS[0]]), "evidence.*not in the document"),
        (answering(evidence=[FACTS[0], FACTS[0]]), "single place"),
        (
            answering(
                question="Is it true, as everybody said at the time and for long after, that Master1 was the head?",
                answer="Master1",
                evidence=FACTS[:2],
            ),
            "question contains its answer",
        ),
        (
            answering(evidence=[FACTS[0], FACTS[0].partition(" Master")[0]]),
            "single place",
        ),
        (lambda n, p: Reply(status=400), "endpoint"),
        (
            lambda n, p: Reply("hm", finish_reason="length") if p.startswith("Answer in a few") else good(n, p),
            r"closed-book.*writer\.max_tokens",
        ),
        (closed_book, "answered without the document"),
        (lambda n, p: Reply("no") if "one word" in p else good(n, p), "judge.*not supported"),
        (lambda n, p: Reply("well") if "one word" in p else good(n, p), "judge.*neither"),
    ],
)
def test_each_flaw_is_rejected_by_name(
    documents: Path, tmp_path: Path, script: Callable[[int, str], Reply], reason: str
) -> None:
    out = tmp_path / "out"
    with serving(script) as server:
        config = settings(documents, out, server, "tasks.grounding=0", "tasks.longform=0", "attempts=2")
        with pytest.raises(ValueError, match=r"rejected\.ndjson") as failed:
            build(config)
    assert str(failed.value).isprintable()
    ((named, count),) = report(out)["rejected"].items()
    assert re.search(reason, named) and count == 4
    assert all(json.loads(line)["reason"] == named for line in (out / "rejected.ndjson").read_text().splitlines())


WRITTEN = {"question": "In which year?", "answer": "1604", "evidence": ["In the year 1604"]}
WHOLE = json.dumps(WRITTEN)


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        (WHOLE, "1604"),
        ("Here is {the} answer: " + WHOLE + " {done}", "1604"),
        ("```json\n" + json.dumps(WRITTEN, indent=2) + "\n```\nI hope {this} helps.", "1604"),
        ("A draft: " + WHOLE + "\nBetter: " + WHOLE.replace("1604", "1605"), "1605"),
        ('{"question": "...", "answer": "...", "evidence": [' + WHOLE, "1604"),
        ("[" + WHOLE + "]", "1604"),
        (WHOLE.replace('"1604"', "1604"), "1604"),
        (WHOLE.replace('"1604"', "1.50"), "1.50"),
        (WHOLE.replace('"1604"', "9" * 5000), "9" * 5000),
        (WHOLE.replace('"1604"', '"1603", "answer": "1604"'), "1604"),
        (WHOLE.replace('"answer"', '"confidence": NaN, "answer"'), "1604"),
        ("{" * 1000 + WHOLE, "1604"),
        ('{"a": ' * 1000 + WHOLE, "1604"),
    ],
)
def test_the_last_object_of_a_reply_counts(reply: str, answer: str) -> None:
    assert parse(reply).answer == answer


@given(st.text(st.sampled_from('{}[]":,\\ntrue1e9NaN \ud83d'), max_size=60), st.integers(0, 60))
@hypothesis.settings(max_examples=200)
def test_no_reply_breaks_the_parser(text: str, place: int) -> None:
    for reply in (text, text + WHOLE, WHOLE[:place] + text + WHOLE[place:]):
        with contextlib.suppress(Rejected):
            parse(reply)


def test_a_build_whose_endpoint_dies_resumes_without_repeating_requests(documents: Path, tmp_path: Path) -> None:
    out, alive = tmp_path / "out", [True]

    def script(number: int, prompt: str) -> Reply:
        alive[0] = alive[0] and number < 5
        return good(number, prompt) if alive[0] else Reply(status=500)

    with serving(script) as server:
        config = settings(documents, out, server, "writer.retries=0", "writer.concurrency=1")
        with pytest.raises(ValueError, match="same command"):
            build(config)
    with serving(good) as server:
        build(settings(documents, out, server, "writer.concurrency=1"))
        again = len(server.requests)
    with serving(good) as server:
        build(settings(documents, tmp_path / "other", server, "writer.concurrency=1"))
        assert again == len(server.requests) - 5


def test_transient_errors_lose_nothing(documents: Path, tmp_path: Path) -> None:
    def script(number: int, prompt: str) -> Reply:
        return Reply(status=429) if number % 4 == 1 else good(number, prompt)

    with serving(script) as server:
        build(settings(documents, tmp_path / "out", server, "writer.retries=3"))
    assert len(rows(tmp_path / "out")) >= 3


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_build_that_is_ended_resumes_without_paying_twice(
    documents: Path, tmp_path: Path, how: signal.Signals
) -> None:
    out = tmp_path / "out"
    with serving(lambda n, p: Reply(good(n, p).text, seconds=0.2)) as server:
        command = [sys.executable, "-m", "longctx_rl.data", "build", *overrides(documents, out, server.url)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        while len(server.requests) < 5 and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(how)
        _, stderr = process.communicate(timeout=120)
        paid = {(request["temperature"], request["messages"][0]["content"]) for request in server.requests}
    assert process.returncode == (130 if how == signal.SIGINT else -how) and "Traceback" not in stderr
    assert ("same command" in stderr) == (how == signal.SIGINT)
    with serving(good) as server:
        build(settings(documents, out, server))
        again = {(request["temperature"], request["messages"][0]["content"]) for request in server.requests}
    assert len(paid & again) <= 2 < len(paid) and len(rows(out)) >= 3  # two requests were under way


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "documents=FOLDER out=FOLDER"),
        (["documents=/nowhere", "out=OUT"], "documents=/nowhere"),
        (["documents=EMPTY", "out=OUT"], "documents=EMPTY"),
        (["documents=EMPTY", "out=OUT", "writer.speed=1"], "writer.speed"),
        (["documents=EMPTY", "out=OUT", "attempts=many"], "attempts=many"),
        (["documents=EMPTY", "out=OUT", "attempts=0"], "attempts=0: set it to 1 or more"),
        (["documents=EMPTY", "out=OUT", "+tasks.code=1"], "add prompts.question.code"),
        (["documents=EMPTY", "out=OUT", "prompts.response='{x}'"], "prompts.response has a brace"),
        (["documents=EMPTY", "out=OUT", "prompts.closed_book='{answer}'"], "prompts.closed_book has a brace"),
        (["documents=EMPTY", "out=OUT", "prompts.question.multihop='{language}'"], "multihop lacks a field"),
        (["documents=EMPTY", "out=OUT", "writer.base_url=localhost:8000"], "writer.base_url=localhost:8000"),
        (["documents=EMPTY", "out=OUT", "writer.timeout=0"], "writer.timeout=0.0: set it above 0"),
    ],
)
def test_bad_input_is_one_sentence(
    arguments: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    places = {"OUT": str(tmp_path / "out"), "EMPTY": str(tmp_path / "empty")}
    for name, place in places.items():
        arguments = [argument.replace(name, place) for argument in arguments]
        sentence = sentence.replace(name, place)
    with pytest.raises(SystemExit) as stopped:
        cli.command(lambda: data_command.run(["build", *arguments]))
    printed = capsys.readouterr().err
    assert stopped.value.code == 2 and sentence in printed and printed.count("\n") == 1, printed


def test_passages_lie_apart_and_cover_the_text() -> None:
    pieces = split(DOCUMENT, 400)
    assert "".join("".join(piece.split()) for _, piece in pieces) == "".join(DOCUMENT.split())
    assert all(len(piece) <= 400 and DOCUMENT[start:].lstrip().startswith(piece) for start, piece in pieces)
    for seed in range(20):
        chosen = choose_passages(DOCUMENT, count=3, characters=400, minimum_distance=0.15, draw=Random(seed))
        starts = [start for start, _ in chosen]
        assert len(chosen) >= 2 and starts == sorted(starts)
        for (a, piece), (b, _) in itertools.pairwise(chosen):
            assert b - (a + len(piece)) >= 0.15 * len(DOCUMENT)


def test_grounding_answers_stand_in_their_evidence() -> None:
    reply = {"question": "Who headed the guild of town 3?", "answer": "Master3", "evidence": [FACTS[3]]}
    assert check_evidence(parse(json.dumps(reply)), DOCUMENT, "grounding")
    with pytest.raises(Rejected, match="not in its evidence"):
        check_evidence(parse(json.dumps(reply | {"evidence": [FACTS[4]]})), DOCUMENT, "grounding")


def test_repeated_questions() -> None:
    asked = [("who headed a guild in 1603", "Master3")]
    assert is_repeated("Who headed the guild in 1603?", "master3.", asked)
    assert not is_repeated("Who headed the guild in 1604?", "Master4", asked)
    assert not is_repeated("Which town's guild chose first?", "Master3", asked)


def test_balance_keeps_at_most_three_times_the_rarest() -> None:
    many = [{"task": "multihop", "document": "x" * 100, "n": i} for i in range(20)]
    few = [{"task": "grounding", "document": "x" * 100, "n": i} for i in range(2)]
    kept = balanced([*many, *few], seed=0)
    assert [row["task"] for row in kept].count("multihop") == 20 and len(kept) == 22  # three times 11
    kept = balanced([*many, *few, *({**row, "task": "longform"} for row in few)], seed=0)
    assert [row["task"] for row in kept].count("multihop") == 6 and len(kept) == 10
    assert [row["n"] for row in kept if row["task"] == "multihop"] == sorted(row["n"] for row in kept[:6])
