"""LongBlocks' rows as a training stream: splits, filters, tasks, long documents, the mixture, the content hash."""

import json
import shutil
import signal
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from longctx_rl.config.compose import composed
from longctx_rl.data import __main__ as commands
from longctx_rl.data.cutting import GAP, cut
from longctx_rl.data.longblocks_source import LongBlocksSource, overhead
from longctx_rl.data.prompts import encode_text
from longctx_rl.data.selection import select, split_of, task_at
from longctx_rl.data.source import open_source, prompt_ids
from longctx_rl.data.tasks import place_of, task_of
from longctx_rl.launch import rank
from longctx_rl.policy.loading import load_tokenizer

FIXTURE = Path(__file__).parent / "fixture"
TOKENIZER = load_tokenizer("mini-student")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def settings(cache: Path, *overrides: str) -> list[str]:
    return [
        "data=longblocks",
        f"data.longblocks.path={FIXTURE / 'rows'}",
        f"data.longblocks.cache={cache}",
        "data.longblocks.short=null",
        "data.longblocks.max_tokens=1000",
        "data.longblocks.validation=0",
        "data.longblocks.test=0",
        "task=any",
        *overrides,
    ]


def source(cache: Path, *overrides: str) -> LongBlocksSource:
    opened = open_source(composed(settings(cache, *overrides)), TOKENIZER)
    assert isinstance(opened, LongBlocksSource)
    return opened


def rows(opened: LongBlocksSource) -> int:
    return sum(len(pool.rows) for pool in opened.order.pools)


def test_a_document_and_all_its_questions_are_in_one_split(cache: Path) -> None:
    store = source(cache).stores["long"]
    shares = {"validation": 0.3, "test": 0.3}
    by_document: dict[str, set[str]] = {}
    for index in range(len(store)):
        row = store.row(index)
        by_document.setdefault(row["document"], set()).add(split_of(row["document_hash"], **shares))
    assert len(by_document) < len(store) and all(len(splits) == 1 for splits in by_document.values())
    assert {split for splits in by_document.values() for split in splits} == {"train", "validation", "test"}
    config = composed(settings(cache)).data.longblocks
    assert config is not None
    parts = [
        select(store, replace(config, **shares), split, overhead=0, tasks=())
        for split in ("train", "validation", "test")
    ]
    elsewhere = sum(part.excluded["document of another split"] for part in parts)
    excluded = sum(part.excluded.total() for part in parts) - elsewhere
    assert elsewhere == 2 * len(store) and sum(map(len, parts)) + excluded == len(store)


@pytest.mark.parametrize(
    ("override", "kept"),
    [
        ("data.longblocks.sources=[Stack-Edu]", 4),
        ("data.longblocks.languages=[pt,zh]", 2),
        ("task=code", 4),
        ("data.longblocks.target=response_Qwen3.5-27B", 4),
    ],
)
def test_filters(cache: Path, override: str, kept: int) -> None:
    assert rows(source(cache, override, "data.longblocks.max_tokens=4000")) == kept


def test_prompt_lengths_match_the_store(cache: Path) -> None:
    opened = source(cache, "data.longblocks.instruction=''")
    beside, store = overhead(TOKENIZER, ""), opened.stores["long"]
    for pool in opened.order.pools:
        for row, length in zip(pool.rows, pool.lengths, strict=True):
            example = opened.example("long", row)
            assert len(prompt_ids(TOKENIZER, example)) == length == example.length <= 1000
            assert example.document == store.row(row)["document"]
            columns = {name: values[row] for name, values in store.columns.items()}
            assert length == columns["document_tokens"] + columns["question_tokens"] + beside


def test_the_target_is_the_configured_column(cache: Path) -> None:
    wanted = "response_Qwen3.5-27B"
    opened = source(cache, f"data.longblocks.target={wanted}", "data.longblocks.max_tokens=4000")
    for place in range(rows(opened)):
        (example,) = opened.document(place)
        assert example.target != example.answer and "Answer:" in example.target


def test_task_rule(cache: Path) -> None:
    store = source(cache).stores["long"]
    tasks = {store.row(index)["id"]: task_at(store, index) for index in range(len(store))}
    assert tasks["edu-0"] == "code" and tasks["gut-1"] == "longform" and tasks["web-0"] == "grounding"
    assert task_of("mine", "Stack-Edu", document_tokens=0, answer_tokens=1, verbatim=True) == "mine"
    assert task_of("", "chat", document_tokens=0, answer_tokens=1, verbatim=True) == "short"
    assert task_of("", "ArXiv", document_tokens=9, answer_tokens=1, verbatim=False) == "multihop"


@pytest.mark.parametrize(
    ("document", "answer", "found"),
    [
        ("the Lisbon\n  treaty of 2011", "lisbon treaty", "Lisbon\n  treaty"),
        ("the year 2011", "11", None),
        ("then", "the", None),
        ("then the", "the.", "the"),
        ("林海在一九二零年", "林海", "林海"),
        ("anything", " ", None),
    ],
)
def test_place_of_an_answer(document: str, answer: str, found: str | None) -> None:
    place = place_of(document, answer)
    assert (document[slice(*place)] if place else None) == found


def test_shares_of_tasks_and_of_short_prompts_are_exact(cache: Path) -> None:
    short = f"{{path: {FIXTURE / 'chat'}, revision: null, split: train, streaming: false, share: 0.1}}"
    opened = source(cache, "task=mix", "data.longblocks.max_tokens=4000", f"data.longblocks.short={short}")
    drawn = Counter(opened.order.at(place)[0].name for place in range(1000))
    assert drawn == {"multihop": 300, "grounding": 300, "longform": 300, "short": 100}
    example = next(opened.document(place)[0] for place in range(10) if opened.order.at(place)[0].store == "short")
    assert example.document == "" and "What is" in example.question and "text above" not in example.question


@pytest.mark.parametrize("overlong", ["ends", "ends_and_answer"])
def test_long_documents_keep_both_ends_and_optionally_the_answer(cache: Path, overlong: str) -> None:
    words = [f"word{i}" for i in range(3000)]
    words[1700:1701] = ["the", "Golden", "Key"]
    document = " ".join(words)
    answer = "golden key" if overlong == "ends_and_answer" else None
    kept = cut(document, 800, TOKENIZER, answer=answer)
    assert 700 < len(encode_text(TOKENIZER, kept)) <= 800
    assert kept.startswith("word0 word1 ") and kept.endswith(" word2999")
    assert ("the Golden Key" in kept) is (overlong == "ends_and_answer")
    assert kept.count(GAP) == (2 if overlong == "ends_and_answer" else 1)
    assert all(piece in document for piece in kept.split(GAP))
    opened = source(cache, f"data.longblocks.overlong={overlong}", "data.longblocks.max_tokens=300")
    for place in range(rows(opened)):
        (example,) = opened.document(place)
        assert len(prompt_ids(TOKENIZER, example)) <= 300


def test_content_hash_covers_the_training_data(cache: Path, tmp_path: Path) -> None:
    first = source(cache).content_hash()
    assert first == source(tmp_path, "seed=3").content_hash()
    assert first != source(cache, "data.longblocks.languages=[en]").content_hash()
    assert first != source(cache, "data.longblocks.instruction=Go").content_hash()


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("data.longblocks.sources=[Nowhere]", "no row of .* source not selected.*loosen data.longblocks or task"),
        ("data.longblocks.min_tokens=999", "shorter than data.longblocks.min_tokens"),
        ("data.longblocks.min_tokens=1000", "0 <= min_tokens < max_tokens"),
        ("data.longblocks.target=reply", "data.longblocks.target.*response_"),
        ("data.longblocks.test=1.0", "data.longblocks.*test=1.0"),
        ("data.longblocks.overlong=cut", "overlong"),
        ("data.longblocks.path=/nowhere/at/all", "hf download --repo-type dataset"),
    ],
)
def test_bad_input_is_reported_in_one_line(
    cache: Path, override: str, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match=sentence) as caught:
        source(cache, override)
    assert "\n" not in str(caught.value)


def test_inspect_reports_the_data_set(cache: Path) -> None:
    printed = commands.run(["inspect", *settings(cache)])
    for line in (
        "document is not part of the data set (Institutional-Books-1.0)         6",
        "file skipped: c-broken.parquet",
        "lines skipped: 1 not UTF-8",
        "data.longblocks.books=FOLDER",
        "Stack-Edu",
        "by document tokens",
        "content hash ",
    ):
        assert line in printed


@pytest.fixture
def handlers() -> Iterator[None]:
    """A run in this process takes its signals."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("handlers")
def test_a_run_trains_on_rows_and_records_them(cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = tmp_path / "rows"
    shutil.copytree(FIXTURE / "rows", rows)
    overrides = [
        "+algo=dgrpo", "+experiment=smoke", "eval=none", "logging=none", "engine=local",
        *settings(cache, "data.longblocks.max_tokens=400", "data.longblocks.overlong=ends", "reward=rules"),
        f"data.longblocks.path={rows}", f"runs_root={tmp_path / 'runs'}",
    ]  # fmt: skip
    assert rank.execute(composed(overrides)) == 0
    (record,) = tmp_path.rglob("environment.json")
    data = json.loads(record.read_text())["data"]
    assert data["content_hash"] and data["rows"]["any"] > 10
    (rows / "b.parquet").unlink()
    assert rank.execute(composed([*overrides, "resume=true", "budget.steps=3"])) == 2
    assert "training data" in (stderr := capsys.readouterr().err) and "choose another experiment_name" in stderr
