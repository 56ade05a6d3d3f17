"""The copy of the checkout that jobs run: its contents, when it is reused, and that jobs run nothing but the copy."""

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
from jobs.snapshot import Snapshot, import_environment, take
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
    """A git checkout whose path contains characters that need quoting in a shell."""
    return commit(write(tmp_path / "a b'\"ü$(touch x)", FILES))


def contents(copy: Snapshot) -> dict[str, str]:
    """Return name -> text of every file, without following links to folders."""
    files = (p for p in sorted(copy.folder.rglob("*")) if p.is_file() and not p.is_symlink())
    return {str(p.relative_to(copy.folder)): p.read_text() for p in files}


@needs_git
def test_a_copy_contains_exactly_the_tracked_and_the_new_files(checkout: Path) -> None:
    runs = checkout / "runs"  # not ignored
    write(checkout, {"models/new.py": "4\n", "models/a.log": "", "logs/x/config.yaml": "", "runs/s/t/config.yaml": ""})
    (checkout / "notes/read me.md").unlink()
    (checkout / "models/odd\n\udcff.py").write_text("5\n")
    (checkout / "jobs/snapshot.py").chmod(0o755)
    copy = take(runs / "s", checkout)
    assert copy.folder.parent == runs / "s" / "code"
    expected = {name: text for name, text in FILES.items() if name != "notes/read me.md"}
    assert contents(copy) == expected | {"models/new.py": "4\n", "models/odd\n\udcff.py": "5\n"}
    modes = {name: (copy.folder / name).stat().st_mode & 0o777 for name in ("jobs/snapshot.py", "models/a.py")}
    assert modes == {"jobs/snapshot.py": 0o555, "models/a.py": 0o444}


@needs_git
def test_the_same_contents_share_one_copy(checkout: Path, tmp_path: Path) -> None:
    def state(copy: Snapshot) -> dict[Path, tuple[int, int]]:
        return {p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in copy.folder.rglob("*")}

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
    # The hash also depends on file names and on the executable bit.
    (checkout / "models/a.py").rename(checkout / "models/b.py")
    assert take(sweep, checkout).folder != first.folder
    (checkout / "models/b.py").rename(checkout / "models/a.py")
    (checkout / "models/a.py").chmod(0o755)
    assert take(sweep, checkout).folder != first.folder
    assert [p for p in (sweep / "code").iterdir() if p.name.startswith(".")] == []


@needs_git
def test_lost_or_edited_files_of_a_copy_are_restored(checkout: Path, tmp_path: Path) -> None:
    sweep = tmp_path / "logs" / "s"
    copy = take(sweep, checkout)
    whole = contents(copy)
    (copy.folder / "models/a.py").chmod(0o644)
    (copy.folder / "models/a.py").write_text("edited")
    shutil.rmtree(copy.folder / "notes")
    write(sweep / "code", {f".{copy.folder.name}.cut-short/models/a.py": "half"})  # of a killed submission
    assert take(sweep, checkout) == copy
    assert contents(copy) == whole


@needs_git
def test_simultaneous_submissions_share_one_copy(checkout: Path, tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        copies = set(pool.map(lambda _: take(tmp_path / "logs" / "s", checkout), range(8)))
    assert len(copies) == 1
    assert contents(copies.pop()) == FILES
    assert len(list((tmp_path / "logs" / "s" / "code").iterdir())) == 1


@needs_git
def test_links_to_files_are_copied_and_links_to_folders_stay_links(checkout: Path, tmp_path: Path) -> None:
    outside = write(tmp_path / "outside", {"far.py": "far\n", "folder/x.py": "x\n"})
    (checkout / "models/far.py").symlink_to(outside / "far.py")
    (checkout / "models/notes").symlink_to("../notes")
    (checkout / "models/folder").symlink_to(outside / "folder")
    (checkout / "models/nowhere.py").symlink_to("nothing.py")
    (tmp_path / "runs").mkdir()
    (checkout / "logs").symlink_to(tmp_path / "runs")
    copy = take(checkout / "logs" / "s", checkout)
    # A link to a folder of the checkout points into the copy.
    assert contents(copy) == FILES | {"models/far.py": "far\n"}
    assert (copy.folder / "models/notes").resolve() == (copy.folder / "notes").resolve()
    assert (copy.folder / "models/folder").resolve() == outside / "folder"
    assert not os.path.lexists(copy.folder / "models/nowhere.py")
    assert not os.path.lexists(copy.folder / "logs")
    assert take(checkout / "logs" / "s", checkout) == copy


@needs_git
def test_a_nested_repository_is_copied_too(checkout: Path, tmp_path: Path) -> None:
    commit(write(checkout / "models" / "nets", {"own.py": "own\n", "own.log": "", ".gitignore": "*.log\n"}))
    assert contents(take(tmp_path / "s", checkout)) == FILES | {
        "models/nets/own.py": "own\n",
        "models/nets/.gitignore": "*.log\n",
    }


@pytest.mark.parametrize("where", ["outside", "without git", "in an unrelated repository"])
def test_without_a_repository_a_copy_contains_the_package_folders(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = FILES | {"models/__pycache__/a.pyc": "", "models/nets/b.py": "", "trainer/c.py": ""}
    checkout = write(tmp_path / "home" / "turnout", files)
    if where == "without git":
        monkeypatch.setenv("PATH", str(tmp_path))
    elif where == "in an unrelated repository":
        if shutil.which("git") is None:
            pytest.skip("git is not installed")
        commit(write(tmp_path / "home", {".gitignore": "*\n!.gitignore\n"}))
    copy = take(tmp_path / "s", checkout)
    assert (copy.commit, copy.dirty) == (None, None)
    assert set(contents(copy)) == {"jobs/snapshot.py", "models/a.py", "models/nets/b.py", "trainer/c.py"}


@needs_git
def test_a_copy_records_the_commit_and_whether_the_code_differs(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = git(checkout, "rev-parse", "HEAD")
    elsewhere = commit(write(checkout.parent / "elsewhere", {"x": "y"}))
    monkeypatch.setenv("GIT_DIR", str(elsewhere / ".git"))  # a git hook of another repository sets this

    def version() -> tuple[str | None, bool | None]:
        copy = take(checkout / "runs" / "s", checkout)
        return copy.commit, copy.dirty

    assert version() == (head, False)
    assert version() == (head, False), "the copy inside the checkout does not count as code"
    write(checkout, {"models/new.py": ""})
    assert version() == (head, True)
    (checkout / "models/new.py").unlink()
    (checkout / "models/a.py").write_text("changed")
    assert version() == (head, True)
    (checkout / "models/a.py").write_text(FILES["models/a.py"])
    assert version() == (head, False)
    (checkout / "models/a.py").unlink()
    assert version() == (head, True)


@needs_git
def test_a_checkout_with_large_files_is_refused_naming_them(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot, "MAX_BYTES", 1 << 20)
    write(checkout, {"weights.bin": "x" * (2 << 20), "large.log": "x" * (2 << 20)})
    with pytest.raises(ConfigError, match=r"2 MiB, more than 1; the largest: weights.bin \(2.0 MiB\), .*\.gitignore"):
        take(tmp_path / "s", checkout)
    assert not (tmp_path / "s").exists()


def test_a_path_that_python_cannot_import_from_is_refused(tmp_path: Path) -> None:
    checkout = write(tmp_path / "checkout", FILES)
    for folder in ("a:b", "a\nb"):
        with pytest.raises(ConfigError, match="give another --runs"):
            take(tmp_path / folder / "s", checkout)
        assert not (tmp_path / folder).exists()


def test_a_copy_of_this_checkout_takes_less_than_two_seconds(tmp_path: Path) -> None:
    began = time.monotonic()
    copy = take(tmp_path / "s")
    written = time.monotonic()
    take(tmp_path / "s")
    print(
        f"{len(list(copy.folder.rglob('*')))} files: {written - began:.3f} s, again {time.monotonic() - written:.3f} s"
    )
    assert written - began < 2


def test_the_copy_comes_before_the_users_pythonpath(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    assert import_environment(Path("/x y"))["PYTHONPATH"] == "/x y:/somewhere"
    monkeypatch.setenv("PYTHONPATH", "")
    assert import_environment(Path("/x y"))["PYTHONPATH"] == "/x y"


def test_a_local_sweep_is_not_affected_by_later_edits(tmp_path: Path, data_root: str) -> None:
    """Evaluation and report start long after the training, and still run the submitted code."""
    checkout = tmp_path / "check out"
    for package in snapshot.PACKAGES:
        shutil.copytree(snapshot.ROOT / package, checkout / package, ignore=shutil.ignore_patterns("__pycache__"))
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
            (checkout / file).write_text("not Python")
        output = process.communicate(timeout=120)[0]
    assert process.returncode == 0, output
    assert "accuracy" in (checkout / "logs/tiny/report/results.md").read_text()
    (line,) = submissions(checkout / "logs" / "tiny")
    assert (checkout / "logs/tiny" / line["code"] / "trainer/loop.py").read_text() == (
        snapshot.ROOT / "trainer/loop.py"
    ).read_text()


@pytest.mark.parametrize(
    "command",
    [f"jobs/{name}.py" for name in ("submit", "status", "logs", "cancel", "stage")]
    + ["trainer/main.py", "eval/main.py", "eval/report.py"],
)
def test_a_command_runs_the_checkout_that_it_lies_in(command: str, tmp_path: Path) -> None:
    """Even if another checkout is installed, or first on PYTHONPATH."""
    for package in ("jobs", "eval", "trainer", "models"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("raise SystemExit('another checkout')\n")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, str(snapshot.ROOT / command), "--help"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: ")


@needs_git
@pytest.mark.parametrize("inside", [False, True])
def test_a_link_as_logs_does_not_make_the_checkout_differ_from_its_commit(
    checkout: Path, tmp_path: Path, inside: bool
) -> None:
    """Also where logs/ has a tracked file, which then is not there."""
    write(checkout, {"logs/README.md": "4\n"})
    git(checkout, "add", "-f", "logs/README.md")
    git(checkout, "commit", "-qm", "logs: describe them")
    shutil.rmtree(checkout / "logs")
    scratch = (checkout if inside else tmp_path) / "scratch"
    scratch.mkdir()
    (checkout / "logs").symlink_to(scratch)
    write(scratch, {"s/trial/config.yaml": "5\n"})
    copy = take(checkout / "logs" / "s", checkout)
    assert copy.dirty is False
    assert contents(copy).keys() == set(FILES)
    (checkout / "models" / "a.py").write_text("changed")
    assert take(checkout / "logs" / "s", checkout).dirty is True
