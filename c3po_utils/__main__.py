from c3po_utils.cli import c3po

c3po()
