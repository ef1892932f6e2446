"""papermill, made to refuse wrong parameters before a kernel starts.

papermill loads this module by its entry point `papermill.engine` (see pyproject.toml), and `CheckedEngine` becomes
its default engine. It acts on notebooks whose metadata say `{"c3po": {"checked_parameters": true}}`, as ours do;
any other notebook runs as before.
"""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import ClassVar
from weakref import WeakSet

from click import ClickException
from jupyter_client import AsyncKernelManager
from jupyter_core.paths import jupyter_runtime_dir
from jupyter_core.utils import ensure_dir_exists
from papermill.engines import NBClientEngine, papermill_engines
from traitlets import Unicode

from c3po_utils.runs.check import check_notebook, refuse_secrets
from c3po_utils.runs.forked_kernel import ForkedKernel
from c3po_utils.runs.parameters import ParameterError, resolve


class LocalKernelManager(AsyncKernelManager):
    """Kernels on files instead of TCP ports: parallel starts cannot race for a port, and no one else can listen.

    Each kernel has files of its own; jupyter_client's default is one name for all kernels of a working folder.
    """

    transport = Unicode("ipc")
    started: ClassVar[WeakSet[LocalKernelManager]] = WeakSet()
    ending: ClassVar[bool] = False  # no kernel is to live any more, nor one that is just being started
    waiting: ClassVar[ForkedKernel | None] = None  # it becomes the next kernel, in place of a new process

    async def _async_launch_kernel(self, kernel_cmd: list[str], **kw) -> None:
        cls = type(self)
        kernel, cls.waiting = cls.waiting, None
        if kernel is None:
            await super()._async_launch_kernel(kernel_cmd, **kw)
            return
        self.provisioner.process, self.provisioner.pid, self.provisioner.pgid = kernel, kernel.pid, kernel.pid
        kernel.become(kernel_cmd, kw["env"], kw["cwd"])
        self._reconcile_connection_info(self.provisioner.connection_info)

    async def _async_post_start_kernel(self, **kwargs) -> None:
        self.started.add(self)
        if self.ending:
            self._kill()
        await super()._async_post_start_kernel(**kwargs)

    def _kill(self) -> None:
        process = getattr(self.provisioner, "process", None)
        if process:
            process.kill()

    @classmethod
    def kill_all(cls) -> None:
        """End this process's kernels for good, from any thread; those who wait for them find them dead."""
        cls.ending = True
        for manager in list(cls.started):
            manager._kill()

    def _ip_default(self) -> str:
        ensure_dir_exists(jupyter_runtime_dir(), mode=0o700)
        return os.path.join(jupyter_runtime_dir(), f"kernel-{uuid.uuid4().hex[:12]}-ipc")

    async def _async_interrupt_kernel(self) -> None:
        """Nothing: jupyter_client calls this before a shutdown, and an idle kernel logs the interrupt as an error."""


class Refusal(ParameterError, ClickException):
    """A ParameterError that papermill's command tells in one line, without a traceback."""

    def __init__(self, message: str):
        ClickException.__init__(self, message)


class CheckedEngine(NBClientEngine):
    """papermill's own engine behind a check of the parameters that were passed: nothing is written if it fails."""

    @classmethod
    def execute_notebook(cls, nb, kernel_name, **kwargs):
        if nb.metadata.get("c3po", {}).get("checked_parameters"):
            given = dict(nb.metadata.papermill.get("parameters", {}))
            try:
                refuse_secrets(given)
                check_notebook(Path(nb.metadata.papermill.input_path).name, resolve(nb, given))
            except ParameterError as error:
                raise Refusal(str(error)) from error
            kwargs.setdefault("kernel_manager_class", LocalKernelManager)
        return super().execute_notebook(nb, kernel_name, **kwargs)


papermill_engines.register(None, CheckedEngine)
