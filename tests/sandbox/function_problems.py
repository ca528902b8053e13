"""Problems in the columns of HumanEval and MBPP, whose references pass their own tests."""

HUMANEVAL = [
    {
        "task_id": "plain/0",
        "prompt": 'def add_all(values):\n    """The sum of the values."""\n',
        "entry_point": "add_all",
        "canonical_solution": "    return sum(values)\n",
        "test": "def check(candidate):\n    assert candidate([1, 2]) == 3\n    assert candidate([]) == 0\n",
    },
    {
        "task_id": "helper of the prompt/1",
        "prompt": 'def shift(s):\n    return s[1:] + s[:1]\n\n\ndef unshift(s):\n    """Undo shift."""\n',
        "entry_point": "unshift",
        "canonical_solution": "    return s[-1:] + s[:-1]\n",
        "test": "from random import choice\n\ndef check(candidate):\n    for _ in range(20):\n"
        "        s = ''.join(choice('abc') for _ in range(5))\n        assert candidate(shift(s)) == s\n",
    },
    {
        "task_id": "several solutions/2",
        "prompt": 'def root(square):\n    """A number whose square it is."""\n',
        "entry_point": "root",
        "canonical_solution": "    return square ** 0.5\n",
        "test": "def check(candidate):\n    for x in (1, 4, 9.5):\n        assert abs(candidate(x) ** 2 - x) < 1e-6\n",
    },
    {
        "task_id": "changes its input/3",
        "prompt": 'def reverse(values):\n    """The values in reverse, in place, and returned."""\n',
        "entry_point": "reverse",
        "canonical_solution": "    values.reverse()\n    return values\n",
        "test": "def check(candidate):\n    assert candidate([1, 2, 3]) == [3, 2, 1]\n    assert candidate([]) == []\n",
    },
    {
        "task_id": "raises/4",
        "prompt": 'def positive(x):\n    """x, or a ValueError."""\n',
        "entry_point": "positive",
        "canonical_solution": "    if x <= 0:\n        raise ValueError(x)\n    return x\n",
        "test": "def check(candidate):\n    assert candidate(3) == 3\n    try:\n        candidate(-1)\n"
        "    except Exception:\n        pass\n    else:\n        raise AssertionError\n",
    },
]
MBPP = [
    {
        "task_id": 7,
        "text": "Find the largest of three numbers.",
        "code": "def helper(a, b):\n    return a if a > b else b\n\n"
        "def largest(a, b, c=0):\n    return helper(helper(a, b), c)",
        "test_list": ["assert largest(1, 2, 3) == 3", "assert largest(5, 2) == 5"],
        "test_setup_code": "",
    }
]
