"""Features kept on disk: the same bits, no second encoding, no encoder where it is not needed."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
import torch

from mdmkit import torchvision_ops
from mdmkit.errors import WrongInput
from mdmkit.text import CachedEncoder, HFEncoder, T5Encoder, pretrained
from mdmkit.text.loading import fingerprint
from mdmkit.text.store import FeatureStore

torchvision_ops.declare()
transformers = pytest.importorskip("transformers")

from tests.text.test_pretrained import CAPTIONS, TINY, save_tokenizer  # noqa: E402


def save_t5(folder: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    model = transformers.T5EncoderModel(transformers.T5Config(vocab_size=48, **TINY))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_t5(tmp_path_factory.mktemp("t5"))


def encoder(folder: Path, cache: Path | None, **more: Any) -> T5Encoder:
    kept = None if cache is None else str(cache)
    return T5Encoder(**{"model": str(folder), "width": 16, "max_tokens": 64, "cache": kept} | more)


def files(cache: Path) -> list[Path]:
    return sorted(path for path in cache.rglob("*") if path.is_file())


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is loaded."""
    seen: list[str] = []
    load = pretrained.load

    def watch(model: str, **given: Any) -> Any:
        seen.append(model)
        return load(model, **given)

    monkeypatch.setattr(pretrained, "load", watch)
    return seen


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("pad", ["batch", "exact", "max"])
def test_features_are_those_of_a_caption_alone_bit_for_bit(
    t5: Path, tmp_path: Path, precision: str, pad: str
) -> None:
    """First encoded, read back, in any batch, by another object; and as without the cache."""
    how = {"precision": precision, "pad": pad}
    plain = encoder(t5, None, **how)
    first = encoder(t5, tmp_path / "cache", **how)
    for encode in (first, first, encoder(t5, tmp_path / "cache", **how)):
        for captions in (CAPTIONS, CAPTIONS[::-1], CAPTIONS[1:2], CAPTIONS[:2] * 2):
            features, mask = encode(captions)
            expected, expected_mask = plain(captions)
            assert mask.equal(expected_mask)
            assert features.dtype == torch.float32
            for row, caption in enumerate(captions):
                alone, alone_mask = plain([caption])
                assert torch.equal(features[row][mask[row]], alone[alone_mask])
                assert not features[row][~mask[row]].any()
            assert features.shape == expected.shape
    assert len(files(tmp_path / "cache")) == len(CAPTIONS)


def test_the_encoder_is_loaded_for_new_captions_only(t5: Path, tmp_path: Path, loads: list[str]) -> None:
    encode = encoder(t5, tmp_path / "cache")
    assert not loads
    encode(["a star"])
    encode(["a star", "a ring"])
    assert loads == [str(t5)]
    again = encoder(t5, tmp_path / "cache")
    again(["a ring", "a star"])
    assert loads == [str(t5)]
    again(["a circle"])
    assert loads == [str(t5)] * 2


def test_cut_captions_are_counted_from_the_cache_too(t5: Path, tmp_path: Path, loads: list[str]) -> None:
    for _ in range(2):
        encode = encoder(t5, tmp_path / "cache", max_tokens=4)
        encode(["a small red star left of", "a", "a small red star left of"])
        encode(["a small red star left of"])
        assert encode.truncated == 3
    assert len(loads) == 1


def test_what_changes_features_has_a_place_of_its_own(t5: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    other = save_t5(tmp_path / "other", seed=1)
    moved = Path(shutil.copytree(t5, tmp_path / "moved"))
    seen = []
    for folder, more in (
        (t5, {}),
        (t5, {"layer": "penultimate"}),
        (t5, {"precision": "bf16"}),
        (t5, {"max_tokens": 32}),
        (other, {}),
    ):
        features, mask = encoder(folder, cache, **more)(["a star"])
        expected, _ = encoder(folder, None, **more)(["a star"])
        assert torch.equal(features, expected)
        seen.append(features[mask])
    assert len(files(cache)) == 5
    assert not any(torch.equal(a, b) for i, a in enumerate(seen[:3]) for b in seen[:i])
    assert not torch.equal(seen[0], seen[4])
    for folder, more in ((t5, {"pad": "max"}), (moved, {}), (t5, {"dtype": torch.float64})):
        encoder(folder, cache, **more)(["a star"])
    assert len(files(cache)) == 5, "where the folder lies and how features are padded changes none"


def test_a_damaged_file_is_encoded_again_and_said_once(
    t5: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = tmp_path / "cache"
    expected, _ = encoder(t5, cache)(CAPTIONS)
    for path in files(cache):
        path.write_bytes(path.read_bytes()[:-5])
    encode = encoder(t5, cache)
    assert torch.equal(encode(CAPTIONS)[0], expected)
    assert encode._store is not None
    assert encode._store.damaged == len(CAPTIONS)
    assert capsys.readouterr().err.count("cannot be read") == 1
    assert torch.equal(encoder(t5, cache)(CAPTIONS)[0], expected)
    assert not capsys.readouterr().err


def test_a_cache_that_cannot_be_written_is_said_once(
    t5: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    encode = encoder(t5, tmp_path / "file" / "cache")
    expected, _ = encoder(t5, None)(["a", "a star"])
    assert torch.allclose(encode(["a", "a star"])[0], expected, atol=1e-5)
    said = capsys.readouterr().err
    assert said.count("text features cannot be kept here") == 1


def test_two_writers_of_a_caption_leave_one_whole_file(tmp_path: Path) -> None:
    stores = [FeatureStore(tmp_path, "x") for _ in range(2)]
    for _ in range(3):
        for store in stores:
            store.put("a", torch.ones(2, 3), False)
    assert files(tmp_path) == [stores[0].path("a")]
    found = stores[1].get("a")
    assert found is not None
    assert found[0].tolist() == [[1] * 3] * 2
    assert stores[0].get("b") is None
    assert stores[0].damaged == 0


def test_a_stated_width_that_is_wrong_is_refused_from_the_cache_too(t5: Path, tmp_path: Path) -> None:
    encoder(t5, tmp_path / "cache")(["a"])
    with pytest.raises(WrongInput, match=r"its features have width 16; set width = 16 \(it is 17\)"):
        encoder(t5, tmp_path / "cache", width=17)(["a"])


def test_a_hub_model_is_told_by_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert fingerprint("acme/t5", revision=None) is None
    commit = "0123456789" * 4
    assert fingerprint("acme/t5", revision=commit) == f"acme/t5@{commit}"
    snapshot = tmp_path / "models--acme--t5" / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (tmp_path / "models--acme--t5" / "refs").mkdir()
    (tmp_path / "models--acme--t5" / "refs" / "main").write_text(commit)
    assert fingerprint("acme/t5", revision=None) == f"acme/t5@{commit}"
    assert fingerprint("acme/t5", revision="v2") is None


def test_a_folder_is_told_by_what_it_holds(t5: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = Path(shutil.copytree(t5, tmp_path / "copy"))
    assert fingerprint(str(copy), revision=None) == fingerprint(str(t5), revision=None)
    monkeypatch.setattr("mdmkit.text.loading.SMALL", 1000)  # as if these were large
    before = fingerprint(str(copy), revision=None)
    weights = copy / "model.safetensors"
    os.utime(weights, ns=(1, 1))
    assert fingerprint(str(copy), revision=None) != before
    with pytest.raises(WrongInput, match="no such folder"):
        encoder(tmp_path / "none", tmp_path / "cache")


def test_prompts_beside_packed_features_go_through_the_cache(
    t5: Path, tmp_path: Path, loads: list[str]
) -> None:
    encoder(t5, tmp_path / "cache")(["", "a star"])

    def make(**context: Any) -> T5Encoder:
        return encoder(t5, tmp_path / "cache", **context)

    CachedEncoder(width=16, encoder=make)(["a star", ""])
    assert len(loads) == 1


@pytest.mark.parametrize("kind", [T5Encoder, HFEncoder])
def test_an_encoder_in_a_folder_needs_no_network(
    t5: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Any
) -> None:
    """Not even a look whether there is one: nothing is set to be offline here."""
    from huggingface_hub import constants

    asked: list[Any] = []

    def refuse(*given: Any, **_: Any) -> Any:
        asked.append(given)
        raise OSError("no network here")

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    for name in ("create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)
    for cache in (None, str(tmp_path / "cache")):
        kind(model=str(t5), width=16, cache=cache)(CAPTIONS)
    assert not asked
