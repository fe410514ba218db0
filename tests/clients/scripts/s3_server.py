"""An S3 server for tests; runs in the venv of moto.

    python s3_server.py ADDRESS

Prints its URL, and ends when standard input does.
"""

import sys

from moto.server import ThreadedMotoServer

server = ThreadedMotoServer(ip_address=sys.argv[1], port=0, verbose=False)
server.start()
host, port = server.get_host_and_port()
print(f"http://{host}:{port}", flush=True)
sys.stdin.read()
server.stop()
