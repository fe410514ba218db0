"""The shell blocks of the documentation, each page's in its order, against a real server.

Somebody reads a page in a directory of their own and types what it says. Only what is theirs to say
differs: ports, directories, ids. tests/docs/blocks.py says how a page excepts a block.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from tests.conftest import need_sandbox, refuse, shared
from tests.docs.blocks import PAGES, ROOT, blocks
from tests.service import vaults
from tests.service.server import end_runners, environment, until
from tests.services.azurite import Azurite
from tests.services.entra_server import IDENTITY_HEADER
from tests.services.loopback_http import LoopbackHttp, QuietHandler
from tests.services.postgresql import PostgreSQL

PATIENCE_S = 110.0
"""For one block, on a busy machine."""
WRITTEN = "http://127.0.0.1:8000"
"""Where the pages say that the server is."""
IDLE = "http://127.0.0.1:9"


class Reader:
    """Follows a page in the directory `here`, with more `environment` than a new user's.

    A block with `serve` in it runs until the next such block, or the end of the page; what follows
    goes to that server.
    """

    def __init__(self, page: Path, here: Path) -> None:
        self.here = here
        self.log = here / "server.log"
        self.environment = environment(local_engine="sandbox", port=0) | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(here),
            "TZ": "UTC",
        }
        self._left = [block for block in blocks(page, "sh") if not block.remark]
        self._server: subprocess.Popen[bytes] | None = None
        self._url = IDLE
        self.aside = ""
        """What the last commands wrote to standard error."""

    def finish(self) -> None:
        """End what runs."""
        if self._server is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._server.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._server.wait(20)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._server.pid, signal.SIGKILL)
            self._server.wait()
            self._server = None
        end_runners(self.here / "tesazure-data")

    def all_is_done(self) -> None:
        """AssertionError if there is another block."""
        assert not self._left, f"nobody runs {self._left[0]}"

    def next(self, here: Mapping[str, str] | None = None) -> str:
        """Run the next block, with other words in its places; what it printed.

        Each place must occur in it.
        """
        block = self._left.pop(0)
        text = block.text
        for written, meant in (here or {}).items():
            assert written in text, f"{block}: {written} is not in it:\n{text}"
            text = text.replace(written, meant)
        if re.search(r"^(tesazure|make) serve\b", text, re.MULTILINE):
            self.serve(text)
            return ""
        return self.type(text.replace(WRITTEN, self._url), str(block))

    def type(self, text: str, what: str = "") -> str:
        """Run commands that no page has; what they printed."""
        done = subprocess.run(
            ["sh", "-euc", text],
            cwd=self.here,
            env=self.environment | {"TESAZURE_SERVER": self._url},
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE_S,
        )
        said = self.log.read_text()[-3000:] if self.log.exists() else ""
        assert done.returncode == 0, f"{what}:\n{text}\n{done.stdout}{done.stderr}\n{said}"
        self.aside = done.stderr
        return done.stdout

    def serve(self, text: str = "tesazure serve") -> None:
        """Start a server, also one that the page tells nothing about, instead of the last one."""
        self.finish()
        said = self.here / "server.out"
        # In the shell's place, so that a signal ends it, and its end is what is waited for.
        text = re.sub(r"^(?=(tesazure|make) serve\b)", "exec ", text, flags=re.MULTILINE)
        with self.log.open("wb") as log, said.open("wb") as out:
            self._server = subprocess.Popen(
                ["sh", "-euc", text],
                cwd=self.here,
                env=self.environment,
                stdout=out,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + PATIENCE_S
        while not (found := re.findall(r"listening on (http://[\w.:]+)", said.read_text())):
            account = f"{text}\n{self.log.read_text()}"
            assert self._server.poll() is None, account
            assert time.monotonic() < deadline, account
            time.sleep(0.05)
        self._url = str(found[0])


def readme(page: Reader) -> None:
    """In a checkout whose .venv is the one that runs this test, just made."""
    for source in ROOT.iterdir():
        if not source.name.startswith((".", "demo-output", "examples", "tesazure-data")):
            (page.here / source.name).symlink_to(source)
    shutil.copytree(ROOT / "examples", page.here / "examples")
    (page.here / ".venv").mkdir()
    for part in ("bin", "lib", "pyvenv.cfg"):
        (page.here / ".venv" / part).symlink_to(Path(sys.prefix) / part)
    (page.here / ".venv/.base-installed").touch()
    said = page.next()
    (sample, *_) = blocks(ROOT / "README.md", "text")
    for line in sample.text.splitlines()[1:]:
        shown = line.partition(" ")[2] if re.match(r"\d\d:", line) else line
        assert shown in said or shown == "...", f"not shown by the demo: {line}"
    # 8000 may be taken here.
    page.next({'--allow-dir $PWD"': '--allow-dir $PWD --port 0"'})
    task = json.loads(page.next())["id"]
    shown = json.loads(page.next({"019aabc10f424c9ffa94c5a4e4af": task}))
    assert shown["id"] == task
    assert shown["executors"]
    shutil.rmtree(page.here / "demo-output")
    page.next()
    assert " COMPLETE\n" in page.aside
    assert f"  file://{page.here}/demo-output/summary.txt\n" in page.aside
    assert "GC         49.86 %" in (page.here / "demo-output/summary.txt").read_text()
    assert len(list((page.here / "demo-output/fragments").iterdir())) == 7
    assert task in page.type("tesazure list")
    assert "Hello, world" in page.type(f"tesazure wait {task} && tesazure logs -f {task}")


TAGGED = (
    "tesazure run --wait --tag ms-submitter-workflow-id=run-7 --tag project=covid any -- echo hi"
)


def usage(page: Reader) -> None:
    jobs = page.here / "srv/jobs"
    jobs.mkdir(parents=True)
    page.next({"/srv": str(page.here / "srv")})
    page.type(TAGGED)
    said = page.next({"ID": "run-7"})
    assert '"COMPLETE"' in said
    assert "run-7" in said
    total = json.loads(page.next().splitlines()[-1])
    assert set(total) == {"tasks", "estimated_cost_usd"}


def clients(page: Reader) -> None:
    first = "$(tesazure token list | sed -n 's/^\\([0-9a-f]\\{16\\}\\).*/\\1/p' | head -1)"
    said = page.next({"7eedf69a5c4bc048": first})
    assert said.count("tesz_") == 2
    assert "monitor" in said
    page.next({"/tes-wd/shared-global": str(page.here / "shared-global")})
    (page.here / "toil").mkdir()
    page.next({"/srv/toil": str(page.here / "toil")})


def cromwell(page: Reader) -> None:
    (page.here / "cromwell").mkdir()
    page.next({"/srv/cromwell": str(page.here / "cromwell")})
    page.type(TAGGED)
    task = page.type("tesazure list").splitlines()[-1].split()[0]
    said = page.next({" ID": " run-7", "TASK": task})
    assert said.count(task) == 1
    assert "\nhi\n" in said


def batch(page: Reader) -> None:
    """On one machine: the task is the same."""
    page.serve()
    assert page.next().splitlines()[-1].strip().isdigit()


def configuration(page: Reader) -> None:
    with vaults.site(page.here / "azure") as site:
        site.vault.set("TESAZURE-LEASE-S", "12.5")
        given = {f"APP_{name.upper()}": value for name, value in site.anonymous.items()}
        page.environment |= given | {
            "IDENTITY_ENDPOINT": site.entra.msi_endpoint,
            "IDENTITY_HEADER": IDENTITY_HEADER,
        }
        said = page.next({"https://my-vault.vault.azure.net": site.vault.url})
    assert re.search(r"LEASE_S\s+12\.5\s+Key Vault", said)


def observability(page: Reader) -> None:
    if not shutil.which("jq"):
        refuse("jq is not installed")
    page.serve()
    task = page.type("tesazure run any -- true && tesazure list | tail -1").split()[0]
    page.type(f"tesazure wait {task}")
    lines = page.next({"01a2054fc38157667a8d197fe6d1": task}).splitlines()
    assert {json.loads(line)["task"] for line in lines} == {task}


def operations(page: Reader) -> None:
    """Backups are taken while the server works, and are put back after more has happened."""
    for program in ("sqlite3", "pg_dump"):
        if not shutil.which(program):
            refuse(f"{program} is not installed")
    shared_global = page.here / "shared-global"
    page.environment |= {"APP_LOCAL_CPU_CORES": "1", "APP_SHARED_GLOBAL_DIR": str(shared_global)}
    goes_back(page, shared_global, {}, {})
    with PostgreSQL(page.here / "pg") as cluster:
        cluster.execute("CREATE DATABASE tesazure")
        page.environment |= {
            "APP_DATABASE_URL": cluster.url("tesazure"),
            "APP_DATA_DIR": str(page.here / "of-postgresql"),
        }
        written = "--host db.example.org --username tesazure"
        here = {written: f"--host 127.0.0.1 --port {cluster.port} --username postgres"}
        url = {"postgresql://tesazure@db.example.org/restored": cluster.url("restored")}
        try:
            goes_back(page, shared_global, here, here | url)
        finally:
            page.finish()


def goes_back(
    page: Reader, shared_global: Path, backup: Mapping[str, str], restore: Mapping[str, str]
) -> None:
    """The page's next two blocks make a backup and restore it: of a task that had ended, one that
    ran, and one that was queued, all of which end before the restore; another one comes later."""
    shutil.rmtree(shared_global, ignore_errors=True)
    shared_global.mkdir(mode=0o777)
    place = "/tes-wd/shared-global"
    wait = f"until [ -e {place}/go ]; do sleep 0.1; done"
    page.serve()
    before = page.type("tesazure run --wait any -- echo before").split()[0]
    running = page.type(f"tesazure run any -- sh -c 'echo running >> {place}/ran; {wait}'").strip()
    until((shared_global / "ran").exists, 60)
    until(lambda: running in page.type("tesazure list --state RUNNING"), 60)
    queued = page.type(f"tesazure run any -- sh -c 'echo queued >> {place}/ran'").strip()
    page.next(backup)
    (shared_global / "go").touch()
    page.type(f"tesazure wait {running} && tesazure wait {queued}")
    later = page.type("tesazure run --wait any -- echo later").split()[0]
    page.finish()
    page.next(restore)
    page.type(f"tesazure wait {running} && tesazure wait {queued}")
    assert (shared_global / "ran").read_text().split() == ["running", "queued", "queued"]
    found = [json.loads(page.type(f"tesazure get {task}")) for task in (before, running, queued)]
    assert [each["state"] for each in found] == ["COMPLETE"] * 3
    assert [len(each["logs"]) for each in found] == [1, 1, 1]
    assert found[0]["logs"][0]["logs"][0]["stdout"] == "before\n"
    assert page.type(f"tesazure get {later} || echo none").strip().endswith("none")
    assert page.type("tesazure run --wait any -- echo again")


def storage(page: Reader) -> None:
    azurite = shared(Azurite)
    page.environment |= {
        "APP_STORAGE_ACCOUNT_NAME": azurite.account,
        "APP_STORAGE_ACCOUNT_KEY": azurite.key,
        "APP_STORAGE_BLOB_ENDPOINT": azurite.endpoint,
    }

    class Handler(QuietHandler):
        def do_GET(self) -> None:
            self.reply(200, b"genome")

        do_HEAD = do_GET

    for name in (
        "results.tsv",
        "results/sum",
        "plots/one.png",
        "in/a_1.fq.gz",
        "in/b_2.fq.gz",
        "out/report.html",
    ):
        file = page.here / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(name)
    with azurite.container() as reads, azurite.container() as runs, LoopbackHttp(Handler) as web:
        page.type(f"tesazure transfer put in az://{reads}/run-7")
        here = {"az://reads": f"az://{reads}", "az://runs": f"az://{runs}"}
        here["https://example.org"] = web.origin
        (plan,) = (each.text for each in blocks(ROOT / "docs/storage.md", "json"))
        for written, meant in here.items():
            assert written in plan
            plan = plan.replace(written, meant)
        (page.here / "plan.json").write_text(plan)
        said = page.next(here)
    assert "plots/one.png" in said
    assert (page.here / "reads/a_1.fq.gz").read_text() == "in/a_1.fq.gz"
    assert (page.here / "in/genome.fa.gz").read_text() == "genome"
    assert (page.here / "in/reads/b_2.fq.gz").exists()


RUN: dict[str, Callable[[Reader], None]] = {
    "README.md": readme,
    "docs/batch.md": batch,
    "docs/clients.md": clients,
    "docs/configuration.md": configuration,
    "docs/cromwell.md": cromwell,
    "docs/observability.md": observability,
    "docs/operations.md": operations,
    "docs/storage.md": storage,
    "docs/usage.md": usage,
}


def test_no_page_with_commands_is_left_out() -> None:
    with_commands = {
        str(page.relative_to(ROOT))
        for page in PAGES
        if any(not block.remark for block in blocks(page, "sh"))
    }
    assert with_commands == set(RUN)


@pytest.fixture
def here(short_dir: Path) -> Iterator[Path]:
    need_sandbox()
    yield short_dir


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", RUN)
def test_what_a_page_says_works(name: str, here: Path) -> None:
    page = Reader(ROOT / name, here)
    try:
        RUN[name](page)
        page.all_is_done()
    finally:
        page.finish()
