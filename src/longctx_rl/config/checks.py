"""Checks for impossible configurations. Each problem is one sentence that names the key, the value and the fix."""

import math
import re
from collections.abc import Iterator
from dataclasses import asdict, astuple
from itertools import chain
from pathlib import Path
from urllib.parse import urlsplit

from longctx_rl.config.data import GeneratedShortConfig
from longctx_rl.config.eval import EvalConfig, EvaluateConfig, KLConfig
from longctx_rl.config.model import ModelConfig, YarnConfig
from longctx_rl.config.rollout import ServerConfig
from longctx_rl.config.schema import AlgoConfig, Config
from longctx_rl.objective.spec import ANCHORS, Divergence

SHIPPED = ("mini-student", "mini-teacher")
VIEW_TOKENS_LEAST = 64
"""Smallest budget of a view in tokens: two passages of ``data.views``."""
LONGEST_NAME = 200
"""Bytes of a folder's name, which file systems limit to 255, some of them for temporary names."""
MOST_THREADS = 1024
VLLM_TEMPERATURE = 2
"""The highest temperature that vLLM takes."""
ADDRESS = re.compile(r".*://|[\w.-]+:\d+/?$")
"""The beginning of what is meant as an address: no folder or Hub id looks like it."""
SAMPLED_ESTIMATORS = ("k1", "k2", "k3")


def check(config: Config) -> None:
    """Raise ValueError for the first impossible combination."""
    for problem in _problems(config):
        raise ValueError(problem)


def check_evaluate(config: EvaluateConfig) -> None:
    """Raise ValueError for the first problem that prevents an evaluation."""
    if not config.eval.suites or config.eval.name == "none":
        raise ValueError(f"eval={config.eval.name} evaluates no suite: choose eval=all, or another file of eval/")
    for key, value in (
        ("eval.items", config.eval.items),
        ("rollout.batch_tokens", config.rollout.batch_tokens),
        ("threads", config.threads if config.threads is not None else 1),
        ("processes", config.processes),
    ):
        if value < 1:
            raise ValueError(f"{key}={value}: set it above 0")
    problems = (_kl(config.kl), _suites(config.eval), _yarn("yarn", config.yarn), _answers(config))
    for problem in chain(*problems):
        raise ValueError(problem)


def _answers(c: EvaluateConfig) -> Iterator[str]:
    yield from _servers(c.rollout)
    if c.rollout.name == "hf":
        if c.rollout.server != "auto":
            yield f"rollout.server={c.rollout.server} is for rollout=vllm: add rollout=vllm"
        return
    if c.processes > 1:
        yield f"processes={c.processes} is for rollout=hf: set processes=1, because vLLM answers many items at a time"
    for name, suite in c.eval.suites.items():
        if suite.temperature > VLLM_TEMPERATURE:
            yield f"eval.suites.{name}.temperature={suite.temperature}: vLLM takes at most {VLLM_TEMPERATURE}"


def _problems(c: Config) -> Iterator[str]:
    name = c.experiment_name
    if name in ("", ".", "..") or "/" in name or not name.isprintable() or len(name.encode()) > LONGEST_NAME:
        yield (
            f"experiment_name={name}: give the name of one folder, with at most {LONGEST_NAME} bytes and no slash; "
            "runs_root=FOLDER says where it lies"
        )
    if Path(c.run_dir).name in ("", ".."):
        yield f"run_dir={c.run_dir}: give a folder for this run alone, such as run_dir=runs/mine/first"
    yield from _algo(c.algo)
    if c.algo.weights.kd:
        yield from _teacher(c)
    if c.model.teacher_cache is not None and c.algo.weights.kd and c.algo.source == "policy":
        yield (
            f"model.teacher_cache={c.model.teacher_cache} is for recorded answers, but +algo={c.algo.name} samples "
            "its completions: set model.teacher_cache=null"
        )
    yield from _model(c.model)
    if c.algo.source == "policy" and c.data.questions_per_document != 1:
        yield (
            f"data.questions_per_document={c.data.questions_per_document} is for recorded answers, but "
            f"+algo={c.algo.name} samples its completions: set data.questions_per_document=1"
        )
    if c.algo.source == "dataset" and c.batch.backward == "one_at_a_time":
        yield (
            f"batch.backward=one_at_a_time is for groups of sampled completions, but +algo={c.algo.name} trains on "
            "recorded answers: set batch.backward=packed"
        )
    if c.engine.name == "local" and c.world_size > 1:
        yield f"engine=local runs in one process, not {c.world_size}: set engine.num_processes=1 or engine=zero3"
    if c.world_size > c.batch.prompts_per_step:
        yield (
            f"{c.world_size} ranks cannot share batch.prompts_per_step={c.batch.prompts_per_step} prompts: "
            f"set batch.prompts_per_step to at least {c.world_size}, or use fewer processes"
        )
    if c.engine.num_nodes > 1 and not c.engine.rendezvous:
        yield (
            f"engine.num_nodes={c.engine.num_nodes} needs a rendezvous: set "
            "engine.rendezvous=<host of the first machine>:<port>"
        )
    empty = not c.task.mixture and c.data.longblocks is None
    if empty or (c.task.mixture and (sum(c.task.mixture.values()) <= 0 or min(c.task.mixture.values()) < 0)):
        yield f"task.mixture={dict(c.task.mixture)} leaves nothing to train on: give at least one task a share above 0"
    if c.data.families is not None and c.data.families < 1:
        yield f"data.families={c.data.families} makes an empty training split: set it to 1 or more, or null for endless"
    if c.data.short is not None:
        yield from _short(c.data.short)
    if not c.data.lengths:
        yield "data.lengths=[]: give at least one prompt length, such as data.lengths=[256]"
    evaluated = [c.eval.items] * (c.eval.at_start or c.eval.at_end) + [c.eval.during_items] * c.eval.during
    if evaluated and not (min(evaluated) > 0 and c.eval.suites):
        yield (
            f"eval.items={c.eval.items}, eval.during_items={c.eval.during_items}: the evaluation split is empty, set "
            "both above 0 and keep at least one of eval.suites, or choose eval=none"
        )
    if c.eval.every and c.eval.times:
        yield (
            f"eval.every={c.eval.every} and eval.times={c.eval.times} both say when to evaluate: set one of them to 0"
        )
    budget = c.budget
    if (budget.steps, budget.trained_tokens, budget.flops, budget.seconds) == (None,) * 4:
        yield "the budget has no limit, so the run would not end: set budget.steps or another budget"
    if c.data.longblocks is not None:
        yield from _longblocks(c)
    for name, suite in c.eval.suites.items():
        if suite.samples > 1:
            key = f"eval.suites.{name}.samples"
            yield f"{key}={suite.samples} is for python -m longctx_rl.evaluate: set it to 1 for training"
    yield from _rollout(c)
    yield from _positive(c)
    yield from _suites(c.eval)


def _teacher(c: Config) -> Iterator[str]:
    kd, name = c.algo.kd, c.algo.name
    if ADDRESS.match(c.model.teacher or ""):
        yield from _teacher_server(c)
    if not kd.itself and c.model.teacher is None:
        yield (
            f"algo.weights.kd={c.algo.weights.kd} needs a teacher: set model.teacher=<directory or Hub id>, or "
            "algo.kd.teacher=initial with a view"
        )
    if kd.itself and kd.view == "document" and kd.teacher != "ema":
        yield (
            f"algo.kd.teacher={kd.teacher} reads what the student reads, so it can teach nothing: "
            "set algo.kd.view=evidence, or another view"
        )
    if kd.teacher == "policy" and c.algo.updates_per_rollout > 1:
        yield (
            f"algo.kd.teacher=policy is the student before the update, but algo.updates_per_rollout="
            f"{c.algo.updates_per_rollout} updates it several times: set one update, or algo.kd.teacher=ema"
        )
    if kd.teacher == "ema" and not (kd.ema_half_life is not None and kd.ema_half_life > 0):
        value = "null" if kd.ema_half_life is None else kd.ema_half_life
        yield f"algo.kd.ema_half_life={value}: algo.kd.teacher=ema needs one above 0, such as 20 updates"
    if kd.itself and c.model.architecture is not None:
        yield (
            f"algo.kd.teacher={kd.teacher} would be random weights (model.architecture): train the student first, or "
            "set algo.kd.teacher=external"
        )
    if c.model.teacher_cache is not None and (kd.itself or kd.view != "document"):
        yield (
            f"model.teacher_cache={c.model.teacher_cache} holds signals of an external teacher that reads the "
            f"document, but algo.kd.teacher={kd.teacher}, algo.kd.view={kd.view}: set model.teacher_cache=null"
        )
    if kd.view_tokens < VIEW_TOKENS_LEAST:
        yield (f"algo.kd.view_tokens={kd.view_tokens} is less than one passage: set it to {VIEW_TOKENS_LEAST} or more")
    if kd.view == "short" and c.data.longblocks is not None:
        yield (
            f"algo.kd.view=short generates the document again, which data={c.data.name} cannot: set "
            "algo.kd.view=retrieved or evidence"
        )
    if kd.view == "short" and c.data.questions_per_document > 1:
        yield (
            f"algo.kd.view=short shortens the document of one question, but data.questions_per_document="
            f"{c.data.questions_per_document}: set it to 1, or algo.kd.view=retrieved or evidence"
        )
    if kd.view == "answer" and kd.answer_prompt.count("{answer}") != 1:
        yield f"algo.kd.answer_prompt has {{answer}} {kd.answer_prompt.count('{answer}')} times: write it once"
    if kd.view == "answer" and c.algo.source == "dataset":
        yield (
            f"algo.kd.view=answer shows the teacher the answer that +algo={name} imitates: choose a method that "
            "samples, such as +algo=opsd"
        )


def _teacher_server(c: Config) -> Iterator[str]:
    kd, url = c.algo.kd, c.model.teacher
    assert url is not None
    if not is_address(url) or urlsplit(url).path.strip("/"):
        yield f"model.teacher={url}: give the address of a server as http://host:port, or a directory or Hub id"
    if kd.itself:
        yield (
            f"model.teacher={url} would not be used, because algo.kd.teacher={kd.teacher}: set model.teacher=null, or "
            "algo.kd.teacher=external"
        )
    if kd.estimator == "exact":
        yield (
            f"algo.kd.estimator=exact needs the teacher's hidden states, which the server {url} does not give: set "
            "algo.kd.estimator=topk, k2 or k3"
        )
    if c.rollout.temperature != 1:
        yield (
            f"rollout.temperature={c.rollout.temperature}: the server {url} gives the teacher's log-probabilities at "
            "temperature 1 only, so set rollout.temperature=1"
        )
    if c.model.teacher_cache is not None:
        yield (
            f"model.teacher_cache={c.model.teacher_cache} holds the signals of a loaded teacher, but "
            f"model.teacher={url} is a server: set model.teacher_cache=null"
        )


def is_address(url: str) -> bool:
    """Whether a URL names a host that speaks HTTP."""
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _servers(r: ServerConfig) -> Iterator[str]:
    if not all(map(is_address, r.addresses)):
        yield f"rollout.server={r.server}: give auto, or addresses such as 'http://a:8000,http://b:8000'"
    if any(urlsplit(url).path.strip("/") or urlsplit(url).query for url in r.addresses if is_address(url)):
        yield f"rollout.server={r.server}: give addresses without a path, such as http://a:8000"
    if len(set(r.addresses)) < len(r.addresses):
        yield f"rollout.server={r.server} names a server twice: name each once"
    for name in ("concurrency", "timeout", "start_timeout"):
        if not 0 < getattr(r, name) < math.inf:
            yield f"rollout.{name}={getattr(r, name)}: set it above 0"


def _rollout(c: Config) -> Iterator[str]:
    r = c.rollout
    yield from _servers(r)
    if r.name != "vllm" and r.server != "auto":
        yield f"rollout.server={r.server} is for rollout=vllm, but rollout={r.name}: set rollout=vllm"
    if r.ahead not in (0, 1):
        yield f"rollout.ahead={r.ahead}: set it to 0 or 1"
    if r.ahead and (r.name != "vllm" or c.algo.source != "policy"):
        yield f"rollout.ahead=1 needs rollout=vllm and a method that samples, but +algo={c.algo.name}: set it to 0"
    if r.ahead and c.algo.draws > 1:
        yield f"rollout.ahead=1 draws before rewards are known, unlike algo.draws={c.algo.draws}: set algo.draws=1"
    if r.name == "vllm" and r.server == "auto" and c.engine.num_nodes > 1:
        yield "rollout.server=auto starts a server that other nodes cannot reach: give rollout.server=http://host:port"
    policy_gradient = c.algo.weights.pg or any(map(c.algo.in_advantage, ANCHORS))
    if r.ahead and policy_gradient and c.algo.importance_cap is None:
        yield "rollout.ahead=1 samples with earlier weights, which needs a correction: set algo.importance_cap=3"
    if r.name == "vllm" and r.temperature > VLLM_TEMPERATURE:
        yield f"rollout.temperature={r.temperature}: vLLM takes at most {VLLM_TEMPERATURE}"
    if r.max_gap is not None and not r.max_gap > 0:
        yield f"rollout.max_gap={r.max_gap}: set it above 0, or null for the default of the dtype"


def _model(m: ModelConfig) -> Iterator[str]:
    for key in ("student", "teacher", "tokenizer", "teacher_cache"):
        if (name := getattr(m, key)) is not None and not name.strip():
            yield f"model.{key} is empty: give a directory or a Hub id" + (", or null" if key != "student" else "")
    if m.architecture is not None and m.student not in SHIPPED:
        yield (
            f"model.architecture starts from random weights, so model.student={m.student} would be ignored: "
            "set model.architecture=null, or choose model=mini"
        )
    if m.yarn is not None and m.architecture is not None:
        yield (
            "model.yarn stretches pretrained models, and model.architecture starts from random weights: set "
            "model.yarn=null, and choose the context with model.architecture.max_length"
        )
    yield from _yarn("model.yarn", m.yarn)


def _yarn(key: str, yarn: YarnConfig | None) -> Iterator[str]:
    if yarn is not None and not (yarn.factor > 1 and yarn.original_context > 0):
        yield (
            f"{key}.factor={yarn.factor}, original_context={yarn.original_context}: need a factor above 1, "
            f"such as {key}='{{factor: 4.0, original_context: 32768}}'"
        )


def _algo(a: AlgoConfig) -> Iterator[str]:
    weights = a.weights
    if min(astuple(weights)) < 0:
        yield f"algo.weights={asdict(weights)}: set every weight to 0 or more"
    if not (weights.ce or weights.pg or weights.kd or weights.unlikely):
        yield "algo.weights are all zero, so nothing is learned: give ce, pg or kd a weight above 0"
    if weights.unlikely and a.source == "dataset":
        yield (
            f"algo.weights.unlikely={weights.unlikely} needs tokens sampled from the policy, but algo.source=dataset: "
            "set it to 0 or algo.source=policy"
        )
    if not 0.0 < a.unlikely_below <= 1.0:
        yield f"algo.unlikely_below={a.unlikely_below}: set it above 0, and to 1 or less"
    if weights.pg and a.source == "dataset":
        yield (
            f"algo.weights.pg={weights.pg} needs tokens sampled from the policy, but algo.source=dataset: "
            "set algo.weights.pg=0 or algo.source=policy"
        )
    if weights.pg and a.group_size < 2:
        yield (
            f"algo.group_size={a.group_size} with algo.weights.pg={weights.pg}: an advantage relative to the group "
            "needs at least 2 completions, set algo.group_size=8"
        )
    if a.group_size < 1:
        yield f"algo.group_size={a.group_size}: set it to 1 or more"
    if a.source == "dataset" and a.group_size != 1:
        yield f"algo.group_size={a.group_size}: a row of a data set has one recorded answer, set algo.group_size=1"
    if a.source == "dataset" and a.updates_per_rollout != 1:
        yield f"algo.updates_per_rollout={a.updates_per_rollout} is for tokens sampled from the policy: set it to 1"
    if a.updates_per_rollout < 1:
        yield f"algo.updates_per_rollout={a.updates_per_rollout}: set it to 1 or more"
    if a.draws < 1:
        yield f"algo.draws={a.draws}: set it to 1 or more"
    if a.draws > 1 and not weights.pg:
        yield (
            f"algo.draws={a.draws} draws prompts until the rewards of a group differ, but algo.weights.pg=0 uses no "
            "rewards: set algo.draws=1"
        )
    if not (0 < a.clip_low < 1 and a.clip_high > 0):
        yield f"algo.clip_low={a.clip_low}, algo.clip_high={a.clip_high}: need 0 < clip_low < 1 and clip_high > 0"
    if a.importance_cap is not None and a.importance_cap <= 0:
        yield f"algo.importance_cap={a.importance_cap} would remove the policy gradient: set it above 0, or null"
    if a.importance_mask is not None and a.importance_mask <= 1:
        yield f"algo.importance_mask={a.importance_mask} would mask every sequence: set it above 1, or null"
    for anchor in ANCHORS:
        if a.weight(anchor):
            yield from _divergence(f"algo.{anchor}", a.divergence(anchor), a.source)


def _divergence(path: str, d: Divergence, source: str) -> Iterator[str]:
    if d.placement == "advantage" and d.estimator != "k1":
        yield (
            f"{path}.placement=advantage works only with {path}.estimator=k1, not {d.estimator}: set "
            f"{path}.placement=loss or {path}.estimator=k1"
        )
    if d.estimator == "k1" and d.placement == "loss":
        yield (
            f"{path}.estimator=k1 as a loss has a gradient that does not depend on the anchor: "
            f"set {path}.placement=advantage (k1 inside the advantage), or {path}.estimator=k2"
        )
    if d.estimator in SAMPLED_ESTIMATORS and d.direction != "reverse":
        yield f"{path}.estimator={d.estimator} estimates the reverse KL only: set {path}.direction=reverse"
    if d.estimator in SAMPLED_ESTIMATORS and source == "dataset":
        yield (
            f"{path}.estimator={d.estimator} needs tokens sampled from the policy, but algo.source=dataset: "
            f"set {path}.estimator=exact or topk"
        )
    if d.top_k < 1:
        yield f"{path}.top_k={d.top_k}: set it to 1 or more"
    if not 0.0 < d.js_mixture < 1.0:
        yield f"{path}.js_mixture={d.js_mixture}: set it strictly between 0 and 1"
    if not d.entropy_scale > 0.0:
        yield f"{path}.entropy_scale={d.entropy_scale}: set it above 0"


def _short(s: GeneratedShortConfig) -> Iterator[str]:
    if not 0.0 < s.share < 1.0:
        yield f"data.short.share={s.share}: set it between 0 and 1, or data.short=null for none"
    if not s.lengths or min(s.lengths) < 0:
        yield f"data.short.lengths={list(s.lengths)}: give at least one prompt length of 0 or more, such as [256]"
    if not s.mixture or sum(s.mixture.values()) <= 0 or min(s.mixture.values()) < 0:
        yield f"data.short.mixture={dict(s.mixture)} leaves nothing to train on: give at least one task a share above 0"


def _longblocks(c: Config) -> Iterator[str]:
    rows = c.data.longblocks
    assert rows is not None
    if not 0 <= rows.min_tokens < rows.max_tokens:
        yield (
            f"data.longblocks.min_tokens={rows.min_tokens} and max_tokens={rows.max_tokens} leave no prompts: "
            "set them so that 0 <= min_tokens < max_tokens"
        )
    if not (rows.validation >= 0 and rows.test >= 0 and rows.validation + rows.test < 1):
        yield (
            f"data.longblocks.validation={rows.validation} and test={rows.test} leave nothing to train on: "
            "set shares from 0 whose sum is below 1"
        )
    if rows.target != "answer" and not rows.target.startswith("response_"):
        yield f"data.longblocks.target={rows.target}: set it to answer, or to a column that starts with response_"
    if rows.bucket_steps and c.algo.draws > 1:
        yield (
            f"data.longblocks.bucket_steps={rows.bucket_steps} groups whole steps of prompts by length, but algo.draws="
            f"{c.algo.draws} takes more prompts in some steps: set one of them to its default, 0 or 1"
        )
    if rows.bucket_steps < 0:
        yield f"data.longblocks.bucket_steps={rows.bucket_steps}: set it to 0 or more"
    if rows.short is not None and not 0 < rows.short.share < 1:
        yield (f"data.longblocks.short.share={rows.short.share}: set it between 0 and 1, or data.longblocks.short=null")
    held = c.eval.suites["longblocks"].data if "longblocks" in c.eval.suites else None
    if held is not None and held.longblocks is not None and held.longblocks.path == rows.path:
        evaluated, trained = (held.longblocks.validation, held.longblocks.test), (rows.validation, rows.test)
        if evaluated != trained:
            yield (
                f"eval.suites.longblocks.data.longblocks holds out {evaluated} of the documents (validation, test), "
                f"but data.longblocks holds out {trained}: give both the same, or trained documents would be evaluated"
            )
    if c.data.questions_per_document != 1:
        yield "data.questions_per_document is for generated data: set it to 1 with data=longblocks"


def _kl(k: KLConfig) -> Iterator[str]:
    for key in ("items", "length", "max_new_tokens", "chunk"):
        if getattr(k, key) < 1:
            yield f"kl.{key}={getattr(k, key)}: set it above 0"


def _suites(config: EvalConfig) -> Iterator[str]:
    if config.first < 0:
        yield f"eval.first={config.first}: set it to 0 or more"
    for name, suite in config.suites.items():
        key = f"eval.suites.{name}"
        if not suite.labels or not suite.lengths:
            yield f"{key} has no items: give labels and lengths, or drop the suite with ~{key}"
        if len(set(suite.labels)) < len(suite.labels) or len(set(suite.lengths)) < len(suite.lengths):
            yield f"{key} repeats a label or a length: give each label and each length once"
        if min(suite.lengths, default=0) < 0:
            yield f"{key}.lengths={list(suite.lengths)}: set them to 0 or more"
        if suite.max_new_tokens < 1:
            yield f"{key}.max_new_tokens={suite.max_new_tokens}: set it above 0"
        if suite.answer_slack is not None and suite.answer_slack < 0:
            yield f"{key}.answer_slack={suite.answer_slack}: set it to 0 or more, or null"
        if suite.samples < 1 or suite.temperature < 0 or (suite.samples > 1) != (suite.temperature > 0):
            yield (
                f"{key}.samples={suite.samples}, temperature={suite.temperature}: several samples need a temperature "
                "above 0, such as 0.8, and a single one is greedy, 0"
            )
        if suite.level not in (0, 1, 2):
            yield f"{key}.level={suite.level}: choose 0, 1 or 2"


def _positive(c: Config) -> Iterator[str]:
    values = {
        "engine.num_processes": c.engine.num_processes,
        "engine.num_nodes": c.engine.num_nodes,
        "rollout.temperature": c.rollout.temperature,
        "rollout.max_new_tokens": c.rollout.max_new_tokens,
        "rollout.batch_tokens": c.rollout.batch_tokens,
        "batch.prompts_per_step": c.batch.prompts_per_step,
        "batch.micro_batch_tokens": c.batch.micro_batch_tokens,
        "data.questions_per_document": c.data.questions_per_document,
        "model.scoring_chunk": c.model.scoring_chunk,
        "optim.max_grad_norm": c.optim.max_grad_norm,
        "optim.max_skipped": c.optim.max_skipped,
        "optim.eps": c.optim.eps,
        "checkpoint.keep": c.checkpoint.keep,
        "sweep.jobs": c.sweep.jobs,
    }
    limits = {
        "engine.threads": c.engine.threads,
        "budget.trained_tokens": c.budget.trained_tokens,
        "budget.flops": c.budget.flops,
        "budget.seconds": c.budget.seconds,
        "algo.importance_cap": c.algo.importance_cap,
    }
    for key, value in values.items():
        if not value > 0:
            yield f"{key}={value}: set it above 0"
    if len(c.optim.betas) != 2 or not all(0.0 <= beta < 1.0 for beta in c.optim.betas):
        yield f"optim.betas={list(c.optim.betas)}: give two numbers from 0 up to below 1, such as [0.9, 0.95]"
    if not 0.0 <= c.optim.min_lr_ratio <= 1.0:
        yield f"optim.min_lr_ratio={c.optim.min_lr_ratio}: set it between 0 and 1"
    if (c.engine.threads or 0) > MOST_THREADS:
        yield f"engine.threads={c.engine.threads}: set it to at most {MOST_THREADS}, or null"
    for key, limit in limits.items():
        if limit is not None and not limit > 0:
            yield f"{key}={limit}: set it above 0, or null for none"
    for key, value in {
        "data.lengths": min(c.data.lengths, default=0),
        "optim.lr": c.optim.lr,
        "optim.warmup_steps": c.optim.warmup_steps,
        "optim.weight_decay": c.optim.weight_decay,
        "optim.pg_kd_cosine_every": c.optim.pg_kd_cosine_every,
        "budget.steps": c.budget.steps if c.budget.steps is not None else 0,
        "checkpoint.every": c.checkpoint.every,
        "eval.every": c.eval.every,
        "eval.times": c.eval.times,
        "logging.rollouts_every": c.logging.rollouts_every,
        "logging.rollouts_kept": c.logging.rollouts_kept,
        "logging.gap_prompts": c.logging.gap_prompts,
    }.items():
        if value < 0:
            yield f"{key}={value}: set it to 0 or more"
