"""Sources of training examples, and conversion of recorded answers to groups."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from longctx_rl.config.schema import Config
from longctx_rl.data.generators import GENERATORS, generate
from longctx_rl.data.prompts import encode_prompt, encode_target
from longctx_rl.data.tasks import TASKS
from longctx_rl.types import Completion, Example, RolloutGroup

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


EVIDENCE_TRIED = 64
"""Training examples among which one with evidence is expected, if a setting needs it."""


class TrainingSource(Protocol):
    """An endless indexed stream: document i is a function of the configuration and i only.

    A cursor is therefore all that a resumed or re-sharded run needs to continue on the same documents.
    """

    def document(self, index: int) -> tuple[Example, ...]:
        """Return the questions about document ``index``: one, or ``data.questions_per_document``."""

    def describe(self) -> dict[str, Any]:
        """Describe the stream's contents, for environment.json."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks of the examples."""


def open_source(config: Config, tokenizer: PreTrainedTokenizerBase) -> TrainingSource:
    """Open the configured stream. Raises ValueError if it cannot be read or is empty."""
    if config.data.longblocks is None:
        return MiniSource(config, tokenizer)
    from longctx_rl.data.longblocks_source import LongBlocksSource  # pyarrow

    return LongBlocksSource(config, tokenizer)


class MiniSource:
    """LongBlocks-mini, generated on the fly. See ``TrainingSource``."""

    def __init__(self, config: Config, tokenizer: PreTrainedTokenizerBase) -> None:
        self.seed = config.seed
        self.mixture = config.task.mixture
        self.lengths = config.data.lengths
        self.short = config.data.short
        self.tasks = generated_tasks(config)
        self.families = config.data.families
        self.questions = config.data.questions_per_document
        self.tokenizer = tokenizer

    def document(self, index: int) -> tuple[Example, ...]:
        task, family, length = self._drawn(index)
        return generate(task, family, split="train", length=length, tokenizer=self.tokenizer, questions=self.questions)

    def shortened(self, index: int, length: int) -> Example:
        """Return the first question of document ``index`` about a document that makes a prompt of at most ``length``
        tokens, or about the shortest one that its task allows if that is longer."""
        task, family, own = self._drawn(index)
        try:
            return generate(task, family, split="train", length=min(own, length), tokenizer=self.tokenizer)[0]
        except ValueError:
            return generate(task, family, split="train", length=0, tokenizer=self.tokenizer)[0]

    def _drawn(self, index: int) -> tuple[str, int, int]:
        """Task, family and length of document ``index``."""
        draw = random.Random(f"train {self.seed} {index}")
        mixture, lengths = self.mixture, self.lengths
        if self.short is not None and draw.random() < self.short.share:
            mixture, lengths = self.short.mixture, self.short.lengths
        task = draw.choices(tuple(mixture), tuple(mixture.values()))[0]
        length = draw.choice(lengths)
        return task, draw.randrange(self.families if self.families is not None else 2**48), length

    def describe(self) -> dict[str, Any]:
        made: dict[str, Any] = {"generated": "LongBlocks-mini", "tasks": self.mixture}
        if self.short is not None:
            made["short"] = {"share": self.short.share, "tasks": self.short.mixture}
        return made


def prompt_ids(tokenizer: PreTrainedTokenizerBase, example: Example) -> tuple[int, ...]:
    """Return all tokens of the prompt, [P]."""
    document, question = encode_prompt(tokenizer, example)
    return document + question


def recorded_group(tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example]) -> RolloutGroup:
    """Return recorded answers as a group. Questions about one document share its tokens; only answers have loss."""
    parts = [encode_prompt(tokenizer, example) for example in examples]
    targets = [encode_target(tokenizer, example) for example in examples]
    shared, questions = parts[0][0], [question for _, question in parts]
    if len(examples) == 1:
        shared, questions = shared + questions[0], [()]
    completions = tuple(
        Completion(
            token_ids=question + target,
            text=example.target,
            finish_reason="recorded",
            loss_mask=(False,) * len(question) + (True,) * len(target),
        )
        for question, target, example in zip(questions, targets, examples, strict=True)
    )
    return RolloutGroup(examples[0], shared, completions)


def generated_tasks(config: Config) -> tuple[str, ...]:
    """Return the tasks of generated training data."""
    short = config.data.short.mixture if config.data.short else {}
    return tuple({**config.task.mixture, **short})


def check_tasks(config: Config) -> None:
    """Raise ValueError for a task that neither a generator nor a row of a data set can have."""
    known = GENERATORS if config.data.longblocks is None else TASKS
    named = {"task.mixture": config.task.mixture}
    if config.data.short is not None and config.data.longblocks is None:
        named["data.short.mixture"] = config.data.short.mixture
    for key, mixture in named.items():
        for task in mixture:
            if task not in known:
                raise ValueError(f"{key}={task} does not exist: choose from {', '.join(known)}")


def check_evidence(config: Config, source: TrainingSource) -> None:
    """Raise ValueError for a setting that needs evidence, and training examples that have none."""
    keys = []
    if config.viewed and config.algo.kd.view in ("evidence", "wrong"):
        keys.append((f"algo.kd.view={config.algo.kd.view}", "algo.kd.view=retrieved"))
    if config.algo.source == "policy":
        parts = [part for part in ("evidence", "grounded") if config.reward.weights.get(part)]
        keys += [(f"reward.weights.{part}={config.reward.weights[part]}", f"reward.weights.{part}=0") for part in parts]
    if keys and not any(source.document(index)[0].evidence for index in range(EVIDENCE_TRIED)):
        raise ValueError(
            f"{keys[0][0]} needs examples with evidence, but the first {EVIDENCE_TRIED} of data={config.data.name} "
            f"have none: set {keys[0][1]}, or build data with evidence (python -m longctx_rl.data build)"
        )


def check_lengths(config: Config, context: int) -> None:
    """Raise ValueError if prompts do not fit the model's context of ``context`` tokens."""
    training = "data.lengths" if config.data.longblocks is None else "data.longblocks.max_tokens"
    needs = {training: config.data.longest + config.rollout.max_new_tokens}
    if config.viewed and config.algo.kd.view == "answer":  # its tokens are at most its bytes
        beside = len(config.algo.kd.answer_prompt.encode()) + config.rollout.max_new_tokens
        needs["algo.kd.answer_prompt"] = needs[training] + beside
    if config.data.short is not None and config.data.longblocks is None:
        needs["data.short.lengths"] = max(config.data.short.lengths) + config.rollout.max_new_tokens
    if config.eval.at_start or config.eval.at_end or config.eval.during:
        for name, suite in config.eval.suites.items():
            needs[f"eval.suites.{name}.lengths"] = max(suite.lengths, default=0) + suite.max_new_tokens
    for key, need in needs.items():
        if need > context:
            raise ValueError(
                f"{key} needs {need} tokens including the answer, but the model's context is {context}: "
                f"lower {key} or choose a model with a longer context"
            )
