"""The vocabulary of RULER: keys and values of needles, variable names, coded words."""

from collections.abc import Callable
from random import Random

from longctx_rl.data.generators.names import MAX_DRAWS, SYLLABLES, Split, split_of

_FIRST_WORDS = """
amber brave calm dark early faint gentle happy icy jolly keen lucky mild noble odd proud quick rare silent tidy
upper vivid warm young zesty broad crisp deep eager fresh grand hollow idle just kind lively modest neat open plain
"""
FIRST_WORDS = tuple(_FIRST_WORDS.split())
_SECOND_WORDS = """
anchor basket candle desert engine forest garden hammer island jacket kettle ladder market needle ocean pencil
quarry ribbon saddle temple umbrella valley window yard zebra bridge copper dragon eagle falcon glacier harbor igloo
jungle kernel lantern meadow nectar orchard
"""
SECOND_WORDS = tuple(_SECOND_WORDS.split())


class Draw:
    """Draws the keys and values of one sample without repetition, all from one split."""

    def __init__(self, rng: Random, split: Split) -> None:
        self.rng, self.split = rng, split
        self._used: set[str] = set()

    def new(self, kind: str) -> str:
        makers: dict[str, Callable[[], str]] = {"words": self._word, "numbers": self._number, "uuids": self._uuid}
        attempts = 0
        while True:
            attempts += 1
            value = makers[kind]()
            if attempts > MAX_DRAWS:  # most word pairs are taken
                value += f"-{self.rng.randrange(10**6)}"
            if value not in self._used and (kind == "numbers" or split_of(value) == self.split):
                self._used.add(value)
                return value

    def _word(self) -> str:
        return f"{self.rng.choice(FIRST_WORDS)}-{self.rng.choice(SECOND_WORDS)}"

    def _number(self) -> str:
        return str(self.rng.randint(1_000_000, 9_999_999))

    def _uuid(self) -> str:
        text = f"{self.rng.getrandbits(128):032x}"
        return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


def variable_name(rng: Random, split: Split, known: set[str]) -> str:
    """Return a new name of five capital letters, and add it to ``known``."""
    while True:
        name = "".join(rng.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZ", k=5))
        if name not in known and split_of(name) == split:
            known.add(name)
            return name


def nonce_words(rng: Random, split: Split, count: int, known: set[str]) -> list[str]:
    """Return new lower-case words of two or three syllables, and add them to ``known``."""
    words: list[str] = []
    while len(words) < count:
        word = "".join(rng.choices(SYLLABLES, k=rng.choice((2, 3))))
        if split_of(word) == split and word.lower() not in known:
            words.append(word.lower())
            known.add(word.lower())
    return words
