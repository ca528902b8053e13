"""Multi-hop questions: "who is the mentor of the rival of TorVin?", one to three relations deep."""

from random import Random

from longctx_rl.data.generators.names import Split
from longctx_rl.data.generators.wording import RELATIONS, Statement, word_question
from longctx_rl.data.generators.world import Core, Ledger, Narrator, Query, worked_response

MAX_HOPS = 3
_ATTEMPTS = 20


def core(narrator: Narrator) -> Core:
    """Return a chain of facts; for each, another fact of its subject, and its relation for a near-duplicate."""
    rng, cast = narrator.rng, narrator.cast
    hops = rng.randint(1, MAX_HOPS)
    chain = [cast.protagonist(rng) for _ in range(hops + 1)]
    relations = rng.sample(RELATIONS, hops)
    steps = [narrator.fact(chain[i], relations[i], chain[i + 1]) for i in range(hops)]
    units = [(step,) for step in steps]
    for step in steps:
        units.append((narrator.other_fact(step.subject, {step.key}),))
        units.append((narrator.fact(cast.near(rng, step.subject), step.key),))
    return Core(tuple(units), chain_query(rng, narrator.split, steps))


def ask(rng: Random, split: Split, ledger: Ledger) -> Query | None:
    """Return a question about a random walk over the document's current facts."""
    for _ in range(_ATTEMPTS):
        hops = rng.randint(1, MAX_HOPS)
        steps = [rng.choice(list(ledger.settled.values()))]
        while len(steps) < hops and steps[-1].value in ledger.relations_of:
            subject = steps[-1].value
            steps.append(ledger.settled[rng.choice(ledger.relations_of[subject]), subject])
        visited = [steps[0].subject, *(step.value for step in steps)]
        if len(steps) == hops and len(set(visited)) == len(visited):
            return chain_query(rng, split, steps)
    return None


def chain_query(rng: Random, split: Split, steps: list[Statement]) -> Query:
    """Return the query whose answer is the value of the last step."""
    topic = "the " + " of the ".join(step.key for step in reversed(steps)) + f" of {steps[0].subject}"
    answer = steps[-1].value
    response = worked_response([step.canonical for step in steps], answer)
    return Query(topic, word_question(rng, split, "chain", topic), answer, tuple(steps), response)
