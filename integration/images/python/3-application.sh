#!/bin/bash
# A small application: one program with the imports of a web service, one with those of data analysis; and the tests' probe.
set -euo pipefail
mkdir app
cp "$PROBE" app/probe
cat > app/hello.py <<'P'
import json, sqlite3, ssl
print("hello from", sqlite3.sqlite_version, ssl.OPENSSL_VERSION, json.dumps([1]), flush=True)
P
cat > app/frame.py <<'P'
import numpy as np, pandas as pd
print("frame", int(pd.DataFrame({"a": np.arange(1000)}).a.sum()), flush=True)
P
