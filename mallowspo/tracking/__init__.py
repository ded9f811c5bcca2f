"""MLflow: what the results folder holds, as runs that can be compared in a browser.

The results folder is the truth and the store a copy of it: `run` makes the store whole from the files, however
often it is called, and `track_live` sends curves while a training runs without ever holding it up.
"""

from mallowspo.tracking.live import LiveTracking, track_live
from mallowspo.tracking.store import hide_credentials, prepare_store
from mallowspo.tracking.study import run as track_study
from mallowspo.tracking.whole import run

__all__ = ["LiveTracking", "hide_credentials", "prepare_store", "run", "track_live", "track_study"]
