"""The contents of a wheel: all code, and the configuration and the shipped models beside it."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


def test_a_wheel_holds_code_configuration_and_models(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    models = ROOT / "src" / "longctx_rl" / "shipped_models"
    wanted = [f"longctx_rl/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "conf").rglob("*.yaml")]
    wanted += [path.relative_to(ROOT / "src").as_posix() for path in models.glob("mini-*/*")]
    page = ROOT / "src" / "longctx_rl" / "report" / "page"
    wanted += [path.relative_to(ROOT / "src").as_posix() for path in page.glob("page.*")]
    wanted += [path.relative_to(ROOT / "src").as_posix() for path in (ROOT / "src" / "longctx_rl").rglob("*.py")]
    assert len(wanted) > 130 and set(wanted) <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)


@pytest.mark.slow
def test_an_installed_wheel_finds_them(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(site)]
    subprocess.run([*install, str(wheel)], check=True, capture_output=True)
    environment = {**os.environ, "PYTHONPATH": str(site)}
    command = [sys.executable, "-m", "longctx_rl", "+algo=dgrpo", "--cfg", "job", "--resolve"]
    shown = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert "run_dir: runs/default/dgrpo-mini-mix-s0" in shown.stdout
    code = "from longctx_rl.config.compose import config_directory; print(config_directory())"
    located = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert located.stdout.strip() == str(site / "longctx_rl" / "conf")
    command = [sys.executable, "-m", "longctx_rl", "+algo=kd", "+experiment=smoke", "engine=local", "eval=none"]
    subprocess.run([*command, "logging=none"], cwd=tmp_path, env=environment, capture_output=True, check=True)
    assert (tmp_path / "runs" / "smoke" / "kd-mini-mix-s0" / "export" / "model.safetensors").is_file()
