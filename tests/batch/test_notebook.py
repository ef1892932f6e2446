from papermill.iorw import papermill_io

from c3po_utils.batch import notebook
from tests.batch import toy


def test_an_executed_copy_is_replaced_in_one_step(tmp_path):
    """A process that was killed while it wrote left half a copy beside a stage that was done."""
    (node,) = toy.toy(tmp_path, {"a": ("", "pass")}).values()
    path = str(node.make().output)
    assert isinstance(papermill_io.get_handler(path), notebook.Whole)
    (tmp_path / "a").mkdir()
    papermill_io.write("before", path)
    held = (tmp_path / "a" / "out.ipynb").open()  # what lies there is not written over
    papermill_io.write("after", path)
    assert held.read() == "before"
    assert (tmp_path / "a" / "out.ipynb").read_text() == "after"
