"""Long-form questions: an ordered account of everything that a document says of one traveller's journey."""

from random import Random

from longctx_rl.data.generators.names import Split
from longctx_rl.data.generators.wording import RELATIONS, Statement, word_question
from longctx_rl.data.generators.world import Core, Ledger, Narrator, Query, worked_response

MIN_PLACES = 2
MAX_PLACES = 4


def core(narrator: Narrator) -> Core:
    """A journey, another one through two of its places, and facts about the traveller and a near-duplicate."""
    rng, cast = narrator.rng, narrator.cast
    subject = cast.protagonist(rng)
    places = [cast.protagonist(rng) for _ in range(rng.randint(MIN_PLACES, MAX_PLACES))]
    journey = narrator.journey(subject, places)
    namesake = cast.near(rng, subject)
    units = (
        journey,
        narrator.journey(namesake, rng.sample(places, 2)),
        (narrator.other_fact(subject, set()),),
        (narrator.fact(namesake, rng.choice(RELATIONS)),),
    )
    return Core(units, journey_query(rng, narrator.split, list(journey)))


def ask(rng: Random, split: Split, ledger: Ledger) -> Query | None:
    """The journey of a random traveller of the document."""
    if not ledger.journeys:
        return None
    return journey_query(rng, split, ledger.journeys[rng.choice(list(ledger.journeys))])


def journey_query(rng: Random, split: Split, steps: list[Statement]) -> Query:
    """The query whose answer is the list of places, in order."""
    subject = steps[0].subject
    answer = "; ".join(step.value for step in steps if step.value)
    response = worked_response([step.canonical for step in steps], answer)
    return Query(subject, word_question(rng, split, "journey", subject), answer, tuple(steps), response)
