"""The one objective, in pure tensors.

    L = sum over sequences and tokens of [ w_ce CE + w_pg PG(ratio, advantage) + w_kd D(student, teacher)
                                           + w_ref D(student, reference) ] / N

``terms`` holds the terms and their sum, ``divergences`` the estimators of D, ``advantages`` the group-relative
advantage, ``aggregation`` the meaning of N.
"""
