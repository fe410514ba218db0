"""secrecy: what is secret in URLs is found, and nothing else is touched."""

from __future__ import annotations

import pytest

from tesazure.access import Access, S3Key
from tesazure.model import Executor, Input, Output, Task
from tesazure.secrecy import Censor, censor_of, cut, hide, is_hidden, is_secret, of_field

SIGNED = "https://a.blob.core.windows.net/c/b.txt?sv=2022-11-02&se=2026-12-01&sr=b&sp=r&sig="

CASES = {
    SIGNED + "ab%2Bc%3D": SIGNED + "***",
    SIGNED.replace("sig=", "SIG=") + "x&api-version=1": SIGNED.replace("sig=", "SIG=")
    + "***&api-version=1",
    "s3://b/k?X-Amz-Algorithm=A&X-Amz-Credential=ID/2026/s3&X-Amz-Date=2026&X-Amz-Expires=60"
    "&X-Amz-Security-Token=tok&X-Amz-Signature=f00&X-Amz-SignedHeaders=host": "s3://b/k"
    "?X-Amz-Algorithm=A&X-Amz-Credential=***&X-Amz-Date=2026&X-Amz-Expires=60"
    "&X-Amz-Security-Token=***&X-Amz-Signature=***&X-Amz-SignedHeaders=host",
    "https://h/o?X-Goog-Credential=me%40p&X-Goog-Signature=f00&X-Goog-Date=1": "https://h/o"
    "?X-Goog-Credential=***&X-Goog-Signature=***&X-Goog-Date=1",
    "https://h/o?AWSAccessKeyId=A&Signature=B&Expires=1": "https://h/o"
    "?AWSAccessKeyId=***&Signature=***&Expires=1",
    "https://h/o?a=1;%73ig=z;still=it&b=2": "https://h/o?a=1;%73ig=***&b=2",
    "https://h/o?access_token=x&API+key=y&code=z&password=p&client-secret=q": "https://h/o"
    "?access_token=***&API+key=***&code=***&password=***&client-secret=***",
    "https://h/o#access_token=x": "https://h/o#access_token=***",
    "https://me:p@ss:w@h:8/x?y=1": "https://***@h:8/x?y=1",
    "https://h/o?tempauth=x&q-sign=y&md5=z&q-sign-time=1": "https://h/o"
    "?tempauth=***&q-sign=***&md5=***&q-sign-time=1",
    # Written wrong, and kept with an input that has content.
    " https://me:p@h/x?sig=y": " https://***@h/x?sig=***",
    "//me:p@h/x?sig=y": "//***@h/x?sig=***",
    "h.org/x?sig=y": "h.org/x?sig=***",
    "me:p@h/x?sig=y": "***@h/x?sig=***",
    "\x01https://me:p@h/x": "\x01https://***@h/x",
    "ftp://me:pw@h/x": "ftp://me:***@h/x",
    "https://ghp_token@h/x": "https://***@h/x",
    "https://ghp_token:x-oauth-basic@h/x": "https://***@h/x",
    "az:c/p?sig=x": "az:c/p?sig=***",
}

HARMLESS = [
    "",
    "/data/x?sig=1",
    "file:///data/x?sig=1&token=2",
    "https://h/a@b/c",
    "https://h/o?sig=&token=",
    "https://h/o?page=2&design=1&versionId=3&Key-Pair-Id=4",
    "sftp://me@h/x",
    "s3://bucket/key=1/x",
]


@pytest.mark.parametrize("url", CASES, ids=range(len(CASES)))
def test_secrets_are_hidden_and_the_rest_stays(url: str) -> None:
    assert hide(url) == CASES[url]
    assert hide(CASES[url]) == CASES[url]
    assert is_hidden(CASES[url])
    assert not is_hidden(url)


@pytest.mark.parametrize("url", HARMLESS)
def test_a_url_without_secrets_stays_as_it_is(url: str) -> None:
    assert hide(url) == url
    assert not is_hidden(url)


@pytest.mark.parametrize("name", ["sig", "SIGNATURE", "x-amz-security-token", "Api_Key", "pwd"])
def test_names_are_known_however_they_are_spelled(name: str) -> None:
    assert is_secret(name)


def test_a_task_is_stripped_of_its_secrets() -> None:
    urls = ["https://h/open?page=1", SIGNED + "aaaaaa", "/plain"]
    task = Task(
        executors=[Executor(image="i", command=["c"])],
        inputs=[*(Input(path="/i", url=url) for url in urls), Input(path="/c", content="?sig=1")],
        outputs=[Output(path="/o", url="ftp://me:pass@h/")],
    )
    whole = cut(task)
    assert whole == {"inputs.1": urls[1], "outputs.0": "ftp://me:pass@h/"}
    assert [item.url for item in task.inputs or []] == [urls[0], SIGNED + "***", urls[2], None]
    assert of_field(whole, "inputs") == {1: urls[1]}
    assert of_field(whole, "outputs") == {0: "ftp://me:pass@h/"}
    assert cut(task) == {}


def test_a_url_that_content_makes_needless_is_stripped_and_forgotten() -> None:
    task = Task(
        executors=[Executor(image="i", command=["c"])],
        inputs=[Input(path="/i", url=f" {SIGNED}aaaaaa", content="text")],
    )
    assert cut(task) == {}
    assert [item.url for item in task.inputs or []] == [f" {SIGNED}***"]


def test_a_url_that_was_hidden_by_an_older_version_is_known() -> None:
    assert is_hidden("https://me:***@h/x")


def test_texts_are_censored() -> None:
    censor = Censor([SIGNED + "ab%2Bc%2Fd+e", "ftp://me:hunter2@h/"], ["other-secret"])
    for form in ("ab%2Bc%2Fd+e", "ab+c/d+e", "ab+c/d e", "hunter2", "other-secret"):
        assert censor(f"it said {form}!") == "it said ***!"
    assert censor("nothing of that") == "nothing of that"
    assert Censor()("x") == "x"


def test_an_access_is_censored_whole_and_never_shown() -> None:
    access = Access(
        inputs={0: SIGNED + "input-sig"},
        outputs={3: SIGNED + "output-sig"},
        s3=S3Key("id", "s3-secret", "s3-session"),
        gcs_token="gcs-token",
        drs_tokens={"h": "drs-token"},
        sftp_key="-----BEGIN KEY-----\nbase64base64\n-----END KEY-----\n",
    )
    said = "input-sig output-sig s3-secret s3-session gcs-token drs-token base64base64"
    assert censor_of(access)(said) == " ".join(["***"] * 7)
    assert str(access) == repr(access) == "Access(…)"
    assert "secret" not in repr(access.s3)
