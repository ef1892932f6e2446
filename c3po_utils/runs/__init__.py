"""Runs: when and where. The floor below all rooms; what stands on top of them all is the room `batch`.

In: folders, parameters, a run's YAML. Out: stage folders whose manifest alone says when they are done, files that are
whole or not there, parameters that are checked, and errors that name the nearest valid name.
The command `c3po run RUN.yaml` (cli.py) runs the notebooks.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["documents", "exports", "files", "findings", "once", "parameters", "progress", "stage"],
    submod_attrs={
        "stage": ["BUNDLED", "LEDGER", "Stage", "done_stages", "print_header", "run_folder", "shown"],
        "parameters": ["nearest"],
    },
)
