"""The phases of `mallowspo evaluate`: each leaves whole files, and is skipped where they are there and still right.

A phase's record, phases/NAME.json, is written after its files and holds a digest of all that they depend on: models by
their content, files by theirs, settings, and the code behind them.
"""

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd

from mallowspo.errors import InputError
from mallowspo.evaluation import answers, lm_eval
from mallowspo.evaluation.other_pairs import draw_pairs
from mallowspo.evaluation.settings import LmEvalSettings
from mallowspo.files import digest, read_json, read_jsonl, read_parquet, sha256_file, write_json, write_jsonl
from mallowspo.files import write_parquet as write_table
from mallowspo.judges.local_model import model_content
from mallowspo.layout import Layout
from mallowspo.models import load_model, load_tokenizer, resolve_device, resolve_precision
from mallowspo.packing import Row
from mallowspo.pairs.build import check_rows, read_source
from mallowspo.pairs.formats import UnusableRow, prompt_of
from mallowspo.pairs.prepared import context_window, open_tokens, write_tokens
from mallowspo.pairs.tokens import check_tokenizer, tokenize_pairs, tokenize_prompt
from mallowspo.provenance import code_digest
from mallowspo.reference import answer_batches, score_rows, score_table
from mallowspo.scoring import Scorer
from mallowspo.settings import (
    PairsSettings,
    ReferenceSettings,
    SamplingSettings,
    TokenSettings,
)

logger = logging.getLogger(__name__)

#: Tokens of a prompt, and of a response of a pair, at most, where the model reads that many.
LONGEST = 2048
SEED = 0


class Phases:
    """Everything that needs a model, for any model folder.

    Args:
        model: the folder of the policy, from which tokenizer and template are taken.
        out: where files go; laid out like an experiment.
    """

    def __init__(self, model: Path, out: Path, template: str | None, sampling: SamplingSettings, device: str):
        self.out, self.layout, self.model = out, Layout(str(out), ""), model
        self.tokenizer = load_tokenizer(model)
        self.device = resolve_device(device)
        self.window = context_window(model)
        prompt, response = self._room(sampling.max_new_tokens)
        tokens = {
            "template": template or ("chat" if self.tokenizer.chat_template else "plain"),
            "max_prompt": prompt,
            "max_response": response,
        }
        self.view = SimpleNamespace(
            model=SimpleNamespace(precision="auto"),
            tokens=TokenSettings.model_validate(tokens),
            generation=sampling,
            reference=ReferenceSettings(),
            evaluation=SimpleNamespace(lm_eval=None),
        )
        check_tokenizer(self.tokenizer, self.view.tokens)
        self._contents: dict[Path, str] = {}
        self._scorer: tuple[Path, Scorer] | None = None

    def do(self, name: str, depends: Any, files: Sequence[Path], work: Callable[[], object]) -> None:
        """Do a phase, unless its files are there and were made of the same."""
        record = self.out / "phases" / f"{name}.json"
        key = digest([name, depends, self.device, resolve_precision("auto", self.device)])
        if record.exists() and read_json(record)["key"] == key and all(file.exists() for file in files):
            logger.info("%s: is there already", name)
            return
        logger.info("%s", name)
        # First: a kill between the phase's files must leave no record that takes them for each other's.
        record.unlink(missing_ok=True)
        work()
        write_json(record, {"key": key, "depends_on": depends})

    def check_same_tokens(self, other: Path) -> None:
        """Raises an InputError where a model would read the policy's tokens as others."""
        if load_tokenizer(other).get_vocab() != self.tokenizer.get_vocab():
            raise InputError(
                f"{other}: its vocabulary is not that of {self.model}; give the model that it was made from"
            )

    def content(self, folder: Path) -> str:
        """Digest of a model's files."""
        if folder not in self._contents:
            self._contents[folder] = digest(model_content(folder))
        return self._contents[folder]

    def write_prompts(self, given: list[dict[str, Any]], file: str) -> list[str]:
        """Prompts of AlpacaEval's format (`instruction`), or rows with `prompt`; returns their texts."""
        rows: dict[str, dict[str, str]] = {}
        for number, row in enumerate(given):
            try:
                text, messages = prompt_of(row.get("instruction", row.get("prompt")), self.view.tokens.template)
            except UnusableRow as problem:
                raise InputError(f"{file}: row {number}: {problem}; every row needs instruction or prompt") from None
            if text in rows:
                raise InputError(f"{file}: row {number}: prompt {text[:60]!r} appears twice; keep one")
            rows[text] = {"prompt_id": digest(messages), "prompt": text, "messages": json.dumps(messages)}
        write_table(self.layout.prompts, pd.DataFrame(list(rows.values())))
        return list(rows)

    def answer(self, folder: Path, method: str) -> list[dict[str, Any]]:
        """One answer of a model to each prompt, by the stage "generate"."""
        prompts = read_parquet(self.layout.prompts)["messages"].tolist()
        depends = {
            "model": self.content(folder),
            "prompts": digest(prompts),
            "tokens": self.view.tokens.model_dump(),
            "sampling": self.view.generation.model_dump(),
            "code": code_digest("generate"),
        }
        file = self.layout.samples(method, SEED)
        self.do(
            f"answers-{method}",
            depends,
            [file],
            lambda: answers.run(self.view, self.layout, folder, method, SEED, self.device),
        )
        return read_jsonl(file)

    def token_logp(self, folder: Path, method: str, rows: list[dict[str, Any]]) -> pd.Series:
        """Log-probability of every token of the answers under a model, by prompt_id."""
        file = self.out / "kl" / f"{method}.parquet"

        def work() -> None:
            prompts = read_parquet(self.layout.prompts).set_index("prompt_id")
            scored = [Row(self._prompt_ids(prompts.loc[row["prompt_id"]]), list(row["token_ids"])) for row in rows]
            values: list[list[float]] = [[] for _ in rows]
            for batch in answer_batches(scored, self.view.reference.tokens_per_batch):
                found = score_rows(self.scorer(folder), [scored[index] for index in batch], want_entropy=False)
                for index, (logp, _) in zip(batch, found, strict=True):
                    values[index] = logp.tolist()
            write_table(file, pd.DataFrame({"prompt_id": [row["prompt_id"] for row in rows], "logp": values}))

        depends = {"model": self.content(folder), "answers": digest(rows), "code": code_digest("score")}
        self.do(f"kl-{method}", depends, [file], work)
        return read_parquet(file).set_index("prompt_id")["logp"]

    def read_pairs(self, source: str, most: int | None) -> pd.DataFrame:
        """The usable pairs of a file or a hub data set, tokenized; unusable.jsonl lists the other rows.

        Args:
            most: keep so many, by a draw that goes by their ids; None keeps all.
        """
        if not source.startswith(("hub:", "path:")):
            source = f"path:{source}"
        settings = PairsSettings(source=source)
        file, folder = self.layout.pairs("test"), self.layout.tokens("test")

        def work() -> None:
            reads = read_source(settings, self.view.tokens.template)
            usable, listed = check_rows(reads, self.tokenizer, source, self.view.tokens)
            write_jsonl(self.layout.unusable_rows, listed)
            if not usable:
                first = f"; row {listed[0]['row']}: {listed[0]['reason']}" if listed else ""
                raise InputError(f"{source}: none of {len(reads)} rows is a usable pair{first}; mend the rows")
            table = draw_pairs(usable, most, SEED)
            write_table(file, table)
            write_tokens(
                tokenize_pairs(self.tokenizer, table, self.view.tokens, self.window),
                self.tokenizer.eos_token_id,
                folder,
            )

        content = sha256_file(source.removeprefix("path:")) if source.startswith("path:") else source
        depends = {
            "pairs": [content, most],
            "tokenizer": self.content(self.model),
            "tokens": self.view.tokens.model_dump(),
            "code": [code_digest("pairs"), code_digest("tokens")],
        }
        self.do("pairs", depends, [file, folder, self.layout.unusable_rows], work)
        return read_parquet(file)

    def score_pairs(self, folder: Path, method: str) -> pd.DataFrame:
        """What a model says of the pairs, see `reference.score_table`; by pair_id."""
        pairs = open_tokens(self.layout.tokens("test"))
        file = self.out / "pairs" / f"{method}.parquet"
        size = self.view.reference.tokens_per_batch
        self.do(
            f"pairs-{method}",
            {"model": self.content(folder), "pairs": pairs.digest, "code": code_digest("score")},
            [file],
            lambda: write_table(file, score_table(self.scorer(folder), pairs, pairs.end_token, size)),
        )
        return read_parquet(file).set_index("pair_id")

    def tasks(self, settings: LmEvalSettings, method: str) -> tuple[dict[str, Any], pd.DataFrame]:
        """lm_eval.json and lm_eval.parquet of the stage "lm-eval"."""
        self.view.evaluation.lm_eval = settings
        folder = self.layout.scores(method, SEED)
        files = [file for task in settings.data.values() for file in (task.test, task.fewshot) if file]
        files += [str(file) for file in Path(settings.include_path or self.out / "none").glob("*") if file.is_file()]
        depends = {
            "model": self.content(self.model),
            "settings": settings.model_dump(),
            "files": {file: sha256_file(file) for file in sorted(files)},
            "code": code_digest("lm-eval"),
        }
        self.do(
            "lm",
            depends,
            [folder / "lm_eval.json", folder / "lm_eval.parquet"],
            lambda: lm_eval.run(self.view, self.layout, self.model, method, SEED, self.device),
        )
        return read_json(folder / "lm_eval.json"), read_parquet(folder / "lm_eval.parquet")

    def scorer(self, folder: Path) -> Scorer:
        """Of one model; the one before it is let go first."""
        if self._scorer is None or self._scorer[0] != folder:
            self._scorer = None
            precision = resolve_precision(self.view.model.precision, self.device)
            self._scorer = (folder, Scorer(load_model(folder, self.device), precision))
        return self._scorer[1]

    def _prompt_ids(self, row: Any) -> list[int]:
        return tokenize_prompt(self.tokenizer, row["prompt"], json.loads(row["messages"]), self.view.tokens)[0]

    def _room(self, max_new_tokens: int) -> tuple[int, int]:
        """Tokens of a prompt and of a response at most."""
        if self.window is None:
            return LONGEST, LONGEST
        if self.window <= max_new_tokens:
            raise InputError(
                f"--max-new-tokens {max_new_tokens}: the model reads {self.window} tokens, the prompt's too; give fewer"
            )
        return min(LONGEST, self.window - max_new_tokens), min(LONGEST, self.window - 1)
