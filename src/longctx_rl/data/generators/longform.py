"""Long-form questions: an ordered account of everything that a document says about one traveller."""

from random import Random

from longctx_rl.data.generators.names import Split
from longctx_rl.data.generators.wording import Statement, word_question
from longctx_rl.data.generators.world import Core, Ledger, Narrator, Query, worked_response

MIN_PLACES = 2
MAX_PLACES = 4


def core(narrator: Narrator) -> Core:
    """Return a journey, and that of a near-duplicate: two of the same places in reverse order, and a different one."""
    rng, cast = narrator.rng, narrator.cast
    subject = cast.protagonist(rng)
    places = [cast.protagonist(rng) for _ in range(rng.randint(MIN_PLACES, MAX_PLACES))]
    journey = narrator.journey(subject, places)
    namesake = cast.near(rng, subject)
    second, first = sorted(rng.sample(range(len(places)), 2))
    others = [places[first], places[second]]
    others.insert(rng.randrange(3), cast.new(rng))
    units = (journey, narrator.journey(namesake, others))
    return Core(units, journey_query(rng, narrator.split, list(journey)))


def ask(rng: Random, split: Split, ledger: Ledger) -> Query | None:
    """Return a question about a random traveller of the document."""
    if not ledger.journeys:
        return None
    return journey_query(rng, split, ledger.journeys[rng.choice(list(ledger.journeys))])


def journey_query(rng: Random, split: Split, steps: list[Statement]) -> Query:
    """Return the query whose answer is the ordered list of places."""
    subject = steps[0].subject
    answer = "; ".join(step.value for step in steps if step.value)
    response = worked_response([step.canonical for step in steps], answer)
    return Query(subject, word_question(rng, split, "journey", subject), answer, tuple(steps), response)
