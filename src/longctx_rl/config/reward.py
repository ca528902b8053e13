"""The part of the configuration that says how answers are rewarded. See config/schema.py."""

from dataclasses import dataclass

PENALTIES = ("overlong", "repetition")
"""Parts of the reward with values in [-1, 0]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointConfig:
    """A language model behind an OpenAI-compatible endpoint."""

    base_url: str
    model: str
    api_key_env: str
    """Environment variable with the key, if the endpoint needs one. The key itself is never written to a file."""
    max_tokens: int
    """Longest reply in tokens."""
    no_thinking: bool
    """True: the chat template turns reasoning off (Qwen3)."""
    concurrency: int
    """Number of requests at a time."""
    timeout: float
    """Seconds for one request."""
    retries: int
    """Retries after transient errors, with growing pauses."""
    cache: str
    """File of earlier replies."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeConfig(EndpointConfig):
    """A model that grades an answer as right or wrong."""

    prompt: str
    """Prompt with {question}, {reference} and {answer}. The first word of the reply must be yes or no."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardConfig:
    """Graders, and how their results add up to a reward."""

    name: str
    graders: dict[str, str]
    """Task to the grader of its answers; ``other`` is for tasks without a line of their own."""
    weights: dict[str, float]
    """Weights of the parts. The score is the weighted sum, divided by the sum of the weights that are no penalties."""
    evidence_beta: float
    """Beta of the evidence's F-beta: above 1, missing evidence counts more than superfluous evidence."""
    overlong_tokens: int
    """Tokens before rollout.max_new_tokens over which the overlong penalty rises to 1."""
    normalize_per_task: bool
    """True: advantages are divided by the standard deviation of all rewards of their task in the step, over all ranks,
    instead of the group's (QwenLong-L1.5, arXiv 2512.12967), so that tasks with different spreads of reward weigh
    alike."""
    judge: JudgeConfig | None
    """The language model that grades what rules cannot. None: no judge."""
