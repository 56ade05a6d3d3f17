"""Checkpoints are complete or skipped, and intact ones are kept."""

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from accelerate import Accelerator

from models.dann import DANN
from tests.processes import SPEC, batches
from trainer.config.schema import Train
from trainer.errors import CheckpointError
from trainer.loop import Trainer
from trainer.runs import checkpoints
from trainer.runs.attempt import DIRECT
from trainer.runs.directory import RunDirectory, find_runs

CONTENT = b"weights" * 1000


def write(folder: Path) -> None:
    (folder / "a.bin").write_bytes(CONTENT)
    (folder / "b.json").write_text("{}")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with checkpoints of steps 1, 2 and 3, of which the newest two are kept."""
    for step in (1, 2, 3):
        checkpoints.save(RunDirectory(tmp_path), step, "cafe0123", write)
    return tmp_path


def large(folder: Path) -> None:
    (folder / "a.bin").write_bytes(bytes(2 << 20))


def silent(line: str) -> None:
    raise AssertionError(f"nothing should be said: {line}")


def test_newest_two_are_kept_and_latest_points_to_the_last(run: Path) -> None:
    assert [p.name for p in checkpoints.steps(RunDirectory(run))] == ["step-000003", "step-000002"]
    assert (run / "latest").read_text() == "step-000003\n"
    assert checkpoints.newest(RunDirectory(run), {"cafe0123"}, silent) == run / "checkpoints" / "step-000003"
    assert not list((run / "checkpoints").glob(".*"))


def truncate(folder: Path) -> None:
    (folder / "a.bin").write_bytes(CONTENT[:-1])


def flip_a_bit(folder: Path) -> None:
    (folder / "a.bin").write_bytes(bytes([CONTENT[0] ^ 1]) + CONTENT[1:])


def lose_a_file(folder: Path) -> None:
    (folder / "b.json").unlink()


def lose_the_manifest(folder: Path) -> None:
    (folder / checkpoints.MANIFEST).unlink()


def tear_the_manifest(folder: Path) -> None:
    (folder / checkpoints.MANIFEST).write_text('{"step": 3, "fil')


DAMAGES = [truncate, flip_a_bit, lose_a_file, lose_the_manifest, tear_the_manifest]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_skipped_with_a_message(run: Path, damage: object) -> None:
    damage(run / "checkpoints" / "step-000003")  # type: ignore[operator]
    said: list[str] = []
    assert checkpoints.newest(RunDirectory(run), {"cafe0123"}, said.append) == run / "checkpoints" / "step-000002"
    assert len(said) == 1
    assert "step-000003" in said[0]
    assert "falling back" in said[0]


def test_no_intact_checkpoint_is_an_error_with_the_remedy(run: Path) -> None:
    for path in checkpoints.steps(RunDirectory(run)):
        truncate(path)
    with pytest.raises(CheckpointError, match="none of its 2 checkpoints is intact; remove"):
        checkpoints.newest(RunDirectory(run), {"cafe0123"}, lambda line: None)


def test_without_a_checkpoint_training_starts_at_step_0(tmp_path: Path) -> None:
    assert checkpoints.newest(RunDirectory(tmp_path), {"cafe0123"}, silent) is None


def test_a_checkpoint_of_another_config_is_refused(run: Path) -> None:
    with pytest.raises(CheckpointError, match="belongs to another config"):
        checkpoints.newest(RunDirectory(run), {"beef4567"}, silent)


def test_a_process_killed_while_saving_leaves_the_previous_checkpoint(run: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from trainer.runs import checkpoints\n"
        "from trainer.runs.directory import RunDirectory\n"
        "def write(folder):\n"
        "    (folder / 'a.bin').write_bytes(b'half'); os.kill(os.getpid(), signal.SIGKILL)\n"
        "checkpoints.save(RunDirectory(Path(sys.argv[1])), 4, 'cafe0123', write)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(run)], check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == -signal.SIGKILL
    assert list((run / "checkpoints").glob(".step-000004.*"))
    assert checkpoints.newest(RunDirectory(run), {"cafe0123"}, silent) == run / "checkpoints" / "step-000003"
    RunDirectory(run).start(DIRECT)
    checkpoints.save(RunDirectory(run), 4, "cafe0123", write)
    assert checkpoints.newest(RunDirectory(run), {"cafe0123"}, silent) == run / "checkpoints" / "step-000004"
    assert not list((run / "checkpoints").glob(".*")), "temporary files of a dead process are removed"


@pytest.fixture
def small_files() -> object:
    """The kernel refuses files above 16 KiB, as a full disk would in the middle of one."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 14, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_failed_write_keeps_the_previous_checkpoint(run: Path, small_files: object) -> None:
    with pytest.raises(CheckpointError, match=r"not written: File too large; free space there .*step-000003 is intact"):
        checkpoints.save(RunDirectory(run), 4, "cafe0123", large)
    assert checkpoints.newest(RunDirectory(run), {"cafe0123"}, silent) == run / "checkpoints" / "step-000003"
    assert (run / "latest").read_text() == "step-000003\n"
    assert not list((run / "checkpoints").glob(".*"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", disk]).returncode:
        pytest.skip("mounting a small disk takes root, and a machine that lets it")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


def test_a_full_disk_keeps_the_previous_checkpoint_and_says_so(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever in a checkpoint it is full: each file has a writer of its own, with its own way to fail."""
    monkeypatch.setenv("TURNOUT_DISK_TIMEOUT", "0")
    training = Trainer(DANN(SPEC), Accelerator(cpu=True), Train())
    for _ in training.fit([next(batches("dann", 0, 1))]):
        training.settle()
    saved = checkpoints.save(RunDirectory(small_disk), 1, "cafe0123", training.save)
    sizes = {path.name: path.stat().st_size for path in saved.iterdir()}
    # What has to be written before each of them, as whole pages.
    names = ["method.safetensors", "averages.safetensors", "optimizers.pt", "trainer.json", checkpoints.MANIFEST]
    before, filler = 0, small_disk / "filler"
    for name in names:
        space = os.statvfs(small_disk)
        filler.write_bytes(bytes(space.f_bavail * space.f_frsize - before))
        with pytest.raises(CheckpointError, match=r"step-000002: .*No space left on device; .*step-000001 is intact"):
            checkpoints.save(RunDirectory(small_disk), 2, "cafe0123", training.save)
        assert checkpoints.newest(RunDirectory(small_disk), {"cafe0123"}, silent) == saved
        assert not list((small_disk / "checkpoints").glob(".*")), name
        filler.unlink()
        before += -(-sizes[name] // os.sysconf("SC_PAGESIZE")) * os.sysconf("SC_PAGESIZE")
    checkpoints.save(RunDirectory(small_disk), 2, "cafe0123", training.save)  # temporary files are gone


def test_a_replayed_step_replaces_its_checkpoint(run: Path) -> None:
    checkpoints.save(RunDirectory(run), 3, "cafe0123", large)
    newest = checkpoints.newest(RunDirectory(run), {"cafe0123"}, silent)
    assert newest is not None
    assert (newest / "a.bin").stat().st_size == 2 << 20
    assert json.loads((newest / checkpoints.MANIFEST).read_text())["step"] == 3


def test_saving_after_a_fallback_keeps_the_intact_checkpoint(run: Path) -> None:
    """The damaged checkpoint of a later step is removed, the intact one that training resumed from is kept."""
    truncate(run / "checkpoints" / "step-000003")
    (run / "checkpoints" / "step-000002").rename(run / "checkpoints" / "step-000001")
    checkpoints.save(RunDirectory(run), 2, "cafe0123", write)
    assert [p.name for p in checkpoints.steps(RunDirectory(run))] == ["step-000002", "step-000001"]
    truncate(run / "checkpoints" / "step-000002")
    assert checkpoints.newest(RunDirectory(run), {"cafe0123"}, lambda line: None) == run / "checkpoints" / "step-000001"


def test_copies_beside_run_directories_weights_and_checkpoints_are_ignored(tmp_path: Path) -> None:
    name = "dann,seed=0-1a2b3c4d"
    others = (f"{name} (copy)", f"{name}.bak", f"Copy of {name}", f"{name}.sync-conflict-20260101-1a2b3c4d")
    for directory in (name, "dann,seed=1-0a2b3c4d", "by hand", *others):
        (tmp_path / directory).mkdir()
        (tmp_path / directory / "config.yaml").write_text("method: dann\n")
    assert [run.name for run in find_runs(tmp_path)] == ["by hand", name, "dann,seed=1-0a2b3c4d"]
    run = RunDirectory(tmp_path / name)
    for file in (
        "weights/step-000010.safetensors",
        "weights/step-000010 (1).safetensors",
        "weights/step-x.safetensors",
    ):
        (run.path / file).parent.mkdir(exist_ok=True)
        (run.path / file).touch()
    for directory in ("step-000010", "step-000010.bak", "step-000010 (conflict)", "step-old"):
        (run.checkpoints / directory).mkdir(parents=True)
    assert list(run.exported_weights()) == [10]
    assert [path.name for path in checkpoints.steps(run)] == ["step-000010"]
