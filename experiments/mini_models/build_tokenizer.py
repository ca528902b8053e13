"""Build the tokenizer of the mini models: byte-level BPE over text of the mini world and a little Python.

    python experiments/mini_models/build_tokenizer.py OUT_DIR

Deterministic: the text comes from the generators' wordings and from snippets below. Every syllable, word and role name
of the mini world is one token, and merges never cross a syllable, a digit or a punctuation mark.
"""

import argparse
import itertools
from collections.abc import Iterator
from pathlib import Path
from random import Random

from tokenizers import Regex, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from longctx_rl.data.generators.names import SYLLABLES
from longctx_rl.data.generators.wording import CORES, HEADER, OPENERS, QUESTION_CORES, QUESTION_OPENERS, RELATIONS
from longctx_rl.types import UNANSWERABLE

VOCAB_SIZE = 1024
PAD, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
ROLES = ("system", "user", "assistant")

PIECES = (
    r" ?\p{N}"  # one digit
    r"| ?\p{Lu}?\p{Ll}+"  # a word, or one part of a CamelCase name
    r"| ?\p{Lu}+(?!\p{Ll})"  # CONSTANTS
    r"| ?\p{L}+"  # letters without case
    r"| {2,}(?= )"  # indentation, all but the space that the next piece takes
    r"|\n"
    r"| ?[^\s\p{L}\p{N}]+"  # punctuation
    r"|\s"
)

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

PYTHON_SNIPPETS = (
    "def {f}({a}, {b}):\n    return {a} {op} {b}\n",
    "def {f}({a}: int, {b}: int = {n}) -> int:\n    if {a} > {b}:\n        return {a} % {n}\n    return {b} - {a}\n",
    "for {a} in range({n}):\n    {b}.append({a} * {n})\n    print({a}, {b}[-1])\n",
    "{a} = [{b} for {b} in {f}({n}) if {b} != {n}]\nassert len({a}) == {n}\n",
    "class {c}:\n    def __init__(self, {a}):\n        self.{a} = {a}\n\n    def {f}(self, {b}):\n"
    "        self.{a} += {b}\n        return self.{a}\n",
    "import math\nfrom collections import Counter\n\nwhile {a} < {n} and not {b}:\n    {a} += 1\n    continue\n",
    'try:\n    {a} = int({b})\nexcept ValueError as error:\n    raise KeyError("{a}") from error\n',
    '{a} = {{"{b}": {n}, "{f}": None}}\nif "{b}" in {a}:\n    {a}["{b}"] = True\nelse:\n    del {a}\n',
    'def {f}({a}: list[int]) -> str:\n    """Return {b} of {a}."""\n'
    '    return ", ".join(str({b}) for {b} in sorted({a}))\n',
    '{a}, {b} = min({a}, {n}), max({b}, {n})\n{f} = lambda {a}: {a} {op} {n}\nprint(f"{{{a}}} {{{b}}}")\n',
)
_IDENTIFIERS = (
    "a b x y i n key value item index count total result left right data items values text line node size args seed"
)
_FUNCTIONS = "add solve find merge update get parse apply fold scale split check"
_CLASSES = "Node Stack Counter Queue Graph Table"

_WORDS = (
    "false and as assert await break class def elif except finally global in is nonlocal or pass raise return "
    "True with yield False bool dict enumerate float isinstance len list object open range reversed round set "
    "sorted str sum super tuple type zip abs all any append copy extend format insert join keys lower pop remove "
    "replace sort split strip upper staticmethod property dataclass field default name path file read write "
    "encode decode string number length first last next prev start stop step end top bottom row column width "
    "height table graph edge tree stack queue heap cache buffer token word sentence document question answer "
    "reason step because therefore given then there are was were have has had will can must not no yes one two "
    "three four many each every other another same above below before after between under over again also only "
    "very more most less least than this these those it they he she we you write function program test case input "
    "output expect example error"
)


def training_text() -> Iterator[str]:
    """The text from which the merges are learnt."""
    rng = Random("tokenizer")
    for _ in range(40):
        for syllable in SYLLABLES:
            yield f" {syllable}{rng.choice(SYLLABLES)}"
            yield f" {rng.choice(SYLLABLES)}{syllable}"
    world = [HEADER, *OPENERS, *QUESTION_OPENERS, *(f" {name}" for name in RELATIONS)]
    world += [core.format(key="", subject="", value="") for cores in CORES.values() for core in cores]
    world += [core.format(topic="") for cores in QUESTION_CORES.values() for core in cores]
    world += [f"Answer: {UNANSWERABLE}", "the first from is not stated", *ROLES, "Name the answer to each question."]
    for text in itertools.chain.from_iterable(itertools.repeat(world, 60)):
        yield text
        yield f" {text}"
    for text in itertools.chain.from_iterable(itertools.repeat(_WORDS.split(), 10)):
        yield f" {text}"
    for _ in range(60):
        for snippet in PYTHON_SNIPPETS:
            a, b = rng.sample(_IDENTIFIERS.split(), 2)
            function, cls, operator = rng.choice(_FUNCTIONS.split()), rng.choice(_CLASSES.split()), rng.choice("+-*%")
            yield snippet.format(a=a, b=b, c=cls, f=function, n=rng.randint(0, 99), op=operator)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer, with its chat template."""
    backend = Tokenizer(BPE())
    backend.pre_tokenizer = Sequence(
        [Split(Regex(PIECES), behavior="isolated"), ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    backend.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[PAD, TURN_START, TURN_END],
        initial_alphabet=sorted(ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(training_text(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=TURN_END,
        pad_token=PAD,
        extra_special_tokens=[TURN_START],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def main(argv: list[str] | None = None) -> None:
    """Entry point: write the files of the tokenizer into a folder."""
    parser = argparse.ArgumentParser(description="Build the mini models' tokenizer.")
    parser.add_argument("out_dir", type=Path, help="folder for tokenizer.json, its config and the chat template")
    out_dir: Path = parser.parse_args(argv).out_dir
    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(out_dir)
    print(f"{len(tokenizer)} tokens written to {out_dir}")


if __name__ == "__main__":
    main()
