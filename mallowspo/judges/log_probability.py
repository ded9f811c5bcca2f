"""`logprob:SOURCE`: a causal language model asked which answer is better, by the log-probabilities of two labels."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mallowspo.errors import InputError
from mallowspo.judges.judge import Judgement, Question
from mallowspo.judges.local_model import model_content, model_folder
from mallowspo.judges.settings import JudgeSettings
from mallowspo.models import load_model, load_tokenizer, resolve_device, resolve_precision
from mallowspo.packing import Row, make_batch
from mallowspo.pairs.tokens import tokenize_prompt, tokenize_response
from mallowspo.scoring import Scorer
from mallowspo.settings import TokenSettings

PROMPT = """Which of two answers to an instruction is better?

Instruction:
{instruction}

Answer A:
{output_1}

Answer B:
{output_2}

Reply with A or B alone: the better answer is"""
LABELS = ("A", "B")
#: Of what it has, so much of an answer is kept at a time until a prompt fits.
SHRINK = 0.9


class LogProbabilityJudge:
    """Prefers the answer whose label is more probable: P(first) = p(A) / (p(A) + p(B)).

    A prompt that is too long for the model has both answers cut to the same number of characters, and its judgement
    says so. The chat template is used where the tokenizer has one.
    """

    deterministic = True
    concurrency = 1

    def __init__(self, name: str, settings: JudgeSettings):
        self.name = name
        folder = model_folder(name.partition(":")[2])
        self.tokenizer = load_tokenizer(folder)
        self.template = Path(settings.prompt).read_text(encoding="utf-8") if settings.prompt else PROMPT
        if any(f"{{{key}}}" not in self.template for key in ("instruction", "output_1", "output_2")):
            raise InputError(f"{settings.prompt}: needs {{instruction}}, {{output_1}} and {{output_2}}")
        self.batch = settings.batch
        device = resolve_device(settings.device)
        precision = resolve_precision(settings.precision, device)
        model = load_model(folder, device)
        self.scorer = Scorer(model, precision)
        self.longest = int(model.config.max_position_embeddings) - 8  # room for the labels
        chat = bool(self.tokenizer.chat_template)
        # Never cut by tokens: that would take the instruction and the first answer away.
        self.tokens = TokenSettings(template="chat" if chat else "plain", max_prompt=10**9, max_response=8)
        self.labels = [self._label_ids(label if chat else f" {label}") for label in LABELS]
        self.content: dict[str, Any] = {
            "files": model_content(folder),
            "prompt": self.template,
            "labels": self.labels,
            "precision": precision,
            "template": self.tokens.template,
        }

    def ask(self, questions: Sequence[Question]) -> list[Judgement]:
        prompts = [self._prompt(question) for question in questions]
        rows = [Row(ids, label) for ids, _ in prompts for label in self.labels]
        with torch.no_grad():
            logp = self.scorer(make_batch(rows)).logp.double().cpu().reshape(-1, 2)
        first = torch.softmax(logp, dim=1)[:, 0].tolist()
        return [
            Judgement(2 - p, raw=f"log p(A) {a:.4f}, log p(B) {b:.4f}", note=note)
            for p, (a, b), (_, note) in zip(first, logp.tolist(), prompts, strict=True)
        ]

    def cost(self, question: Question) -> tuple[int, int]:
        return 0, 0

    def _label_ids(self, label: str) -> list[int]:
        return tokenize_response(self.tokenizer, label, complete=False, settings=self.tokens)[0]

    def _prompt(self, question: Question) -> tuple[list[int], str]:
        """Token ids, and how far the answers were cut."""
        characters = max(len(question.first), len(question.second))
        note = ""
        while True:
            text = self._fill_in(question, characters)
            ids, _ = tokenize_prompt(self.tokenizer, text, [{"role": "user", "content": text}], self.tokens)
            if len(ids) <= self.longest:
                return ids, note
            characters = int(characters * min(SHRINK, self.longest / len(ids)))
            note = f"answers cut to {characters} characters"
            if characters < 1:
                raise InputError(
                    f"judge '{self.name}': the instruction {question.instruction[:60]!r} is longer than the model's "
                    f"{self.longest} tokens; take a judge of a longer context"
                )

    def _fill_in(self, question: Question, characters: int) -> str:

        texts = {
            "instruction": question.instruction,
            "output_1": question.first[:characters],
            "output_2": question.second[:characters],
        }
        return re.sub(r"{(instruction|output_1|output_2)}", lambda key: texts[key[1]], self.template)
