"""An adapter that gives this package's model and sampler the model interface of EleutherAI's lm_eval (0.4.13).

Answers to one question share its tokens, which are prefilled once; vocabulary-wide tensors exist in chunks only.
Prompts are never truncated: a prompt that does not fit is rejected.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from longctx_rl.data.packing import pack, plan_rows
from longctx_rl.data.prompts import rendered
from longctx_rl.policy.loading import context_length, end_tokens
from longctx_rl.policy.policy import Policy
from longctx_rl.policy.scoring import log_softmax, num_pieces
from longctx_rl.rollout import SampleRequest
from longctx_rl.rollout.hf import HFSampler
from longctx_rl.types import Completion, Example, PackedGroups, RolloutGroup

ROW_TOKENS = 8192
LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens")
"""Names that tasks use for the token limit of an answer."""
NEUTRAL: dict[str, tuple[object, ...]] = {"top_p": (1, 1.0, None), "top_k": (0, None), "num_beams": (1,)}
"""Settings that the sampler does not support, and their values that have no effect."""
NOTHING = Example(id="", document="", question="", answer="", task="")


class HarnessModel(TemplateLM):  # type: ignore[misc]  # lm_eval has no types
    """A model for ``lm_eval.evaluate(lm=...)``.

    Args:
        max_new_tokens: limit for answers whose task sets none.
        batch_tokens: see ``HFSampler``.
        chunk: tokens whose vocabulary distribution exists at one time.
        name: the checkpoint's name, for lm_eval's records and for messages.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_new_tokens: int,
        batch_tokens: int,
        chunk: int,
        name: str,
    ) -> None:
        super().__init__()
        self.model, self.tokenizer = model.eval(), tokenizer
        self.max_new_tokens, self.batch_tokens, self.chunk, self._name = max_new_tokens, batch_tokens, chunk, name
        self._policy = Policy(self.model, chunk=chunk)
        self._device = model.device

    @property
    def eot_token_id(self) -> int:
        """The token that replaces an empty context."""
        assert isinstance(self.tokenizer.eos_token_id, int)
        return self.tokenizer.eos_token_id

    @property
    def max_length(self) -> int:
        """Maximum number of tokens of a prompt with its answer."""
        return context_length(self.model)

    @property
    def tokenizer_name(self) -> str:
        """The checkpoint's name, for lm_eval's records."""
        return self._name

    def chat_template(self, chat_template: bool | str = False) -> str:
        """The tokenizer's chat template, for lm_eval's records."""
        return str(self.tokenizer.chat_template or "") if chat_template else ""

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The conversation rendered by the tokenizer's chat template."""
        return rendered(
            self.tokenizer,
            chat_history,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: object) -> list[int]:
        """Token ids. Special tokens that the text spells out, as a chat template does, are encoded as such."""
        ids: list[int] = self.tokenizer(string, add_special_tokens=bool(add_special_tokens))["input_ids"]
        return ids

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[tuple[str, str], list[int], list[int]]], **kwargs: object
    ) -> list[tuple[float, bool]]:
        """Log-probability of each continuation given its context, and whether greedy decoding would produce it."""
        together: dict[tuple[int, ...], list[int]] = {}
        for index, (_, context, continuation) in enumerate(requests):
            self._check(len(context) + len(continuation) - 1)
            together.setdefault(tuple(context), []).append(index)
        groups = [
            RolloutGroup(
                NOTHING, context, tuple(Completion(tuple(requests[index][2]), "", "recorded") for index in indices)
            )
            for context, indices in together.items()
        ]
        order = [index for indices in together.values() for index in indices]
        results: list[tuple[float, bool]] = []
        for row in plan_rows(groups, ROW_TOKENS):
            results += self._scored(pack([groups[index] for index in row], self.model.device))
        by_request = dict(zip(order, results, strict=True))
        return [by_request[index] for index in range(len(requests))]

    @torch.no_grad()
    def _scored(self, packed: PackedGroups) -> list[tuple[float, bool]]:
        """Log-probability and greedy match of each completion of a packed row."""
        logprobs, greedy = [], []
        pieces = num_pieces(packed.num_loss_tokens, self.chunk)
        for hidden, targets in zip(
            torch.tensor_split(self._policy.hidden(packed), pieces),
            torch.tensor_split(packed.target_ids, pieces),
            strict=True,
        ):
            logp = log_softmax(self._policy.head, hidden, 1.0, None)
            logprobs.append(logp.gather(-1, targets[:, None])[:, 0])
            greedy.append(logp.argmax(-1) == targets)
        lengths = packed.sequence_lens.tolist()
        sums = [float(part.double().sum()) for part in torch.split(torch.cat(logprobs), lengths)]
        alike = [bool(part.all()) for part in torch.split(torch.cat(greedy), lengths)]
        return list(zip(sums, alike, strict=True))

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-probability of each text; a text beyond the model's context is scored in windows."""
        windows = [
            [
                (("", ""), *make_disjoint_window(window))
                for window in get_rolling_token_windows(
                    self.tok_encode(text), self.prefix_token_id, max_seq_len=self.max_length, context_len=1
                )
            ]
            for (text,) in (request.args for request in requests)
        ]
        scores = iter(self._loglikelihood_tokens([window for text in windows for window in text]))
        return [sum(next(scores)[0] for _ in text) for text in windows]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Answers, each ending before the first of its task's stop strings.

        Raises:
            ValueError: a task sets something that the sampler does not support, or a prompt does not fit the context.
        """
        together: dict[tuple[int, float], list[int]] = {}
        stops: list[list[str]] = []
        for index, request in enumerate(requests):
            limit, temperature, until = self._settings(request.args[1])
            together.setdefault((limit, temperature), []).append(index)
            stops.append(until)
        texts: dict[int, str] = {}
        for (limit, temperature), indices in together.items():
            sampler = HFSampler(
                self.tokenizer,
                temperature=temperature,
                max_new_tokens=limit,
                batch_tokens=self.batch_tokens,
                eos_ids=end_tokens(self.model, self.tokenizer),
            )
            sample_requests = []
            for index in indices:
                ids = tuple(self.tok_encode(requests[index].args[0])) or (self.prefix_token_id,)
                self._check(len(ids) + limit)
                sample_requests.append(SampleRequest(prompt_ids=ids, seeds=(index,)))
            for index, (completion,) in zip(indices, sampler.sample(self.model, sample_requests), strict=True):
                ends = [place for stop in stops[index] if (place := completion.text.find(stop)) >= 0]
                texts[index] = completion.text[: min(ends, default=None)]
        return [texts[index] for index in range(len(requests))]

    def _settings(self, requested: Mapping[str, Any]) -> tuple[int, float, list[str]]:
        """Token limit, temperature and stop strings of a request. Raises ValueError as ``generate_until``."""
        settings = dict(requested)
        until = settings.pop("until", None) or []
        limits = [limit for name in LIMITS if (limit := settings.pop(name, None)) is not None]
        sampled, temperature = settings.pop("do_sample", None), settings.pop("temperature", None)
        for name, value in settings.items():
            if value not in NEUTRAL.get(name, ()):
                raise ValueError(f"a task sets {name}={value}, which the sampler does not support: drop it from tasks")
        if sampled is False or temperature is None:
            temperature = 1.0 if sampled and temperature is None else 0.0
        stops = [until] if isinstance(until, str) else list(until)
        return int(limits[0]) if limits else self.max_new_tokens, float(temperature), [stop for stop in stops if stop]

    def _check(self, tokens: int) -> None:
        if tokens > self.max_length:
            raise ValueError(
                f"a prompt with its answer needs {tokens} tokens, but the context of {self._name} is "
                f"{self.max_length}: drop the task from tasks, lower lengths or fewshot, or choose a model with a "
                "longer context"
            )
