"""The other side of `bench reference`: padded rows, the model's own logits, log_softmax over all of them."""

from typing import Any

import torch
from torch import Tensor

from mallowspo.bench.clock import Moment
from mallowspo.files import read_json
from mallowspo.models import load_model


def measure_forward(spec: dict[str, Any]) -> dict[str, Any]:
    """Log-probabilities of all responses, without the time that loading the model took.

    Args:
        spec: model_folder, ids (JSON file of token ids, a row a pair), batch (pairs of one forward), dtype, device.

    Returns:
        wall_seconds, processor_seconds; logps, (chosen, rejected) of each pair, nats.
    """
    device, pairs = spec["device"], read_json(spec["ids"])
    model = load_model(spec["model_folder"], device)
    started = Moment.now()
    logps = []
    for start in range(0, len(pairs), spec["batch"]):
        logps += _batch_logps(model, pairs[start : start + spec["batch"]], spec["dtype"], device)
    return {**Moment.now().since(started), "logps": logps}


@torch.no_grad()
def _batch_logps(model: Any, pairs: list[dict[str, list[int]]], dtype: str, device: str) -> list[list[float]]:
    rows = [pair["prompt_ids"] + pair[f"{side}_ids"] for side in ("chosen", "rejected") for pair in pairs]
    starts = torch.tensor([len(pair["prompt_ids"]) for pair in pairs] * 2, device=device)
    ends = torch.tensor([len(row) for row in rows], device=device)
    tokens = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True).to(device)
    places = torch.arange(tokens.shape[1], device=device)
    with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
        logits = model(input_ids=tokens, attention_mask=(places < ends[:, None]).long(), use_cache=False).logits
    logps = token_logps(logits, tokens) * ((places >= starts[:, None]) & (places < ends[:, None]))[:, 1:]
    chosen, rejected = logps.sum(dim=1).tolist()[: len(pairs)], logps.sum(dim=1).tolist()[len(pairs) :]
    return [list(sides) for sides in zip(chosen, rejected, strict=True)]


def token_logps(logits: Tensor, tokens: Tensor) -> Tensor:
    """(R, T, V), (R, T) to (R, T - 1): of every token but the first, nats; differentiable."""
    law = torch.log_softmax(logits[:, :-1].float(), dim=-1)
    return law.gather(-1, tokens[:, 1:, None])[..., 0]
