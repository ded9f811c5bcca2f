"""One point of `bench scaling`: rows of one length under a small random model, forward and backward."""

from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from mallowspo.bench.clock import Moment, peak_memory
from mallowspo.bench.plain import token_logps
from mallowspo.packing import Row, make_batch
from mallowspo.scoring import Scorer

#: Tokens of each prompt; all others are scored.
PROMPT = 8
#: Times that are taken; the median counts.
TIMES = 3


def measure(spec: dict[str, Any]) -> dict[str, Any]:
    """Seconds of one forward and backward, and the bytes that it adds to those of the process.

    Args:
        spec: side ("ours", "ours, nothing kept" or "plain"), length, vocabulary, rows, device.
    """
    device, vocabulary = spec["device"], spec["vocabulary"]
    model = _model(vocabulary, spec["length"]).to(device)
    rows = [_row(spec["length"], vocabulary, seed) for seed in range(spec["rows"])]
    once = _plain(model, rows, device) if spec["side"] == "plain" else _ours(model, rows, spec["side"])
    _ours_of_little(model)  # the libraries' own buffers
    before = _begin_peak(device)
    once()
    added = peak_memory(device) - before
    return {"seconds": median(_seconds(once) for _ in range(TIMES)), "added_bytes": max(0, added)}


def _model(vocabulary: int, length: int) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=length,
        tie_word_embeddings=True,
    )
    return AutoModelForCausalLM.from_config(config)


def _row(length: int, vocabulary: int, seed: int) -> Row:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(vocabulary, (length,), generator=generator).tolist()
    return Row(tokens[:PROMPT], tokens[PROMPT:])


def _ours(model: Any, rows: list[Row], side: str) -> Callable[[], None]:
    scorer, batch = Scorer(model, "float32"), make_batch(rows)
    if side == "ours, nothing kept":
        scorer.softmax_kept = 0
    return lambda: scorer(batch).logp.sum().backward()


def _ours_of_little(model: Any) -> None:
    model(input_ids=torch.arange(8, device=model.device)[None]).logits.sum().backward()


def _plain(model: Any, rows: list[Row], device: str) -> Callable[[], None]:
    tokens = torch.tensor([[*row.prompt, *row.response] for row in rows], device=device)

    def once() -> None:
        logps = token_logps(model(input_ids=tokens, use_cache=False).logits, tokens)
        logps[:, PROMPT - 1 :].sum().backward()

    return once


def _begin_peak(device: str) -> int:
    """Bytes now in use; the high-water mark starts from here where the system allows it."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return int(torch.cuda.memory_allocated())
    reset = Path("/proc/self/clear_refs")
    if reset.exists():
        reset.write_text("5")
    return peak_memory(device)


def _seconds(once: Callable[[], None]) -> float:
    started = Moment.now()
    once()
    return Moment.now().since(started)["wall_seconds"]
