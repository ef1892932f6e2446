"""papermill, made to refuse wrong parameters before a kernel starts.

papermill loads this module by its entry point `papermill.engine` (see pyproject.toml), and `CheckedEngine` becomes
its default engine. It acts on notebooks whose metadata say `{"c3po": {"checked_parameters": true}}`, as ours do;
any other notebook runs as before.
"""

from __future__ import annotations

from jupyter_client import AsyncKernelManager
from papermill.engines import NBClientEngine, papermill_engines
from traitlets import Unicode

from c3po_utils.parameters import resolve


class LocalKernelManager(AsyncKernelManager):
    """Kernels on files instead of TCP ports: parallel starts cannot race for a port, and no one else can listen."""

    transport = Unicode("ipc")


class CheckedEngine(NBClientEngine):
    """papermill's own engine behind a check of the parameters that were passed."""

    @classmethod
    def execute_managed_notebook(cls, nb_man, kernel_name, **kwargs):
        notebook = nb_man.nb
        if notebook.metadata.get("c3po", {}).get("checked_parameters"):
            resolve(notebook, dict(notebook.metadata.papermill.get("parameters", {})))
            kwargs.setdefault("kernel_manager_class", LocalKernelManager)
        return super().execute_managed_notebook(nb_man, kernel_name, **kwargs)


papermill_engines.register(None, CheckedEngine)
