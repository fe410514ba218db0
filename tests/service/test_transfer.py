"""`tesazure transfer` as a program, on files and a real web server."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tesazure.cli.exits import Code
from tests.contract.node import wait_for
from tests.service.tool import PROGRAM, Tool
from tests.services import certificates
from tests.services.drs_server import DrsServer
from tests.services.faulty_http import FaultyHttp, Handler

MB = 10**6


@pytest.fixture
def tool(tmp_path: Path) -> Tool:
    """No server is there; `transfer` needs none."""
    return Tool("http://127.0.0.1:9", tmp_path)


@pytest.fixture
def web() -> Iterator[FaultyHttp]:
    with FaultyHttp() as server:
        yield server


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A directory with files, odd names, an empty directory, a link to a file."""
    top = tmp_path / "tree"
    for name in ("a.txt", ".hidden", "sub/two words#?.txt", "sub/deeper/x.bin"):
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_bytes(os.urandom(1000))
    (top / "empty").mkdir()
    (top / "link").symlink_to("a.txt")
    return top


def contents(directory: Path) -> dict[str, bytes | None]:
    """What lies below a directory: files, and empty directories."""
    return {
        str(place.relative_to(directory)): None if place.is_dir() else place.read_bytes()
        for place in directory.rglob("*")
        if not place.is_dir() or not any(place.iterdir())
    }


def events(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in done.stdout.splitlines()]


def kinds(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [event["event"] for event in events(done)]


# -- what goes where ----------------------------------------------------------------------------


def test_directories_go_both_ways_whole(tool: Tool, tree: Path) -> None:
    put = tool("transfer", "put", "tree", f"file://{tool.here}/stored")
    assert contents(tool.here / "stored") == contents(tree)
    assert kinds(put) == ["started", *["done"] * 5, "finished"]
    assert events(put)[0].items() >= {"files": 5, "bytes": 5000}.items()
    assert events(put)[-1].items() >= {"files": 5, "bytes": 5000, "failures": 0}.items()
    assert put.stderr == ""
    tool("transfer", "get", f"file://{tool.here}/stored", "new/back")
    assert contents(tool.here / "new/back") == contents(tree)


def test_a_file_goes_to_a_path_or_into_a_directory(tool: Tool, web: FaultyHttp) -> None:
    url = web.add("/some dir/two words.txt", b"content").replace(" ", "%20")
    (tool.here / "there").mkdir()
    for path in ("deep/er/name", "there", "new/"):
        tool("transfer", "get", url, path)
    assert contents(tool.here) == dict.fromkeys(
        ["deep/er/name", "there/two words.txt", "new/two words.txt"], b"content"
    )
    told = tool("transfer", "get", web.add("/", b"index"), "there", code=Code.NOT_COMPLETE)
    assert "names no file" in told.stderr


def test_files_go_to_a_url_or_below_it(tool: Tool, tree: Path) -> None:
    tool("transfer", "put", "tree/a.txt", "stored/name")
    tool("transfer", "put", "tree/a.txt", "stored/below/")
    tool("transfer", "put", "tree/a.txt", "tree/sub", "stored/several")
    tool("transfer", "put", "tree/*.txt", "stored/pattern")
    text = (tree / "a.txt").read_bytes()
    assert contents(tool.here / "stored") == {
        **dict.fromkeys(["name", "below/a.txt", "several/a.txt", "pattern/a.txt"], text),
        **{f"several/sub/{name}": data for name, data in contents(tree / "sub").items()},
    }


def test_wildcards_choose(tool: Tool, tree: Path) -> None:
    def listed(url: str) -> set[str]:
        return {line.split("\t")[1] for line in tool("transfer", "ls", url).stdout.splitlines()}

    assert listed("tree/*") == {"a.txt", "link", "empty/"} | (
        deep := {"sub/two words#?.txt", "sub/deeper/x.bin"}
    )
    assert listed("tree/s*") == deep
    assert listed("tree/*/*.[tx]xt") == {"sub/two words#?.txt"}
    assert listed("tree/.h*") == {".hidden"}
    tool("transfer", "get", "tree/*/d*", "got")
    assert set(contents(tool.here / "got")) == {"sub/deeper/x.bin"}
    for verb in (["ls", "tree/*.none"], ["get", "tree/*.none", "x"], ["put", "none*", "x"]):
        assert "nothing matches" in tool("transfer", *verb, code=Code.NOT_FOUND).stderr


def test_two_files_cannot_go_to_one_place(tool: Tool, tree: Path) -> None:
    (tool.here / "other").mkdir()
    (tool.here / "other/a.txt").touch()
    told = tool("transfer", "put", "tree/a.txt", "other/a.txt", "stored", code=Code.NOT_COMPLETE)
    assert "both go there" in told.stderr
    assert contents(tool.here / "stored") == {"a.txt": (tree / "a.txt").read_bytes()}


def test_ls_and_stat(tool: Tool, tree: Path, web: FaultyHttp) -> None:
    lines = tool("transfer", "ls", "tree").stdout.splitlines()
    assert {"1000\ta.txt", "0\tempty/"} < set(lines)
    found = [
        json.loads(line) for line in tool("transfer", "ls", "tree", "--json").stdout.splitlines()
    ]
    assert {"path": "empty", "type": "DIRECTORY", "size": 0} in found
    assert tool("transfer", "ls", "tree/a.txt").stdout == "1000\ta.txt\n"
    assert tool("transfer", "stat", "tree").stdout == "type\tDIRECTORY\n"
    url = web.add("/x", b"12345")
    told = json.loads(tool("transfer", "stat", url, "--json").stdout)
    assert (told["type"], told["size"], told["version"]) == ("FILE", 5, '"v1"')
    assert told["checksum"].startswith("sha256:")
    with tool.start("transfer", "ls", "tree") as listing:  # a reader that goes away
        assert listing.stdout is not None
        listing.stdout.close()
        assert listing.stderr is not None
        assert listing.stderr.read() == ""
        assert listing.wait(30) == 0


# -- plans --------------------------------------------------------------------------------------


def test_a_plan_moves_all_that_can_be_moved(tool: Tool, tree: Path, web: FaultyHttp) -> None:
    plan = {
        "downloads": [
            {"url": web.add("/one", b"1"), "path": "in/one", "type": "FILE"},
            {"url": web.url("/missing?sig=hunter2"), "path": "in/missing"},
            {"url": str(tree), "path": "in/tree", "type": "DIRECTORY"},
        ],
        "uploads": [{"path": "tree/a.txt", "url": web.url("/up?sig=hunter3")}],
    }
    done = tool("transfer", "run", "-", stdin=json.dumps(plan), code=Code.NOT_FOUND)
    assert (tool.here / "in/one").read_bytes() == b"1"
    assert contents(tool.here / "in/tree") == contents(tree)
    assert web.objects["/up"].content == (tree / "a.txt").read_bytes()
    assert "404" in done.stderr
    [failed] = [event for event in events(done) if event["event"] == "failed"]
    assert (failed["url"], failed["path"]) == (web.url("/missing"), "in/missing")
    assert failed["exit_code"] == Code.NOT_FOUND
    assert events(done)[-1]["failures"] == 1
    assert "hunter" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not JSON"),
        ('{"downloads": [{"url": "file:///x"}]}', "downloads[0]: Object missing required field"),
        ('{"uploads": [{"url": "x", "path": "y", "typ": "FILE"}]}', "typ"),
        ('{"uploads": [{"url": "x", "path": "y", "type": "LINK"}]}', "uploads[0].type"),
        ("[]", "Expected `object`"),
    ],
)
def test_a_wrong_plan_is_refused_with_the_place(tool: Tool, text: str, said: str) -> None:
    (tool.here / "plan.json").write_text(text)
    assert said in tool("transfer", "run", "plan.json", code=Code.USAGE).stderr


# -- failures -----------------------------------------------------------------------------------


def test_exit_codes(tool: Tool, tree: Path, web: FaultyHttp) -> None:
    web.answers["/denied"] = lambda handler: handler.send_plain(403)
    for arguments, code in {
        ("get", web.url("/missing"), "x"): Code.NOT_FOUND,
        ("stat", "missing"): Code.NOT_FOUND,
        ("get", web.url("/denied"), "x"): Code.DENIED,
        ("stat", "http://169.254.169.254/metadata"): Code.DENIED,
        ("ls", "gopher://host/x"): Code.USAGE,
        ("put", "tree", "x", "--set", "no=such"): Code.USAGE,
        ("put", "tree", "x", "--set", "APP_STORAGE_ACCOUNT_KEY=hunter2"): Code.USAGE,
        ("get", web.url("/x"), "tree/a.txt/x"): Code.NOT_FOUND,
        ("put", "tree/a.txt", "tree/sub"): Code.NOT_COMPLETE,
    }.items():
        told = tool("transfer", *arguments, code=code)
        assert told.stderr.startswith("tesazure: "), arguments
        assert "hunter2" not in told.stderr
        assert "_KEY=" not in str(arguments) or "set APP_STORAGE_ACCOUNT_KEY in" in told.stderr
    assert not (tool.here / "x").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_a_full_disk_is_said(tool: Tool, web: FaultyHttp) -> None:
    small = tool.here / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", small], check=True)
    try:
        url = web.add("/large", os.urandom(3 * MB))
        told = tool("transfer", "get", url, "small/large", code=Code.FULL)
        assert "No space left" in told.stderr
        assert list(small.iterdir()) == []
    finally:
        subprocess.run(["umount", small], check=True)


def test_secrets_are_not_shown(tool: Tool, web: FaultyHttp) -> None:
    url = web.add("/x", b"x").replace("http://", "http://me:hunter1@") + "?sig=hunter2"
    gone = url.replace("/x?", "/gone?")
    for done in (
        tool("transfer", "get", url, "got"),
        tool("transfer", "stat", url),
        tool("transfer", "get", gone, "gone", code=Code.NOT_FOUND),
        tool("transfer", "ls", gone, code=Code.NOT_FOUND),
    ):
        assert "hunter" not in done.stdout + done.stderr


def test_a_drs_server_leads_to_allowed_files_only(tool: Tool, tmp_path: Path) -> None:
    """Whoever calls may read any file of their own; the server that they ask may not choose one."""
    certificate = certificates.make(tmp_path, "127.0.0.1")
    file = tool.here / "file"
    file.write_bytes(b"content")
    access = {"type": "file", "access_url": {"url": file.as_uri()}}
    with DrsServer("", certificate) as server:
        server.objects["object"] = {"id": "object", "checksums": [], "access_methods": [access]}
        arguments = ("transfer", "get", server.url("object"), "got")
        trusted = ("--set", f"ca_bundle={certificate.authority}")
        told = tool(*arguments, *trusted, code=Code.DENIED)
        assert "ALLOW_DIR" in told.stderr
        assert not (tool.here / "got").exists()
        tool(*arguments, *trusted, "--set", f"allow_dir={tool.here}")
    assert (tool.here / "got").read_bytes() == b"content"


@pytest.mark.parametrize(
    ("sent", "code", "event"),
    [
        (signal.SIGINT, Code.INTERRUPTED, "interrupted"),
        (signal.SIGTERM, Code.TERMINATED, "terminated"),
    ],
)
def test_an_interrupted_get_leaves_no_half_file(
    tool: Tool, sent: signal.Signals, code: Code, event: str
) -> None:
    with FaultyHttp(rate=1, faults=("stall",), in_a_row=100, stall_s=60) as web:
        url = web.add("/x", os.urandom(MB))
        with tool.start("transfer", "get", url, "dir/got") as process:
            assert web.asked.wait(30)
            wait_for(lambda: any(method == "GET" for method, _, _ in web.requests))
            process.send_signal(sent)
            began = time.monotonic()
            out, err = process.communicate(timeout=30)
        assert time.monotonic() - began < 10
    assert process.returncode == code
    assert json.loads(out.splitlines()[-1])["event"] == event
    assert "Traceback" not in err
    assert contents(tool.here) == {"dir": None}


# -- how it goes --------------------------------------------------------------------------------


def slow(pieces: int, pause_s: float) -> Any:
    """An answer that takes its time."""

    def answer(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(pieces * 1000))
        handler.end_headers()
        for _ in range(pieces if handler.command == "GET" else 0):
            handler.write(b"x" * 1000)
            handler.owner.closing.wait(pause_s)

    return answer


def test_progress_is_told_at_most_once_a_second(tool: Tool, web: FaultyHttp) -> None:
    web.answers["/slow"] = slow(25, 0.1)
    *said, last = events(tool("transfer", "get", web.url("/slow"), "got"))
    told = [event for event in said if event["event"] == "progress"]
    assert 1 <= len(told) <= last["seconds"]
    # The first one may be of a moment at which nothing had come.
    on_the_way = next(event for event in told if event["bytes_done"])
    assert on_the_way.items() >= {"files": 1, "files_done": 0, "bytes": 25_000}.items()
    assert on_the_way["bytes_done"] < 25_000
    assert 0 < on_the_way["bytes_per_s"] < 25_000


def test_a_terminal_gets_a_bar(tool: Tool, web: FaultyHttp) -> None:
    web.answers["/slow"] = slow(15, 0.1)
    shown = tool.on_terminal("transfer", "get", web.url("/slow"), "got")
    assert "0/1 file" in shown
    assert "kB/s" in shown
    assert "/15.0 kB" in shown
    assert "1 file, 15 kB in" in shown
    assert '"event"' not in shown
    as_json = tool.on_terminal("transfer", "get", web.url("/slow"), "got", "--json")
    assert [json.loads(line)["event"] for line in as_json.splitlines()][-1] == "finished"
    assert "kB/s" not in as_json


def test_what_is_not_needed_is_not_loaded(tool: Tool, tree: Path) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "tesazure.cli.main", "transfer"]
    done = subprocess.run(
        [*command, "stat", tree.as_uri()], check=True, capture_output=True, text=True, timeout=30
    )
    loaded = {
        line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()
    }
    assert "tesazure" in loaded
    heavy = {"azure", "botocore", "google", "httpx", "paramiko", "pycurl", "rich", "ssl"}
    assert not heavy & loaded


def test_help_says_how_a_plan_looks() -> None:
    done = subprocess.run(
        [*PROGRAM, "transfer", "run", "--help"], check=True, capture_output=True, text=True
    )
    assert '{"downloads": [' in done.stdout


def test_events_go_to_a_file_beside_a_bar(tool: Tool, web: FaultyHttp) -> None:
    """Standard error alone is a terminal."""
    ours, theirs = pty.openpty()
    with (tool.here / "events").open("wb") as target:
        subprocess.run(
            [*PROGRAM, "transfer", "get", web.add("/x", b"x"), "got"],
            stdout=target,
            stderr=theirs,
            cwd=tool.here,
            env={**os.environ, "TERM": "xterm-256color"},
            check=True,
            timeout=60,
        )
    os.close(theirs)
    os.close(ours)
    told = [json.loads(line) for line in (tool.here / "events").read_text().splitlines()]
    assert [event["event"] for event in told] == ["started", "done", "finished"]


@pytest.mark.parametrize("verb", [["ls", "tree"], ["stat", "tree"], ["get", "tree", "new"]])
def test_a_full_standard_output_is_said(tool: Tool, tree: Path, verb: list[str]) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [*PROGRAM, "transfer", *verb],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tool.here,
            check=False,
            timeout=60,
        )
    assert done.returncode == Code.FULL
    assert done.stderr == "tesazure: standard output: No space left on device\n"


# -- arguments and names that are odd -----------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["get", "", "x"], "is empty"),
        (["get", "tree", ""], "is empty"),
        (["put", "tree", ""], "is empty"),
        (["put", "tree", "", "x"], "is empty"),
        (["ls", ""], "is empty"),
        (["stat", ""], "is empty"),
        (["get", "tree", "az://runs/7"], "PATH is on this machine; use put"),
        (["put", "az://runs/7", "tree"], "PATH is on this machine; use get"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    tool: Tool, tree: Path, arguments: list[str], said: str
) -> None:
    told = tool("transfer", *arguments, code=Code.USAGE)
    assert said in told.stderr
    assert sorted(tool.here.iterdir()) == [tree]


def test_a_bad_item_does_not_stop_a_plan(tool: Tool, tree: Path, web: FaultyHttp) -> None:
    """What a URL's text alone tells, credentials' included."""
    bad = ["sftp://[x/y", "https://acct.blob.core.windows.net/c/../x", "drs://[x/y", "gopher://h/x"]
    items = [{"url": url, "path": f"bad{n}"} for n, url in enumerate(bad)]
    plan = {"downloads": [*items, {"url": web.add("/one", b"1"), "path": "one"}]}
    done = tool("transfer", "run", "-", stdin=json.dumps(plan), code=Code.USAGE)
    assert (tool.here / "one").read_bytes() == b"1"
    assert kinds(done) == ["started", *["failed"] * 4, "done", "finished"]
    assert events(done)[-1].items() >= {"files": 1, "failures": 4}.items()
    for verb in (["ls", bad[0]], ["stat", bad[1]]):
        tool("transfer", *verb, code=Code.USAGE)


def test_credentials_of_no_use_fail_what_needs_them(tool: Tool, web: FaultyHttp) -> None:
    key = {"type": "service_account", "client_email": "me@example.org", "private_key": "none"}
    (tool.here / "key.json").write_text(json.dumps(key | {"token_uri": "https://h.invalid/"}))
    plan = {
        "downloads": [
            {"url": "gs://b/x", "path": "x"},
            {"url": web.add("/one", b"1"), "path": "one"},
        ]
    }
    wrong = ("--set", "gcs_credentials_file=key.json")
    done = tool("transfer", "run", "-", *wrong, stdin=json.dumps(plan), code=Code.NOT_COMPLETE)
    assert kinds(done) == ["started", "failed", "done", "finished"]
    assert events(done)[-1].items() >= {"files": 1, "failures": 1}.items()


def test_devices_and_pipes_are_not_replaced(tool: Tool, tree: Path) -> None:
    os.mkfifo(tool.here / "pipe")
    (tool.here / "output").symlink_to("/dev/null")
    (tool.here / "link").symlink_to(tree / "sub/deeper/x.bin")
    for name, said in {"pipe": "is a named pipe", "output": "is a device"}.items():
        told = tool("transfer", "get", "tree/a.txt", name, code=Code.NOT_COMPLETE)
        assert said in told.stderr
    assert (tool.here / "pipe").is_fifo()
    assert (tool.here / "output").is_char_device()
    tool("transfer", "get", "tree/a.txt", "link")
    assert not (tool.here / "link").is_symlink()
    assert (tool.here / "link").read_bytes() == (tree / "a.txt").read_bytes()


def test_a_pattern_meets_only_what_it_can_match(tool: Tool, tree: Path) -> None:
    """A pipe that no pattern names, and a link that leads nowhere, are no concern."""
    os.mkfifo(tree / "sub/pipe")
    os.mkfifo(tree / "other")
    (tree / "nowhere").symlink_to("gone")
    tool("transfer", "get", "tree/*.txt", "got")
    tool("transfer", "get", f"{tree.as_uri()}/*/d*", "deep")
    assert set(contents(tool.here / "got")) == {"a.txt"}
    assert set(contents(tool.here / "deep")) == {"sub/deeper/x.bin"}
    assert "named pipe" in tool("transfer", "ls", "tree/s*", code=Code.NOT_COMPLETE).stderr


def test_names_are_shown_safely(tool: Tool, web: FaultyHttp) -> None:
    """Bytes that are no text, and what a terminal would obey."""
    top = tool.here / "odd"
    top.mkdir()
    (top / "red\x1b[31m").touch()
    (top / os.fsdecode(b"caf\xe9")).touch()
    shown = {"red\\x1b[31m", "caf\ufffd"}
    lines = tool("transfer", "ls", "odd").stdout.splitlines()
    assert {line.split("\t")[1] for line in lines} == shown
    as_json = tool("transfer", "ls", "odd", "--json").stdout.splitlines()
    assert {json.loads(line)["path"] for line in as_json} == shown
    terminal = tool.on_terminal("transfer", "ls", "odd")
    assert all(name in terminal for name in shown)
    assert "\x1b" not in tool("transfer", "get", "odd", "copy").stdout + terminal
    missing = os.fsdecode(b"caf\xe9") + "/x"
    (tool.here / os.fsdecode(b"caf\xe9")).touch()
    done = tool("transfer", "get", web.add("/y", b"y"), missing, code=Code.NOT_COMPLETE)
    assert "caf\ufffd" in done.stdout


def test_sigterm_ends_a_list(tool: Tool) -> None:
    over = threading.Event()
    with FaultyHttp() as web:
        url = web.add("/x", b"x")
        web.answers["/x"] = lambda _: over.wait(60)
        with tool.start("transfer", "stat", url) as process:
            assert web.asked.wait(30)
            process.send_signal(signal.SIGTERM)
            _, err = process.communicate(timeout=30)
        over.set()
    assert process.returncode == Code.TERMINATED
    assert err == "tesazure: terminated\n"
