"""Graders: pure functions from a completion's text and its example to a score with a breakdown."""

from longctx_rl.rewards.answers import GRADERS, Grader, final_answer, grade
from longctx_rl.rewards.evidence import evidence_score

__all__ = ["GRADERS", "Grader", "evidence_score", "final_answer", "grade"]
