"""Moto's S3 behind a check of signatures; runs in the venv of moto.

    python s3_signed.py DIRECTORY

Writes the port that it listens on to DIRECTORY/port; reads a key (its id, its secret, its session
token, one a line) from DIRECTORY/key. Moto itself asks nobody who they are, so every
request is held against "Signature Version 4" and its body against the checksums that it announces.
Requests with the header X-Plant pass: they are the test's own. Buckets that begin with `public-`
are readable for all, those with `elsewhere-` are in another region. A POST to `/_fail/BUCKET` with
a JSON list of [METHOD, TEXT, STATUS, CODE] has the bucket's next requests of these methods, with
the text in their URLs, fail, once each. Two codes do something else: `lost` does what is asked and
then answers that it failed, `corrupt` sends a wrong first byte.
"""

import base64
import datetime as dt
import hashlib
import hmac
import io
import json
import sys
import threading
from collections import defaultdict
from pathlib import Path
from urllib.parse import parse_qsl, quote, urlsplit

from moto.moto_server.werkzeug_app import (
    DomainDispatcherApplication,
    MotoRequestHandler,
    create_backend_app,
)
from werkzeug.serving import make_server

REGION = "us-east-1"


class Refused(Exception):
    """An answer of S3 other than the one asked for."""

    def __init__(self, status, code, more="", headers=()):
        self.status = status
        self.code = code
        self.more = more
        self.headers = list(headers)


class Gate:
    """What stands before Moto: a WSGI application."""

    def __init__(self, key_id, secret, token):
        self.key_id, self.secret, self.token = key_id, secret, token
        self.failures = defaultdict(list)
        self.lock = threading.Lock()
        self.moto = DomainDispatcherApplication(create_backend_app)

    def __call__(self, environ, start_response):
        length = int(environ.get("CONTENT_LENGTH") or 0)
        body = environ["wsgi.input"].read(length) if length else b""
        environ["wsgi.input"] = io.BytesIO(body)
        raw = urlsplit(environ["REQUEST_URI"])
        bucket = raw.path.split("/")[1]
        try:
            if bucket == "_fail":
                self.failures[raw.path.split("/")[2]] += json.loads(body)
                raise Refused(200, "")
            if "HTTP_X_PLANT" not in environ:
                if len(body) < length:
                    raise Refused(400, "IncompleteBody")
                self.check(environ, raw, bucket, body)
                status, code = self.failure(environ["REQUEST_METHOD"], raw, bucket)
                if code == "corrupt":
                    return self.corrupted(environ, start_response)
                if code == "lost":
                    self.corrupted(environ, lambda *_: None)
                    raise Refused(status, "InternalError")
                if status:
                    raise Refused(status, code)
            return self.moto(environ, start_response)
        except Refused as refused:
            more = f"<Code>{refused.code}</Code>{refused.more}"
            text = f"<?xml version='1.0'?><Error>{more}</Error>" if refused.code else ""
            if environ["REQUEST_METHOD"] == "HEAD":
                text = ""
            headers = [("Content-Type", "application/xml"), ("Content-Length", str(len(text)))]
            start_response(f"{refused.status} Refused", headers + refused.headers)
            return [text.encode()]

    def corrupted(self, environ, start_response):
        """Moto's answer with a wrong first byte."""
        body = b"".join(self.moto(environ, start_response))
        return [bytes([body[0] ^ 1]) + body[1:]] if body else []

    def failure(self, method, raw, bucket):
        """Status and code that a request is to fail with; 0 and nothing if it is not."""
        asked = f"{raw.path}?{raw.query}"
        with self.lock:
            failures = self.failures[bucket]
            for failure in failures:
                if failure[0] == method and failure[1] in asked:
                    failures.remove(failure)
                    return failure[2:]
        return 0, ""

    def check(self, environ, raw, bucket, body):
        """Raises Refused unless the request is signed by the key."""
        if bucket.startswith("elsewhere-"):
            region = [("x-amz-bucket-region", "eu-west-1")]
            raise Refused(301, "PermanentRedirect", headers=region)
        kind, _, text = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
        if not kind:
            if bucket.startswith("public-") and environ["REQUEST_METHOD"] in ("GET", "HEAD"):
                environ["HTTP_AUTHORIZATION"] = "AWS any:"  # Moto wants to see some key
                return
            raise Refused(403, "AccessDenied")
        fields = dict(field.strip().split("=", 1) for field in text.split(","))
        key_id, day, region, service, end = fields["Credential"].split("/")
        if kind != "AWS4-HMAC-SHA256" or (service, end) != ("s3", "aws4_request"):
            raise Refused(400, "InvalidRequest")
        if key_id != self.key_id:
            raise Refused(403, "InvalidAccessKeyId")
        if region != REGION:
            more = f"<Region>{REGION}</Region>"
            raise Refused(400, "AuthorizationHeaderMalformed", more)
        names = fields["SignedHeaders"].split(";")
        headers = {name: environ.get(variable(name), "") for name in names}
        must = {"host", "x-amz-date", "x-amz-content-sha256"}
        if not must <= set(names) or headers.get("x-amz-security-token", "") != self.token:
            raise Refused(403, "InvalidToken" if must <= set(names) else "AccessDenied")
        moment = headers["x-amz-date"]
        signed = dt.datetime.strptime(moment, "%Y%m%dT%H%M%SZ").replace(tzinfo=dt.UTC)
        if abs(dt.datetime.now(dt.UTC) - signed) > dt.timedelta(minutes=15):
            raise Refused(403, "RequestTimeTooSkewed")
        query = sorted(parse_qsl(raw.query, keep_blank_values=True))
        request = "\n".join(
            [
                environ["REQUEST_METHOD"],
                raw.path,
                "&".join(f"{quote(k, safe='-_.~')}={quote(v, safe='-_.~')}" for k, v in query),
                *(f"{name}:{' '.join(headers[name].split())}" for name in sorted(names)),
                "",
                ";".join(sorted(names)),
                headers["x-amz-content-sha256"],
            ]
        )
        digest = hashlib.sha256(request.encode()).hexdigest()
        scope = f"{day}/{region}/s3/aws4_request"
        key = f"AWS4{self.secret}".encode()
        for part in (day, region, "s3", "aws4_request"):
            key = hmac.digest(key, part.encode(), "sha256")
        wanted = hmac.digest(key, f"{kind}\n{moment}\n{scope}\n{digest}".encode(), "sha256").hex()
        if not hmac.compare_digest(wanted, fields["Signature"]):
            raise Refused(403, "SignatureDoesNotMatch")
        check_body(environ, headers["x-amz-content-sha256"], body)


def check_body(environ, sha256, body):
    if sha256 != hashlib.sha256(body).hexdigest():
        raise Refused(400, "XAmzContentSHA256Mismatch")
    md5 = environ.get("HTTP_CONTENT_MD5")
    if md5 and md5 != base64.b64encode(hashlib.md5(body).digest()).decode():
        raise Refused(400, "BadDigest")


def variable(name):
    """The WSGI variable of a header."""
    plain = name.upper().replace("-", "_")
    return plain if plain == "CONTENT_TYPE" else f"HTTP_{plain}"


class Handler(MotoRequestHandler):
    """Keeps connections, as S3 does."""

    protocol_version = "HTTP/1.1"

    def log_request(self, *_):
        """Nothing."""


def main(directory):
    credentials = Path(directory, "key").read_text().splitlines()
    server = make_server("127.0.0.1", 0, Gate(*credentials), True, request_handler=Handler)
    temporary = Path(directory, "port.new")
    temporary.write_text(str(server.server_address[1]))
    temporary.rename(Path(directory, "port"))
    server.serve_forever()


main(sys.argv[1])
