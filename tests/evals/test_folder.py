"""Whose answers an evaluation's folder holds."""

import json
from pathlib import Path

import pytest

from longctx_rl.config.compose import composed_evaluate
from longctx_rl.evals import folder


def test_other_weights_are_refused_and_an_older_hash_is_named(tmp_path: Path) -> None:
    config = composed_evaluate(["checkpoint=mini-student", f"out={tmp_path}", "eval=heldout"])
    folder.claim(tmp_path, config, weights="a", positions=None, backend=None)
    folder.claim(tmp_path, config, weights="a", positions=None, backend=None)
    with pytest.raises(ValueError, match=r"weights \(mini-student, a\): choose another out=FOLDER"):
        folder.claim(tmp_path, config, weights="b", positions=None, backend=None)

    path = tmp_path / "evaluation.json"
    older = json.loads(path.read_text())
    del older["weights_of"]
    path.write_text(json.dumps(older))
    with pytest.raises(ValueError, match=r"older version.*: choose another out=FOLDER"):
        folder.claim(tmp_path, config, weights="b", positions=None, backend=None)
    folder.claim(tmp_path, config, weights="a", positions=None, backend=None)  # of float32 weights both are equal
