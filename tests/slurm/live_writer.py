"""One of several jobs that log at once: sends a finished run's metrics as a training would, a row every 0.1 s.

python tests/slurm/live_writer.py RESULTS SEED STORE
"""

import logging
import sys
import time

from mallowspo.files import read_json, read_jsonl
from mallowspo.layout import Layout
from mallowspo.tracking import track_live


def main(results, seed, store):
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    layout = Layout(results, "made_up")
    run = layout.run("dpo", seed)
    live = track_live(layout, "dpo", int(seed), read_json(run / "summary.json")["digest"], store)
    for row in read_jsonl(run / "metrics.jsonl"):
        live.update(row)
        time.sleep(0.1)
    live.close(timeout=30)


if __name__ == "__main__":
    main(*sys.argv[1:])
