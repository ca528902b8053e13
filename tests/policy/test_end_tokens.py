"""Which tokens end a completion."""

import pytest

from longctx_rl.policy.loading import end_tokens, load_model, load_tokenizer


@pytest.mark.parametrize(
    ("settings", "expected"), [(None, (2,)), (2, (2,)), ([2, 0], (2, 0)), ([0, 2], (2, 0)), (0, (2, 0))]
)
def test_generation_settings_add_to_the_tokenizers_end_token(
    settings: int | list[int] | None, expected: tuple[int, ...]
) -> None:
    model, tokenizer = load_model("mini-student"), load_tokenizer("mini-student")
    assert tokenizer.eos_token_id == 2
    assert model.generation_config is not None
    model.generation_config.eos_token_id = settings
    assert end_tokens(model, tokenizer) == expected
