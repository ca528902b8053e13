"""A text report on a data set, and on the rows that a configuration selects from it."""

from collections import Counter
from collections.abc import Iterator, Mapping

from longctx_rl.config.schema import Config
from longctx_rl.data.books import HOW_TO_RESTORE, SOURCE
from longctx_rl.data.longblocks_source import LONG, LongBlocksSource, overhead
from longctx_rl.data.selection import select, split_of, task_at
from longctx_rl.data.store import Store

BAR = 40
"""Characters of the longest bar."""


def inspect(config: Config) -> str:
    """Return tables about every data set that the configuration reads, and about the rows used for training.

    Raises:
        ValueError: the data are generated, or cannot be read.
    """
    if config.data.longblocks is None:
        raise ValueError(f"data={config.data.name} is generated on the fly: choose data=longblocks")
    from longctx_rl.policy.loading import load_tokenizer  # imports transformers, so after every check

    source = LongBlocksSource(config, load_tokenizer(config.model.tokenizer or config.model.student))
    lines: list[str] = []
    for kind, store in source.stores.items():
        lines += [f"{kind}: {store.report['origin']['path']}", ""]
        lines += described(store)
        if kind == LONG:
            lines += training(source, store, config)
    rows = {pool.name: len(pool.rows) for pool in source.order.pools}
    lines += [*table("trained on, by pool", rows), f"content hash {source.content_hash()}"]
    return "\n".join(lines)


def described(store: Store) -> Iterator[str]:
    """Report what was read, dropped and kept."""
    counts = store.counts
    yield f"{counts.read:,} rows read, {len(store):,} usable; prepared in {store.folder}"
    for name, cause in store.report["files"].items():
        yield f"  file skipped: {name} ({cause})"
    for why, count in store.report["lines"].items():
        yield f"  lines skipped: {count:,} {why}"
    if store.report["columns"]:
        yield f"  columns not read: {', '.join(store.report['columns'])}"
    yield ""
    if counts.dropped:
        yield from table("dropped", {f"{why} ({source})": count for (why, source), count in counts.dropped.items()})
        if any(source == SOURCE for _, source in counts.dropped):
            yield f"  documents of {SOURCE} can be restored: {HOW_TO_RESTORE}"
            yield ""
    if counts.noted:
        yield from table("noted", {why: count for why, count in counts.noted.items() if count})
    columns = store.columns
    yield from table("by source", Counter(name or "-" for name in columns["source"]))
    yield from table("by language", Counter(name or "-" for name in columns["language"]))
    yield from table("by task", Counter(task_at(store, index) for index in range(len(store))))
    yield from table("by document tokens", histogram(columns["document_tokens"]))


def training(source: LongBlocksSource, store: Store, config: Config) -> Iterator[str]:
    """Report which rows of a store are used for training, and why others are not."""
    rows, tasks = source.settings, tuple(task for task, share in config.task.mixture.items() if share)
    chosen = select(store, rows, "train", overhead=overhead(source.tokenizer, rows.instruction), tasks=tasks)
    yield from table("excluded from training", chosen.excluded)
    splits = (split_of(each, validation=rows.validation, test=rows.test) for each in store.columns["document_hash"])
    yield from table("by split", Counter(splits))


def histogram(lengths: list[int]) -> dict[str, int]:
    """Count rows by powers of two: ``< 1,024`` stands for 512 to 1,023 tokens."""
    counts = Counter(length.bit_length() for length in lengths)
    return {f"< {2**bits:,}": counts[bits] for bits in range(min(counts), max(counts) + 1)} if counts else {}


def table(title: str, counts: Mapping[str, int]) -> Iterator[str]:
    """Yield lines of names, counts and bars; largest first, unless the names are lengths."""
    if not counts:
        return
    ordered = list(counts.items())
    if not ordered[0][0].startswith("<"):
        ordered.sort(key=lambda pair: (-pair[1], pair[0]))
    width, most = max(len(name) for name, _ in ordered), max(1, *(count for _, count in ordered))
    yield title
    for name, count in ordered:
        yield f"  {name:<{width}} {count:>9,} {'█' * round(BAR * count / most)}".rstrip()
    yield ""
