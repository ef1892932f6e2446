"""A sampling run in a process of its own, to be killed: `sampling_run.py URL FOLDER CATEGORIES PER_CATEGORY`."""

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

from c3po_utils.feedback import Feedback
from c3po_utils.openai_chat import open_model
from c3po_utils.propose import propose_prompts
from c3po_utils.topup import Effort

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
    proposal = propose_prompts(
        FEEDBACK, model, categories=int(categories), per_category=int(per_category), effort=EFFORT, progress=True
    )
    text = "".join(json.dumps(asdict(prompt)) + "\n" for prompt in proposal.prompts)
    (Path(folder) / "part").write_text(text)
    os.replace(Path(folder) / "part", Path(folder) / "prompts.jsonl")


if __name__ == "__main__":
    main(*sys.argv[1:])
