"""The module that the engine wraps: body, head and scoring together, so that sharding hooks always fire."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from longctx_rl.objective.spec import Estimator
from longctx_rl.policy.attention import dispatch
from longctx_rl.policy.attention.prompt_states import PromptPass
from longctx_rl.policy.scoring import Anchor, log_softmax, num_pieces, score_tokens
from longctx_rl.types import HiddenSignal, PackedGroups, SampledSignal, TeacherSignal, TokenScores, TopKSignal


@dataclass(frozen=True, slots=True)
class SignalRequest:
    """What an anchor computes for the tokens of a row."""

    estimator: Estimator
    """``exact`` returns hidden states and head, ``topk`` ids and log-probabilities of the K most likely tokens, ``k1``,
    ``k2`` and ``k3`` the log-probability of each target token."""
    top_k: int
    """K of ``topk``."""
    head: Tensor | None
    """[V, H] full output weights, passed through with the hidden states; for ``exact`` only."""


class Policy(nn.Module):
    """A causal language model that scores packed groups.

    Args:
        model: any transformers causal LM whose attention can be replaced.
        chunk: loss tokens whose vocabulary distribution exists at one time.
        vocabulary: number of vocabulary entries to score over; None: all.

    Raises:
        ValueError: the model's attention cannot be replaced, or it changes its logits after the head.
    """

    def __init__(self, model: PreTrainedModel, *, chunk: int, vocabulary: int | None = None) -> None:
        super().__init__()
        dispatch.install(model)
        _check_head(model)
        self.model = model
        self.chunk = chunk
        self.vocabulary = vocabulary

    @property
    def head(self) -> nn.Module:
        """The output projection."""
        head = self.model.get_output_embeddings()
        assert isinstance(head, nn.Module)
        return head

    def body(self, packed: PackedGroups, prompt: PromptPass | None = None) -> Tensor:
        """Return the final hidden states of a row, [L, H]."""
        output = self.model.base_model(
            input_ids=packed.input_ids[None],
            position_ids=packed.position_ids[None],
            attention_mask=dispatch.packed_mask(packed.input_ids.device),
            use_cache=False,
            packed_spans=packed.spans,
            packed_prompt=prompt,
        )
        hidden: Tensor = output.last_hidden_state[0]
        return hidden

    def hidden(self, packed: PackedGroups) -> Tensor:
        """Return the final hidden states that predict the loss tokens, [T, H]."""
        return self.body(packed)[packed.source_index]

    def forward(
        self,
        packed: PackedGroups,
        *,
        temperature: float,
        anchors: Mapping[str, Anchor] | None = None,
        prompt: PromptPass | None = None,
        signal: SignalRequest | None = None,
    ) -> TokenScores | TeacherSignal | Tensor:
        """Score every loss token of a packed row.

        Args:
            temperature: divides the logits in every log-probability.
            anchors: ``kd`` and ``ref`` signals for the same tokens.
            prompt: the row is a prompt, or one completion, whose ``source_index`` then counts the prompt's last token
                as 0.
            signal: the policy is its own anchor for this row, and only computes the signal.

        Returns:
            The scores of T loss tokens; for a row that is a prompt, its last hidden state, [1, H].
        """
        if signal is not None:
            return self.signal(packed, temperature, signal)
        if prompt is not None and prompt.role != "read":
            body = self.body(packed, prompt)
            nothing: Tensor = self.head(body[:0])
            # A sharded backward pass waits for every parameter.
            return body[-1:] + 0.0 * nothing.sum()
        if prompt is not None:
            last = prompt.states.hidden
            assert last is not None
            own = self.body(packed, prompt)
            hidden = torch.cat([last.to(own.dtype), own])[packed.source_index]
        else:
            hidden = self.hidden(packed)
        return score_tokens(
            self.head,
            hidden,
            packed.target_ids,
            temperature=temperature,
            chunk=self.chunk,
            anchors=anchors or {},
            vocabulary=self.vocabulary,
            pieces=packed.score_pieces,
        )

    @torch.no_grad()
    def signal(self, packed: PackedGroups, temperature: float, request: SignalRequest) -> TeacherSignal:
        """Return the signal of these weights as an anchor; ``temperature`` divides the logits.

        Raises:
            ValueError: ``exact``, and the model's head has a bias, which the signal does not carry.
        """
        hidden = self.hidden(packed)
        if request.estimator == "exact":
            assert request.head is not None
            if getattr(self.head, "bias", None) is not None:
                raise ValueError(
                    f"the head of {type(self.model).__name__} has a bias, which estimator=exact would ignore: "
                    "set estimator=topk, or choose a teacher without one"
                )
            return HiddenSignal(hidden, request.head)
        ids, logprobs = [], []
        pieces = packed.score_pieces or num_pieces(packed.num_loss_tokens, self.chunk)
        for part, targets in zip(
            torch.tensor_split(hidden, pieces), torch.tensor_split(packed.target_ids, pieces), strict=True
        ):
            logq = log_softmax(self.head, part, temperature, self.vocabulary)
            if request.estimator == "topk":
                best = logq.topk(min(request.top_k, logq.shape[-1]))
                ids.append(best.indices)
                logprobs.append(best.values)
            else:
                logprobs.append(logq.gather(-1, targets[:, None])[:, 0])
        if request.estimator == "topk":
            return TopKSignal(torch.cat(ids), torch.cat(logprobs))
        return SampledSignal(torch.cat(logprobs))


LOGIT_CHANGES = {
    "final_logit_softcapping": None,
    "logit_scale": 1.0,
    "logits_scaling": 1.0,
    "lm_head_multiplier": 1.0,
}
"""Settings of Gemma, Cohere, Granite and Falcon-H1 that change logits after the head, and their neutral values."""


def _check_head(model: PreTrainedModel) -> None:
    """Raise ValueError if there is no head, or if logits are not its output, which is what scoring uses."""
    if not isinstance(model.get_output_embeddings(), nn.Module):
        raise ValueError(f"{type(model).__name__} has no output head, which scoring needs: {dispatch.OTHERS}")
    for key, neutral in LOGIT_CHANGES.items():
        value = getattr(model.config, key, neutral)
        if value is not None and value != neutral:
            raise ValueError(
                f"{type(model).__name__} changes its logits after the head ({key}={value}), which scoring ignores: "
                "choose a model whose logits are the head's output, such as Qwen3 or Llama"
            )
