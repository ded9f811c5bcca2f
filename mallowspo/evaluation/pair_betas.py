"""Stage "signals": the beta that an adaptive method, as trained, gives each held-out pair.

Without any dispersion weight, so that the two can be correlated. The policy is the trained one, and what the method
learned or remembers is as the training left it: for Learnable Beta DPO its function of the prompt's hidden state, for
epsilon-DPO the order of the interpolated policies (the reference policy is asked too), for beta-DPO at level instance
the running mean of the log-ratios.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file
from tqdm import tqdm

from mallowspo.errors import InputError
from mallowspo.files import read_parquet, write_parquet
from mallowspo.layout import Layout
from mallowspo.models import load_model, resolve_device, resolve_precision
from mallowspo.objectives import Objective, PairScores
from mallowspo.pair_betas import OBJECTIVE, has_pair_beta, learns_from_the_prompt
from mallowspo.pairs.prepared import open_tokens
from mallowspo.perplexity import prompt_perplexity
from mallowspo.reference import look_up, pair_batch, pair_batches
from mallowspo.scoring import Scorer
from mallowspo.signals import Signals


def run(
    view: Any,
    settings: Any,
    layout: Layout,
    model_folder: Path,
    policy_folder: Path,
    method: str,
    seed: int,
    device: str,
) -> None:
    """Write signals.parquet: pair_id, prompt_id, beta, and of a method that learns from the prompt its two parts.

    learned: f(x), the learned factor; perplexity: c(x), the prompt's log-perplexity under the reference, scaled to mean
    1 on the training pairs; beta = the label's beta times both. NaN for other methods.

    Args:
        view: .model.precision, .reference.tokens_per_batch.
        settings: the label's `MethodSettings`.

    Raises:
        InputError: the method has no beta of each pair, or its training left no state.
    """
    if not has_pair_beta(settings):
        raise InputError(f"'{method}': method {settings.method} has no beta of each pair")
    state = policy_folder / OBJECTIVE
    if not state.is_file():
        raise InputError(f"{state}: no such file; train {method}, seed {seed} again")
    device = resolve_device(device)
    precision = resolve_precision(view.model.precision, device)
    scorer = Scorer(load_model(policy_folder, device), precision)
    objective = Objective(
        settings.method, settings.beta, settings.options, hidden_size=scorer.hidden_size, seed=seed
    ).to(scorer.device)
    objective.load_state_dict(load_file(state, device=str(scorer.device)))
    signals = Signals(objective.row, objective.options, scorer, model_folder)
    pairs = open_tokens(layout.tokens("test"))
    tables = _tables(layout, pairs.pair_ids)
    betas = np.full(len(pairs), np.nan)
    for batch in tqdm(pair_batches(pairs, view.reference.tokens_per_batch), desc="betas of pairs", mininterval=2):
        betas[batch] = _betas(objective, signals, [pairs[index] for index in batch], tables.iloc[batch])
    found = pd.DataFrame({"pair_id": pairs.pair_ids, "beta": betas})
    by_prompt = learns_from_the_prompt(settings)
    known = tables["perplexity"].to_numpy() if by_prompt else np.full(len(pairs), np.nan)
    found = found.assign(learned=betas / (settings.beta * known), perplexity=known)
    prompts = read_parquet(layout.pairs("test"))[["pair_id", "prompt_id"]]
    write_parquet(layout.scores(method, seed) / "signals.parquet", prompts.merge(found, on="pair_id"))


def _tables(layout: Layout, pair_ids: list[str]) -> pd.DataFrame:
    """What the reference says of the held-out pairs; perplexities in the unit of the training."""
    test = look_up(read_parquet(layout.reference("test")), pair_ids, str(layout.reference("test")))
    train = read_parquet(layout.reference("train"))
    return test.assign(perplexity=prompt_perplexity(test, of=train))


@torch.no_grad()
def _betas(objective: Objective, signals: Signals, pairs: list[Any], tables: pd.DataFrame) -> np.ndarray:
    batch = pair_batch(pairs)
    scores = signals.scorer(batch, **signals.wanted)
    device = signals.scorer.device

    def column(name: str) -> torch.Tensor:
        return torch.tensor(tables[name].to_numpy(), dtype=torch.float32, device=device)

    chosen, rejected = scores.logp.chunk(2)
    seen = PairScores(
        chosen_logp=chosen,
        rejected_logp=rejected,
        reference_chosen=column("chosen_logp"),
        reference_rejected=column("rejected_logp"),
        prompt_perplexity=column("perplexity"),
        **signals(batch, scores),
    )
    assert objective.adaptation is not None
    beta = objective.adaptation(seen, objective.beta).beta
    values: np.ndarray = beta.expand(len(pairs)).double().cpu().numpy()
    return values
