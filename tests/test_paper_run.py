"""The paper's run at small size: its settings, methods and comparison, over feedbacks of the library."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from c3po_utils.batch import run_notebooks
from c3po_utils.runs.config import load_config
from c3po_utils.runs.files import read_json

FEEDBACKS = ("forecast_umbrella", "haiku_slashes", "hike_112", "linux_man")
SMALL = (
    "sample.model=smollm2-135m",
    "sample.prompt_model=''",
    "sample.categories=3",
    "sample.prompts_per_category=4",
    "sample.options.max_new_tokens=64",
)


def test_the_papers_run_is_the_library_with_the_papers_settings():
    config = load_config("paper")
    assert config.train["learning_rate"] == 5e-5
    assert config.figures["compare"][0] == "c3po"
    assert set(config.figures["compare"]) <= set(config.methods)


@pytest.mark.slow
@pytest.mark.embedded
@pytest.mark.timeout(1800)
def test_the_papers_run_at_small_size(tmp_path):
    """Everything of it but Mistral-7B, the model that writes prompts, and the sizes; and then its analysis."""
    general = tmp_path / "unified_chip2.jsonl"
    texts = [f"<human>: Name {n} things.\n<bot>: ..." for n in range(12)]
    general.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    run = tmp_path / "run"
    config = load_config("paper", [
        f"run={run}", f"feedbacks={json.dumps(FEEDBACKS)}", "workers=2", *SMALL,
        f"sample.options.general_prompts={general}:text",
    ])  # fmt: skip
    run_notebooks(config)
    table = pd.read_csv(run / "figures" / "table2.csv")
    assert set(table.method) == set(config.methods)
    trained = read_json(run / "train" / FEEDBACKS[0] / "c3po" / "manifest.json")["identity"]["settings"]
    assert (trained["learning_rate"], trained["epochs"]) == (5e-5, 1)
    adapter = read_json(run / "train" / FEEDBACKS[0] / "c3po" / "adapter_config.json")
    assert (adapter["r"], adapter["lora_alpha"], adapter["lora_dropout"]) == (64, 128, 0.05)
    method, *references = config.figures["compare"]
    leads = pd.read_csv(run / "figures" / "leads.csv")
    assert set(leads["method"]) == {method}
    assert list(leads["reference"]) == references
    assert (leads["n"] == len(FEEDBACKS)).all()
