"""`make demo`: a real server, a real task on real data, all of it shown. Exit code 0 if it worked.

The task is that of examples/: executor 0 cuts the genome of phage lambda as an enzyme does,
executor 1 sorts the fragments that it left on a shared volume and writes their checksums.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import sys
import time
from pathlib import Path
from typing import NamedTuple

import msgspec

from tesazure import settings
from tesazure.cli import engines, show, watch
from tesazure.cli.client import Json
from tesazure.cli.exits import Code, Failure
from tesazure.cli.process import ServerProcess
from tesazure.errors import ConfigurationError
from tesazure.model import Executor, FileType, Input, Output, Resources, State, Task

EXAMPLES = Path(__file__).parents[3] / "examples"
GENOME = EXAMPLES / "lambda_phage.fa"
PULLED = "docker.io/library/busybox:stable"
PULL_S = 20.0
TASK_S = 90.0
SUITABLE = ("debian", "ubuntu", "busybox", "alpine")
"""Names of images that have a shell, awk, sort and sha256sum."""


class Choice(NamedTuple):
    """What the demo's server runs the task with."""

    engine: str
    image: str
    remark: str = ""


def main(arguments: list[str] | None = None) -> int:
    """Run the demo; its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tesazure.cli.demo", description=__doc__)
    parser.add_argument(
        "--dir", type=Path, default=Path("demo-output"), help="where results go (demo-output)"
    )
    directory: Path = parser.parse_args(arguments).dir.absolute()
    try:
        return Demo(directory).run()
    except ConfigurationError as error:
        said = ("these settings cannot work:", *error.problems)
        code = Code.USAGE
    except Failure as failure:
        said = (str(failure), *failure.details)
        code = failure.code
    except OSError as error:
        said = (f"{directory}: {error}",)
        code = Code.USAGE
    except KeyboardInterrupt:
        said = ("interrupted",)
        code = Code.INTERRUPTED
    print("\n  ".join(("demo failed: " + said[0], *said[1:])), file=sys.stderr)
    return code


class Demo:
    """One run, its files below one directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._results = directory / "results"
        self._data = directory / "server"
        self._out = show.console()

    def run(self) -> int:
        """All of it, in order. Raises Failure for what keeps the task from being run."""
        began = time.monotonic()
        if not GENOME.is_file():
            raise Failure(Code.USAGE, f"{GENOME} is missing: run the demo from a source checkout")
        for place in (self._results, self._data):
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir(parents=True)
        choice = choose(settings.load().settings)
        if choice.remark:
            self._out.print(choice.remark, style="bold yellow")
        log = self._directory / "server.log"
        with ServerProcess(self._flags(choice), log) as server:
            info = server.client.service_info()
            version = info.get("version", "")
            self._say(f"server {version} at {server.root}, engine {choice.engine}, its log: {log}")
            document = msgspec.json.encode(self._task(choice.image))
            task_id = server.client.create(document)
            self._say(f"POST {server.root}/ga4gh/tes/v1/tasks: task {task_id}")
            for _, state in watch.changes(server.client, [task_id], TASK_S):
                self._out.print(show.clock(), show.state_text(state))
            task = server.client.get(task_id, "FULL")
            self._show(task)
            problems = self._problems(task)
        self._close(server.root, time.monotonic() - began)
        if problems:
            raise Failure(Code.NOT_COMPLETE, "the task did not do what it should:", *problems)
        return Code.OK

    def _say(self, text: str) -> None:
        self._out.print(show.clock(), text)

    def _flags(self, choice: Choice) -> list[str]:
        """The embedded defaults, whatever the environment says."""
        return [
            *("--host", "127.0.0.1", "--data-dir", str(self._data), "--engine", choice.engine),
            *("--allow-dir", str(EXAMPLES), "--allow-dir", str(self._results)),
            *("--set", "DATABASE_URL=", "--set", "SCHEDULER=true"),
        ]

    def _task(self, image: str) -> Task:
        files = [GENOME, EXAMPLES / "digest.sh", EXAMPLES / "ladder.sh"]
        outputs = {
            "/shared/summary.txt": FileType.FILE,
            "/shared/ladder.tsv": FileType.FILE,
            "/shared/SHA256SUMS": FileType.FILE,
            "/shared/fragments": FileType.DIRECTORY,
        }
        return Task(
            name="lambda-digest",
            description="Cut the genome of phage lambda with HindIII and sort the fragments",
            inputs=[
                Input(path=f"/in/{file.name}", url=file.as_uri(), type=FileType.FILE)
                for file in files
            ],
            outputs=[
                Output(path=path, url=(self._results / Path(path).name).as_uri(), type=kind)
                for path, kind in outputs.items()
            ],
            executors=[
                Executor(
                    image=image,
                    command=["sh", "/in/digest.sh", f"/in/{GENOME.name}", "/shared"],
                    stdout="/shared/summary.txt",
                ),
                Executor(
                    image=image,
                    command=["sh", "/in/ladder.sh", "/shared"],
                    stdout="/shared/ladder.tsv",
                ),
            ],
            volumes=["/shared"],
            resources=Resources(cpu_cores=1, ram_gb=0.25, disk_gb=0.1),
            tags={"example": "lambda"},
        )

    def _show(self, task: Json) -> None:
        attempt = show.last_attempt(task)
        self._out.print("\nsystem logs of the task")
        for line in attempt.get("system_logs") or []:
            self._out.print(f"  {line}")
        self._out.print()
        self._out.print(show.executors(task["executors"], attempt.get("logs") or []))
        if attempt.get("outputs"):
            self._out.print(show.outputs(attempt["outputs"]))
            self._out.print()
        for name in ("summary.txt", "ladder.tsv"):
            file = self._results / name
            if file.is_file():
                self._out.print(f"{name}:")
                for line in file.read_text().expandtabs(10).splitlines():
                    self._out.print(f"  {line}")
                self._out.print()

    def _problems(self, task: Json) -> list[str]:
        """What is not as it must be: the state, the exit codes, each file's checksum."""
        attempt = show.last_attempt(task)
        if task["state"] != State.COMPLETE:
            tails = [str(log.get("stderr") or "") for log in attempt.get("logs") or []]
            return [f"it ended {task['state']}", *filter(None, tails)]
        codes = [log.get("exit_code") for log in attempt["logs"]]
        problems = [f"exit codes {codes}"] if codes != [0, 0] else []
        sums = (self._results / "SHA256SUMS").read_text().splitlines()
        for line in sums:
            wanted, name = line.split()
            file = self._results / "fragments" / name
            if hashlib.sha256(file.read_bytes()).hexdigest() != wanted:
                problems.append(f"{file} is not what the task wrote")
        if not problems:
            self._out.print(f"{len(sums)} checksums of the fragments agree")
        return problems

    def _close(self, root: str, seconds: float) -> None:
        self._out.print(f"results are in {self._results}")
        self._out.print(
            f"the API was at {root}/ga4gh/tes/v1, described at {root}/docs; the server has been"
            " stopped. `make serve` leaves one at http://127.0.0.1:8000 (see /docs there)."
        )
        self._out.print(f"{seconds:.1f} s in all")


def choose(configured: settings.Settings) -> Choice:
    """The best engine that can really run the task: one that has a suitable image or gets one.

    Raises Failure when there is none, or not the one that APP_LOCAL_ENGINE asks for.
    """
    from tesazure.compose import EngineName, engine_of

    wanted = configured.local_engine
    reasons: list[str] = []
    containers: tuple[EngineName, ...] = ("docker", "podman")
    for name in containers:
        if wanted not in ("auto", name):
            continue
        try:
            image = _image(engines.Engine(name, engine_of(configured, name).host))
        except ConfigurationError as error:
            reasons += error.problems[1:]
            continue
        except engines.EngineError as error:
            reasons.append(f"{name}: {error}")
            continue
        if image:
            return Choice(name, image)
        reasons.append(f"{name} runs, but has no image with a shell and cannot get {PULLED}")
    if wanted in ("auto", "sandbox"):
        try:
            engine_of(configured, "sandbox")
        except ConfigurationError as error:
            reasons += error.problems[1:]
        else:
            why = [f"\n  {reason}" for reason in reasons]
            remark = (
                "NO CONTAINER ENGINE: the task runs in the sandbox, with this machine's own"
                f" programs instead of an image.{''.join(why)}\n"
            )
            return Choice("sandbox", "debian:stable-slim", remark)
    remedy = "start Docker or Podman, or: apt install bubblewrap"
    raise Failure(Code.USAGE, "nothing here can run a task:", *reasons, remedy)


def _image(engine: engines.Engine) -> str | None:
    """A suitable image that the engine has, or has got within PULL_S."""
    here = engine.images()
    for name in SUITABLE:
        for reference in here:
            if reference.rpartition("/")[2].partition(":")[0] == name:
                return reference
    print(f"{engine.name} has no suitable image; trying to pull {PULLED}", file=sys.stderr)
    return PULLED if engine.pull(PULLED, PULL_S) else None


if __name__ == "__main__":
    sys.exit(main())
