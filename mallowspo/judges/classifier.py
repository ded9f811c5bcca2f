"""Rewards from sequence-classification models: a reward model's only number, or a chosen label's."""

from collections.abc import Sequence
from typing import Any

import torch

from mallowspo import products
from mallowspo.errors import InputError
from mallowspo.judges.local_model import model_content, model_folder
from mallowspo.judges.names import CLASSIFIER
from mallowspo.model_files import why_not_loaded

#: Answers scored at a time.
BATCH = 16


def read_texts(tokenizer: Any, texts: Sequence[tuple[str, str]], longest: int, **keywords: Any) -> Any:
    """Token ids of (prompt, answer) texts, as the tokenizer gives them; `keywords` are its own, such as padding.

    The text is the chat template's (a user turn and an assistant turn) where the tokenizer has one, else the pair as
    the tokenizer joins it. A text of more than `longest` tokens loses its beginning (of a pair, the longer of the two
    does): the answer's end stays.
    """
    keywords = {"truncation": True, "max_length": longest, **keywords}
    if not tokenizer.chat_template:
        return tokenizer([prompt for prompt, _ in texts], [answer for _, answer in texts], **keywords)
    chats = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}], tokenize=False
        )
        for prompt, answer in texts
    ]
    # The template has written the special tokens.
    return tokenizer(chats, add_special_tokens=False, **keywords)


def last_token_logits(model: Any, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Outputs of a causal model's score head at the last token of each row: (R, labels).

    Args:
        tokens, mask: (R, T), mask 1 for tokens and 0 for padding, which goes by the mask alone: where a tokenizer pads
            with its end token, the model's own forward would take a text's own end for padding.
    """
    hidden = model.base_model(input_ids=tokens, attention_mask=mask, use_cache=False).last_hidden_state
    last = (mask * torch.arange(mask.shape[1], device=mask.device)).argmax(dim=1)
    # In float32 also where the body runs in bfloat16, whose eight bits would round small differences of rewards away.
    with torch.autocast(tokens.device.type, enabled=False):
        logits: torch.Tensor = model.score(hidden[torch.arange(len(last), device=last.device), last].float())
    return logits


class Classifier:
    """Scores (instruction, answer) by one output of a sequence-classification model, in float32.

    The text is that of `read_texts`. A model whose configuration names no pad token is read at the last token by
    length, as those that `mallowspo reward-model` trains; any other as its own forward does.

    Args:
        source: path:FOLDER or hub:ID@REVISION.
        number: "logit" or "probability" of `label`; None for a model with one output.
        label: a name in the model's configuration, or a position.
    """

    def __init__(self, source: str, number: str | None, label: str | None):
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        folder = model_folder(source)
        self.name = f"reward:{source}"
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False, truncation_side="left"
            )
            model, loading = AutoModelForSequenceClassification.from_pretrained(
                folder,
                dtype=torch.float32,
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
        except (OSError, ValueError) as error:
            reason = why_not_loaded(folder, error)
            raise InputError(
                f"judge '{self.name}': no sequence-classification model can be loaded ({reason})"
            ) from None
        # transformers only warns, and judges with random numbers.
        if loading["missing_keys"]:
            raise InputError(
                f"judge '{self.name}': the weights {sorted(loading['missing_keys'])[:3]} are not in {folder}; it is no "
                "sequence-classification model"
            )
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model: Any = model.to(self.device).eval()
        products.use(self.model)
        self.by_length = hasattr(model, "score") and model.config.get_text_config().pad_token_id is None
        self.number, self.column = number, self._column(label)
        self.content = {"files": model_content(folder), "number": number, "column": self.column}

    def __call__(self, prompts: Sequence[str], answers: Sequence[str]) -> list[float]:
        texts = list(zip(prompts, answers, strict=True))
        order = sorted(range(len(texts)), key=lambda row: len(texts[row][0]) + len(texts[row][1]))
        rewards = [0.0] * len(texts)
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            for row, value in zip(rows, self._score([texts[row] for row in rows]), strict=True):
                rewards[row] = value
        return rewards

    @torch.no_grad()
    def _score(self, texts: list[tuple[str, str]]) -> list[float]:
        longest = min(self.tokenizer.model_max_length, self.model.config.max_position_embeddings)
        read = read_texts(self.tokenizer, texts, longest, padding=True, return_tensors="pt").to(self.device)
        if self.by_length:
            logits = last_token_logits(self.model, read["input_ids"], read["attention_mask"]).float()
        else:
            logits = self.model(**read).logits.float()
        if self.number == "probability":
            logits = torch.softmax(logits, dim=-1) if logits.shape[1] > 1 else torch.sigmoid(logits)
        values: list[float] = logits[:, self.column].tolist()
        return values

    def _column(self, label: str | None) -> int:
        names = {str(name): position for position, name in self.model.config.id2label.items()}
        if label is None and len(names) == 1:
            return 0
        if label in names:
            return int(names[label])
        if label is not None and label.isdigit() and int(label) < len(names):
            return int(label)
        raise InputError(
            f"judge '{self.name}': has the labels {', '.join(names)}; say which is the reward, as in "
            f"{self.name}#probability={next(iter(names))} or #logit=..."
        )


def load_classifier(name: str) -> Classifier:
    """The classifier behind `reward:path:FOLDER` or `reward:hub:ID@REVISION`, with `#logit=LABEL` or
    `#probability=LABEL` where the model has several labels."""
    match = CLASSIFIER.match(name)
    if match is None:
        raise InputError(f"judge '{name}': expected reward:path:FOLDER or reward:hub:ID@REVISION")
    return Classifier(match.group(1), match.group("number"), match.group("label"))
