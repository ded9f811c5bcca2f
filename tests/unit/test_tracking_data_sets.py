"""Two writers that bring the same data set to one store."""

import pytest
from mlflow.exceptions import MlflowException

from mallowspo.tracking.whole import name_data


class Store:
    """Refuses the first calls with these errors."""

    def __init__(self, *errors):
        self.errors = list(errors)
        self.stored = []

    def log_inputs(self, run_id, data):
        if self.errors:
            raise self.errors.pop(0)
        self.stored.append((run_id, data))


@pytest.mark.parametrize(
    "said",
    [
        'BAD_REQUEST: (psycopg2.errors.UniqueViolation) duplicate key value violates unique constraint "dataset_pk"',
        "(sqlite3.IntegrityError) UNIQUE constraint failed: datasets.experiment_id, datasets.name, datasets.digest",
    ],
)
def test_who_comes_second_finds_it(said):
    store = Store(MlflowException(said))
    name_data(store, "run", "pairs")
    assert store.stored == [("run", ["pairs"])]


def test_any_other_error_is_told():
    store = Store(MlflowException("the disk is full"))
    with pytest.raises(MlflowException, match="the disk is full"):
        name_data(store, "run", "pairs")
