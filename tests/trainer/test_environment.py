"""What other launchers leave in the environment is dropped or refused by name; any locale and file system will do."""

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from trainer.environment import prepare_environment
from trainer.errors import ConfigError
from trainer.runs.attempt import Attempt
from trainer.runs.directory import RunDirectory
from trainer.runs.lock import take

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"ACCELERATE_USE_FSDP": "true"}, "ACCELERATE_USE_FSDP=true: FSDP is not supported; unset ACCELERATE_USE_FSDP"),
        ({"ACCELERATE_USE_DEEPSPEED": "1"}, "DEEPSPEED is not supported"),
        ({"ACCELERATE_USE_MEGATRON_LM": "yes"}, "MEGATRON_LM is not supported"),
        ({"ACCELERATE_DYNAMO_BACKEND": "inductor"}, "ACCELERATE_DYNAMO_BACKEND=inductor: not supported"),
        ({"RANK": "1", "WORLD_SIZE": "4"}, "WORLD_SIZE=4: torchrun did not start this process.*unset WORLD_SIZE"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "OMPI_COMM_WORLD_SIZE=2: torchrun"),
        ({"PMI_SIZE": "2", "PMI_RANK": "0"}, "PMI_SIZE=2: torchrun"),
        ({"LOCAL_RANK": "0"}, ""),
        ({"LOCAL_RANK": "-1", "WORLD_SIZE": "1", "RANK": "-1"}, ""),
        ({"WORLD_SIZE": "4", "RANK": "2", "MASTER_ADDR": "nowhere", "TURNOUT_ATTEMPT": "7.0"}, ""),
        ({"ACCELERATE_USE_CPU": "true", "ACCELERATE_USE_FSDP": "false", "ACCELERATE_DYNAMO_BACKEND": "no"}, ""),
    ],
)
def test_leftover_launcher_variables_are_dropped_or_refused(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], message: str
) -> None:
    for name in [name for name in os.environ if name.startswith(("ACCELERATE_", "TORCHELASTIC", "TURNOUT_ATTEMPT"))]:
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    if message:
        with pytest.raises(ConfigError, match=f"^environment: .*{message}"):
            prepare_environment()
        return
    prepare_environment()
    assert not {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR"} & set(os.environ)


def test_variables_of_torchrun_are_kept_while_it_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in {"TORCHELASTIC_ERROR_FILE": f"{tmp_path}/error.json", "RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    prepare_environment()
    assert (os.environ["RANK"], os.environ["WORLD_SIZE"]) == ("1", "2")


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(
        ConfigError, match=rf"^{tmp_path}/lock: this file system has no file locks .*--runs, data\.root"
    ):
        take(RunDirectory(tmp_path), Attempt("7.0"))


def test_a_locale_that_is_not_utf8_and_an_unknown_home_do_not_matter(tmp_path: Path) -> None:
    sweep = tmp_path / "a.yaml"
    sweep.write_text("# γ → ∞\nmethod: dann\ndata: {source: mnist5k, target: mnistm5k}\n", encoding="utf-8")
    environment = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PATH": os.environ["PATH"]}
    command = [sys.executable, "jobs/submit.py", "--list"]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=False)
    assert (result.returncode, result.stderr) == (0, b"")
    assert "λ" in result.stdout.decode("utf-8")
