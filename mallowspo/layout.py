"""Where every stage reads and writes: the only place that knows a result's path.

The methods take plain strings, so the Snakefile passes wildcards ("{method}") through the same functions.
"""

from dataclasses import dataclass
from pathlib import Path

#: Stands in the place of a method for the untrained policy, which is generated from and judged like the rest.
REFERENCE = "reference"


@dataclass(frozen=True)
class Layout:
    """Paths of one experiment below the results folder."""

    results: str
    experiment: str

    @property
    def root(self) -> Path:
        return Path(self.results) / self.experiment

    def model(self, model_key: str) -> Path:
        """Folder of an initial model; shared by experiments, so it lies beside them."""
        return Path(self.results) / "models" / model_key

    def pairs(self, split: str) -> Path:
        return self.root / "pairs" / f"{split}.parquet"

    @property
    def prompts(self) -> Path:
        """Test prompts, one a row: prompt_id, prompt."""
        return self.root / "pairs" / "test_prompts.parquet"

    @property
    def data_health(self) -> Path:
        return self.root / "pairs" / "health.json"

    @property
    def unusable_rows(self) -> Path:
        return self.root / "pairs" / "unusable.jsonl"

    def answers(self, split: str) -> Path:
        """Sampled and judged answers behind on-policy pairs."""
        return self.root / "pairs" / "answers" / f"{split}.jsonl"

    def tokens(self, split: str) -> Path:
        """Folder of the tokenized pairs."""
        return self.root / "tokens" / split

    @property
    def tokens_summary(self) -> Path:
        return self.root / "tokens" / "tokens.json"

    def reference(self, split: str) -> Path:
        return self.root / "reference" / f"{split}.parquet"

    def reference_parts(self, key: str) -> Path:
        """Folder of the parts of a reference pass; shared by experiments with the same content, so it lies beside."""
        return Path(self.results) / "references" / key

    def reference_shard(self, number: str | int, count: str | int) -> Path:
        """Which parts a shard of the reference pass left; written when they all are there."""
        return self.root / "reference" / "shards" / f"{number}-of-{count}.json"

    @property
    def reference_summary(self) -> Path:
        return self.root / "reference" / "reference.json"

    def other_pairs(self, name: str) -> "Layout":
        """Of a further set of pairs: laid out like an experiment whose pairs all are test pairs."""
        return Layout(self.results, f"{self.experiment}/other_pairs/{name}")

    @property
    def dispersion(self) -> Path:
        return self.root / "dispersion.parquet"

    @property
    def dispersion_summary(self) -> Path:
        return self.root / "dispersion.json"

    def run(self, method: str, seed: str | int) -> Path:
        """Folder of one training run."""
        return self.root / "runs" / method / f"seed={seed}"

    def kept(self, method: str, seed: str | int) -> Path:
        """Folder of the policies along a run, by share of its steps."""
        return self.run(method, seed) / "kept"

    @property
    def reward_model(self) -> Path:
        """Folder of a trained reward model: a comparison's judge is reward:path:FOLDER."""
        return self.root / "model"

    @classmethod
    def of_reward_model(cls, folder: str) -> "Layout":
        """Of the experiment whose reward model would lie in a folder."""
        root = Path(folder).parent
        return cls(str(root.parent), root.name)

    @property
    def reward_model_training(self) -> Path:
        """Folder of its curve and summary, and of its checkpoints while it is trained."""
        return self.root / "training"

    def training_lock(self, method: str, seed: str | int) -> Path:
        """Held by the job that trains."""
        return self.root / "locks" / f"{method}-{seed}"

    def samples(self, method: str, seed: str | int) -> Path:
        return self.root / "samples" / method / f"seed={seed}" / "answers.jsonl"

    def answer_parts(self, method: str, seed: str | int, key: str) -> Path:
        """Folder of answers while they are sampled, part by part."""
        return self.samples(method, seed).parent / "parts" / key

    def share(self, stage: str, method: str, seed: str | int, number: str | int, count: str | int) -> Path:
        """Written when a job has done its share of a policy's answers ("generate"), scores or tasks ("lm_eval")."""
        return self.root / "shares" / method / f"seed={seed}" / f"{stage}-{number}-of-{count}"

    def scores(self, method: str, seed: str | int) -> Path:
        """Folder of what the judges said about one run: rewards, AlpacaEval, lm-eval."""
        return self.root / "scores" / method / f"seed={seed}"

    def score_parts(self, method: str, seed: str | int, key: str) -> Path:
        """Folder of scores while they are computed, part by part."""
        return self.scores(method, seed) / "parts" / key

    @property
    def judge_measured(self) -> Path:
        """What the win rates' judge is like on pairs with human labels."""
        return self.root / "judge" / "judge.json"

    @property
    def frontier(self) -> Path:
        """Methods at equal KL, where there are several betas of one."""
        return self.root / "frontier.parquet"

    @property
    def variants(self) -> Path:
        """Policies at other temperatures, and along their training."""
        return self.root / "variants.parquet"

    @property
    def comparison(self) -> Path:
        return self.root / "comparison.parquet"

    @property
    def interaction(self) -> Path:
        """Slopes of the differences on the prompts' dispersion."""
        return self.root / "interaction.parquet"

    @property
    def second_opinion(self) -> Path:
        """Gains by the first judge against those by the second, where there is one."""
        return self.root / "second_opinion.parquet"

    @property
    def factorial(self) -> Path:
        """Two factors over four labels: main effects and interaction."""
        return self.root / "factorial.parquet"

    @property
    def tuning(self) -> Path:
        """Every label on the validation prompts, and which was selected of its method."""
        return self.root / "tuning.parquet"

    @property
    def selection(self) -> Path:
        """The selected labels on the test prompts."""
        return self.root / "selection.parquet"

    @property
    def signals(self) -> Path:
        """Rank correlations of the dispersion weight with the betas of adaptive methods."""
        return self.root / "signals.parquet"

    @property
    def accuracy_by_group(self) -> Path:
        """Held-out and other pairs by source, length and dispersion."""
        return self.root / "accuracy_by_group.parquet"

    @property
    def estimates(self) -> Path:
        return self.root / "estimates.parquet"

    @property
    def tables(self) -> Path:
        return self.root / "tables"

    @property
    def figures(self) -> Path:
        return self.root / "figures"

    @property
    def report(self) -> Path:
        return self.root / "report.html"

    @property
    def settings(self) -> Path:
        return self.root / "settings.yaml"

    @property
    def study(self) -> Path:
        """What a study found: numbers for the tracking store."""
        return self.root / "study.json"

    @property
    def tracked(self) -> Path:
        return self.root / "tracked.json"

    def log(self, stage: str) -> Path:
        return self.root / "logs" / f"{stage}.log"

    def benchmark(self, stage: str) -> Path:
        return self.root / "benchmarks" / f"{stage}.tsv"


def shards_made(each: Path) -> int:
    """The number of shards that a stage was done in last; 1 where one job did it all.

    Args:
        each: what a shard leaves, with `*` for its number and for their count.
    """
    last = max(each.parent.glob(each.name), key=lambda file: file.stat().st_mtime, default=None)
    return int(last.stem.rpartition("-")[2]) if last else 1
