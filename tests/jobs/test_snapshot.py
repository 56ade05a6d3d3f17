"""The copy of the checkout that jobs run: what is in it, when it is made anew, and that jobs run nothing else."""

import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from jobs import snapshot
from jobs.snapshot import Snapshot, environment, take
from tests.jobs.test_submit import TINY, submissions
from trainer.errors import ConfigError

FILES = {"jobs/snapshot.py": "1\n", "models/a.py": "2\n", ".gitignore": "*.log\nlogs/*\n", "notes/read me.md": "3\n"}
needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def git(folder: Path, *words: str) -> str:
    identity = ["-c", "user.name=A", "-c", "user.email=a@localhost", "-c", "commit.gpgsign=false"]
    command = ["git", *identity, *words]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def commit(folder: Path) -> Path:
    git(folder, "init", "-q")
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "tests: begin")
    return folder


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A committed one, at a path that a shell or Slurm would have to be careful with."""
    return commit(write(tmp_path / "a b'\"ü$(touch x)", FILES))


def contents(taken: Snapshot) -> dict[str, str]:
    """Name -> text of every file, links to folders followed to nowhere."""
    found = (p for p in sorted(taken.folder.rglob("*")) if p.is_file() and not p.is_symlink())
    return {str(p.relative_to(taken.folder)): p.read_text() for p in found}


@needs_git
def test_it_holds_what_is_tracked_or_new_and_nothing_else(checkout: Path) -> None:
    runs = checkout / "runs"  # not ignored
    write(checkout, {"models/new.py": "4\n", "models/a.log": "", "logs/x/config.yaml": "", "runs/s/t/config.yaml": ""})
    (checkout / "notes/read me.md").unlink()
    (checkout / "models/odd\n\udcff.py").write_text("5\n")
    (checkout / "jobs/snapshot.py").chmod(0o755)
    taken = take(runs / "s", checkout)
    assert taken.folder.parent == runs / "s" / "code"
    expected = {name: text for name, text in FILES.items() if name != "notes/read me.md"}
    assert contents(taken) == expected | {"models/new.py": "4\n", "models/odd\n\udcff.py": "5\n"}
    modes = {name: (taken.folder / name).stat().st_mode & 0o777 for name in ("jobs/snapshot.py", "models/a.py")}
    assert modes == {"jobs/snapshot.py": 0o555, "models/a.py": 0o444}


@needs_git
def test_the_same_content_is_the_same_copy(checkout: Path, tmp_path: Path) -> None:
    def state(taken: Snapshot) -> dict[Path, tuple[int, int]]:
        return {p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in taken.folder.rglob("*")}

    sweep = tmp_path / "logs" / "s"
    planned = take(sweep, checkout, write=False)
    assert not sweep.exists()
    first = take(sweep, checkout)
    before = state(first)
    assert planned == first == take(sweep, checkout)
    assert state(first) == before
    (checkout / "models/a.py").write_text("other\n")
    assert take(sweep, checkout).folder != first.folder
    (checkout / "models/a.py").write_text("2\n")
    assert take(sweep, checkout) == first
    # What a copy is told apart by: a file's name, that it is a program, where one file ends and the next begins.
    (checkout / "models/a.py").rename(checkout / "models/b.py")
    assert take(sweep, checkout).folder != first.folder
    (checkout / "models/b.py").rename(checkout / "models/a.py")
    (checkout / "models/a.py").chmod(0o755)
    assert take(sweep, checkout).folder != first.folder
    assert [p for p in (sweep / "code").iterdir() if p.name.startswith(".")] == []


@needs_git
def test_what_a_copy_has_lost_is_put_back(checkout: Path, tmp_path: Path) -> None:
    sweep = tmp_path / "logs" / "s"
    taken = take(sweep, checkout)
    whole = contents(taken)
    (taken.folder / "models/a.py").chmod(0o644)
    (taken.folder / "models/a.py").write_text("edited")
    shutil.rmtree(taken.folder / "notes")
    write(sweep / "code", {f".{taken.folder.name}.cut-short/models/a.py": "half"})  # of one that was killed
    assert take(sweep, checkout) == taken
    assert contents(taken) == whole


@needs_git
def test_two_submissions_at_once_share_it(checkout: Path, tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        taken = set(pool.map(lambda _: take(tmp_path / "logs" / "s", checkout), range(8)))
    assert len(taken) == 1
    assert contents(taken.pop()) == FILES
    assert len(list((tmp_path / "logs" / "s" / "code").iterdir())) == 1


@needs_git
def test_links(checkout: Path, tmp_path: Path) -> None:
    outside = write(tmp_path / "outside", {"far.py": "far\n", "folder/x.py": "x\n"})
    (checkout / "models/far.py").symlink_to(outside / "far.py")
    (checkout / "models/notes").symlink_to("../notes")
    (checkout / "models/folder").symlink_to(outside / "folder")
    (checkout / "models/nowhere.py").symlink_to("nothing.py")
    (tmp_path / "runs").mkdir()
    (checkout / "logs").symlink_to(tmp_path / "runs")
    taken = take(checkout / "logs" / "s", checkout)
    # The content of a file elsewhere; a link to a folder stays one, and one within the checkout leads to the copy's.
    assert contents(taken) == FILES | {"models/far.py": "far\n"}
    assert (taken.folder / "models/notes").resolve() == (taken.folder / "notes").resolve()
    assert (taken.folder / "models/folder").resolve() == outside / "folder"
    assert not os.path.lexists(taken.folder / "models/nowhere.py")
    assert not os.path.lexists(taken.folder / "logs")
    assert take(checkout / "logs" / "s", checkout) == taken


@needs_git
def test_another_repository_inside_is_copied_too(checkout: Path, tmp_path: Path) -> None:
    commit(write(checkout / "models" / "nets", {"own.py": "own\n", "own.log": "", ".gitignore": "*.log\n"}))
    assert contents(take(tmp_path / "s", checkout)) == FILES | {
        "models/nets/own.py": "own\n",
        "models/nets/.gitignore": "*.log\n",
    }


@pytest.mark.parametrize("where", ["outside", "without git", "in somebody else's"])
def test_without_a_repository_it_holds_the_rooms(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = FILES | {"models/__pycache__/a.pyc": "", "models/nets/b.py": "", "trainer/c.py": ""}
    checkout = write(tmp_path / "home" / "turnout", files)
    if where == "without git":
        monkeypatch.setenv("PATH", str(tmp_path))
    elif where == "in somebody else's":
        if shutil.which("git") is None:
            pytest.skip("git is not installed")
        commit(write(tmp_path / "home", {".gitignore": "*\n!.gitignore\n"}))
    taken = take(tmp_path / "s", checkout)
    assert (taken.commit, taken.dirty) == (None, None)
    assert set(contents(taken)) == {"jobs/snapshot.py", "models/a.py", "models/nets/b.py", "trainer/c.py"}


@needs_git
def test_the_commit_and_whether_the_code_is_that(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    head = git(checkout, "rev-parse", "HEAD")
    elsewhere = commit(write(checkout.parent / "elsewhere", {"x": "y"}))
    monkeypatch.setenv("GIT_DIR", str(elsewhere / ".git"))  # as in a hook of another repository

    def found() -> tuple[str | None, bool | None]:
        taken = take(checkout / "runs" / "s", checkout)
        return taken.commit, taken.dirty

    assert found() == (head, False)
    assert found() == (head, False), "the copy that lies in the checkout now is none of its code"
    write(checkout, {"models/new.py": ""})
    assert found() == (head, True)
    (checkout / "models/new.py").unlink()
    (checkout / "models/a.py").write_text("changed")
    assert found() == (head, True)
    (checkout / "models/a.py").write_text(FILES["models/a.py"])
    assert found() == (head, False)
    (checkout / "models/a.py").unlink()
    assert found() == (head, True)


@needs_git
def test_what_is_too_large_is_refused_by_name(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "LARGEST", 1 << 20)
    write(checkout, {"weights.bin": "x" * (2 << 20), "large.log": "x" * (2 << 20)})
    with pytest.raises(ConfigError, match=r"2 MiB, more than 1; the largest: weights.bin \(2.0 MiB\), .*\.gitignore"):
        take(tmp_path / "s", checkout)
    assert not (tmp_path / "s").exists()


def test_a_place_that_python_cannot_import_from_is_refused(tmp_path: Path) -> None:
    checkout = write(tmp_path / "checkout", FILES)
    for folder in ("a:b", "a\nb"):
        with pytest.raises(ConfigError, match="give another --runs"):
            take(tmp_path / folder / "s", checkout)
        assert not (tmp_path / folder).exists()


def test_a_copy_of_this_checkout_is_quick(tmp_path: Path) -> None:
    began = time.monotonic()
    taken = take(tmp_path / "s")
    made = time.monotonic()
    take(tmp_path / "s")
    print(f"{len(list(taken.folder.rglob('*')))} files: {made - began:.3f} s, again {time.monotonic() - made:.3f} s")
    assert made - began < 2


def test_what_is_set_of_pythonpath_stays_behind_the_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    assert environment(Path("/x y"))["PYTHONPATH"] == "/x y:/somewhere"
    monkeypatch.setenv("PYTHONPATH", "")
    assert environment(Path("/x y"))["PYTHONPATH"] == "/x y"


def test_a_sweep_here_is_unmoved_by_edits(tmp_path: Path, data_root: str) -> None:
    """Evaluation and report start long after the training: they too are of the code as it was."""
    checkout = tmp_path / "check out"
    for room in snapshot.ROOMS:
        shutil.copytree(snapshot.ROOT / room, checkout / room, ignore=shutil.ignore_patterns("__pycache__"))
    content = TINY | {"trials": [{"method": "source_only"}], "eval": {"metrics": ["accuracy"]}}
    (checkout / "tiny.yaml").write_text(yaml.safe_dump(content))
    variables = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "TURNOUT_DATA": data_root}
    command = [sys.executable, "jobs/submit.py", "tiny.yaml", "--cluster", "local"]
    with subprocess.Popen(command, cwd=checkout, env=variables, stdout=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while not list(checkout.glob("logs/tiny/*/train.log")) and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        for file in ("trainer/loop.py", "eval/main.py", "eval/report.py", "eval/metrics/accuracy.py"):
            (checkout / file).write_text("this is no Python")
        said = process.communicate(timeout=120)[0]
    assert process.returncode == 0, said
    assert "accuracy" in (checkout / "logs/tiny/report/results.md").read_text()
    (line,) = submissions(checkout / "logs" / "tiny")
    assert (checkout / "logs/tiny" / line["code"] / "trainer/loop.py").read_text() == (
        snapshot.ROOT / "trainer/loop.py"
    ).read_text()
