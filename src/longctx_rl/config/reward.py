"""The part of the configuration that says what an answer is worth. See config.py."""

from dataclasses import dataclass

PENALTIES = ("overlong", "repetition")
"""Parts in [-1, 0]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointConfig:
    """A language model behind an OpenAI-compatible endpoint."""

    base_url: str
    model: str
    api_key_env: str
    """Environment variable that holds the key; the key itself is nowhere written down."""
    max_tokens: int
    """Of a reply."""
    no_thinking: bool
    """Ask the chat template to leave reasoning out (Qwen3)."""
    concurrency: int
    timeout: float
    """Seconds for one request."""
    retries: int
    """After errors that may pass, with growing pauses."""
    cache: str
    """File of replies that were given before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeConfig(EndpointConfig):
    """A model that says whether an answer is right."""

    prompt: str
    """With {question}, {reference} and {answer}. The judge's first word must be yes or no."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardConfig:
    name: str
    graders: dict[str, str]
    """Task to what its answer is graded by; ``other`` is for tasks without a line of their own."""
    weights: dict[str, float]
    """Part to weight. The score is the weighted sum, divided by the weights of what is no penalty."""
    evidence_beta: float
    """Of the evidence's F-beta: above 1, what is left out counts more than what is said too much."""
    overlong_tokens: int
    """Tokens before rollout.max_new_tokens over which the penalty rises to 1."""
    normalize_per_task: bool
    """Divide advantages by the standard deviation of all rewards of the task in a step, not by the group's."""
    judge: JudgeConfig | None
