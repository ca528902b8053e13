"""Where training examples come from, and how recorded answers become groups."""

import random
from collections.abc import Sequence
from typing import Any, Protocol

from transformers import PreTrainedTokenizerBase

from longctx_rl.config.schema import Config
from longctx_rl.data.generators import GENERATORS, generate
from longctx_rl.data.longblocks_source import LongBlocksSource
from longctx_rl.data.prompts import encode_prompt, encode_target
from longctx_rl.data.tasks import TASKS
from longctx_rl.types import Completion, Example, RolloutGroup


class TrainingSource(Protocol):
    """An indexed stream without end: document i is a function of the configuration and i alone.

    A cursor is therefore all that a resumed or re-sharded run needs to continue on the same documents.
    """

    def document(self, index: int) -> tuple[Example, ...]:
        """The questions of document ``index``: one, or ``data.questions_per_document``."""

    def describe(self) -> dict[str, Any]:
        """What the stream is made of, for the run's record."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks that its examples have."""


def open_source(config: Config, tokenizer: PreTrainedTokenizerBase) -> TrainingSource:
    """The stream that the configuration asks for. Raises ValueError if it cannot be read or is empty."""
    return MiniSource(config, tokenizer) if config.data.longblocks is None else LongBlocksSource(config, tokenizer)


class MiniSource:
    """LongBlocks-mini: generated as needed. See ``TrainingSource``."""

    def __init__(self, config: Config, tokenizer: PreTrainedTokenizerBase) -> None:
        self.seed = config.seed
        self.mixture = config.task.mixture
        self.lengths = config.data.lengths
        self.short = config.data.short
        self.tasks = tuple({**self.mixture, **(self.short.mixture if self.short else {})})
        self.families = config.data.families
        self.questions = config.data.questions_per_document
        self.tokenizer = tokenizer

    def document(self, index: int) -> tuple[Example, ...]:
        draw = random.Random(f"train {self.seed} {index}")
        mixture, lengths = self.mixture, self.lengths
        if self.short is not None and draw.random() < self.short.share:
            mixture, lengths = self.short.mixture, self.short.lengths
        task = draw.choices(tuple(mixture), tuple(mixture.values()))[0]
        length = draw.choice(lengths)
        family = draw.randrange(self.families if self.families is not None else 2**48)
        return generate(task, family, split="train", length=length, tokenizer=self.tokenizer, questions=self.questions)

    def describe(self) -> dict[str, Any]:
        made: dict[str, Any] = {"generated": "LongBlocks-mini", "tasks": self.mixture}
        if self.short is not None:
            made["short"] = {"share": self.short.share, "tasks": self.short.mixture}
        return made


def prompt_ids(tokenizer: PreTrainedTokenizerBase, example: Example) -> tuple[int, ...]:
    """All tokens of the prompt, [P]."""
    document, question = encode_prompt(tokenizer, example)
    return document + question


def recorded_group(tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example]) -> RolloutGroup:
    """Recorded answers as a group. Several questions about one document share it; only answers are trained on."""
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


def check_tasks(config: Config) -> None:
    """Refuse tasks that no generator makes, and no row of a data set counts as."""
    known = GENERATORS if config.data.longblocks is None else TASKS
    named = {"task.mixture": config.task.mixture}
    if config.data.short is not None and config.data.longblocks is None:
        named["data.short.mixture"] = config.data.short.mixture
    for key, mixture in named.items():
        for task in mixture:
            if task not in known:
                raise ValueError(f"{key}={task} does not exist: choose from {', '.join(known)}")


def check_lengths(config: Config, context: int) -> None:
    """Refuse prompts that do not fit the model's context of ``context`` tokens."""
    training = "data.lengths" if config.data.longblocks is None else "data.longblocks.max_tokens"
    needs = {training: config.data.longest + config.rollout.max_new_tokens}
    if config.data.short is not None and config.data.longblocks is None:
        needs["data.short.lengths"] = max(config.data.short.lengths) + config.rollout.max_new_tokens
    if config.eval.at_start or config.eval.at_end or config.eval.during:
        for name, suite in config.eval.suites.items():
            needs[f"eval.suites.{name}.lengths"] = max(suite.lengths, default=0) + suite.max_new_tokens
    for key, need in needs.items():
        if need > context:
            raise ValueError(
                f"{key} needs {need} tokens with the answer, but the model's context is {context}: "
                f"lower {key} or choose a model with a longer context"
            )
