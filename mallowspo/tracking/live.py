"""Curves in the store while a training runs.

A training is worth more than its curves: the store is only ever touched by a daemon thread, every error of the store
is reported once and tried again later, and `close` waits a few seconds and no more. What did not arrive is in
metrics.jsonl, and the stage "track" brings it to the same run.
"""

import logging
import threading
import time
from collections import deque
from typing import Any

from mallowspo.errors import InputError
from mallowspo.layout import Layout
from mallowspo.tracking.contents import curve_values
from mallowspo.tracking.store import connect, hide_credentials, http_limits, prepare_store, store_errors
from mallowspo.tracking.whole import (
    all_runs,
    child_tags,
    experiment_id,
    is_ours,
    log_metrics,
    results_tag,
    stored_curves,
)

log = logging.getLogger("mallowspo.tracking")

#: Rows kept for a store that does not answer; older ones arrive with the stage "track".
ROWS_KEPT = 20_000
#: The longest pause between two attempts, in seconds.
LONGEST_PAUSE = 300.0


class LiveTracking:
    """Sends rows of metrics.jsonl as they are made. Use in the main process only; see `track_live`."""

    def __init__(
        self, layout: Layout, method: str, seed: int, digest: str, store_uri: str, interval: float = 5.0
    ) -> None:
        self._layout, self._uri, self._interval = layout, store_uri, interval
        self._tags = child_tags(method, seed, digest)
        self._name = f"{method} seed={seed}"
        self._rows: deque[tuple[dict[str, Any], int]] = deque(maxlen=ROWS_KEPT)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="mallowspo-tracking", daemon=True)
        self._client: Any = None
        self._run_id = ""
        self._stored: dict[str, dict[int, float]] = {}

    def start(self) -> None:
        """Begin; returns at once."""
        self._thread.start()

    def update(self, row: dict[str, Any]) -> None:
        """Hand over one row of metrics.jsonl; returns at once."""
        self._rows.append((row, int(time.time() * 1000)))

    def close(self, timeout: float = 5.0) -> None:
        """Send what is left, for at most `timeout` seconds."""
        self._closing.set()
        self._thread.join(timeout)
        if self._rows:
            log.warning(
                "tracking store %s: %d rows were not sent; `mallowspo track %s` brings them from the results folder",
                hide_credentials(self._uri), len(self._rows), self._layout.experiment,
            )  # fmt: skip

    def _work(self) -> None:
        pause, warned = self._interval, False
        with http_limits(timeout=5, retries=0):
            while True:
                closing = self._closing.wait(pause)
                try:
                    with store_errors(self._uri, f"the metrics are in {self._layout.root}"):
                        self._send()
                    pause = self._interval
                except InputError as error:
                    pause = min(2 * pause, LONGEST_PAUSE)
                    if not warned:
                        log.warning("live curves: %s; the training goes on, and sending is tried again", error)
                        warned = True
                if closing:
                    return

    def _send(self) -> None:
        if self._client is None:
            self._connect()
        rows = list(self._rows)
        metrics = []
        for row, milliseconds in rows:
            step = int(row["step"])
            metrics += [
                (key, value, milliseconds, step)
                for key, value in curve_values(row)[0].items()
                if step not in self._stored.get(key, {})
            ]
        log_metrics(self._client, self._run_id, metrics)
        for _ in rows:
            self._rows.popleft()

    def _connect(self) -> None:
        """Find the run of this digest, or make it. A resumed training finds the steps that it sent before."""
        prepare_store(self._uri, timeout=5)
        client = connect(self._uri)
        experiment = experiment_id(client, self._layout, self._uri)
        found = [
            run
            for run in all_runs(client, experiment)
            if self._tags.items() <= run.data.tags.items() and is_ours(run, self._layout)
        ]
        if found:
            self._stored = stored_curves(client, found[-1])
        tags = {**self._tags, **results_tag(self._layout)}
        run = found[-1] if found else client.create_run(experiment, tags=tags, run_name=self._name)
        self._run_id = run.info.run_id
        self._client = client


def track_live(
    layout: Layout, method: str, seed: int, digest: str, store_uri: str, interval: float = 5.0
) -> LiveTracking:
    """Start sending a training's curves to the store.

    Call `update(row)` with each row that goes to metrics.jsonl, and `close()` at the end. Neither start nor update
    ever waits for the store.

    Args:
        digest: identity of the training run, the one that summary.json will hold.
        interval: seconds between two batches.
    """
    tracking = LiveTracking(layout, method, seed, digest, store_uri, interval)
    tracking.start()
    return tracking
