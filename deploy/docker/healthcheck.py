#!/opt/aism/bin/python -IS
"""Exit with 0 when the engine in this container answers 200 on the path that is given (/livez or /readyz), else with 1.

It runs every few seconds: hence the standard library alone, no site-packages (-S), and no proxy from the environment.
"""

import http.client
import os
import sys

connection = http.client.HTTPConnection("127.0.0.1", int(os.environ.get("AISM_HTTP__PORT", "9464")), timeout=3)
try:
    connection.request("GET", sys.argv[1])
    response = connection.getresponse()
    answer = response.read(1000).decode(errors="replace").strip()
except OSError as error:
    sys.exit(f"no answer: {error}")
sys.exit(None if response.status == http.client.OK else answer)
