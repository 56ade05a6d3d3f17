"""What the README promises a newcomer: its method is complete, and the properties of all methods hold for it."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def block(language: str, containing: str) -> str:
    """The fenced block of the README that contains a text."""
    blocks = re.findall(rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (text,) = [b for b in blocks if containing in b]
    return str(text)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with the README's method and sweep added, and nothing else edited."""
    copy = tmp_path_factory.mktemp("checkout")
    for room in ("eval", "jobs", "models", "sweeps", "tests", "trainer"):
        shutil.copytree(ROOT / room, copy / room, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", copy)
    (copy / "models" / "autoencoder.py").write_text(block("python", "class Autoencoder"))
    (copy / "sweeps" / "autoencoder.yaml").write_text(block("yaml", "method: autoencoder"))
    return copy


def run(checkout: Path, *command: str) -> str:
    environment = {
        **os.environ,
        "PYTHONPATH": str(checkout),
        "OMP_NUM_THREADS": "1",
        "TURNOUT_DATA": str(checkout / "data"),
    }
    done = subprocess.run(
        [sys.executable, *command], cwd=checkout, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_a_method_is_one_file_and_one_yaml(checkout: Path) -> None:
    assert "autoencoder" in run(checkout, "jobs/submit.py", "--list")
    said = run(
        checkout, "jobs/submit.py", "sweeps/autoencoder.yaml", "--cluster", "local", "train.steps=20", "model.code=2"
    )
    assert "1 trials" in said
    (trial,) = (checkout / "logs" / "autoencoder").glob("autoencoder*")
    assert (trial / "done").exists()
    assert (trial / "eval" / "tsne.png").exists()


def test_the_properties_of_all_methods_are_proven_for_it_too(checkout: Path) -> None:
    said = run(
        checkout, "-m", "pytest", "-q", "tests/models/test_methods.py", "-k", "autoencoder", "-p", "no:cacheprovider"
    )
    assert re.search(r"(\d{2,}) passed", said), said


def test_the_sweep_of_the_readme_is_one_that_can_be_planned(tmp_path: Path) -> None:
    (tmp_path / "lr.yaml").write_text(block("yaml", "sweeps/lr.yaml"))
    command = [sys.executable, "jobs/submit.py", str(tmp_path / "lr.yaml"), "--dry-run", "--cluster", "local"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert "9 trials" in done.stdout, done.stderr
