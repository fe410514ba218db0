"""The image's health check: exit code 0 if the server in this container says that it is ready."""

import http.client
import os
import sys

connection = http.client.HTTPConnection("127.0.0.1", int(os.environ.get("APP_PORT") or 8000), 8)
try:
    connection.request("GET", "/readyz")
    reply = connection.getresponse()
    print(reply.read(2000).decode())
except OSError as error:
    sys.exit(str(error))
sys.exit(reply.status != 200)
