"""Statistics of item scores: intervals, paired comparisons, and studies of several methods and seeds.

docs/evaluation.md says which of them each table uses. Importing this package does not import scipy: functions that need
it import it when they are called.
"""

from longctx_rl.stats.comparisons import holm, mcnemar, pass_at_k, permutation_test
from longctx_rl.stats.intervals import Estimate, bootstrap_mean, detectable, paired_difference, t_quantile, wilson
from longctx_rl.stats.studies import (
    Contrast,
    contrast,
    hierarchical_bootstrap,
    interquartile_mean,
    performance_profile,
    retention_influence,
)

__all__ = [
    "Contrast",
    "Estimate",
    "bootstrap_mean",
    "contrast",
    "detectable",
    "hierarchical_bootstrap",
    "holm",
    "interquartile_mean",
    "mcnemar",
    "paired_difference",
    "pass_at_k",
    "performance_profile",
    "permutation_test",
    "retention_influence",
    "t_quantile",
    "wilson",
]
