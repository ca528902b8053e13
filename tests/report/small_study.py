"""A base and two runs of one method on six families, small enough to be checked by hand."""

from longctx_rl.report.results import CellScores, Result

BASE_LONG, BASE_SHORT = [0, 0, 0, 1, 0, 0], [1, 1, 0, 1, 1, 0]
LONG = [[1, 1, 0, 1, 0, 0], [1, 0, 0, 1, 1, 0]]
SHORT = [[1, 1, 0, 1, 1, 0], [1, 1, 0, 1, 0, 0]]


def result(name: str, long: list[int], short: list[int], seed: int | None = None, step: int = 0) -> Result:
    """A result with long code at two lengths and short code, evaluated at one step."""

    def cell(scores: list[int]) -> CellScores:
        return CellScores(scores={step: {f"f{i}": float(one) for i, one in enumerate(scores)}}, cut={})

    return Result(
        name=name,
        algo=name.split("-")[0],
        seed=seed,
        cells={
            ("code", "bury", 1024): cell(long),
            ("code", "bury", 512): cell([1] * 6),
            ("code", "short", 0): cell(short),
        },
    )


BASE = result("base", BASE_LONG, BASE_SHORT)
RUNS = [result(f"grpo-{seed}", LONG[seed], SHORT[seed], seed, step=10) for seed in range(2)]
