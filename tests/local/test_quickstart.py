"""The quickstart as a newcomer runs it: manifests to a report, twice, and with each of its agents killed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from os import environ
from pathlib import Path

import psutil
import pytest

from support.waiting import until

MANIFESTS = Path(__file__).parents[2] / "examples" / "quickstart"
TEXT = " ".join(f"word{number}" for number in range(60))


@dataclass(frozen=True)
class Quickstart:
    """A tree to be read, and what reading it leaves."""

    directory: Path

    @property
    def tree(self) -> Path:
        return self.directory / "tree"

    @property
    def report(self) -> Path:
        return self.directory / "out" / "report.md"

    @property
    def log(self) -> str:
        return (self.directory / "log").read_text(encoding="utf-8")

    def write(self, path: str, text: str) -> None:
        file = self.tree / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")

    @property
    def journal(self) -> Path:
        return self.report.parent / ".agentstream" / "quickstart" / "run.jsonl"

    @contextmanager
    def running(self) -> Iterator[subprocess.Popen[bytes]]:
        """`agentstream dev`, which ends by itself; ended if the test fails before."""
        command = [Path(sys.executable).with_name("agentstream"), "dev", MANIFESTS, "--until-idle", "1s"]
        with (self.directory / "log").open("w", encoding="utf-8") as log:
            process = subprocess.Popen(
                [*command, "--data", self.directory / "data"],
                cwd=self.directory,
                env={
                    **environ,
                    "QUICKSTART_ROOT": str(self.tree),
                    "QUICKSTART_OUTPUT": str(self.report.parent),
                },
                stdout=log,
                stderr=subprocess.STDOUT,
            )
            try:
                yield process
            finally:
                process.terminate()
                process.wait()

    async def run(self) -> None:
        """Runs it to its end."""
        with self.running() as process:
            await self.ended(process)

    async def ended(self, process: subprocess.Popen[bytes]) -> None:
        await until(lambda: process.poll() is not None, timeout=60)
        assert process.returncode == 0, self.log

    def noted(self) -> int:
        """How many messages the reporter has noted."""
        return self.journal.read_bytes().count(b"\n") if self.journal.exists() else 0

    def section(self, title: str) -> list[list[str]]:
        """The cells of a table of the report."""
        _, _, rest = self.report.read_text(encoding="utf-8").partition(f"## {title}\n\n")
        rows = rest.partition("\n\n")[0].splitlines()[2:]
        return [row.strip("| ").replace("`", "").split(" | ") for row in rows]

    def files(self) -> list[str]:
        return sorted(row[0] for row in self.section("Files by size"))


@pytest.fixture
def quickstart(tmp_path: Path) -> Quickstart:
    (tmp_path / "out").mkdir()
    return Quickstart(tmp_path)


async def test_the_report_tells_what_is_in_the_files(quickstart: Quickstart) -> None:
    quickstart.write("docs/guide.md", f"# Guide\n\n## Part\n\n{TEXT}\n")
    quickstart.write("docs/copy.md", f"# Copy\n\n{TEXT}\n")
    quickstart.write("src/main.py", "# why\nprint()\nexit()\n")
    quickstart.write("src/.hidden/x.py", "print()\n")
    (quickstart.tree / "photo.png").write_bytes(b"\0")
    await quickstart.run()
    assert quickstart.files() == ["docs/copy.md", "docs/guide.md", "src/main.py"]
    assert quickstart.section("Documents") == [["docs/copy.md", "Copy", "1"], ["docs/guide.md", "Guide", "2"]]
    assert quickstart.section("Comments by language") == [["Python", "1", "2", "1", "33%"]]
    assert [row[1:] for row in quickstart.section("Similar files")] == [["docs/copy.md", "docs/guide.md"]]
    assert sum(int(row[-1]) for row in quickstart.section("Who did the work")) == 3
    assert f"the report is in {quickstart.report}" in quickstart.log


async def test_an_empty_directory_gives_an_empty_report(quickstart: Quickstart) -> None:
    quickstart.tree.mkdir()
    await quickstart.run()
    assert "0 files" in quickstart.report.read_text(encoding="utf-8")


async def test_a_second_run_reads_everything_again(quickstart: Quickstart) -> None:
    quickstart.write("stays.md", "# One\n")
    quickstart.write("goes.md", "")
    await quickstart.run()
    quickstart.write("stays.md", "# Two\n")
    (quickstart.tree / "goes.md").unlink()
    quickstart.write("comes.md", "")
    await quickstart.run()
    assert quickstart.files() == ["comes.md", "stays.md"]
    assert quickstart.section("Documents") == [["stays.md", "Two", "1"]]


def agents(process: subprocess.Popen[bytes], names: Iterable[str]) -> list[psutil.Process]:
    """The processes of some agents."""
    programs = {f"{name}.py" for name in names}
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            found += [child] if programs.intersection(child.cmdline()) else []
    return found


@pytest.mark.parametrize(
    ("victims", "noted"),
    [
        (["orchestrator"], 1),
        (["analyst"], 20),
        (["reporter"], 20),
        (["orchestrator", "analyst", "reporter"], 20),
    ],
    ids=["orchestrator", "analyst", "reporter", "all of them"],
)
async def test_nothing_is_lost_when_agents_are_killed(
    quickstart: Quickstart, victims: list[str], noted: int
) -> None:
    paths = [f"{number // 50}/{number}.py" for number in range(400)]
    for path in paths:
        quickstart.write(path, TEXT)
    with quickstart.running() as process:
        await until(lambda: quickstart.noted() >= noted, timeout=30)
        for victim in agents(process, victims):
            victim.kill()
        assert not quickstart.report.exists(), "they were killed too late"
        await quickstart.ended(process)
    assert all(f"{victim}-0: killed by SIGKILL" in quickstart.log for victim in victims)
    assert quickstart.files() == sorted(paths)
