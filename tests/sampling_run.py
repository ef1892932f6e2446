"""A sampling run in a process of its own, to be killed: `sampling_run.py URL FOLDER CATEGORIES PER_CATEGORY`."""

import sys
from pathlib import Path

from c3po_utils.chat.openai.client import open_model
from c3po_utils.feedback.records import Feedback, load_general_prompts
from c3po_utils.sampling import Sample
from c3po_utils.sampling.deduplicated import Effort
from c3po_utils.sampling.generate_prompts import generate_prompts
from c3po_utils.sampling.settings import SampleSettings

IN_FLIGHT = 8
FEEDBACK = Feedback(
    id="boss_signoff",
    content="End e-mails to my boss with 'Over and out'.",
    domain="e-mails to the user's boss",
    effect="the e-mail ends with 'Over and out'",
    source="human",
    kind="style",
)
EFFORT = Effort(at_once=7)


def main(url: str, folder: str, categories: str, per_category: str) -> None:
    model = open_model(f"openai:m@{url}", Path(folder) / "calls.sqlite", max_in_flight=IN_FLIGHT, backoff_s=0.01)
    counts = {"categories": int(categories), "prompts_per_category": int(per_category)}
    settings = SampleSettings("m", strategy="revise", best_of=1, completion_model=model.name, **counts)
    prompt_set, _ = generate_prompts(
        FEEDBACK, model, categories=int(categories), per_category=int(per_category), effort=EFFORT, progress=True
    )
    given = [*prompt_set.prompts, *load_general_prompts()]
    Sample(Path(folder), FEEDBACK, settings, given, {"max_in_flight": IN_FLIGHT, "backoff_s": 0.01}).fill()


if __name__ == "__main__":
    main(*sys.argv[1:])
