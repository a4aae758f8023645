#!/bin/bash
# Data analysis: two large libraries, and one sum.
set -euo pipefail
mkdir app
cat > app/app.py <<'S'
import numpy as np, pandas as pd
df = pd.DataFrame({"a": np.arange(1000), "b": np.arange(1000) ** 2})
print("READY python", int(df.b.sum()), flush=True)
S
cat > app/start.sh <<'S'
#!/bin/sh
python3 /app/app.py
[ "${1:-}" != hold ] || exec sleep infinity
S
chmod 755 app/start.sh
