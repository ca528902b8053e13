"""Grounding questions: one exact fact among near-duplicates, superseded statements, and questions without an answer."""

from random import Random

from longctx_rl.data.generators.multihop import chain_query
from longctx_rl.data.generators.names import Split
from longctx_rl.data.generators.wording import RELATIONS, word_question
from longctx_rl.data.generators.world import Core, Ledger, Narrator, Query, Unit, not_stated_query

UNANSWERABLE_SHARE = 0.22
SUPERSEDED_SHARE = 0.33
_NEAR_DUPLICATES = 3


def core(narrator: Narrator) -> Core:
    """Return the queried fact, if there is one, with other facts of its subject and near-duplicates of it."""
    rng, cast = narrator.rng, narrator.cast
    subject = cast.protagonist(rng)
    relation = rng.choice(RELATIONS)
    draw = rng.random()
    units: list[Unit] = []
    stated = {relation}
    if draw < UNANSWERABLE_SHARE:
        units.append((narrator.other_fact(subject, stated),))
        topic = f"the {relation} of {subject}"
        query = not_stated_query(topic, word_question(rng, narrator.split, "chain", topic))
    else:
        target = narrator.fact(subject, relation)
        if draw < UNANSWERABLE_SHARE + SUPERSEDED_SHARE:
            newer = narrator.say("update", subject, relation, cast.new(rng))
            units.append((target, newer))
            query = chain_query(rng, narrator.split, [newer])
        else:
            units.append((target,))
            query = chain_query(rng, narrator.split, [target])
    units.append((narrator.other_fact(subject, stated),))
    for _ in range(_NEAR_DUPLICATES):
        fact = narrator.fact(cast.near(rng, subject), relation)
        superseded = rng.random() < SUPERSEDED_SHARE
        units.append((fact, narrator.say("update", fact.subject, relation, cast.new(rng))) if superseded else (fact,))
    return Core(tuple(units), query)


def ask(rng: Random, split: Split, ledger: Ledger) -> Query | None:
    """Return a question about any subject of the document, with the core's proportions of question types."""
    draw = rng.random()
    if draw < UNANSWERABLE_SHARE:
        relation = rng.choice(list(ledger.facts))[0]
        subject = rng.choice(list(ledger.facts))[1]
        if (relation, subject) in ledger.facts:
            return None
        topic = f"the {relation} of {subject}"
        return not_stated_query(topic, word_question(rng, split, "chain", topic))
    superseded = ledger.updates and draw < UNANSWERABLE_SHARE + SUPERSEDED_SHARE
    return chain_query(rng, split, [rng.choice(list((ledger.updates if superseded else ledger.settled).values()))])
