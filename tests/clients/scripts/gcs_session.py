"""Google's own SDK at a server: uploads, downloads, lists. Runs in the venv of `gcs-sdk`.

    python gcs_session.py ORIGIN TOKEN BUCKET

Prints the names that it has stored and found again.
"""

import io
import os
import sys

from google.api_core.exceptions import NotFound, PreconditionFailed
from google.cloud.storage import Client
from google.oauth2.credentials import Credentials

origin, token, name = sys.argv[1:]
client = Client(
    project="any", credentials=Credentials(token), client_options={"api_endpoint": origin}
)
bucket = client.bucket(name)
small, large = os.urandom(1000), os.urandom(9 * 2**20 + 3)

bucket.blob("dir/small file").upload_from_string(small, checksum="md5")
bucket.blob("dir/whole").upload_from_file(io.BytesIO(large), size=len(large), checksum="crc32c")
bucket.blob("dir/pieces", chunk_size=2**22).upload_from_file(io.BytesIO(large), checksum="md5")

assert bucket.blob("dir/small file").download_as_bytes(checksum="md5") == small
for place in ("dir/whole", "dir/pieces"):
    blob = bucket.get_blob(place)
    assert blob.size == len(large)
    assert blob.download_as_bytes(checksum="crc32c", if_etag_match=blob.etag) == large
    assert blob.download_as_bytes(start=5, end=1005) == large[5:1006]
for error, condition in ((PreconditionFailed, {"if_etag_match": "another"}), (NotFound, {})):
    try:
        bucket.blob("dir/whole" if condition else "dir/none").download_as_bytes(**condition)
    except error:
        continue
    raise AssertionError(error)
print(*(blob.name for blob in client.list_blobs(name, prefix="dir/")), sep="\n")
