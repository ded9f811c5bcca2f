"""What of a model its cost depends on: read from its config.json, or from a short list of well-known models."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mallowspo.errors import InputError
from mallowspo.files import read_json


@dataclass(frozen=True)
class Shape:
    """The sizes of a decoder-only transformer. Biases and norms, under 0.3 % of it, are not counted."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    key_value_heads: int
    head_size: int
    vocabulary: int
    gated: bool = True  # the feed-forward part has three matrices (Llama), not two (GPT)
    tied: bool = False  # one matrix is both embedding and output head
    fused: bool = True  # if gated: its layers are of a kind that `mallowspo.fused_layer` computes on a CPU

    @property
    def attention_width(self) -> int:
        return self.heads * self.head_size

    @property
    def body(self) -> int:
        """Parameters of the layers' matrices: those that every token is multiplied with."""
        attention = 2 * self.hidden * (self.heads + self.key_value_heads) * self.head_size
        return self.layers * (attention + (3 if self.gated else 2) * self.hidden * self.intermediate)

    @property
    def head(self) -> int:
        """Parameters of the output head."""
        return self.hidden * self.vocabulary

    @property
    def parameters(self) -> int:
        return self.body + self.head * (1 if self.tied else 2)


#: Names that a model's source may contain; the longest that it does contain counts.
KNOWN = {
    "two_layers": Shape(2, 64, 128, 4, 2, 16, 259, tied=True),  # made up, for tests
    "SmolLM2-135M": Shape(30, 576, 1536, 9, 3, 64, 49152, tied=True),
    "SmolLM2-360M": Shape(32, 960, 2560, 15, 5, 64, 49152, tied=True),
    "SmolLM2-1.7B": Shape(24, 2048, 8192, 32, 32, 64, 49152, tied=True),
    "gpt2-large": Shape(36, 1280, 5120, 20, 20, 64, 50257, gated=False, tied=True),
    "pythia-2.8b": Shape(32, 2560, 10240, 32, 32, 80, 50304, gated=False),
    "Llama-3-8B": Shape(32, 4096, 14336, 32, 8, 128, 128256),
    "Llama-3.1-8B": Shape(32, 4096, 14336, 32, 8, 128, 128256),
}

#: `model_type` of models whose feed-forward part has two matrices.
_NOT_GATED = {"gpt2", "gpt_neo", "gpt_neox", "gptj", "gpt_bigcode", "opt", "bloom", "phi", "falcon"}
#: `model_type` of models whose layers are `mallowspo.fused_layer.FUSED`.
_FUSED = {"llama", "mistral", "qwen2"}
#: `model_type` of models that tie embedding and head unless their configuration says otherwise.
_TIED = {"gpt2", "gpt_neo", "gpt_bigcode", "opt", "bloom", "falcon", "gemma", "gemma2", "gemma3_text"}
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")


def shape_of(source: str, folders: list[Path]) -> Shape:
    """The shape of a model.

    Args:
        source: as in `model.source`.
        folders: where its config.json may lie; those that are not there are passed over.

    Raises:
        InputError: it lies nowhere and the model is not well known.
    """
    for folder in folders:
        if (folder / "config.json").exists():
            return from_config(read_json(folder / "config.json"), str(folder / "config.json"))
    named = sorted((name for name in KNOWN if name.lower() in source.lower()), key=len)
    if not named:
        raise InputError(
            f"model.source '{source}': its size is not known before it is fetched; run `mallowspo model EXPERIMENT` "
            f"first, or give --model FOLDER with its config.json (well-known: {', '.join(KNOWN)})"
        )
    return KNOWN[named[-1]]


def from_config(config: dict[str, Any], source: str) -> Shape:
    """The shape that a config.json in the Hugging Face layout says.

    Raises:
        InputError: a size is missing, or the model is a mixture of experts.
    """
    config = config.get("text_config", config)
    kind = config.get("model_type", "")
    if any(config.get(name) for name in _EXPERTS):
        raise InputError(f"{source}: a mixture of experts, whose cost this plan does not know")

    def size(*names: str) -> int:
        for name in names:
            if config.get(name):
                return int(config[name])
        raise InputError(f"{source}: has none of {', '.join(names)}, which the plan needs")

    hidden, heads = size("hidden_size", "n_embd", "d_model"), size("num_attention_heads", "n_head")
    inner = config.get("intermediate_size") or config.get("n_inner") or config.get("ffn_dim") or 4 * hidden
    return Shape(
        layers=size("num_hidden_layers", "n_layer"),
        hidden=hidden,
        intermediate=int(inner),
        heads=heads,
        key_value_heads=int(config.get("num_key_value_heads") or heads),
        head_size=int(config.get("head_dim") or hidden // heads),
        vocabulary=size("vocab_size"),
        gated=kind not in _NOT_GATED,
        tied=bool(config.get("tie_word_embeddings", kind in _TIED)),
        fused=kind in _FUSED,
    )
