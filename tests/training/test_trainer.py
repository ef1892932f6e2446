"""Training itself, on tiny random models: every method, trl's own losses, resuming, adapters that prove themselves."""

from __future__ import annotations

import json
import math
import multiprocessing
import threading
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import modeling_utils
from trl import DPOConfig, DPOTrainer

from c3po_utils.training import finetune, objective, references, trainer
from c3po_utils.training.adapters import load_adapter, lora_config, merged, save_adapter
from c3po_utils.training.finetune import train
from c3po_utils.training.loss import sequence_logps
from c3po_utils.training.methods import METHODS, get_method
from c3po_utils.training.references import with_references
from c3po_utils.training.stage import PROBE, WEIGHTS
from c3po_utils.training.trainer import C3POTrainer, last_valid, mark_complete
from tests.devices import DEVICE
from tests.disk import largest_file
from tests.tiny import tiny_tokenizer
from tests.token_rows import CONFIGS, tiny_model, token_rows

LORA = {"r": 3, "alpha": 6, "dropout": 0.0}
SHORT = {"learning_rate": 1e-2, "per_device_train_batch_size": 4, "save_strategy": "no"}


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


def run(folder, tokenizer, method=None, rows=None, model=None, lora=LORA, **arguments):
    """Train a tiny model; returns the model and the log as numbers."""
    method = method or get_method("c3po")
    rows = token_rows(8, method.segments) if rows is None else rows
    policy, log = train(
        model or tiny_model(), tokenizer, rows, method, folder, lora=lora_config(**lora), **SHORT | arguments
    )
    return policy, [{key: float(value) for key, value in entry.items()} for entry in log]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / WEIGHTS)


@pytest.mark.parametrize("name", [name for name in METHODS if not METHODS[name].start and not METHODS[name].gated])
def test_every_method_trains_on_its_own_terms(tmp_path, tokenizer, name):
    method = METHODS[name]
    _, log = run(tmp_path, tokenizer, method, num_train_epochs=6)
    terms = {key for key in log[0] if key.split("/")[0] in ("sft", "kl", "dpo", "rewards")}
    expected = {f"sft/{segment}" for segment in method.segments if segment != "rejected"}
    expected |= {
        f"kl/{segment}" for segment in ("near_scope", "out_of_scope") if method.kl and segment in method.segments
    }
    if method.preference:
        expected |= {"dpo", *(f"rewards/{kind}" for kind in ("chosen", "rejected", "margins", "accuracies"))}
        assert log[0]["dpo"] == pytest.approx(math.log(2), abs=1e-5)
        assert log[-1]["rewards/margins"] > 0.05
    else:
        assert log[-1]["sft/chosen"] < log[0]["sft/chosen"]
    assert terms == expected
    weighted = [
        method.preference * entry.get("dpo", 0) + method.chosen_sft_weight * entry.get("sft/chosen", 0)
        + sum(weight * ((1 - method.kl) * entry.get(f"sft/{part}", 0) + method.kl * entry.get(f"kl/{part}", 0))
              for part, weight in (("near_scope", method.near_weight), ("out_of_scope", method.out_weight)))
        for entry in log
    ]  # fmt: skip
    assert [entry["loss"] for entry in log] == pytest.approx(weighted, rel=1e-3)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_architecture_trains_and_reloads(tmp_path, tokenizer, name):
    _, log = run(tmp_path, tokenizer, model=tiny_model(name), num_train_epochs=3)
    assert log[0]["dpo"] == pytest.approx(math.log(2), abs=1e-5)
    assert log[-1]["rewards/margins"] > 0.05
    load_adapter(tiny_model(name), tmp_path)


def test_the_passes_of_a_batch_add_up(tmp_path, tokenizer):
    logs = [run(tmp_path / str(n), tokenizer, tokens_per_pass=n, num_train_epochs=2)[1] for n in (10_000, 100, 1)]
    keys = [key for key in logs[0][0] if key.split("/")[0] in ("loss", "dpo", "sft", "rewards", "grad_norm")]
    for other in logs[1:]:
        for key in keys:
            assert [entry[key] for entry in other] == pytest.approx([e[key] for e in logs[0]], rel=2e-3, abs=1e-5), key


@pytest.fixture
def two_cores():
    cores = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(cores)


def test_passes_side_by_side_train_what_passes_in_turn_train(tmp_path, tokenizer, monkeypatch, two_cores):
    threads, ours = set(), objective.objective

    def seen(*args, **kwargs):
        threads.add(threading.get_ident())
        return ours(*args, **kwargs)

    monkeypatch.setattr("c3po_utils.training.trainer.objective", seen)
    arguments = {"tokens_per_pass": 100, "num_train_epochs": 3, "gradient_accumulation_steps": 2}
    rows = token_rows(8, get_method("c3po").segments)
    _, log = run(tmp_path / "beside", tokenizer, rows=rows, **arguments)
    assert threads
    assert threading.get_ident() not in threads
    threads.clear()
    monkeypatch.setattr(C3POTrainer, "_passes_at_once", lambda self: 1)
    _, in_turn = run(tmp_path / "in_turn", tokenizer, rows=rows, **arguments)
    assert threads == {threading.get_ident()}
    assert len(log) == len(in_turn) == 3
    for one, other in zip(log, in_turn, strict=True):
        for key in one.keys() - {"train_runtime"}:
            assert one[key] == pytest.approx(other[key], rel=2e-3, abs=1e-5), key
    mine, theirs = weights(tmp_path / "beside"), weights(tmp_path / "in_turn")
    assert all(torch.allclose(mine[name], theirs[name], rtol=1e-2, atol=1e-4) for name in theirs)


@pytest.mark.parametrize(
    ("change", "expected"),
    [({}, 2), ({"lora": {"dropout": 0.1}}, 1), ({"method": "c3po_kl"}, 1), ({"loss_type": ["hinge"]}, 1)],
)
def test_passes_that_depend_on_a_common_state_run_in_turn(
    tmp_path, tokenizer, monkeypatch, two_cores, change, expected
):
    found, ours = [], C3POTrainer._passes_at_once
    monkeypatch.setattr(C3POTrainer, "_passes_at_once", lambda self: found.append(ours(self)) or found[-1])
    change = change | {"lora": LORA | change.get("lora", {}), "method": get_method(change.get("method", "c3po"))}
    run(tmp_path, tokenizer, **change)
    assert found == [expected]


def test_an_error_in_a_pass_beside_others_is_raised(tmp_path, tokenizer, monkeypatch, two_cores):
    def fail(*_, **__):
        raise RuntimeError("out of luck")

    before = threading.active_count()
    monkeypatch.setattr("c3po_utils.training.trainer.objective", fail)
    with pytest.raises(RuntimeError, match="out of luck"):
        run(tmp_path, tokenizer)
    assert threading.active_count() == before
    assert torch.get_num_threads() == 2


def test_kl_runs_no_pass_of_pi_0_where_its_weight_is_zero(tmp_path, tokenizer, monkeypatch):
    calls = []
    whole = PeftModel.disable_adapter
    monkeypatch.setattr(PeftModel, "disable_adapter", lambda self: calls.append(1) or whole(self))
    run(tmp_path, tokenizer)
    assert not calls
    run(tmp_path, tokenizer, get_method("c3po_kl"))
    assert len(calls) == 2  # one a step


def test_kl_starts_at_zero_and_its_options_matter(tmp_path, tokenizer):
    def after_one_step(**settings) -> float:
        method = get_method("c3po_kl", near_weight=1.0, **settings)
        log = run(tmp_path / str(settings), tokenizer, method, num_train_epochs=3)[1]
        assert log[0]["kl/near_scope"] == pytest.approx(0, abs=1e-6)
        return log[2]["kl/near_scope"]  # the first step only warms up

    found = [
        after_one_step(**s)
        for s in ({}, {"kl_temperature": 3.0}, {"kl_summed": True}, {"kl_squared": True}, {"kl": 0.5})
    ]
    assert all(value > 0 for value in found)
    assert len({round(value, 5) for value in found}) == 5
    assert found[2] > 2 * found[0]  # a sum over about five tokens against their mean


def test_a_gate_is_no_adapter_to_train(tmp_path, tokenizer):
    with pytest.raises(ValueError, match="a gate for 'scd' is no adapter to train"):
        run(tmp_path, tokenizer, METHODS["scd_gated"], rows=token_rows(2))


@pytest.mark.parametrize("name", ["dpo_after_scd", "c3po_after_scd_negatives"])
def test_training_can_start_from_another_adapter(tmp_path, tokenizer, name):
    method = METHODS[name]
    with pytest.raises(ValueError, match="expected both or neither"):
        run(tmp_path, tokenizer, method)
    first = METHODS[method.start]
    rows = token_rows(8)
    run(tmp_path / "first", tokenizer, first, rows=[_of(row, first.segments) for row in rows], num_train_epochs=4)
    start = load_adapter(tiny_model(), tmp_path / "first")
    _, log = run(
        tmp_path / "second", tokenizer, method, rows=[_of(row, method.segments) for row in rows],
        start=tmp_path / "first", per_device_train_batch_size=8, num_train_epochs=2,
    )  # fmt: skip
    # The rewards of the first step are those of the starting adapter against pi_0.
    scored = with_references(tiny_model(), rows)
    batch = objective.collate([_of(row, ("chosen", "rejected")) for row in rows])[0].to(DEVICE)
    logps = sequence_logps(objective.completion_logps(start.get_base_model(), batch), batch.sequence_N, 16)
    expected = 0.1 * (logps[:8] - torch.tensor([row["ref_chosen_logps"] for row in scored], device=DEVICE)).mean()
    assert log[0]["rewards/chosen"] == pytest.approx(expected.item(), rel=1e-3)
    assert log[0]["rewards/chosen"] > 0.1
    assert any(
        not torch.equal(a, b)
        for a, b in zip(*(weights(tmp_path / f).values() for f in ("first", "second")), strict=True)
    )


def test_a_checkpoint_that_started_from_another_adapter_is_another_training(tmp_path, tokenizer, monkeypatch):
    found = []

    def stopped(trainer: C3POTrainer, _: PeftModel) -> None:
        found.append(str(trainer.identity))
        raise KeyboardInterrupt

    monkeypatch.setattr(finetune, "_run", stopped)
    for scale in (0.1, 0.1, 0.2):
        policy = get_peft_model(tiny_model(), lora_config(**LORA))
        for key, parameter in policy.named_parameters():
            if "lora_B" in key:
                parameter.data.fill_(scale)
        save_adapter(policy, tmp_path / "first")
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "second", tokenizer, METHODS["dpo_after_scd"], rows=token_rows(2), start=tmp_path / "first")
    assert found[0] == found[1] != found[2]


def _of(row: dict, segments) -> dict:
    return {key: value for key, value in row.items() if key == "id" or key.split("_")[0] in segments}


class StockTrainer(DPOTrainer):
    """trl's trainer as it is, on rows that are token ids already."""

    def _prepare_dataset(self, dataset, *_):
        return dataset


def first_step(trainer: type, start) -> tuple[float, torch.Tensor]:
    """Loss and adapter gradient of the first step of the training that `start` starts, from an adapter not zero."""
    kept, step = [], trainer.training_step

    def once(self, model, inputs, *args):
        torch.manual_seed(7)
        adapter = [p for name, p in sorted(model.named_parameters()) if ".default." in name]
        for parameter in adapter:  # drawn on the CPU: the same on every device
            parameter.data = torch.randn(parameter.shape).mul_(0.2).to(parameter)
        loss = step(self, model, inputs, *args)
        kept.append((loss.item(), torch.cat([p.grad.flatten() for p in adapter])))
        return loss

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "training_step", once)
        start()
    return kept[0]


def trl_step(tmp_path, tokenizer, rows, **arguments) -> tuple[float, torch.Tensor]:
    columns = {"prompt_ids": "chosen_prompt_ids", "chosen_ids": "chosen_ids", "rejected_ids": "rejected_ids"}
    data = Dataset.from_list([{name: row[column] for name, column in columns.items()} for row in rows])
    config = DPOConfig(
        str(tmp_path), per_device_train_batch_size=len(rows), report_to="none", bf16=False, max_steps=1,
        use_cpu=DEVICE == "cpu",
        gradient_checkpointing=False, save_strategy="no", disable_tqdm=True, **arguments,
    )  # fmt: skip
    trainer = StockTrainer(
        tiny_model(), args=config, train_dataset=data, processing_class=tokenizer, peft_config=lora_config(**LORA)
    )
    return first_step(StockTrainer, trainer.train)


OTHER_LOSSES = {
    "ipo": {}, "hinge": {}, "robust": {"label_smoothing": 0.1}, "exo_pair": {"label_smoothing": 1e-3}, "nca_pair": {},
    "bco_pair": {}, "sppo_hard": {}, "aot": {}, "aot_unpaired": {}, "apo_zero": {}, "apo_down": {}, "discopop": {},
    "sigmoid_norm": {}, "sft": {},
}  # fmt: skip


@pytest.mark.parametrize(
    "arguments",
    [{}, *({"loss_type": name} | more for name, more in OTHER_LOSSES.items()),
     {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.3]},
     {"f_divergence_type": "js_divergence"}],
    ids=str,
)  # fmt: skip
def test_losses_and_gradients_equal_trls_own_trainer(tmp_path, tokenizer, arguments):
    rows = token_rows(4, ("chosen", "rejected"))
    theirs = trl_step(tmp_path / "trl", tokenizer, rows, **arguments)
    whole = {"rows": rows, "per_device_train_batch_size": len(rows), "tokens_per_pass": 40}
    dpo = get_method("dpo")
    ours = first_step(C3POTrainer, lambda: run(tmp_path / "ours", tokenizer, dpo, **whole, **arguments))
    tolerance = 1e-4 if arguments.get("loss_type") == "discopop" else 1e-5  # it magnifies rounding twentyfold
    assert ours[0] == pytest.approx(theirs[0], rel=tolerance)
    assert (ours[1] - theirs[1]).norm() <= tolerance * theirs[1].norm()


@pytest.mark.parametrize(
    ("argument", "message"),
    [({"beta": 0.2}, "among the method's settings"), ({"use_weighting": True}, "need all logits"),
     ({"ld_alpha": 0.5}, "of single tokens"), ({"max_length": 9}, "data.training_rows"),
     ({"warmup_step": 1}, "did you mean 'warmup_steps'"), ({"loss_type": "no_such"}, "no_such")],
)  # fmt: skip
def test_training_arguments_that_cannot_be_meant_are_errors(tmp_path, tokenizer, argument, message):
    with pytest.raises(ValueError, match=message):
        run(tmp_path, tokenizer, get_method("dpo"), **argument)


def test_a_variant_is_its_method_under_a_name_of_its_own():
    assert get_method("c3po@beta=0.02", beta=0.02) == get_method("c3po", beta=0.02) != get_method("c3po")
    with pytest.raises(KeyError, match=r"unknown method 'c3p@beta=0.02'.*did you mean 'c3po'"):
        get_method("c3p@beta=0.02")


@pytest.mark.parametrize(
    ("name", "settings", "equation"),
    [
        ("c3po", {}, r"L = L_\text{DPO}(D_\text{in};\,\beta=0.1) + 0.2\,L_\text{SFT}(D_\text{out}) "
         r"+ 0.1\,L_\text{SFT}(D_\text{near})"),
        ("scd", {}, r"L = L_\text{SFT}(D_\text{in}, y^+)"),
        ("c3po_kl", {"out_weight": 0.0}, r"L = L_\text{DPO}(D_\text{in};\,\beta=0.1) "
         r"+ 0.1\,\text{KL}(\pi_0\,\|\,\pi;\,D_\text{near})"),
        ("scd", {"near_weight": 0.1, "kl": 1.0, "kl_summed": True, "kl_squared": True},
         r"L = L_\text{SFT}(D_\text{in}, y^+) + 0.1\,\textstyle\sum_t\text{KL}^2(\pi_0\,\|\,\pi;\,D_\text{near})"),
        ("scd", {"near_weight": 1.0, "kl": 0.25}, r"L = L_\text{SFT}(D_\text{in}, y^+) + \big(0.75\,"
         r"L_\text{SFT}(D_\text{near}) + 0.25\,\text{KL}(\pi_0\,\|\,\pi;\,D_\text{near})\big)"),
    ],
)  # fmt: skip
def test_an_objective_writes_its_equation(name, settings, equation):
    assert get_method(name, **settings).equation == equation


def test_unknown_methods_and_settings_are_named_with_the_nearest_valid_one():
    with pytest.raises(KeyError, match="did you mean 'c3po_kl'"):
        get_method("c3po_lk")
    with pytest.raises(KeyError, match=r"unknown setting 'near_wieght'.*did you mean 'near_weight'"):
        get_method("c3po", near_wieght=1.0)
    with pytest.raises(ValueError, match=r"'beta': expected a valid number, found '0\.1'"):
        get_method("c3po", beta="0.1")
    with pytest.raises(ValueError, match="'beta': expected a valid number, found True"):
        get_method("c3po", beta=True)
    with pytest.raises(ValueError, match=r"'kl': expected a number less than or equal to 1, found 1\.5"):
        get_method("c3po_kl", kl=1.5)


def test_dropout_is_active_in_training_and_off_afterwards(tmp_path, tokenizer):
    adapters = []
    for name, dropout in (("a", 0.0), ("b", 0.4), ("c", 0.4)):
        policy, _ = run(tmp_path / name, tokenizer, lora=LORA | {"dropout": dropout})
        adapters.append(weights(tmp_path / name))
        assert not policy.training
        load_adapter(tiny_model(), tmp_path / name)
    none, some, again = (torch.cat([t.flatten() for t in adapter.values()]) for adapter in adapters)
    assert torch.equal(some, again)  # the same seed
    assert not torch.allclose(none, some, rtol=0.05)


def test_bfloat16_models_train_in_bfloat16_with_float32_adapters(tmp_path, tokenizer):
    policy, log = run(tmp_path, tokenizer, model=tiny_model(dtype=torch.bfloat16), num_train_epochs=6)
    assert {p.dtype for n, p in policy.named_parameters() if "lora_" not in n} == {torch.bfloat16}
    assert {t.dtype for t in weights(tmp_path).values()} == {torch.float32}
    assert log[0]["dpo"] == pytest.approx(math.log(2), abs=1e-4)  # the references' arithmetic is the training's
    assert log[-1]["rewards/margins"] > 0.05


@pytest.mark.parametrize("argument", ["gradient_checkpointing", "activation_checkpointing"])
def test_checkpointing_of_activations_trains_the_same_adapter(tmp_path, tokenizer, argument, monkeypatch):
    found, recomputed = [], []
    whole = modeling_utils.checkpoint
    monkeypatch.setattr(modeling_utils, "checkpoint", lambda *a, **k: recomputed.append(1) or whole(*a, **k))
    for name, on in (("a", False), ("b", True)):
        assert not recomputed
        run(tmp_path / name, tokenizer, **{argument: on})
        found.append(torch.cat([t.flatten() for t in weights(tmp_path / name).values()]))
    assert torch.allclose(*found, atol=1e-6)
    assert recomputed


def test_mixed_precision_on_a_float32_model_trains(tmp_path, tokenizer):
    _, log = run(tmp_path, tokenizer, bf16=True, num_train_epochs=6)
    assert log[0]["dpo"] == pytest.approx(math.log(2), abs=0.05)
    assert log[-1]["rewards/margins"] > 0.05


# References


def test_references_equal_those_of_transformers_own_forward():
    rows = with_references(tiny_model(), token_rows(5))
    for row in rows:
        for name in ("chosen", "rejected"):
            prompt, completion = row[f"{name}_prompt_ids"], row[f"{name}_ids"]
            logits = tiny_model()(torch.tensor([prompt + completion], device=DEVICE)).logits[0, len(prompt) - 1 : -1]
            expected = logits.log_softmax(-1)[range(len(completion)), completion].sum()
            assert row[f"ref_{name}_logps"] == pytest.approx(expected.item(), rel=1e-5)


def test_references_are_kept_by_content(tmp_path, monkeypatch):
    rows, computed = token_rows(5), []
    whole = references._compute
    monkeypatch.setattr(references, "_compute", lambda m, rows: computed.append(len(rows)) or whole(m, rows))
    first = with_references(tiny_model(), rows, tmp_path)
    renamed = [row | {"id": "other"} for row in reversed(rows)]
    again = with_references(tiny_model(), renamed, tmp_path)
    assert [row["ref_chosen_logps"] for row in again] == [row["ref_chosen_logps"] for row in reversed(first)]
    assert computed == [5]
    changed = [rows[0] | {"chosen_ids": [*rows[0]["chosen_ids"][:-1], 9, 2]}, *rows[1:]]
    with_references(tiny_model(), changed, tmp_path)  # one answer differs
    with_references(tiny_model(tie_word_embeddings=True), rows, tmp_path)  # other weights
    assert computed == [5, 1, 5]
    assert len(list(tmp_path.glob("logps-*.json"))) == 2


@pytest.mark.parametrize("content", ["", '{"a1": -3.', "[]", '{"a1": "much", "a2": NaN}'])
def test_a_damaged_file_of_references_is_named_and_made_anew(tmp_path, content):
    rows = token_rows(3)
    first = with_references(tiny_model(), rows, tmp_path)
    (path,) = tmp_path.glob("logps-*.json")
    whole = path.read_text()
    path.write_text(content)
    with pytest.warns(UserWarning, match=r"logps-.*made anew") if "a2" not in content else nullcontext():
        assert with_references(tiny_model(), rows, tmp_path) == first
    assert json.loads(path.read_text()) == json.loads(whole)


def test_a_changed_digit_in_a_file_of_references_is_noticed(tmp_path):
    rows = token_rows(3)
    first = with_references(tiny_model(), rows, tmp_path)
    (path,) = tmp_path.glob("logps-*.json")
    whole = json.loads(path.read_text())
    changed = {key: value + 1 if isinstance(value, float) else value for key, value in whole.items()}
    path.write_text(json.dumps(changed))
    with pytest.warns(UserWarning, match=r"logps-.*damaged: .*made anew"):
        assert with_references(tiny_model(), rows, tmp_path) == first
    assert json.loads(path.read_text()) == whole
    path.write_text(json.dumps({key: value for key, value in changed.items() if key != references.HASH}))
    assert with_references(tiny_model(), rows, tmp_path) != first, "files from before they held a hash stay valid"


def test_a_model_with_an_adapter_has_the_identity_of_its_base(tmp_path, tokenizer):
    policy, _ = run(tmp_path, tokenizer)
    assert references.model_identity(policy.get_base_model()) == references.model_identity(tiny_model())


# Adapters


@pytest.fixture(scope="module")
def adapter(tmp_path_factory, tokenizer) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    run(folder, tokenizer, num_train_epochs=2)
    return folder


@pytest.fixture
def copied(adapter, tmp_path) -> Path:
    for file in adapter.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def test_a_folder_holds_the_adapter_and_nothing_of_the_training(adapter):
    assert {path.name for path in adapter.iterdir()} == {"adapter_config.json", WEIGHTS, PROBE, "log.json"}
    assert not any(".ref" in name for name in weights(adapter))


def test_adapters_in_turn_are_merged_and_leave_the_model_as_it_was(adapter):
    model, ids = tiny_model().to(torch.bfloat16), torch.arange(5, 25, device=DEVICE)[None]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        wanted = load_adapter(tiny_model().to(torch.bfloat16), adapter).merge_and_unload()(ids).logits
        untouched = model(ids).logits
        for _ in range(2):
            with merged(model, adapter) as tuned:
                assert torch.equal(tuned(ids).logits, wanted)
                assert not torch.equal(wanted, untouched)
    assert {name: value.dtype for name, value in model.state_dict().items()} == {n: v.dtype for n, v in before.items()}
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())


def test_a_renamed_or_missing_tensor_is_an_error(copied):
    tensors = weights(copied)
    name = next(iter(tensors))
    save_file({k: v for k, v in tensors.items() if k != name}, copied / WEIGHTS)
    with pytest.raises(RuntimeError, match=r"do not match the model; missing \['base_model.*unknown \[\]"):
        load_adapter(tiny_model(), copied)
    save_file({k.replace("q_proj", "query"): v for k, v in tensors.items()}, copied / WEIGHTS)
    with pytest.raises(RuntimeError, match=r"do not match the model; missing .*unknown .*query"):
        load_adapter(tiny_model(), copied)


@pytest.mark.parametrize("spoil", ["base", "weights"])
def test_another_base_model_or_damaged_weights_are_an_error(copied, spoil):
    model = (
        tiny_model("llama", rope_parameters={"rope_type": "default", "rope_theta": 10.0})
        if spoil == "base"
        else tiny_model()
    )
    if spoil == "weights":
        save_file({k: v.roll(1, 0).contiguous() for k, v in weights(copied).items()}, copied / WEIGHTS)
    with pytest.raises(RuntimeError, match="does not give the logits it gave after training"):
        load_adapter(model, copied)


# Resuming


def victim(folder: Path, steps: Path) -> None:
    """A training of 12 steps with a checkpoint every second step, which counts its steps in a file."""
    torch.set_num_threads(1)
    step = C3POTrainer.training_step

    def counted(*args):
        with steps.open("a") as file:
            file.write("x")
        return step(*args)

    C3POTrainer.training_step = counted
    lora = LORA | {"dropout": 0.1}
    run(folder, tiny_tokenizer(), lora=lora, num_train_epochs=6, save_strategy="steps", save_steps=2)


@pytest.fixture(scope="module")
def processes():
    """Processes of their own, forked from one that has imported everything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.training.test_trainer"])
    return context


def wait_for(condition, process) -> None:
    while not condition():
        assert process.exitcode is None, "the training ended before it could be killed"
        time.sleep(0.002)


def test_killed_trainings_continue_bit_for_bit_from_the_last_valid_checkpoint(tmp_path, processes):
    """Killed twice: after a whole checkpoint, and while a checkpoint is written; then the newest one is spoiled."""
    undisturbed, killed, steps = tmp_path / "undisturbed", tmp_path / "killed", tmp_path / "steps"
    whole = processes.Process(target=victim, args=(undisturbed, tmp_path / "all"))
    whole.start()
    for moment in ("checkpoint-4/complete.json", "checkpoint-8/adapter_model.safetensors"):
        process = processes.Process(target=victim, args=(killed, steps))
        process.start()
        wait_for((killed / "checkpoints" / moment).exists, process)
        process.kill()
        process.join()
        assert not (killed / "log.json").exists()
    newest = max(int(path.name[11:]) for path in (killed / "checkpoints").glob("checkpoint-*"))
    (killed / "checkpoints" / f"checkpoint-{newest}" / "optimizer.pt").write_bytes(b"half")
    steps.unlink()
    last = processes.Process(target=victim, args=(killed, steps))
    last.start()
    last.join()
    whole.join()
    assert (last.exitcode, whole.exitcode) == (0, 0)
    assert len(steps.read_text()) == 12 - (newest - 2)
    for name in (WEIGHTS, PROBE):
        assert (killed / name).read_bytes() == (undisturbed / name).read_bytes()
    logs = [json.loads((folder / "log.json").read_text()) for folder in (undisturbed, killed)]
    assert [entry["loss"] for entry in logs[0]] == [entry["loss"] for entry in logs[1]]
    assert len(logs[1]) == 12
    assert not (killed / "checkpoints").exists()


def test_only_whole_checkpoints_of_the_same_training_are_valid(tmp_path):
    for step in (2, 10, 4):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "weights").write_text(str(step))
        trainer.mark_complete(tmp_path / f"checkpoint-{step}", {"seed": 0})
    assert trainer.last_valid(tmp_path, {"seed": 0}).name == "checkpoint-10"
    assert trainer.last_valid(tmp_path, {"seed": 1}) is None
    (tmp_path / "checkpoint-10" / "weights").write_text("1")  # another size or content
    assert trainer.last_valid(tmp_path, {"seed": 0}).name == "checkpoint-4"
    (tmp_path / "checkpoint-4" / "complete.json").write_text('{"identity": ')
    with pytest.warns(UserWarning, match=r"checkpoint-4/complete\.json: expected JSON"):
        assert trainer.last_valid(tmp_path, {"seed": 0}).name == "checkpoint-2"
    (tmp_path / "checkpoint-4" / "complete.json").unlink()
    (tmp_path / "checkpoint-2" / "stray").write_text("")
    assert trainer.last_valid(tmp_path, {"seed": 0}) is None
    assert trainer.last_valid(tmp_path / "nowhere", {}) is None


@pytest.mark.parametrize("full_at", ["checkpoint-4", WEIGHTS])
def test_a_full_disk_is_named_and_the_next_training_goes_on(tmp_path, tokenizer, monkeypatch, full_at):
    steps, step = [], C3POTrainer.training_step
    monkeypatch.setattr(C3POTrainer, "training_step", lambda *args: steps.append(1) or step(*args))
    saving = {"num_train_epochs": 3, "save_strategy": "steps", "save_steps": 2}
    with monkeypatch.context() as patch:
        patch.setattr(*_filled(full_at))
        with pytest.raises(OSError, match=rf"File too large: .*{full_at}'$"):
            run(tmp_path, tokenizer, **saving)
    kept = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert kept == ({"checkpoint-2"} if full_at == "checkpoint-4" else {"checkpoint-4", "checkpoint-6"})
    assert not (tmp_path / WEIGHTS).exists()
    steps.clear()
    run(tmp_path, tokenizer, **saving)
    assert len(steps) == (4 if full_at == "checkpoint-4" else 0)
    load_adapter(tiny_model(), tmp_path)


def _filled(name: str):
    """What to patch so that no file can grow beyond some bytes while a checkpoint, or the adapter, is written."""
    owner = C3POTrainer if "checkpoint" in name else finetune
    method = "_save_checkpoint" if "checkpoint" in name else "save_adapter"
    whole = getattr(owner, method)

    def limited(one, *args):
        full = method == "save_adapter" or one.state.global_step == 4
        with largest_file(5000) if full else nullcontext():
            return whole(one, *args)

    return owner, method, limited


def test_a_checkpoint_that_was_removed_at_once_is_none(tmp_path):
    mark_complete(tmp_path / "checkpoint-2", {"seed": 0})
    assert last_valid(tmp_path, {"seed": 0}) is None
    (tmp_path / "checkpoint-3").mkdir()
    mark_complete(tmp_path / "checkpoint-3", {"seed": 0})
    assert last_valid(tmp_path, {"seed": 0}) is None


def test_changed_settings_do_not_continue_an_old_training(tmp_path, tokenizer, monkeypatch):
    saving = {"save_strategy": "steps", "save_steps": 1}
    with monkeypatch.context() as patch:
        patch.setattr("c3po_utils.training.finetune.shutil.rmtree", lambda *_, **__: None)
        run(tmp_path, tokenizer, **saving)
    assert len(list((tmp_path / "checkpoints").glob("*/complete.json"))) == 2
    _, log = run(tmp_path, tokenizer, **saving, learning_rate=1e-3)
    _, fresh = run(tmp_path / "fresh", tokenizer, learning_rate=1e-3)
    assert [entry["loss"] for entry in log] == [entry["loss"] for entry in fresh]


def _references(folder: Path, rows: list[dict], log: Path) -> None:
    torch.set_num_threads(1)
    whole = references._compute

    def seen(model, missing):
        with log.open("a") as file:
            file.write("".join(f"{row['id']}\n" for row in missing))
        return whole(model, missing)

    references._compute = seen
    with_references(tiny_model(), rows, folder)


def test_processes_that_want_the_same_references_at_once_compute_them_once(tmp_path, processes):
    """As the trainings of one feedback's methods do, which start together; other rows do not wait."""
    rows, log = token_rows(6), tmp_path / "log"
    wanted = (rows[:4], rows[:4][::-1], rows[1:3], rows[4:])
    started = [processes.Process(target=_references, args=(tmp_path, part, log)) for part in wanted]
    for process in started:
        process.start()
    for process in started:
        process.join()
    assert [process.exitcode for process in started] == [0] * 4
    assert sorted(log.read_text().split()) == sorted(row["id"] for row in rows)
    (path,) = tmp_path.glob("logps-*.json")
    assert len(json.loads(path.read_text())) == 2 * len(rows) + 1, "nobody's numbers are lost"
