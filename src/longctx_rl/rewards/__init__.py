"""Graders: pure functions from a completion's text and its example to a score and its parts."""

from longctx_rl.rewards.answers import GRADERS, Grader, evidence_score, final_answer, grade

__all__ = ["GRADERS", "Grader", "evidence_score", "final_answer", "grade"]
