"""What engines say and are told: image references, refusals, bodies, frames, progress."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from tesazure.errors import ImageUnavailable
from tesazure.plan import Step
from tesazure.runner.engines.base import Container, Exit, Mount
from tesazure.runner.engines.docker_client import without_queries
from tesazure.runner.engines.docker_create import create_body, exec_failure, start_failure
from tesazure.runner.engines.docker_streams import STDERR, STDOUT, Demultiplexer
from tesazure.runner.engines.images import Progress, check_reference
from tesazure.runner.engines.oom import OomWatch, kills
from tesazure.runner.engines.podman_create import specification

DIGEST = "sha256:" + "0123456789abcdef" * 4


@pytest.mark.parametrize(
    "image",
    [
        "busybox",
        "busybox:1.36",
        "library/busybox",
        "docker.io/library/busybox:latest",
        f"busybox@{DIGEST}",
        f"quay.io/biocontainers/bwa:0.7.17--h7132678_9@{DIGEST}",
        "localhost:5000/a/b_c/d__e/f-g.h:Tag_1.0-x",
        "[::1]:5000/a",
        "registry.example.COM/a",
        DIGEST,
    ],
)
def test_references(image: str) -> None:
    check_reference(image)


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        ("", "empty"),
        ("-v/:/host", "dash"),
        ("--privileged", "dash"),
        ("a b", "white space"),
        ("busybox\n", "white space"),
        ("BusyBox", "lower case"),
        ("../../containers/json", "of the form"),
        ("a/../b", "of the form"),
        ("busybox:", "of the form"),
        ("busybox@sha256:12", "of the form"),
        ("https://example.org/a", "of the form"),
        ("busybox?x=1", "of the form"),
        ("a" * 10 + "\0", "of the form"),
    ],
)
def test_references_that_cannot_be(image: str, reason: str) -> None:
    with pytest.raises(ImageUnavailable, match=reason):
        check_reference(image)


OCI_20 = "OCI runtime create failed: container_linux.go:380: starting container process caused: "
OCI_28 = (
    "failed to create task for container: failed to create shim task: OCI runtime create failed:"
    " runc create failed: unable to start container process: error during container init: "
)
PODMAN = (
    "preparing container 0123 for attach: runc: runc create failed: unable to start container"
    " process: "
)


@pytest.mark.parametrize(
    ("words", "exit_code"),
    [
        (OCI_20 + 'exec: "nosuch": executable file not found in $PATH: unknown', 127),
        (OCI_28 + 'exec: "/no/such": stat /no/such: no such file or directory: unknown', 127),
        (OCI_28 + 'exec: "/no/such": stat /no/such: no such file or directory', 127),
        (PODMAN + 'exec: "x y": executable file not found in $PATH: OCI runtime attempted', 127),
        ("crun: executable file `nosuch` not found in $PATH: No such file or directory", 127),
        (OCI_20 + 'exec: "/etc/passwd": permission denied: unknown', 126),
        (OCI_28 + 'exec: "/etc": is a directory: unknown', 126),
        (PODMAN + 'exec: "/etc": permission denied: OCI permission denied', 126),
        ("crun: open executable: Permission denied: OCI permission denied", 126),
        ("Cannot mkdir: /etc/passwd is not a directory", 126),
        ('workdir "/etc/passwd" exists on container 01, but is not a directory', 126),
        (OCI_28 + 'chdir to cwd ("/root") set in config.json failed: permission denied', 126),
    ],
)
def test_refusals_for_the_commands_sake(words: str, exit_code: int) -> None:
    failure = start_failure(words)
    assert failure is not None
    assert failure.exit_code == exit_code
    assert failure.detail in words


@pytest.mark.parametrize(
    "words",
    [
        'error mounting "/a" to rootfs at "/b": stat /a: no such file or directory: unknown',
        "unable to find user nosuch: no matching entries in passwd file",
        "Minimum memory limit allowed is 6MB",
        "crun: mount `/a` to `b`: Permission denied: OCI permission denied",
    ],
)
def test_other_refusals_are_the_engines(words: str) -> None:
    assert start_failure(words) is None


@pytest.mark.parametrize(
    ("exit_code", "stderr", "expected"),
    [
        (1, b"standard_init_linux.go:228: exec user process caused: exec format error\n", 126),
        (255, b"exec /x y: exec format error\n", 126),
        (1, b"exec /x: no such file or directory\n", 127),
        (255, b"exec /x: permission denied", 126),
        (2, b"exec /x: exec format error\n", None),
        (1, b"more\nexec /x: exec format error\n", None),
        (1, b"sh: exec: line 0: /x: not found\n", None),
    ],
)
def test_complaints_that_come_late(exit_code: int, stderr: bytes, expected: int | None) -> None:
    failure = exec_failure(exit_code, stderr)
    assert (failure and failure.exit_code) == expected


def container(**changes: object) -> Container:
    step = Step("busybox", ["sh", "-c", "x"], env={"A": "b=c"}, workdir="/w")
    fields: dict[str, object] = {
        "key": "k",
        "index": 1,
        "step": step,
        "root": Path("/root"),
        "shared": (),
        "mounts": (),
        "stdin": None,
        "stdout": Path("o"),
        "stderr": Path("e"),
        "cpu_cores": None,
        "ram_bytes": None,
        "network": True,
    }
    return Container(**(fields | changes))  # type: ignore[arg-type]


def test_the_body_overrides_the_entrypoint_and_gives_no_privileges() -> None:
    body = create_body(container(), [])
    assert (body["Entrypoint"], body["Cmd"]) == (["sh"], ["-c", "x"])
    assert body["HostConfig"]["SecurityOpt"] == ["no-new-privileges"]
    assert not {"Privileged", "CapAdd", "NetworkMode", "Memory"} & body["HostConfig"].keys()


def test_limits_are_clamped_to_what_docker_takes() -> None:
    host = create_body(container(ram_bytes=1, cpu_cores=0.001), [])["HostConfig"]
    assert host["Memory"] == host["MemorySwap"] == 6 * 2**20
    assert host["NanoCpus"] == 10**7
    many = create_body(container(cpu_cores=float(os.cpu_count() or 1)), [])["HostConfig"]
    assert "NanoCpus" not in many


def test_podman_gets_paths_as_they_are() -> None:
    mount = Mount(Path("/h,source=/etc"), "/c:x,ro", read_only=True)
    body = create_body(container(ram_bytes=10**9, cpu_cores=0.5, network=False), [mount])
    made = specification(body, "name")
    assert made["mounts"] == [
        {
            "type": "bind",
            "source": "/h,source=/etc",
            "destination": "/c:x,ro",
            "options": ["rbind", "ro"],
        }
    ]
    assert made["env"] == {"A": "b=c"}
    assert made["resource_limits"]["memory"] == {"limit": 10**9, "swap": 10**9}
    assert made["resource_limits"]["cpu"] == {"period": 100_000, "quota": 50_000}
    assert made["netns"] == {"nsmode": "none"}
    assert made["no_new_privileges"] is True


def frame(stream: int, payload: bytes) -> bytes:
    return struct.pack(">BxxxL", stream, len(payload)) + payload


@pytest.mark.parametrize("size", [1, 2, 7, 8, 9, 100])
def test_frames_are_taken_apart_wherever_they_are_cut(tmp_path: Path, size: int) -> None:
    data = (
        frame(1, b"out") + frame(2, b"err") + frame(1, b"") + frame(1, bytes(300)) + frame(3, b"x")
    )
    with (tmp_path / "o").open("wb") as out, (tmp_path / "e").open("wb") as err:
        demultiplexer = Demultiplexer({STDOUT: out.fileno(), STDERR: err.fileno()})
        for start in range(0, len(data), size):
            demultiplexer.feed(memoryview(data[start : start + size]))
    assert (tmp_path / "o").read_bytes() == b"out" + bytes(300)
    assert (tmp_path / "e").read_bytes() == b"err"
    assert demultiplexer.received == {STDOUT: 303, STDERR: 3}
    assert demultiplexer.stderr_head == b"err"


def test_progress() -> None:
    progress = Progress()
    for event in (
        {"status": "Pulling from library/x", "id": "latest"},
        {"status": "Pulling fs layer", "id": "a"},
        {"status": "Already exists", "id": "b"},
        {
            "status": "Downloading",
            "id": "a",
            "progressDetail": {"current": 10**6, "total": 4 * 10**6},
        },
        {"status": "Digest: sha256:0"},
    ):
        progress.take(event)
    assert str(progress) == "1 of 2 layers, 1 of 4 MB"
    progress.take({"status": "Pull complete", "id": "a"})
    assert str(progress).startswith("2 of 2 layers")


def test_signed_urls_lose_their_signature() -> None:
    text = 'Get "https://x.blob.core.windows.net/a/b?sv=1&sig=SECRET": dial tcp:\n timeout'
    assert (
        without_queries(text) == 'Get "https://x.blob.core.windows.net/a/b?...": dial tcp: timeout'
    )


@pytest.mark.parametrize(
    ("membership", "counter"),
    [
        ("5:cpu:/x\n4:memory:/pod/c\n0::/y\n", "memory/pod/c/memory.oom_control"),
        ("0::/pod/c\n", "pod/c/memory.events"),
    ],
)
def test_out_of_memory_is_read_from_the_cgroup(
    tmp_path: Path, membership: str, counter: str
) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7/cgroup").write_text(membership)
    file = tmp_path / counter
    file.parent.mkdir(parents=True)
    file.write_text("low 0\noom_kill 0\n")
    watch = OomWatch.open(7, tmp_path, tmp_path)
    assert watch is not None
    watch.look()
    assert not watch.killed
    file.write_text("low 0\noom_kill 2\n")
    watch.look()
    assert watch.killed
    watch.close()
    assert OomWatch.open(8, tmp_path, tmp_path) is None
    assert kills(b"oom_kill_disable 0\nunder_oom 0\n") == 0


def test_an_exit_is_a_value() -> None:
    assert start_failure('exec: "x": executable file not found in $PATH') == Exit(
        127, detail='exec: "x": executable file not found'
    )
