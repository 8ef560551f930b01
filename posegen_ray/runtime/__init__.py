"""Everything on Ray: the cluster, render servers, training, the sample stream, sweeps, jobs."""

import os

# Read when ray is imported. Of a small machine Ray says that it starts many workers at a time, with
# advice that does not fit here: placement has counted them
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "worker processes have been started on node")
