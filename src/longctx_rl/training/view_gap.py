"""How much better the teacher answers after its view than the student after the document, before training.

The gap of a self-teacher at the start is said to predict the gain (arXiv 2605.30070).
"""

from longctx_rl.data.source import prompt_ids
from longctx_rl.engine import distributed
from longctx_rl.rollout import SampleRequest
from longctx_rl.training.groups import graded
from longctx_rl.training.parts import Parts
from longctx_rl.types import RolloutGroup


def measure(parts: Parts) -> dict[str, float]:
    """Return the mean scores of greedy answers: ``view/student_score``, ``view/teacher_score``, ``view/score_gap``.

    The prompts are the first ones of the training source; nothing has been trained on them yet. All ranks call this.
    """
    assert parts.views is not None
    count = parts.config.logging.gap_prompts
    own = range(count)[distributed.rank() :: distributed.world_size()]
    examples = [parts.source.document(index)[0] for index in own]
    read = [prompt_ids(parts.tokenizer, example) for example in examples]
    viewed = [parts.views.prompt(example, index).ids for example, index in zip(examples, own, strict=True)]
    # Before training, a student that is its own teacher has the teacher's weights.
    external = parts.config.algo.kd.teacher == "external"
    teacher = parts.anchors["kd"].scorer if external else None
    scores = {}
    for name, frozen, prompts in (("student", None, read), ("teacher", teacher, viewed)):
        answers = parts.greedy(frozen).sample([SampleRequest(ids, (0,)) for ids in prompts])
        groups = [
            RolloutGroup(example, ids, answer) for example, ids, answer in zip(examples, prompts, answers, strict=True)
        ]
        total = sum(reward.score for group in graded(parts.rewarder, groups) for reward in group.rewards)
        scores[name] = distributed.all_reduce_sum({"score": total})["score"] / count
    gap = scores["teacher"] - scores["student"]
    return {"view/student_score": scores["student"], "view/teacher_score": scores["teacher"], "view/score_gap": gap}
