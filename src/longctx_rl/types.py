"""The types that flow through one training step.

    Example --sampler--> RolloutGroup --rewards--> scored group --pack--> PackedGroups
            --policy--> TokenScores --objective--> loss

Axis letters, used in shape comments everywhere:

    L  token of a packed row          T  loss token (a token that some term is computed on)
    S  completion (a sequence)        G  completion within one group
    V  vocabulary                     K  top-k
    H  hidden width
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:  # generators, graders and commands use these types without torch
    from torch import Tensor

UNANSWERABLE = "unknown"
"""Reference answer to a question that its document does not answer."""

FinishReason = Literal["stop", "length", "recorded"]


@dataclass(frozen=True, slots=True)
class Evidence:
    """One sentence of the document that supports the answer.

    Example: ``Evidence("Records show that the mentor of TorVin is KesDal.", "the mentor of TorVin is KesDal", 0.41)``
    """

    text: str
    """The sentence, verbatim from the document."""
    statement: str
    """The same fact in its canonical wording, as a response is expected to restate it."""
    depth: float
    """Share of the document before the sentence, in [0, 1], in tokens; in characters for code and RULER."""


@dataclass(frozen=True, slots=True)
class CodeTask:
    """What execution-based grading needs: the function to write, its importable modules, and a reference solution."""

    entry: str
    """Name of the function."""
    parameters: tuple[str, ...]
    """Its parameters: test inputs are random integers for ``x`` and ``y`` and lists of integers for ``values``."""
    reference: str
    """A self-contained solution. Its results are the expected values."""
    helpers: tuple[str, ...] = ()
    """Functions that a solution must call."""
    modules: tuple[tuple[str, str], ...] = ()
    """Modules that the code can import: name and source."""


@dataclass(frozen=True, slots=True)
class Example:
    """One question about one document: LongBlocks' columns, plus what exact grading needs.

    Example: a multi-hop item has ``question="Who is the mentor of the rival of TorVin?"``, ``answer="KesDal"``,
    ``task="multihop"`` and two evidence sentences.
    """

    id: str
    """Unique within the data set."""
    document: str
    """The long context. Empty for a closed-book item."""
    question: str
    answer: str
    """Reference answer. List items are joined by ``"; "``."""
    task: str
    """Selects the grader, and the row of the result tables."""
    response: str | None = None
    """Worked target for imitation: reasoning steps, then the answer line. None: the answer itself is the target."""
    language: str = "en"
    source: str = ""
    evidence: tuple[Evidence, ...] = ()
    family_id: str = ""
    """Shared by items that differ only in context length; statistics cluster by it."""
    length: int = 0
    """Nominal prompt length in tokens; 0 if unspecified."""
    code: CodeTask | None = None
    """Set if the answer is code, which is graded by execution."""
    chat: bool = True
    """Whether the prompt is rendered through the chat template (True) or as plain text (False)."""

    @property
    def target(self) -> str:
        """The text that methods trained on recorded data learn from."""
        return self.answer if self.response is None else self.response


@dataclass(frozen=True, slots=True)
class Completion:
    """The tokens after a prompt: sampled from the policy, or recorded in the data set."""

    token_ids: tuple[int, ...]
    """[C], including the end token if one was generated."""
    text: str
    """Decoded text without special tokens."""
    finish_reason: FinishReason
    """``stop``: the end token was generated; ``length``: the token limit was reached; ``recorded``: a data-set row."""
    sampler_logprobs: tuple[float, ...] | None = None
    """[C] log-probability of each token under the sampling distribution (temperature applied)."""
    policy_version: int = 0
    """Number of optimizer steps taken by the policy that sampled it."""
    loss_mask: tuple[bool, ...] | None = None
    """[C] marks the loss tokens. None: all of them."""
    teacher_gap: tuple[float, ...] | None = None
    """[C] log p(student) - log p(teacher) of each token in nats, when trained on. None: no teacher, or not recorded."""

    @property
    def num_loss_tokens(self) -> int:
        return len(self.token_ids) if self.loss_mask is None else sum(self.loss_mask)


@dataclass(frozen=True, slots=True)
class Reward:
    """A score and its components."""

    score: float
    parts: Mapping[str, float] = field(default_factory=dict)
    """Named components, each in [0, 1]."""


@dataclass(frozen=True, slots=True)
class RolloutGroup:
    """The completions of one prompt. A data-set row is a group with recorded completions.

    Example: ``RolloutGroup(example, prompt_ids, completions=eight, rewards=eight, advantages=eight)``.
    """

    example: Example
    prompt_ids: tuple[int, ...]
    """[P] tokens that all completions share."""
    completions: tuple[Completion, ...]
    """[G]"""
    rewards: tuple[Reward, ...] = ()
    """[G], empty before grading."""
    advantages: tuple[float, ...] = ()
    """[G], empty before they are computed; broadcast over each completion's tokens."""
    views: tuple[tuple[int, ...], ...] = ()
    """Prompts that the teacher reads instead: one for the group, or one for each completion where they answer different
    questions. Empty: it reads the student's."""
    view_kinds: tuple[str, ...] = ()
    """What each of ``views`` is; see ``data.views.ViewPrompt``."""

    @property
    def num_tokens(self) -> int:
        """Tokens of this group in a packed row: the prompt once, and every completion."""
        return len(self.prompt_ids) + sum(len(completion.token_ids) for completion in self.completions)


@dataclass(frozen=True, slots=True)
class GroupSpan:
    """Position of one group in a packed row: the prompt at ``start``, directly followed by its completions in order."""

    start: int
    prompt_len: int
    completion_lens: tuple[int, ...]

    @property
    def completions_start(self) -> int:
        return self.start + self.prompt_len

    @property
    def end(self) -> int:
        return self.completions_start + sum(self.completion_lens)


@dataclass(frozen=True, slots=True)
class PackedGroups:
    """The batch layout of every method: groups concatenated in one row, without padding.

    A group is ``[prompt, completion 1 ... completion G]``. Position ids restart after the prompt, so each completion
    continues the prompt; it attends to the prompt and to itself, never to a sibling or another group.

    Loss tokens are stored as flat lists: token t has id ``target_ids[t]`` and is predicted from the hidden state at
    ``source_index[t]``. A completion's first token is predicted at its prompt's last position, which siblings share.
    """

    input_ids: Tensor  # [L] int64
    position_ids: Tensor  # [L] int64
    group_ids: Tensor  # [L] int64, 0 ...
    segment_ids: Tensor  # [L] int64, 0 = prompt, i = completion i of the group
    spans: tuple[GroupSpan, ...]
    source_index: Tensor  # [T] int64
    target_ids: Tensor  # [T] int64
    sequence_ids: Tensor  # [T] int64, index of the completion within the row: 0 ... S-1
    sequence_lens: Tensor  # [S] int64, loss tokens of each completion
    advantages: Tensor  # [T] float32, zero for data-set rows
    sampler_logprobs: Tensor | None = None  # [T] float32
    old_logprobs: Tensor | None = None  # [T] float32, None: the sampling policy is the policy being updated
    score_pieces: int | None = None
    """Number of head calls in scoring, equal on all ranks. None: as many as this row needs."""

    @property
    def num_loss_tokens(self) -> int:
        return self.target_ids.numel()

    @property
    def num_sequences(self) -> int:
        return self.sequence_lens.numel()


@dataclass(frozen=True, slots=True)
class Denominators:
    """Global counts over every micro-batch, accumulation step and rank of one optimizer step."""

    num_sequences: int
    num_tokens: int
    """Loss tokens."""


# Return values of modules are named tuples, so that DeepSpeed's hooks find the tensors inside.


class HiddenSignal(NamedTuple):
    """What an exact divergence needs, at hidden width: vocabulary-wide tensors exist only inside a chunk."""

    hidden: Tensor  # [T, H of the teacher]
    head: Tensor  # [V, H of the teacher]


class TopKSignal(NamedTuple):
    """The teacher's K most likely tokens. The remaining probability mass is the tail, treated as one bucket."""

    ids: Tensor  # [T, K] int64
    logprobs: Tensor  # [T, K]


class SampledSignal(NamedTuple):
    """The teacher's log-probability of the sampled token."""

    logprobs: Tensor  # [T]


TeacherSignal = HiddenSignal | TopKSignal | SampledSignal


class TokenScores(NamedTuple):
    """The policy's scores of each loss token. Nothing here is vocabulary-wide."""

    logprobs: Tensor  # [T], differentiable
    entropy: Tensor  # [T], detached
    divergences: dict[str, Tensor]
    """``kd`` and ``ref``, [T] each, differentiable."""
    diagnostics: dict[str, Tensor]
    """[T] each, detached, against the teacher: ``kl_reverse``, ``kl_forward``, ``agree_top1``, ``logprob_gap``; and its
    ``entropy``."""
