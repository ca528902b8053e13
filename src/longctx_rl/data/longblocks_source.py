"""The training stream over LongBlocks' rows, optionally mixed with short prompts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longctx_rl.config.data import LongBlocksConfig, ShortConfig
from longctx_rl.config.schema import Config
from longctx_rl.data.cutting import cut
from longctx_rl.data.longblocks import from_row
from longctx_rl.data.order import Pool, TrainingOrder
from longctx_rl.data.preparation import prepare
from longctx_rl.data.prompts import encode_prompt, encode_text
from longctx_rl.data.reading import Origin
from longctx_rl.data.selection import Selection, select, task_at
from longctx_rl.data.store import Store, digest
from longctx_rl.types import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LONG, SHORT = "long", "short"


class LongBlocksSource:
    """An indexed stream over the rows of a data set. See ``TrainingSource``.

    Raises:
        ValueError: a data set cannot be read, or has no row for a task.
    """

    def __init__(self, config: Config, tokenizer: PreTrainedTokenizerBase) -> None:
        assert config.data.longblocks is not None
        self.settings, self.tokenizer = config.data.longblocks, tokenizer
        self.stores: dict[str, Store] = {}
        self._longest_target = config.rollout.max_new_tokens if config.algo.source == "dataset" else None
        shares = {task: Fraction(str(share)) for task, share in config.task.mixture.items() if share}
        pools = self._long(shares)
        if self.settings.short is not None:
            pools = self._with_short(pools, self.settings.short)
        batch, steps = config.batch.prompts_per_step, self.settings.bucket_steps
        self.order = TrainingOrder(pools, seed=config.seed, bucket=steps * batch, batch=batch)

    def _long(self, shares: dict[str, Fraction]) -> list[tuple[Fraction, Pool]]:
        rows = self.settings
        self.stores[LONG] = open_store(rows.path, rows.revision, rows.split, rows.streaming, self)
        beside = overhead(self.tokenizer, rows.instruction)
        chosen = select(
            self.stores[LONG],
            rows,
            "train",
            overhead=beside,
            tasks=tuple(shares),
            longest_target=self._longest_target,
        )
        _check_not_empty(chosen, rows.path, "loosen data.longblocks or task")
        if not shares:
            return [(Fraction(1), _pool("any", LONG, chosen, chosen.rows))]
        if missing := [task for task in shares if task not in chosen.rows]:
            raise ValueError(
                f"no row of {rows.path} is left for task {missing[0]}: remove it with ~task.mixture.{missing[0]}, "
                "or choose task=any"
            )
        return [(share, _pool(task, LONG, chosen, [task])) for task, share in shares.items()]

    def _with_short(self, pools: list[tuple[Fraction, Pool]], short: ShortConfig) -> list[tuple[Fraction, Pool]]:
        self.stores[SHORT] = open_store(short.path, short.revision, short.split, short.streaming, self)
        unfiltered = replace(
            self.settings, sources=None, languages=None, min_tokens=0, target="answer", overlong="drop"
        )
        beside = overhead(self.tokenizer, "")
        chosen = select(
            self.stores[SHORT],
            unfiltered,
            "train",
            overhead=beside,
            tasks=(),
            longest_target=self._longest_target,
        )
        _check_not_empty(chosen, short.path, "choose another data set, or set data.longblocks.short=null")
        total, part = sum(share for share, _ in pools), Fraction(str(short.share))
        long = [(share / total * (1 - part), pool) for share, pool in pools]
        return [*long, (part, _pool(SHORT, SHORT, chosen, chosen.rows))]

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks of all rows used for training."""
        names = {task_at(self.stores[pool.store], row) for pool in self.order.pools for row in pool.rows}
        return tuple(sorted(names))

    def document(self, index: int) -> tuple[Example, ...]:
        """Return the one example at a position of the stream."""
        pool, row = self.order.at(index)
        return (self.example(pool.store, row),)

    def example(self, kind: str, index: int) -> Example:
        """Return a row of a store in its training form: with the instruction, and truncated to fit."""
        return rendered(self.stores[kind], index, self.settings, self.tokenizer, long=kind == LONG)

    def describe(self) -> dict[str, Any]:
        """Return data sets, row counts and the content hash, for environment.json."""
        stores = {
            kind: {"folder": str(store.folder), **store.report["origin"], "tokenizer": store.report["tokenizer"]}
            for kind, store in self.stores.items()
        }
        rows = {pool.name: len(pool.rows) for pool in self.order.pools}
        return {"stores": stores, "rows": rows, "content_hash": self.content_hash()}

    def content_hash(self) -> str:
        """Hash all rows used for training and the settings that render them: equal hashes mean equal data."""
        how = replace(self.settings, path="", revision=None, cache="", books=None, streaming=False, short=None)
        texts = [repr(how), str(self.tokenizer.chat_template)]
        texts += [store.report["tokenizer"] for store in self.stores.values()]
        for pool in self.order.pools:
            hashes = self.stores[pool.store].columns["row_hash"]
            texts += [pool.name, *(hashes[row] for row in pool.rows)]
        return digest(*texts)


def open_store(path: str, revision: str | None, split: str, streaming: bool, source: LongBlocksSource) -> Store:
    """Open the prepared rows of a data set, preparing them first if necessary."""
    settings = source.settings
    books = Path(settings.books) if settings.books is not None and path == settings.path else None
    origin = Origin(path, revision, split, streaming)
    return prepare(origin, source.tokenizer, Path(settings.cache), books)


def rendered(
    store: Store, index: int, rows: LongBlocksConfig, tokenizer: PreTrainedTokenizerBase, *, long: bool = True
) -> Example:
    """Return a row as an example with the instruction, truncated to fit. ``long``: it is from the long data set."""
    row = store.row(index)
    target = rows.target if long else "answer"
    example = from_row(row | row["responses"] | {"task": task_at(store, index)}, response_column=target)
    if long and rows.instruction:
        example = replace(example, question=f"{example.question}\n\n{rows.instruction}")
    if long and rows.target == "answer":  # the imitation target follows the requested answer format
        example = replace(example, response=rows.answer_form.format(answer=example.answer))
    example = replace(example, family_id=example.family_id or row["document_hash"])
    head, tail = encode_prompt(tokenizer, replace(example, document=""))
    beside, tokens = len(head) + len(tail), row["document_tokens"]
    if beside + tokens > rows.max_tokens:
        answer = example.answer if rows.overlong == "ends_and_answer" else None
        tokens = rows.max_tokens - beside
        example = replace(example, document=cut(example.document, tokens, tokenizer, answer=answer))
    return replace(example, length=beside + tokens)


def overhead(tokenizer: PreTrainedTokenizerBase, instruction: str) -> int:
    """Return the prompt tokens other than document and question: those of the template and of the instruction."""
    head, tail = encode_prompt(tokenizer, Example(id="", document="", question="", answer="", task=""))
    template = len(head) + len(tail) - len(encode_text(tokenizer, "\n\n"))
    return template + (len(encode_text(tokenizer, f"\n\n{instruction}")) if instruction else 0)


def _pool(name: str, store: str, chosen: Selection, tasks: Iterable[str]) -> Pool:
    """Return the pool of the rows of some tasks, in the order of the store."""
    pairs = sorted(pair for task in tasks for pair in zip(chosen.rows[task], chosen.lengths[task], strict=True))
    rows, lengths = zip(*pairs, strict=True)
    return Pool(name, store, rows, lengths)


def _check_not_empty(chosen: Selection, path: str, fix: str) -> None:
    if not len(chosen):
        reasons: Sequence[str] = [f"{count} {why}" for why, count in chosen.excluded.most_common()]
        raise ValueError(f"no row of {path} is left to train on ({', '.join(reasons)}): {fix}")
