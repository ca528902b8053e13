"""The types that flow through one training step.

    Example --sampler--> RolloutGroup --rewards--> scored group --pack--> PackedGroups
            --policy--> TokenScores --objective--> loss

Axis letters, used in shape comments everywhere:

    L  token of a packed row          T  loss token (a token that some term is computed on)
    S  completion (a sequence)        G  completion within one group
    V  vocabulary                     K  top-k
    H  hidden width
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from torch import Tensor

UNANSWERABLE = "unknown"
"""Reference answer of a question that its document does not answer."""

FinishReason = Literal["stop", "length", "recorded"]


@dataclass(frozen=True, slots=True)
class Evidence:
    """One place in the document that the answer rests on.

    Example: ``Evidence("Records show that the mentor of TorVin is KesDal.", "the mentor of TorVin is KesDal", 0.41)``
    """

    text: str
    """The sentence as it stands in the document."""
    statement: str
    """The same fact in canonical words, as a response is expected to restate it."""
    depth: float
    """Share of the document that comes before the sentence, in [0, 1]: of tokens, or of letters (code, RULER)."""


@dataclass(frozen=True, slots=True)
class CodeTask:
    """What grading by execution needs: the function to write, what it may import, and a solution."""

    entry: str
    """Name of the function."""
    parameters: tuple[str, ...]
    """Its parameters: ``x`` and ``y`` are drawn as integers, ``values`` as lists of them."""
    reference: str
    """A solution that stands by itself. Its results are the expected values."""
    helpers: tuple[str, ...] = ()
    """Functions that a solution has to call."""
    modules: tuple[tuple[str, str], ...] = ()
    """What the code can import: name and source."""


@dataclass(frozen=True, slots=True)
class Example:
    """One question about one document: LongBlocks' columns, and what exact grading needs beside them.

    Example: a multi-hop item has ``question="Who is the mentor of the rival of TorVin?"``, ``answer="KesDal"``,
    ``task="multihop"`` and two evidence sentences.
    """

    id: str
    """Unique within its data set."""
    document: str
    """The long context. Empty for a closed-book item."""
    question: str
    answer: str
    """Reference answer. Items of a list are joined by ``"; "``."""
    task: str
    """Which grader applies and which row of the tables it counts in."""
    response: str | None = None
    """A worked target for imitation: reasoning steps, then the final line. None: the answer itself is the target."""
    language: str = "en"
    source: str = ""
    evidence: tuple[Evidence, ...] = ()
    family_id: str = ""
    """Items that differ only in context length share it; statistics keep them together."""
    length: int = 0
    """Nominal prompt length in tokens; 0 if it was not set."""
    code: CodeTask | None = None
    """Graded by running it: the answer is code."""
    chat: bool = True
    """Rendered through the chat template (True) or as plain running text (False)."""

    @property
    def target(self) -> str:
        """The text that the data-set methods learn from."""
        return self.answer if self.response is None else self.response


@dataclass(frozen=True, slots=True)
class Completion:
    """Tokens that follow a prompt: sampled from the policy, or recorded in the data set."""

    token_ids: tuple[int, ...]
    """[C], the end token included when one was produced."""
    text: str
    """Decoded, special tokens left out."""
    finish_reason: FinishReason
    """``stop``: an end token; ``length``: the token limit; ``recorded``: a data-set row."""
    sampler_logprobs: tuple[float, ...] | None = None
    """[C] log-probability of each token under the distribution it was drawn from (temperature applied)."""
    policy_version: int = 0
    """Optimizer steps taken by the policy that drew it."""
    loss_mask: tuple[bool, ...] | None = None
    """[C] tokens that the loss is computed on. None: all of them."""
    teacher_gap: tuple[float, ...] | None = None
    """[C] log p(student) - log p(teacher) of each token in nats, when trained on. None: no teacher, or not kept."""

    @property
    def num_loss_tokens(self) -> int:
        return len(self.token_ids) if self.loss_mask is None else sum(self.loss_mask)


@dataclass(frozen=True, slots=True)
class Reward:
    """A score and what it is made of."""

    score: float
    parts: Mapping[str, float] = field(default_factory=dict)
    """Named components, each in [0, 1]."""


@dataclass(frozen=True, slots=True)
class RolloutGroup:
    """Completions of one prompt. A data-set row is a group whose completions were recorded.

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
    """[G], empty before they are computed; then broadcast over each completion's tokens."""

    @property
    def num_tokens(self) -> int:
        """Tokens this group takes in a packed row: the prompt once, and every completion."""
        return len(self.prompt_ids) + sum(len(completion.token_ids) for completion in self.completions)


@dataclass(frozen=True, slots=True)
class GroupSpan:
    """Where one group lies in a packed row: prompt at ``start``, completions directly behind it, in order."""

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
    """The one batch layout of all methods: groups laid end to end in one row, without padding.

    A group is ``[prompt, completion 1 ... completion G]``. Position ids restart after the prompt, so each completion
    continues the prompt; it attends to the prompt and to itself, never to a sibling or to another group.

    Loss tokens are listed once, flat: token t has id ``target_ids[t]`` and is predicted by the hidden state at
    ``source_index[t]``. A completion's first token is predicted by its prompt's last position, which siblings share.
    """

    input_ids: Tensor  # [L] int64
    position_ids: Tensor  # [L] int64
    group_ids: Tensor  # [L] int64, 0 ...
    segment_ids: Tensor  # [L] int64, 0 = prompt, i = completion i of the group
    spans: tuple[GroupSpan, ...]
    source_index: Tensor  # [T] int64
    target_ids: Tensor  # [T] int64
    sequence_ids: Tensor  # [T] int64, which completion of the row: 0 ... S-1
    sequence_lens: Tensor  # [S] int64, loss tokens of each completion
    advantages: Tensor  # [T] float32, zero for data-set rows
    sampler_logprobs: Tensor | None = None  # [T] float32
    old_logprobs: Tensor | None = None  # [T] float32, None: the policy that sampled is the policy being updated
    score_pieces: int | None = None
    """Calls of the head that scoring makes; all ranks make equally many. None: as many as this row needs."""

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


# What modules return is a named tuple: DeepSpeed's hooks find the tensors inside.


class HiddenSignal(NamedTuple):
    """All that an exact divergence needs, d_model wide: the vocabulary appears only inside a chunk."""

    hidden: Tensor  # [T, H of the teacher]
    head: Tensor  # [V, H of the teacher]


class TopKSignal(NamedTuple):
    """The teacher's K most likely tokens. What is missing to 1 is the tail, kept as one bucket."""

    ids: Tensor  # [T, K] int64
    logprobs: Tensor  # [T, K]


class SampledSignal(NamedTuple):
    """The teacher's log-probability of the token that was drawn."""

    logprobs: Tensor  # [T]


TeacherSignal = HiddenSignal | TopKSignal | SampledSignal


class TokenScores(NamedTuple):
    """What the policy says about each loss token. Nothing here is vocabulary wide."""

    logprobs: Tensor  # [T], differentiable
    entropy: Tensor  # [T], detached
    divergences: dict[str, Tensor]
    """``kd`` and ``ref``, [T] each, differentiable."""
    diagnostics: dict[str, Tensor]
    """[T] each, detached: ``kl_reverse``, ``kl_forward``, ``agree_top1``, ``logprob_gap`` against the teacher."""
