"""Exploits score zero and honest code scores, on every backend of this machine; bad code gets the right status."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from random import Random
from typing import Any

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from longctx_rl.sandbox import isolation, pool, probe
from longctx_rl.sandbox.pool import Call, Outcome, Sandbox, SandboxFailed, Worker, read
from longctx_rl.sandbox.submissions import Grade, Submission, compare, extract_code, grade, suspicious
from longctx_rl.sandbox.values import NotPlain, decode, encode, parse, same
from longctx_rl.sandbox.worker import MAX_PROCESSES, descendants
from sandbox.exploits import EXPLOITS, HONEST, OWN, PUBLISHED


def works(name: isolation.Backend) -> pytest.MarkDecorator:
    """Skip, with the reason, where a backend does not work."""
    why = probe.failure(name)
    return pytest.mark.skipif(bool(why), reason=f"{name}: {why}")


BACKENDS = [pytest.param(name, marks=works(name)) for name in ("bwrap", "rlimit")]


@pytest.fixture(scope="module", params=BACKENDS)
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    with Sandbox(request.param, workers=2) as found:
        yield found


def submission(code: str, seed: int = 0, **more: Any) -> Submission:
    draw = Random(seed)
    numbers = [draw.randrange(3, 10**6) for _ in range(8)]
    return Submission(code, "double", [[x] for x in numbers], [2 * x for x in numbers], **more)


def test_the_list_is_long_enough() -> None:
    assert len(PUBLISHED) >= 16 and len(OWN) >= 15 and not PUBLISHED.keys() & OWN.keys()


NUMBERS = ([3], [-5, 10**12], [4, 7, -3, 250, 3, 99_999, 12, -(10**9)])
"""Inputs of an attack. No exploit returns their doubles by chance: 2 * 0 is 0, and 2 * 1 is 1 + 1."""
UNTIL_A_LIMIT = {
    "endless loop", "ignores every signal", "stops its worker", "deep recursion", "looks for the tests in files",
    "string that doubles",
}  # fmt: skip
"""Exploits that run until a limit, whatever their inputs: each runs once, and early."""
POOLS = 4


def graded(sandbox: Sandbox, submissions: Sequence[Submission]) -> list[Grade]:
    """Grades under a CPU limit of one second."""
    outcomes = sandbox.run([replace(one.call(), cpu_seconds=1) for one in submissions])
    return [compare(one, outcome) for one, outcome in zip(submissions, outcomes, strict=True)]


def attacked(backend: isolation.Backend, names: Sequence[str]) -> dict[str, list[Grade]]:
    """Grades of exploits, each followed by those of honest code in the same worker."""
    found: dict[str, list[Grade]] = {}
    with Sandbox(backend, workers=1) as single:
        for name in names:
            inputs = NUMBERS[:1] if name in UNTIL_A_LIMIT else NUMBERS
            found[name] = []
            for values in inputs:
                arguments, doubles = [[x] for x in values], [2 * x for x in values]
                found[name] += graded(single, [Submission(EXPLOITS[name], "double", arguments, doubles)])
                found[name] += grade(single, [Submission(HONEST, "double", arguments, doubles)])
    return found


@pytest.fixture(scope="module", params=BACKENDS)
def attacks(request: pytest.FixtureRequest) -> dict[str, list[Grade]]:
    """Grades of all exploits and of the honest code after each. Several run at once, because most wait for limits."""
    names = sorted(EXPLOITS, key=lambda name: name not in UNTIL_A_LIMIT)
    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(POOLS) as threads:
        patch.setattr(pool, "GRACE", 1.0)
        parts = threads.map(partial(attacked, request.param), [names[start::POOLS] for start in range(POOLS)])
        return {name: grades for part in parts for name, grades in part.items()}


@pytest.mark.parametrize("name", EXPLOITS)
def test_no_exploit_passes_and_honest_code_after_it_does(attacks: dict[str, list[Grade]], name: str) -> None:
    exploits, honest = attacks[name][::2], attacks[name][1::2]
    assert len(exploits) == len(honest) >= 1
    assert all(one.passed == 0 and not one.right for one in exploits)
    assert all(one.right for one in honest)


RANDOM_NUMBERS = st.lists(st.integers().filter(lambda x: abs(x) > 2), min_size=1, max_size=8)


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPLOITS)
def test_no_exploit_passes_within_the_limits_of_a_run(sandbox: Sandbox, name: str) -> None:
    @settings(max_examples=1 if name == "stops its worker" else 3)  # which stops two workers for 11 s each
    @given(values=RANDOM_NUMBERS)
    def attack(values: list[int]) -> None:
        arguments, doubles = [[x] for x in values], [2 * x for x in values]
        exploit, honest = grade(
            sandbox, [Submission(code, "double", arguments, doubles) for code in (EXPLOITS[name], HONEST)]
        )
        assert exploit.passed == 0 and not exploit.right
        assert honest.right

    attack()
    assert all(one.right for one in grade(sandbox, [submission(HONEST, seed) for seed in range(4)]))


@works("bwrap")
def test_kill_of_everything_ends_nothing_else() -> None:
    """Only in a separate process namespace: elsewhere it would kill this user's processes."""
    with Sandbox("bwrap", workers=1) as sandbox:
        code = "import os, signal\ndef double(x):\n    os.kill(-1, signal.SIGKILL)\n    return 2 * x"
        attacked, honest = grade(sandbox, [submission(code), submission(HONEST)])
    assert not attacked.right and honest.right


@pytest.mark.parametrize(
    ("what", "code"),
    [
        ("host files", "import os\ndef double(x): return [os.path.exists(p) for p in ('/etc', '/home', '/tmp')]"),
        ("environment", "import os\ndef double(x): return [len(os.environ) > 3]"),
        ("network", """
import socket
def double(x):
    try:
        socket.create_connection(("127.0.0.1", PORT), 0.2)
        return [True]
    except OSError:
        return [False]
"""),
        ("other processes", "import os\ndef double(x): return [os.path.exists('/proc/1')]"),
        ("a place to write", """
import os
def double(x):
    done = []
    for folder in ("/", "/tmp", "/dev", "/dev/shm", "/usr", "/var/tmp"):
        try:
            os.mkdir(folder + "/left")
            done.append(True)
        except OSError:
            done.append(False)
    return done
"""),
    ],
)  # fmt: skip
@works("bwrap")
def test_bubblewrap_hides(what: str, code: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, Sandbox("bwrap", workers=1) as sandbox:
        code = code.replace("PORT", str(server.getsockname()[1]))
        (outcome,) = sandbox.run([Call(code, "double", [[1]])])
    assert outcome.status == "returned", outcome
    value = outcome.results[0].value
    assert value and not any(value), what


@pytest.fixture(scope="module", params=BACKENDS)
def single(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    """A pool of one worker, so that candidates run one after the other."""
    with Sandbox(request.param, workers=1) as found:
        yield found


def test_nothing_is_left_for_the_next_candidate(single: Sandbox) -> None:
    leave = "import builtins, json, sys\nbuiltins.left = sys.left = json.left = True\ndef double(x): return 2 * x"
    look = "import builtins, json, sys\ndef double(x): return [hasattr(m, 'left') for m in (builtins, json, sys)]"
    for _ in range(3):
        single.run([Call(leave, "double", [[1]])])
        (outcome,) = single.run([Call(look, "double", [[1]])])
        assert outcome.results[0].value == [False, False, False]


@works("rlimit")
def test_what_others_returned_is_in_no_memory() -> None:
    """A later candidate's address space holds neither a reference's results nor another candidate's.

    Bubblewrap shows no /proc, so a candidate there would have to guess addresses; its process is the same.
    """
    secret = 123456789123
    with Sandbox("rlimit", workers=1) as single:
        outcome = found_in_memory(single, secret)
    assert outcome.status == "returned"
    assert outcome.results[0].value == 0 or outcome.results[0].error == "PermissionError"


def found_in_memory(single: Sandbox, secret: int) -> Outcome:
    """Search a candidate's memory for a value that the candidate before it returned."""
    single.run([Call(f"def double(x): return {secret} + x", "double", [[0]] * 200)])
    scan = f"""
def double(x):
    # Composed so that this source does not itself contain the text.
    wanted = str({secret // 1000}).encode() + str({secret % 1000:03d}).encode()
    found = 0
    memory = open("/proc/self/mem", "rb", 0)
    for line in open("/proc/self/maps"):
        span, rights = line.split()[:2]
        if rights[:2] == "rw":
            a, b = (int(part, 16) for part in span.split("-"))
            try:
                memory.seek(a)
                found += memory.read(b - a).count(b'"value": ' + wanted)
            except (OSError, ValueError):
                pass
    return found
"""
    (outcome,) = single.run([Call(scan, "double", [[1]])])
    return outcome


def test_no_process_or_file_is_left_behind(single: Sandbox) -> None:
    worker = single._idle.get()
    single._idle.put(worker)
    calls = [Call(EXPLOITS[name], "double", [[1]]) for name in ("sleeping children", "leaves by session", "wrong")]
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        single.run(calls)
    assert len(os.listdir("/proc/self/fd")) == before
    assert worker.process.poll() is None
    deadline = time.monotonic() + 60  # a reply comes before the cleaning
    while len(descendants(worker.process.pid)) > (single.backend == "bwrap"):  # which has the worker itself below it
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_processes_are_limited(single: Sandbox) -> None:
    code = """
import os, time
def double(x):
    count = 0
    while count < 2000:
        try:
            if os.fork() == 0:
                time.sleep(60)
                os._exit(0)
        except OSError:
            return count
        count += 1
    return count
"""
    (outcome,) = single.run([Call(code, "double", [[1]])])
    assert outcome.results[0].value <= MAX_PROCESSES


def test_the_hosts_devices_cannot_be_changed(single: Sandbox) -> None:
    code = "import os\ndef double(x):\n    os.chmod('/dev/null', 0)\n    return 1"
    (outcome,) = single.run([Call(code, "double", [[1]])])
    assert outcome.results[0].error in ("PermissionError", "OSError")
    assert os.stat("/dev/null").st_mode & 0o777 == 0o666


def test_modules_can_be_imported_and_seen_by_name(sandbox: Sandbox) -> None:
    modules = {"zorp": "FACTOR = 2\ndef twice(x):\n    return FACTOR * x\n"}
    for code in ("from zorp import twice\ndef double(x): return twice(x)", "import zorp\ndouble = zorp.twice"):
        (found,) = grade(sandbox, [submission(code, modules=modules)])
        assert found.right
    (found,) = grade(sandbox, [submission("from zorp import twice\ndouble = twice")])
    assert found.status == "raised" and not found.right


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("def double(x:", "raised"),
        ("x = 1", "raised"),
        ("double = 3", "returned"),
        ("def double(x): raise KeyError", "returned"),
        ("def double(x):\n    while True: pass", "timeout"),
        ("def double(x): return 'x' * 2**20", "too much output"),
        ("import os\nos._exit(0)", "died"),
        ("import os\nos.write(3, b'[1]')\nos._exit(0)", "not plain"),
        ("\ud800", "raised"),
        ("\0", "raised"),
    ],
)
def test_status_of_bad_code(sandbox: Sandbox, code: str, status: str) -> None:
    (found,) = graded(sandbox, [submission(code)])
    assert (found.status, found.passed) == (status, 0)


def test_part_of_the_inputs_right_is_not_right(sandbox: Sandbox) -> None:
    (found,) = grade(sandbox, [submission("def double(x): return 2 * x if x % 2 else 0")])
    assert 0 < found.passed < found.total and not found.right


def test_a_lost_worker_is_replaced_and_its_candidate_run_again(sandbox: Sandbox) -> None:
    """Another process kills the workers."""
    held = [sandbox._idle.get() for _ in range(2)]
    for one in held:
        os.killpg(one.process.pid, signal.SIGKILL)
        sandbox._idle.put(one)
    assert all(found.right for found in grade(sandbox, [submission(HONEST, seed) for seed in range(4)]))


def test_no_worker_can_be_had_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    with Sandbox("rlimit", workers=1) as sandbox:
        monkeypatch.setattr(isolation, "command", lambda backend: ["/nonexistent"])
        one = sandbox._idle.get()
        os.killpg(one.process.pid, signal.SIGKILL)
        one.process.wait()
        sandbox._idle.put(one)
        with pytest.raises(SandboxFailed):
            sandbox.run([Call(HONEST, "double", [[1]])])


def test_without_isolation_it_refuses_unless_rlimit_is_requested_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe.shutil, "which", lambda name: None)
    probe.failure.cache_clear()
    try:
        for wanted in ("auto", "bwrap"):
            with pytest.raises(ValueError, match=r"apt install bubblewrap.*sandbox=rlimit"):
                probe.choose(wanted)
        assert probe.choose("rlimit") == "rlimit"
    finally:
        probe.failure.cache_clear()


def test_a_backend_is_probed_only_when_it_is_chosen_and_only_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pool of an explicit backend starts its own workers and no trial candidate."""
    started: list[str] = []

    class Recorded(Worker):
        def __init__(self, backend: isolation.Backend) -> None:
            started.append(backend)
            super().__init__(backend)

    monkeypatch.setattr(probe, "Worker", Recorded)
    probe.failure.cache_clear()
    try:
        with Sandbox("rlimit", workers=1):
            assert started == []
        for _ in range(2):
            probe.choose("rlimit")
        assert started == ["rlimit"]
    finally:
        probe.failure.cache_clear()


def test_workers_end_with_the_process_that_started_them() -> None:
    code = (
        "import os, signal; from longctx_rl.sandbox.pool import Sandbox\n"
        "s = Sandbox('rlimit', workers=2); print(*[s._idle.get().process.pid for _ in range(2)], flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    deadline = time.monotonic() + 60
    pids = [int(text) for text in done.stdout.split()]
    assert len(pids) == 2
    while any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in pids):
        assert time.monotonic() < deadline, "a worker outlives its judge"
        time.sleep(0.05)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.sets(st.integers() | st.text(), max_size=4)
        | st.dictionaries(st.text() | st.integers(), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(value=PLAIN)
def test_values_survive_the_way_there_and_back(value: Any) -> None:
    import json

    assert same(decode(parse(json.dumps(encode(value)).encode())), value)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=st.lists(PLAIN, min_size=1, max_size=5))
def test_every_plain_value_passes(sandbox: Sandbox, values: list[Any]) -> None:
    """The identity passes for every value, and fails where another value is expected."""
    inputs = [[value] for value in values]
    marked = [["expected", value] for value in values]
    submissions = [Submission("def double(x): return x", "double", inputs, wanted) for wanted in (values, marked)]
    first, second = grade(sandbox, submissions)
    assert first.right and not second.passed


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["outputs", "value", "error", "tuple", "set", "dict", "x"]), inner, max_size=2
        )
    ),
    max_leaves=10,
)


@settings(max_examples=300)
@given(reply=st.binary(max_size=64) | st.binary(max_size=60).map(lambda b: b"O" + b), count=st.integers(0, 3))
def test_replies_of_any_bytes_are_read(reply: bytes, count: int) -> None:
    outcome = read(reply, count)
    assert len(outcome.results) in (0, count)


@settings(max_examples=300)
@given(data=JSON, count=st.integers(1, 3))
def test_replies_of_any_json_are_read(data: Any, count: int) -> None:
    import json

    outcome = read(b"O" + json.dumps({"outputs": [data] * count}).encode(), count)
    assert outcome.status in ("returned", "not plain") and len(outcome.results) in (0, count)


@pytest.mark.parametrize("text", [b"[" * 10**5, b"1" * 10**4, b"\xff", b"", b"{", b'{"a": 1}{'])
def test_text_that_is_no_json(text: bytes) -> None:
    with pytest.raises(NotPlain):
        decode(parse(text))


@pytest.mark.parametrize(
    ("found", "expected", "equal"),
    [
        (2, 2.0, True), (2.0, 2, True), (0.1 + 0.2, 0.3, True), (1, True, False), (True, 1, False), (0, False, False),
        (1000000.5, 1000000, False), ({1}, {True}, False), ({0: 1}, {False: 1}, False),
        (float("nan"), float("nan"), True), (float("inf"), float("inf"), True), (float("inf"), 1e308, False),
        ([1, 2], (1, 2), False), ((1, [2.0]), (1, [2]), True), ({1, 2}, {2, 1}, True), ({"a": 1}, {"a": 1.0}, True),
        ({"a": 1}, {"b": 1}, False), ("2", 2, False), (None, 0, False), ("", None, False), (10**400, 1.0, False),
        (10**17, 10**17 + 1, False), ([], [], True), ([1], [1, 2], False),
    ],
)  # fmt: skip
def test_same(found: Any, expected: Any, equal: bool) -> None:
    assert same(found, expected) is equal


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("```python\na = 1\n```", "a = 1"),
        ("first\n```\nx\n```\nthen\n```py\ny = 2\n```\nend", "y = 2"),
        ("<think>```python\nbad\n```</think>\n```python\ngood\n```", "good"),
        ("def f(): pass", "def f(): pass"),
        ("```python\ncut off", "cut off"),
        ("~~~python\na = 1\n~~~\nend", "a = 1"),
        ("1. So:\n   ```python\n   if a:\n       b\n   ```\nend", "if a:\n    b"),
        ("```python\rif a:\r    b\r```", "if a:\n    b"),
        ("```python\n\ufeffa = 1\n```", "a = 1"),
        ("```\nif a:\n    'b\n    ```\n    '\n```", "if a:\n    'b\n    ```\n    '"),
        ("`" * 100_000, "`" * 100_000),
        ("", ""),
    ],
)
def test_extract_code(text: str, code: str) -> None:
    assert extract_code(text) == code


def test_signs_of_an_attack_are_counted_and_change_no_grade(sandbox: Sandbox) -> None:
    assert not suspicious(HONEST)
    assert suspicious("import sys\nsys.exit(0)") == ("sys.exit",)
    assert "_getframe" in suspicious("import sys\nf = sys._getframe")
    assert suspicious("open('/proc/self/mem')") == ("/proc",)
    assert suspicious("def broken(: /proc") == ("/proc",)
    flagged = sum(bool(suspicious(code)) for code in EXPLOITS.values())
    assert flagged > len(EXPLOITS) // 2
    (found,) = grade(sandbox, [submission("import gc\n" + HONEST)])
    assert found.right and found.suspicious == ("gc",)
